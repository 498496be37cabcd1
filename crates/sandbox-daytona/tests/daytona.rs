//! Daytona's machines, as the fake offers them: the demands on every provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vaquero_sandbox::ComputeProvider;
use vaquero_sandbox::conformance;
use vaquero_sandbox::remote::RemoteConfig;
use vaquero_sandbox_daytona::{DaytonaConfig, start};
use vaquero_testkit::Fake;

fn config(fake: &Fake, dir: &Path) -> (DaytonaConfig, RemoteConfig) {
    let mut config = DaytonaConfig::new("dtn_test");
    config.api_url = format!("{}/api", fake.base);
    let hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_daytona-fixture"));
    (config, RemoteConfig { hand_exe, ..RemoteConfig::new(dir) })
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_do_all_that_is_demanded() {
    let Some(fake) = Fake::start("daytona") else { return };
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
    conformance::keep("daytona", &findings);
    conformance::all_hold(&findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let Some(fake) = Fake::start("daytona") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (good, remote) = config(&fake, dir.path());
    let wrong = |change: fn(&mut DaytonaConfig)| {
        let mut config = good.clone();
        change(&mut config);
        start(config, remote.clone(), None)
    };
    for (started, says) in [
        (wrong(|config| "other".clone_into(&mut config.api_key)).await, "does not accept"),
        (wrong(|config| "none-such".clone_into(&mut config.snapshot)).await, "none-such"),
        (
            wrong(|config| "http://127.0.0.1:9".clone_into(&mut config.api_url)).await,
            "cannot be reached",
        ),
    ] {
        let error = started.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}
