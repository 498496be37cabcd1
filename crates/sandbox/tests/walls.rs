//! Each wall left out in turn: the canary refuses, or an attack succeeds that otherwise does not. Without this, attacks that could never succeed would prove nothing.

use std::path::PathBuf;
use std::sync::Arc;

use vaquero_sandbox::{ComputeProvider, LocalConfig, LocalProvider, attacks};

/// Walls, and the attacks that each alone holds off. Others have a second one behind them: Landlock stands behind read-only mounts and those behind ids that are nobody's,
/// dropped capabilities behind seccomp, and a hand makes itself as unreadable as its executable does.
const WALLS: [(&str, &[u8]); 7] = [
    ("seccomp", &[16, 17, 22]),
    ("network", &[26]),
    ("ipc", &[25]),
    ("masks", &[9]),
    ("limits", &[39]),
    ("disks", &[40]),
    ("descriptors", &[5]),
];

#[tokio::test(flavor = "multi_thread")]
async fn without_any_one_wall_something_is_noticed() {
    // An ordinary user has fewer of them.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut unnoticed = Vec::new();
    for (wall, numbers) in WALLS {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LocalConfig::new(dir.path());
        config.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
        config.left_out = Some(wall.to_owned());
        let watcher = Arc::new(attacks::Watcher::default());
        let Ok(provider) = LocalProvider::start(config, Some(watcher)).await else { continue };
        let verdicts = attacks::run(&provider, |number| numbers.contains(&number)).await;
        provider.shutdown(false).await;
        if verdicts.iter().all(|verdict| verdict.outcome.is_ok()) {
            unnoticed.push(wall);
        }
    }
    assert!(unnoticed.is_empty(), "walls that nothing misses: {unnoticed:?}");
}
