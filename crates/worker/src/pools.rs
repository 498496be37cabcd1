//! Which environments want sandboxes kept ready: told to the providers again and again, since they change without this server hearing of it.

use crate::{World, outbound::Origin};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use vaquero_sandbox::{SandboxError, SandboxSpec};
use vaquero_store::{
    Document, DocumentQuery, StoreError,
    document::{SYSTEM, WARM_POOL},
};
use vaquero_types::{
    EnvironmentId, WorkspaceId,
    environment::{Config, DEFAULT_SANDBOX},
};

/// Environments that are read at once.
const PAGE: usize = 100;

/// Keeps at most so many sandboxes ready.
pub(crate) async fn run(world: World, every: Duration, most: u32, stop: CancellationToken) {
    let mut rounds = tokio::time::interval(every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = 0;
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        match wanted(&world).await {
            Ok(mut pools) => {
                let too_many = limit(&mut pools, most);
                if too_many != std::mem::replace(&mut known, too_many) && too_many > 0 {
                    tracing::warn!(
                        too_many,
                        "warm pools want more sandboxes than this server keeps (--sandbox-warm-max)"
                    );
                }
                world.compute.keep_warm(pools);
            }
            Err(error) => tracing::warn!(%error, "warm pools stay as they are"),
        }
    }
}

/// Leaves to the pools what there is, the oldest environment first; how many sandboxes they want beyond that.
fn limit(pools: &mut [SandboxSpec], most: u32) -> u32 {
    let (mut left, mut too_many) = (most, 0_u32);
    for pool in pools.iter_mut().filter_map(|spec| spec.pool.as_mut()) {
        let size = pool.size.min(left);
        too_many = too_many.saturating_add(pool.size - size);
        (pool.size, left) = (size, left - size);
    }
    too_many
}

/// What the next session's sandboxes would be, for each environment that wants some ready.
async fn wanted(world: &World) -> Result<Vec<SandboxSpec>, StoreError> {
    let mut query = DocumentQuery::new(WorkspaceId::from_wire(SYSTEM), WARM_POOL, PAGE);
    let mut pools = Vec::new();
    loop {
        let page = world.store.documents(&query).await?;
        for document in &page.documents {
            match of_environment(world, document).await {
                Ok(found) => pools.extend(found),
                Err(error) => {
                    // It may be for the providers of another server.
                    tracing::debug!(environment = document.id, %error, "its warm pool cannot be filled");
                }
            }
        }
        match page.documents.last() {
            Some(last) if page.more => query.cursor = Some((last.created_at, last.id.clone())),
            _ => return Ok(pools),
        }
    }
}

async fn of_environment(
    world: &World,
    document: &Document,
) -> Result<Vec<SandboxSpec>, SandboxError> {
    let mut origin = Origin {
        workspace: WorkspaceId::from_wire(document.parent.clone().unwrap_or_default()),
        environment: EnvironmentId::from_wire(document.id.clone()),
        mcp_hosts: Vec::new(),
        vaults: Vec::new(),
        sandbox: DEFAULT_SANDBOX.to_owned(),
    };
    let Some(Config::Cloud(cloud)) = origin.config(world).await? else { return Ok(Vec::new()) };
    let named = cloud.sandboxes.iter().map(|sandbox| sandbox.name.clone());
    let mut specs = Vec::new();
    for name in std::iter::once(DEFAULT_SANDBOX.to_owned()).chain(named) {
        origin.sandbox = name;
        let mut spec = SandboxSpec::new(1, 1, world.limits);
        origin.complete(world, &mut spec).await?;
        specs.push(spec);
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vaquero_sandbox::{Limits, WarmPool};

    #[test]
    fn pools_share_what_there_is_the_oldest_first() {
        let spec = |size| {
            let max_age = Duration::from_secs(60);
            let pool = Some(WarmPool { name: format!("env_{size}"), size, max_age });
            SandboxSpec { pool, ..SandboxSpec::new(1, 1, Limits::default()) }
        };
        let sizes = |most| {
            let mut pools = vec![spec(3), spec(4), spec(5)];
            let too_many = limit(&mut pools, most);
            let sizes = pools.iter().filter_map(|spec| Some(spec.pool.as_ref()?.size));
            (sizes.collect::<Vec<_>>(), too_many)
        };
        assert_eq!(sizes(12), (vec![3, 4, 5], 0));
        assert_eq!(sizes(5), (vec![3, 2, 0], 7));
        assert_eq!(sizes(0), (vec![0, 0, 0], 12));
    }
}
