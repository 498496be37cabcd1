//! Sandboxes of a real Docker engine: the attacks.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

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

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    attack(config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds_against_gvisor() {
    let dir = tempfile::tempdir().unwrap();
    let (Some(mut config), Ok(runtime)) =
        (config(dir.path()), std::env::var("VAQUERO_TEST_DOCKER_RUNTIME"))
    else {
        return;
    };
    config.runtime = Some(runtime);
    attack(config).await;
}

async fn attack(config: DockerConfig) {
    let watcher = Arc::new(attacks::Watcher::default());
    let provider = start(config, Some(watcher)).await.unwrap();
    let verdicts = attacks::run_all(&provider).await;
    provider.shutdown(false).await;
    assert!(verdicts.len() > 40);
    let succeeded: Vec<String> = verdicts
        .into_iter()
        .filter_map(|v| Some(format!("{} {}: {}", v.number, v.name, v.outcome.err()?)))
        .collect();
    assert!(succeeded.is_empty(), "{}", succeeded.join("\n\n"));
}
