//! Every attack of the list against the local provider, as whoever runs the tests, as an ordinary user,
//! and where user namespaces are switched off.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vaquero_sandbox::{
    ComputeProvider, LimitsBy, LimitsMode, LimitsState, LocalConfig, LocalProvider, SandboxError,
    attacks, conformance,
};

/// Where a test that was started again by another one finds its data and its launcher.
const AGAIN: &str = "VAQUERO_SANDBOX_TEST_DIR";

fn config(dir: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(dir.join("data"));
    let copied = dir.join("sandbox-fixture");
    let built = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
    config.launcher_exe = if copied.exists() { copied } else { built };
    if !rustix::process::geteuid().is_root() {
        config.limits_mode = LimitsMode::Degraded;
    }
    config
}

async fn attack(config: LocalConfig) -> Vec<attacks::Verdict> {
    let watcher = Arc::new(attacks::Watcher::default());
    let provider = LocalProvider::start(config, Some(watcher)).await.unwrap();
    let verdicts = attacks::run_all(&provider).await;
    provider.shutdown(false).await;
    assert!(verdicts.len() > 40);
    let told = |v: &attacks::Verdict| {
        Some(format!("{} {}: {}", v.number, v.name, v.outcome.as_ref().err()?))
    };
    let succeeded: Vec<String> = verdicts.iter().filter_map(told).collect();
    assert!(succeeded.is_empty(), "{}", succeeded.join("\n\n"));
    verdicts
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    conformance::keep_attacks("local", &attack(config(dir.path())).await);
}

/// Runs an ignored test of this file in another process, in a directory anyone can read.
fn again(test: &str, prepare: impl FnOnce(&Path, PathBuf) -> Command) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let exe = dir.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_sandbox-fixture"), dir.path().join("sandbox-fixture")).unwrap();
    let output = prepare(dir.path(), exe)
        .args(["--ignored", "--exact", "--nocapture", test])
        .env_clear()
        .env(AGAIN, dir.path())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CARGO_MARK", "for the attack that looks for the host's variables")
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{why}");
}

#[test]
fn no_attack_succeeds_against_an_ordinary_users_sandboxes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    again("as_an_ordinary_user", |dir, exe| {
        let data = dir.join("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(54_321), Some(54_321)).unwrap();
        let mut command = Command::new(exe);
        command.uid(54_321).gid(54_321);
        command
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test, as another user"]
async fn as_an_ordinary_user() {
    let dir = PathBuf::from(std::env::var_os(AGAIN).unwrap());
    assert!(!rustix::process::geteuid().is_root());
    let mut strict = config(&dir);
    strict.limits_mode = LimitsMode::Enforced;
    match LocalProvider::start(strict, None).await {
        Err(SandboxError::Unavailable { fix, .. }) => {
            assert!(fix.contains("--sandbox-limits=degraded"), "{fix}");
        }
        Err(other) => panic!("{other}"),
        // Delegated cgroups: then nothing has to degrade.
        Ok(provider) => provider.shutdown(false).await,
    }
    drop(attack(config(&dir)).await);
}

#[test]
fn without_user_namespaces_it_refuses_and_says_what_to_do() {
    again("where_user_namespaces_are_off", |_, exe| {
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c"]);
        command.arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"");
        command.arg(exe);
        command
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test, without user namespaces"]
async fn where_user_namespaces_are_off() {
    let dir = PathBuf::from(std::env::var_os(AGAIN).unwrap());
    let mut config = config(&dir);
    config.limits_mode = LimitsMode::Degraded;
    let report = vaquero_sandbox::probe(&config.launcher_exe).await.unwrap();
    assert_eq!(report.walls[0].state, vaquero_sandbox::WallState::Missing);
    let Err(SandboxError::Unavailable { what, fix }) = LocalProvider::start(config, None).await
    else {
        panic!("it started without walls");
    };
    assert!(what.contains("user.max_user_namespaces=0"), "{what}");
    assert!(fix.contains("sysctl user.max_user_namespaces="), "{fix}");
}

/// In a machine that has nothing else: where both are, the tests above may use the other.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started in an emulated machine, as root and as an ordinary user"]
async fn limits_hold_by_cgroup_v2() {
    const LIMITS: [u8; 4] = [38, 39, 41, 49];
    let dir = PathBuf::from(std::env::var_os(AGAIN).unwrap());
    let mut config = config(&dir);
    config.limits_mode = LimitsMode::Enforced;
    let provider = LocalProvider::start(config, None).await.unwrap();
    let by = provider.capabilities().limits;
    assert_eq!(by, LimitsState::Enforced(LimitsBy::V2));
    let verdicts = attacks::run(&provider, |number| LIMITS.contains(&number)).await;
    provider.shutdown(false).await;
    let succeeded: Vec<_> = verdicts.iter().filter(|verdict| verdict.outcome.is_err()).collect();
    assert!(verdicts.len() > LIMITS.len() && succeeded.is_empty(), "{succeeded:#?}");
}
