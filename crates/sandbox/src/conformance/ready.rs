//! Sandboxes that are there before anybody wants them.

use std::time::Duration;

use super::{Bench, Outcome, check, spec, told};
use crate::seam::{ComputeProvider, SandboxSpec, WarmPool};

const SIZE: u32 = 2;

fn pool() -> SandboxSpec {
    let max_age = Duration::from_hours(1);
    let pool = WarmPool { name: "env_warm".to_owned(), size: SIZE, max_age };
    SandboxSpec { pool: Some(pool), ..spec() }
}

/// Waits until as many are ready.
async fn full(provider: &dyn ComputeProvider) -> Result<(), String> {
    for _ in 0..600 {
        let pools = provider.pools();
        if pools.iter().any(|pool| pool.ready == 2 && pool.size == SIZE && pool.oldest.is_some()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("they are not ready: {:?}", provider.pools()))
}

pub(super) async fn ready(bench: &Bench<'_>) -> Result<Outcome, String> {
    let provider = bench.provider.as_ref();
    if let Err(refused) = provider.check(&pool()) {
        return Ok(Outcome::Refused(refused.to_string()));
    }
    provider.keep_warm(vec![pool()]);
    full(provider).await?;
    let before = (provider.living().await.map_err(told)?, provider.sessions().await.map_err(told)?);
    let key = bench.key();
    let named = |session: &str| session == key.session || session.starts_with("demand-");
    check(before.0.iter().all(|(key, _)| named(&key.session)), &before)?;
    check(before.1.iter().all(|session| named(session)), &before)?;

    let sandbox = provider.ensure(&key, &pool()).await.map_err(told)?;
    let found = bench.sh(sandbox.as_ref(), "pwd; ls -A; echo mine >file").await?;
    check(found == "/workspace", &found)?;
    let given: Vec<_> = provider.pools().iter().map(|p| (p.given, p.made_anew)).collect();
    check(given == [(1, 0)], &given)?;
    full(provider).await?;
    // From now on it is like any other, whoever asks for it.
    bench.provider.shutdown(true).await;
    let next = (bench.start)(None).await.map_err(told)?;
    let living = next.living().await.map_err(told)?;
    check(living.contains(&(key.clone(), 1)), &living)?;
    let found = next.attach(&key, &spec()).await.map_err(told)?;
    let found = bench.sh(found.ok_or("it is gone")?.as_ref(), "cat file").await?;
    check(found == "mine", &found)?;

    next.keep_warm(vec![pool()]);
    full(next.as_ref()).await?;
    next.keep_warm(Vec::new());
    check(next.pools().is_empty(), next.pools())?;
    next.destroy(&key.session).await.map_err(told)?;
    next.shutdown(false).await;
    Ok(Outcome::Holds)
}
