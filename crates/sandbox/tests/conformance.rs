//! The demands on every provider, made of the local one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vaquero_sandbox::conformance::{self, Finding, Outcome};
use vaquero_sandbox::{ComputeProvider, LimitsMode, LocalConfig, LocalProvider};

fn config(dir: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(dir);
    config.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
    if !rustix::process::geteuid().is_root() {
        config.limits_mode = LimitsMode::Degraded;
    }
    config
}

/// What does not hold, and what is refused.
fn sorted(findings: &[Finding]) -> (Vec<String>, Vec<&str>) {
    let fails = findings.iter().filter(|f| matches!(f.outcome, Outcome::Fails(_)));
    let refused = findings.iter().filter(|f| matches!(f.outcome, Outcome::Refused(_)));
    (fails.map(ToString::to_string).collect(), refused.map(|f| f.demand.as_str()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn local_sandboxes_do_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let findings = conformance::run(
        &|uplink| {
            let config = config(dir.path());
            Box::pin(async move {
                let provider = LocalProvider::start(config, uplink).await?;
                Ok(Arc::new(provider) as Arc<dyn ComputeProvider>)
            })
        },
        None,
        1_000,
    )
    .await;
    conformance::keep("local", &findings);
    let (fails, refused) = sorted(&findings);
    assert!(fails.is_empty(), "{}", fails.join("\n"));
    let not_its = ["A sandbox is paused, and goes on with the next call", "An image of one's own"];
    assert_eq!(refused, not_its);
}
