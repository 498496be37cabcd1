//! Sandboxes of a real Docker engine: the demands on every provider, and the attacks.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vaquero_sandbox::conformance::{self, Finding, Outcome};
use vaquero_sandbox::{ComputeProvider, attacks};
use vaquero_sandbox_docker::{DockerConfig, start};

/// The engine that `cargo xtask test` started; none where there cannot be one.
fn config(dir: &Path) -> Option<DockerConfig> {
    let host = std::env::var("VAQUERO_TEST_DOCKER").expect(
        "`cargo xtask docker` starts an engine for this; VAQUERO_TEST_DOCKER=none leaves it out",
    );
    if host == "none" {
        return None;
    }
    let mut config = DockerConfig::new(dir, "vaquero-test:latest");
    config.host = host;
    config.hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_docker-fixture"));
    Some(config)
}

/// gVisor, where the engine has it.
fn gvisor(dir: &Path) -> Option<DockerConfig> {
    let runtime = std::env::var("VAQUERO_TEST_DOCKER_RUNTIME").ok();
    let config = config(dir)?;
    Some(DockerConfig { runtime: Some(runtime?), own_kernel: true, ..config })
}

async fn demand(name: &str, config: DockerConfig) {
    let findings = conformance::run(
        &|uplink| {
            let config = config.clone();
            Box::pin(async move {
                Ok(Arc::new(start(config, uplink).await?) as Arc<dyn ComputeProvider>)
            })
        },
        Some("vaquero-test:marked"),
    )
    .await;
    conformance::keep(name, &findings);
    let failed = |finding: &&Finding| finding.outcome != Outcome::Holds;
    let failed: Vec<_> = findings.iter().filter(failed).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_do_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    demand("docker", config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_with_a_kernel_of_their_own_do_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = gvisor(dir.path()) else { return };
    demand("gvisor", config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    attack(config, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds_against_gvisor() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = gvisor(dir.path()) else { return };
    // Traced, its kernel is slow, and what fills or spins takes its time: one of each.
    attack(config, |number| number < 38 || [39, 40, 43].contains(&number)).await;
}

async fn attack(config: DockerConfig, which: impl Fn(u8) -> bool) {
    let watcher = Arc::new(attacks::Watcher::default());
    let provider = start(config, Some(watcher)).await.unwrap();
    let verdicts = attacks::run(&provider, which).await;
    provider.shutdown(false).await;
    assert!(verdicts.len() > 25);
    conformance::keep_attacks(provider.capabilities().name, &verdicts);
    let told = |v: &attacks::Verdict| {
        Some(format!("{} {}: {}", v.number, v.name, v.outcome.as_ref().err()?))
    };
    let succeeded: Vec<String> = verdicts.iter().filter_map(told).collect();
    assert!(succeeded.is_empty(), "{}", succeeded.join("\n\n"));
}
