//! What environments want installed: made once, seen by every sandbox that wants the same, never half.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use vaquero_sandbox::{
    Block, ComputeProvider, Fence, Limits, LimitsMode, LocalConfig, LocalProvider, Provision,
    Sandbox, SandboxError, SandboxKey, SandboxSpec, UnsafeHost,
};
use vaquero_types::{WorkspaceId, environment::Packages};

fn config(dir: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(dir);
    config.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-fixture"));
    config.linger = Duration::from_mins(1);
    if !rustix::process::geteuid().is_root() {
        config.limits_mode = LimitsMode::Degraded;
    }
    config
}

async fn start(dir: &Path) -> LocalProvider {
    LocalProvider::start(config(dir), None).await.unwrap()
}

/// A sandbox after these setup commands.
fn spec(setup: &[&str]) -> SandboxSpec {
    let env = BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]);
    let provision = Provision {
        workspace: WorkspaceId::from_wire("wrkspc_1"),
        packages: Packages::default(),
        setup: setup.iter().map(|&command| command.to_owned()).collect(),
        env: env.clone(),
    };
    SandboxSpec {
        env,
        provision: Some(Arc::new(provision)),
        ..SandboxSpec::new(1, 1, Limits::default())
    }
}

async fn sh(sandbox: &dyn Sandbox, id: &str, command: &str) -> String {
    let fence = Fence { epoch: 1, generation: sandbox.generation() };
    let input = json!({ "command": command });
    let result = sandbox.run(id, fence, "bash", &input, None).await.unwrap();
    let texts = result.content.into_iter().filter_map(|block| match block {
        Block::Text { text } => Some(text),
        Block::Image { .. } | Block::Document { .. } => None,
    });
    texts.collect::<String>().trim().to_owned()
}

fn key(session: &str) -> SandboxKey {
    SandboxKey::default_of(session)
}

fn layers(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("launcher/layers")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

const TOOL: &str =
    "printf '#!/bin/sh\\necho made\\n' >/usr/local/bin/made && chmod 755 /usr/local/bin/made";

#[tokio::test(flavor = "multi_thread")]
async fn what_setup_leaves_is_in_every_sandbox_and_is_nobodys_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let wanted = spec(&[
        TOOL,
        "echo \"$GREETING\" >/etc/greeting; rm /etc/services; mkdir -p ~/.config && echo home >~/.config/file",
        "mkdir -p repo/deep && echo mine >repo/deep/file && ln -s deep/file repo/link && chmod 600 repo/deep/file",
    ]);
    for session in ["sesn_one", "sesn_two"] {
        let sandbox = provider.ensure(&key(session), &wanted).await.unwrap();
        let said = sh(
            &*sandbox,
            "a",
            "made; cat /etc/greeting ~/.config/file repo/link; stat -c '%U %a' /usr/local/bin/made /usr/bin/env repo/deep/file; \
             test -e /etc/services || echo removed; touch /etc/x /usr/local/bin/x; echo more >repo/more; ls repo",
        )
        .await;
        // Ids other than the server's own are mapped for root alone.
        let host = if rustix::process::geteuid().is_root() { "root" } else { "nobody" };
        assert_eq!(
            said,
            format!(
                "made\nhello\nhome\nmine\nroot 755\n{host} 755\nroot 600\nremoved\n\
                 touch: cannot touch '/etc/x': Read-only file system\n\
                 touch: cannot touch '/usr/local/bin/x': Read-only file system\ndeep\nlink\nmore"
            )
        );
    }
    assert_eq!(layers(dir.path()).len(), 1);
    // What a session has changed stays as it was left.
    provider.stop(&key("sesn_one")).await.unwrap();
    let again = SandboxSpec { generation: 2, ..wanted.clone() };
    let sandbox = provider.ensure(&key("sesn_one"), &again).await.unwrap();
    assert_eq!(sh(&*sandbox, "b", "rm -r repo/deep; ls repo").await, "link\nmore");
    provider.stop(&key("sesn_one")).await.unwrap();
    let again = SandboxSpec { generation: 3, ..wanted.clone() };
    let sandbox = provider.ensure(&key("sesn_one"), &again).await.unwrap();
    assert_eq!(sh(&*sandbox, "c", "ls repo; made").await, "link\nmore\nmade");
    let sessions: Vec<String> = provider.sessions().await.unwrap().into_iter().collect();
    assert_eq!(sessions, ["sesn_one", "sesn_two"]);
    // Files that come from elsewhere find the workspace empty, and the rest as it was.
    let elsewhere = SandboxSpec { restored: true, ..wanted.clone() };
    let sandbox = provider.ensure(&key("sesn_moved"), &elsewhere).await.unwrap();
    assert_eq!(sh(&*sandbox, "a", "ls -A; cat ~/.config/file").await, "home");
    provider.destroy("sesn_moved").await.unwrap();
    // A plain sandbox knows nothing of it.
    let plain = SandboxSpec { provision: None, ..wanted.clone() };
    let sandbox = provider.ensure(&key("sesn_plain"), &plain).await.unwrap();
    assert_eq!(
        sh(&*sandbox, "a", "command -v made; cat /etc/greeting 2>&1; ls").await,
        "cat: /etc/greeting: No such file or directory"
    );
    provider.shutdown(false).await;
    // The layer is there for the next server.
    let provider = start(dir.path()).await;
    let sandbox = provider.ensure(&key("sesn_three"), &wanted).await.unwrap();
    assert_eq!(sh(&*sandbox, "a", "made; ls repo").await, "made\ndeep\nlink");
    assert_eq!(layers(dir.path()).len(), 1);
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_want_the_same_wait_for_one_making() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let wanted = spec(&["cat /proc/sys/kernel/random/uuid >/usr/local/made-as"]);
    provider.prepare(&wanted);
    let keys: Vec<SandboxKey> = (0..8).map(|number| key(&format!("sesn_{number}"))).collect();
    let made = keys.iter().map(|key| provider.ensure(key, &wanted));
    let made = futures::future::try_join_all(made).await.unwrap();
    let mut seen = Vec::new();
    for sandbox in &made {
        seen.push(sh(sandbox.as_ref(), "a", "cat /usr/local/made-as").await);
    }
    assert!(seen.iter().all(|uuid| uuid.len() == 36 && *uuid == seen[0]), "{seen:?}");
    // Another workspace gets its own.
    let provision = wanted.provision.as_deref().unwrap().clone();
    let provision = Provision { workspace: WorkspaceId::from_wire("wrkspc_2"), ..provision };
    let other = SandboxSpec { provision: Some(Arc::new(provision)), ..wanted };
    let sandbox = provider.ensure(&key("sesn_other"), &other).await.unwrap();
    assert_ne!(sh(&*sandbox, "a", "cat /usr/local/made-as").await, seen[0]);
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_that_fails_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let wanted = spec(&[TOOL, "echo no such luck >&2; exit 3"]);
    for _ in 0..2 {
        let failed = provider.ensure(&key("sesn_one"), &wanted).await.err().unwrap();
        let SandboxError::Provision(what) = failed else { panic!("{failed}") };
        assert!(what.contains("setup.1") && what.contains("exit status 3\nno such luck"), "{what}");
        assert_eq!(layers(dir.path()), Vec::<String>::new());
    }
    assert!(provider.sessions().await.unwrap().is_empty());
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_making_that_was_cut_off_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let flag = "test -e /tmp/never || { touch /usr/local/begun; sleep 600; }";
    provider.prepare(&spec(&[flag]));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let begun = |dir: &Path| {
        layers(dir).iter().any(|layer| {
            dir.join("launcher/layers").join(layer).join("usr/written/local/begun").exists()
        })
    };
    while !begun(dir.path()) {
        assert!(tokio::time::Instant::now() < deadline, "the making never began");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    provider.shutdown(true).await;
    let provider = start(dir.path()).await;
    assert_eq!(layers(dir.path()), Vec::<String>::new());
    assert!(provider.sessions().await.unwrap().is_empty());
    let sandbox = provider.ensure(&key("sesn_one"), &spec(&[TOOL])).await.unwrap();
    assert_eq!(sh(&*sandbox, "a", "made").await, "made");
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_only_changed_by_who_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let command = format!("echo run >>{}", mark.display());
    let wanted = spec(&[&command]);
    let provider = UnsafeHost::start(config(dir.path()), false).await.unwrap();
    let refused = provider.ensure(&key("sesn_one"), &wanted).await.err().unwrap().to_string();
    assert!(
        refused.contains("sandbox required") && refused.contains("--host-packages-ok"),
        "{refused}"
    );
    provider.shutdown(false).await;
    assert!(!mark.exists());
    let provider = UnsafeHost::start(config(dir.path()), true).await.unwrap();
    for session in ["sesn_one", "sesn_two"] {
        provider.ensure(&key(session), &wanted).await.unwrap();
    }
    assert_eq!(fs::read_to_string(mark).unwrap(), "run\n");
    provider.shutdown(false).await;
}
