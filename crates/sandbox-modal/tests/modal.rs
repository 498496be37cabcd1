//! Modal's machines, as the fake offers them: the demands on every provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vaquero_sandbox::conformance::{self, Outcome};
use vaquero_sandbox::remote::RemoteConfig;
use vaquero_sandbox::{ComputeProvider, Fence, SandboxKey};
use vaquero_sandbox_modal::{ModalConfig, start};
use vaquero_testkit::Fake;

fn config(fake: &Fake, dir: &Path) -> (ModalConfig, RemoteConfig) {
    let mut config = ModalConfig::new("ak-test", "as-test");
    config.server_url.clone_from(&fake.base);
    let hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_modal-fixture"));
    (config, RemoteConfig { hand_exe, ..RemoteConfig::new(dir) })
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_do_all_that_is_demanded() {
    let Some(fake) = Fake::start("modal") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (config, remote) = config(&fake, dir.path());
    let findings = conformance::run(
        &|uplink| {
            let (config, remote) = (config.clone(), remote.clone());
            Box::pin(async move {
                Ok(Arc::new(start(config, remote, uplink).await?) as Arc<dyn ComputeProvider>)
            })
        },
        Some("marked"),
        10,
    )
    .await;
    conformance::keep("modal", &findings);
    let (refused, others): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|it| matches!(it.outcome, Outcome::Refused(_)));
    conformance::all_hold(&others);
    let refused: Vec<_> = refused.iter().map(|it| it.demand.as_str()).collect();
    assert_eq!(refused, ["A sandbox is paused, and goes on with the next call"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let Some(fake) = Fake::start("modal") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (good, remote) = config(&fake, dir.path());
    let wrong = |change: fn(&mut ModalConfig)| {
        let mut config = good.clone();
        change(&mut config);
        start(config, remote.clone(), None)
    };
    for (started, says) in [
        (wrong(|config| "other".clone_into(&mut config.token_id)).await, "does not accept"),
        (wrong(|config| "no-such/image".clone_into(&mut config.image)).await, "no-such/image"),
        (
            wrong(|config| "http://127.0.0.1:9".clone_into(&mut config.server_url)).await,
            "cannot be reached",
        ),
    ] {
        let error = started.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// The fake's tokens are good for six seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_outlives_the_token_it_was_reached_by() {
    let Some(fake) = Fake::start("modal") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (config, remote) = config(&fake, dir.path());
    let provider = start(config, remote, None).await.unwrap();
    let key = SandboxKey::default_of("sesn_1");
    let sandbox = provider.ensure(&key, &conformance::spec()).await.unwrap();
    let began = tokio::time::Instant::now();
    let fence = Fence { epoch: 1, generation: 1 };
    while began.elapsed() < Duration::from_secs(9) {
        let call = began.elapsed().as_nanos().to_string();
        let input = serde_json::json!({ "command": "read -t 0.5 <> <(:); echo said" });
        let result = sandbox.run(&call, fence, "bash", &input, None).await.unwrap();
        assert!(format!("{result:?}").contains("said"), "{result:?}");
    }
    provider.destroy(&key.session).await.unwrap();
    provider.shutdown(false).await;
}
