//! The local provider and its launcher through their lives: adopted, killed, idle, replaced, destroyed.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use vaquero_sandbox::{
    Block, CallState, ComputeProvider, Fence, Limits, LimitsMode, LimitsState, LocalConfig,
    LocalProvider, Quota, Sandbox, SandboxError, SandboxKey, SandboxSpec, ToolResult, UnsafeHost,
    measure_bare, probe,
};

const FIXTURE: &str = env!("CARGO_BIN_EXE_sandbox-fixture");

fn config(dir: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(dir);
    config.launcher_exe = PathBuf::from(FIXTURE);
    config.linger = Duration::from_mins(1);
    if !rustix::process::geteuid().is_root() {
        config.limits_mode = LimitsMode::Degraded;
    }
    config
}

async fn start(dir: &Path) -> LocalProvider {
    LocalProvider::start(config(dir), None).await.unwrap()
}

fn key(session: &str) -> SandboxKey {
    SandboxKey::default_of(session)
}

fn spec(generation: u64) -> SandboxSpec {
    SandboxSpec::new(generation, 1, Limits::default())
}

fn fence(generation: u64) -> Fence {
    Fence { epoch: 1, generation }
}

async fn sh(sandbox: &dyn Sandbox, id: &str, command: &str) -> Result<String, SandboxError> {
    let input = json!({ "command": command });
    sandbox.run(id, fence(sandbox.generation()), "bash", &input, None).await.map(text)
}

fn text(result: ToolResult) -> String {
    let mut all = String::new();
    for block in result.content {
        if let Block::Text { text } = block {
            all.push_str(&text);
        }
    }
    all.trim().to_owned()
}

/// Waits until `holds`, or fails with `what`.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The launcher that started last in this data directory.
fn launcher_pid(dir: &Path) -> i32 {
    let log = fs::read_to_string(dir.join("launcher/launcher.log")).unwrap();
    let line = log.lines().rfind(|l| l.contains("started, limits")).unwrap();
    line.strip_prefix("launcher[").unwrap().split(']').next().unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Whether any process of the host has this word in its command line.
fn runs(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let me = entry.file_name().to_str() == Some(&std::process::id().to_string());
        !me && String::from_utf8_lossy(&line).contains(word)
    })
}

/// The cgroups that belong to a data directory's launcher, by their names.
fn cgroups_with(word: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: u8, word: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if path.file_name().is_some_and(|n| n.to_string_lossy().contains(word)) {
                    found.push(path.clone());
                }
                if depth > 0 {
                    walk(&path, depth - 1, word, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 6, word, &mut found);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_survives_its_server_and_its_result_is_collected_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    // A server of its own, that ends without a word while the command runs.
    let first = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let sandbox = runtime.block_on(async {
            let provider = start(&path).await;
            let sandbox = provider.ensure(&key("s"), &spec(3)).await.unwrap();
            assert_eq!(
                sh(&*sandbox, "before", "export KEPT=yes; cd /tmp; echo ok").await.unwrap(),
                "ok"
            );
            sandbox.ack("before", fence(3)).await.unwrap();
            sandbox
        });
        let running = Arc::clone(&sandbox);
        runtime.spawn(async move {
            let command = "echo once >> /workspace/count; until [ -e /workspace/go ]; do read -t 0.02; done < /dev/zero; echo $KEPT $PWD";
            sh(&*running, "long", command).await
        });
        runtime.block_on(until("the command runs", async || {
            matches!(sandbox.status("long", fence(3)).await, Ok(CallState::Running))
        }));
        runtime.shutdown_background();
    });
    first.join().unwrap();

    let provider = start(dir.path()).await;
    assert!(
        provider.attach(&key("s"), &SandboxSpec { epoch: 2, ..spec(2) }).await.unwrap().is_none(),
        "another generation"
    );
    assert!(
        provider
            .attach(&key("other"), &SandboxSpec { epoch: 2, ..spec(3) })
            .await
            .unwrap()
            .is_none(),
        "another session"
    );
    let sandbox = provider
        .attach(&key("s"), &SandboxSpec { epoch: 2, ..spec(3) })
        .await
        .unwrap()
        .expect("it lives");
    let fence = Fence { epoch: 2, generation: 3 };
    assert_eq!(sandbox.status("long", fence).await.unwrap(), CallState::Running);
    assert!(matches!(sandbox.status("never", fence).await.unwrap(), CallState::Unknown));
    let stale = Fence { epoch: 1, generation: 3 };
    assert!(matches!(sandbox.status("long", stale).await, Err(SandboxError::StaleFence)));
    let go = json!({ "file_path": "/workspace/go", "content": "" });
    sandbox.run("go", fence, "write", &go, None).await.unwrap();
    // The same call again waits for the one that runs.
    let input = json!({ "command": "echo twice" });
    let result = sandbox.run("long", fence, "bash", &input, None).await.unwrap();
    assert_eq!(text(result), "yes /tmp");
    assert!(matches!(sandbox.status("long", fence).await, Ok(CallState::Finished(_))));
    sandbox.ack("long", fence).await.unwrap();
    assert!(matches!(
        sandbox.run("long", fence, "bash", &input, None).await,
        Err(SandboxError::Acked)
    ));
    let count = sandbox.read_file("/workspace/count", 1000, fence).await.unwrap();
    assert_eq!(count, b"once\n");
    assert_eq!(sandbox.read_file("/workspace/count", 3, fence).await.unwrap(), b"onc");
    assert!(matches!(
        sandbox.read_file("/workspace/none", 3, fence).await,
        Err(SandboxError::Refused(_))
    ));
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_launcher_a_sandbox_is_gone_and_its_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let sandbox = provider.ensure(&key("s"), &spec(1)).await.unwrap();
    let word = format!("98765{}", std::process::id());
    let command =
        format!("echo kept > /workspace/file; echo kept > ~/file; (setsid sleep {word} &)");
    sh(&*sandbox, "a", &command).await.unwrap();
    until("it runs", async || runs(&word)).await;
    let mut asking = tokio::task::JoinSet::new();
    let asked = Arc::clone(&sandbox);
    asking.spawn(async move { sh(&*asked, "b", "sleep 600").await });
    until("the call runs", async || {
        matches!(sandbox.status("b", fence(1)).await, Ok(CallState::Running))
    })
    .await;
    kill(launcher_pid(dir.path()));
    assert!(matches!(asking.join_next().await.unwrap().unwrap(), Err(SandboxError::Gone { .. })));
    until("everything in it died", async || !runs(&word)).await;
    assert!(matches!(sh(&*sandbox, "c", "true").await, Err(SandboxError::Gone { .. })));
    assert!(provider.attach(&key("s"), &spec(1)).await.unwrap().is_none());
    let fresh = provider.ensure(&key("s"), &spec(2)).await.unwrap();
    assert_eq!(sh(&*fresh, "d", "cat /workspace/file ~/file").await.unwrap(), "kept\nkept");
    assert!(matches!(fresh.status("b", fence(2)).await.unwrap(), CallState::Unknown));
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_only_go_forward() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let one = provider.ensure(&key("s"), &spec(5)).await.unwrap();
    assert_eq!(
        sh(&*one, "a", "echo here > /tmp/gone; echo here > /workspace/kept").await.unwrap(),
        "(no output)"
    );
    let same = provider.ensure(&key("s"), &spec(5)).await.unwrap();
    assert_eq!(sh(&*same, "b", "cat /tmp/gone").await.unwrap(), "here");
    assert!(matches!(provider.ensure(&key("s"), &spec(4)).await, Err(SandboxError::StaleFence)));
    let next = provider.ensure(&key("s"), &spec(6)).await.unwrap();
    assert_eq!(next.generation(), 6);
    assert_eq!(sh(&*next, "c", "cat /workspace/kept; ls /tmp").await.unwrap(), "here");
    assert!(matches!(sh(&*one, "d", "true").await, Err(SandboxError::Gone { .. })));
    let named = SandboxKey { session: "s".to_owned(), name: "second".to_owned() };
    let second = provider.ensure(&named, &spec(1)).await.unwrap();
    assert_eq!(sh(&*second, "e", "cat /workspace/kept").await.unwrap(), "here");
    assert_eq!(sh(&*next, "f", "echo both").await.unwrap(), "both");
    provider.stop(&key("s")).await.unwrap();
    assert!(provider.attach(&key("s"), &spec(6)).await.unwrap().is_none());
    assert!(provider.attach(&named, &spec(1)).await.unwrap().is_some());
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sandbox_stops_and_a_busy_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.idle_stop = Duration::from_millis(400);
    let provider = LocalProvider::start(config, None).await.unwrap();
    let idle = provider.ensure(&key("idle"), &spec(1)).await.unwrap();
    sh(&*idle, "a", "echo kept > /workspace/file").await.unwrap();
    let busy = provider.ensure(&key("busy"), &spec(1)).await.unwrap();
    assert_eq!(sh(&*busy, "a", "sleep 2; echo through").await.unwrap(), "through");
    until("it stopped", async || provider.attach(&key("idle"), &spec(1)).await.unwrap().is_none())
        .await;
    let back = provider.ensure(&key("idle"), &spec(2)).await.unwrap();
    assert_eq!(sh(&*back, "b", "cat /workspace/file").await.unwrap(), "kept");
    provider.shutdown(false).await;
}

/// The files behind loop devices.
fn disks() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    devices.filter_map(|d| fs::read_to_string(d.path().join("loop/backing_file")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn destroying_a_session_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let session = format!("trace-{}", std::process::id());
    let sandbox = provider.ensure(&key(&session), &spec(1)).await.unwrap();
    let word = format!("87654{}", std::process::id());
    let command = format!(
        "(setsid sleep {word} &); cd /workspace; mkdir -p a/b; touch a/b/c; chmod 000 a/b a; ln -s / all; echo made"
    );
    assert_eq!(sh(&*sandbox, "a", &command).await.unwrap(), "made");
    let rooted = rustix::process::geteuid().is_root();
    until("it runs", async || runs(&word)).await;
    assert_eq!(cgroups_with(&session).is_empty(), !rooted);
    let own_disk = provider.capabilities().quota == Quota::Hard;
    assert_eq!(disks().iter().any(|disk| disk.contains(&session)), own_disk);
    let other = provider.ensure(&key("kept"), &spec(1)).await.unwrap();
    provider.destroy(&session).await.unwrap();
    assert!(!runs(&word));
    assert!(cgroups_with(&session).is_empty());
    until("its disk is free", async || !disks().iter().any(|disk| disk.contains(&session))).await;
    assert!(!dir.path().join("workspaces").join(&session).exists());
    assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&dir.path().display().to_string()));
    assert!(provider.attach(&key(&session), &spec(1)).await.unwrap().is_none());
    provider.destroy(&session).await.unwrap();
    // What has files but no sandbox is listed as well.
    provider.ensure(&key("stopped"), &spec(1)).await.unwrap();
    provider.stop(&key("stopped")).await.unwrap();
    let here = provider.sessions().await.unwrap();
    assert_eq!(here, BTreeSet::from(["kept".to_owned(), "stopped".to_owned()]));
    provider.destroy("stopped").await.unwrap();
    assert!(!dir.path().join("workspaces/stopped").exists());
    assert_eq!(sh(&*other, "b", "echo still").await.unwrap(), "still");
    let launcher = launcher_pid(dir.path());
    provider.shutdown(false).await;
    until("the launcher ended", async || {
        fs::read(format!("/proc/{launcher}/cmdline")).unwrap_or_default().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_lingers_for_as_long_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.linger = Duration::from_millis(300);
    let provider = LocalProvider::start(config, None).await.unwrap();
    let sandbox = provider.ensure(&key("s"), &spec(1)).await.unwrap();
    let word = format!("76543{}", std::process::id());
    sh(&*sandbox, "a", &format!("(setsid sleep {word} &)")).await.unwrap();
    until("it runs", async || runs(&word)).await;
    provider.shutdown(true).await;
    until("the launcher gave up", async || !runs(&word)).await;
    until("the launcher ended", async || {
        fs::read_to_string(dir.path().join("launcher/launcher.log")).unwrap().contains("ended")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_that_lies_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let lied = provider.ensure(&key("hello"), &spec(666_000)).await;
    assert!(matches!(lied, Err(SandboxError::Protocol(_))), "{:?}", lied.err());
    for way in 1..=5 {
        let generation = 666_000 + way;
        let key = key(&format!("liar-{way}"));
        let sandbox = provider.ensure(&key, &spec(generation)).await.unwrap();
        let error = sh(&*sandbox, "a", "true").await.unwrap_err();
        assert!(matches!(error, SandboxError::Protocol(_)), "{way}: {error}");
        until("it was ended", async || {
            provider.attach(&key, &spec(generation)).await.unwrap().is_none()
        })
        .await;
    }
    let sandbox = provider.ensure(&key("quitter"), &spec(666_006)).await.unwrap();
    assert!(matches!(sh(&*sandbox, "a", "true").await, Err(SandboxError::Gone { .. })));
    let honest = provider.ensure(&key("honest"), &spec(1)).await.unwrap();
    assert_eq!(sh(&*honest, "a", "echo fine").await.unwrap(), "fine");
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    for bad in ["", "..", "a/b", "a.b", "a\0b", "é", &"x".repeat(65)] {
        let refused = provider.ensure(&key(bad), &spec(1)).await;
        assert!(matches!(refused, Err(SandboxError::Invalid(_))), "{bad:?}");
        assert!(provider.destroy(bad).await.is_err());
        assert!(provider.stop(&key(bad)).await.is_err());
    }
    for (name, value) in
        [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0"), ("A", &"x".repeat(40_000))]
    {
        let mut spec = spec(1);
        spec.env.insert(name.to_owned(), value.to_owned());
        assert!(matches!(provider.ensure(&key("s"), &spec).await, Err(SandboxError::Invalid(_))));
    }
    let mut tiny = spec(1);
    tiny.limits.memory_bytes = 0;
    assert!(matches!(provider.ensure(&key("s"), &tiny).await, Err(SandboxError::Invalid(_))));
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_may_have_a_long_name() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("a long name ".repeat(12)).join("and another".repeat(10));
    let provider = start(&long).await;
    let sandbox = provider.ensure(&key("s"), &spec(1)).await.unwrap();
    assert_eq!(sh(&*sandbox, "a", "echo fine").await.unwrap(), "fine");
    provider.shutdown(false).await;
}

/// The workspaces of spares.
fn spares(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("workspaces")).unwrap().flatten().map(|e| e.path());
    entries
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("spare-"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_gets_a_spare_of_the_same_kind_and_its_empty_workspace() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    // A spare may be replaced at any moment.
    let inode = |path: &Path| Some(fs::metadata(path.join("workspace")).ok()?.ino());
    let spare = || spares(dir.path()).first().and_then(|path| inode(path));
    let one_more = async || until("a spare", async || spares(dir.path()).len() == 1).await;
    assert!(spares(dir.path()).is_empty(), "none before the first session");
    provider.ensure(&key("sesn_first"), &spec(1)).await.unwrap();
    one_more().await;
    let waits = spare();

    let smaller = Limits { memory_bytes: 64 << 20, ..Limits::default() };
    let less = SandboxSpec { limits: smaller, ..spec(1) };
    let small = provider.ensure(&key("sesn_small"), &less).await.unwrap();
    assert_eq!(sh(&*small, "a", "ls -A").await.unwrap(), "(no output)");
    assert_ne!(inode(&dir.path().join("workspaces/sesn_small")), waits, "not the one with more");
    provider.ensure(&key("sesn_again"), &spec(2)).await.unwrap();
    // It may still be starting; then this one is made anew, and the next is asked.
    let mut taken = false;
    for round in 0..20 {
        one_more().await;
        let waits = spare();
        let session = format!("sesn_taker{round}");
        let sandbox = provider.ensure(&key(&session), &spec(1)).await.unwrap();
        assert_eq!(sh(&*sandbox, "a", "ls -A; echo mine > file; id -u").await.unwrap(), "0");
        let workspace = dir.path().join("workspaces").join(&session);
        taken = waits.is_some() && inode(&workspace) == waits;
        if taken {
            provider.stop(&key(&session)).await.unwrap();
            let sandbox = provider.ensure(&key(&session), &spec(2)).await.unwrap();
            assert_eq!(sh(&*sandbox, "b", "cat file").await.unwrap(), "mine");
            break;
        }
    }
    assert!(taken, "no session ever got a spare");

    one_more().await;
    for session in provider.sessions().await.unwrap() {
        provider.destroy(&session).await.unwrap();
    }
    assert_eq!(spares(dir.path()).len(), 1, "it is no session's, and not listed");
    provider.shutdown(false).await;
    assert!(fs::read_dir(dir.path().join("workspaces")).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_in_time_what_is_needed_finds_it_ready() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let env = BTreeMap::from([("MINE".to_owned(), "yes".to_owned())]);
    let spec = SandboxSpec { env, ..spec(1) };
    let mut taken = false;
    for round in 0..20 {
        provider.prepare(&spec);
        until("a spare", async || spares(dir.path()).len() == 1).await;
        let inode = |path: &Path| Some(fs::metadata(path.join("workspace")).ok()?.ino());
        let waits = spares(dir.path()).first().and_then(|path| inode(path));
        let session = format!("sesn_taker{round}");
        let sandbox = provider.ensure(&key(&session), &spec).await.unwrap();
        assert_eq!(sh(&*sandbox, "a", "echo $MINE").await.unwrap(), "yes");
        taken = waits.is_some() && inode(&dir.path().join("workspaces").join(&session)) == waits;
        if taken {
            break;
        }
    }
    assert!(taken, "no session ever got what it had asked for");
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_nobody_wants_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let idle_stop = Duration::from_secs(2);
    let provider =
        LocalProvider::start(LocalConfig { idle_stop, ..config(dir.path()) }, None).await.unwrap();
    provider.ensure(&key("sesn_one"), &spec(1)).await.unwrap();
    until("a spare", async || spares(dir.path()).len() == 1).await;
    until("no spare", async || spares(dir.path()).is_empty()).await;
    provider.ensure(&key("sesn_two"), &spec(1)).await.unwrap();
    until("a spare again", async || spares(dir.path()).len() == 1).await;
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_of_a_launcher_that_was_killed_are_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    provider.ensure(&key("sesn_first"), &spec(1)).await.unwrap();
    until("a spare", async || spares(dir.path()).len() == 1).await;
    kill(launcher_pid(dir.path()));
    provider.shutdown(false).await;
    let none = LocalConfig { spares: 0, ..config(dir.path()) };
    let provider = LocalProvider::start(none, None).await.unwrap();
    assert!(spares(dir.path()).is_empty());
    provider.ensure(&key("sesn_second"), &spec(1)).await.unwrap();
    provider.destroy("sesn_second").await.unwrap();
    assert!(spares(dir.path()).is_empty(), "none are wanted");
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unsafe_host_runs_on_the_host_and_replaces_an_isolating_launcher() {
    let dir = tempfile::tempdir().unwrap();
    let isolated = start(dir.path()).await;
    isolated.shutdown(true).await;
    let provider = UnsafeHost::start(config(dir.path()), false).await.unwrap();
    assert_eq!(provider.capabilities().name, "unsafe-host");
    let sandbox = provider.ensure(&key("s"), &spec(1)).await.unwrap();
    let word = format!("65432{}", std::process::id());
    let said =
        sh(&*sandbox, "a", &format!("pwd; (setsid sleep {word} &) ; hostname")).await.unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let workspace = dir.path().join("workspaces/s/workspace");
    assert_eq!(said, format!("{}\n{}", workspace.display(), host.trim()));
    until("it runs", async || runs(&word)).await;
    provider.destroy("s").await.unwrap();
    assert!(!runs(&word), "a daemon outlived its session");
    assert!(!workspace.exists());
    provider.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_gives_each_session_ids_of_its_own_for_good() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let owner = |session: &str| {
        fs::metadata(dir.path().join("workspaces").join(session).join("workspace")).unwrap().uid()
    };
    for session in ["one", "two"] {
        let sandbox = provider.ensure(&key(session), &spec(1)).await.unwrap();
        sh(&*sandbox, "a", "touch /workspace/file").await.unwrap();
    }
    let (one, two) = (owner("one"), owner("two"));
    assert!(one >= 1 << 30 && two >= 1 << 30 && one.abs_diff(two) >= 1 << 16, "{one} {two}");
    provider.shutdown(false).await;
    let again = start(dir.path()).await;
    let three = again.ensure(&key("three"), &spec(1)).await.unwrap();
    sh(&*three, "a", "touch /workspace/file").await.unwrap();
    assert!(![one, two].contains(&owner("three")));
    let same = again.ensure(&key("one"), &spec(2)).await.unwrap();
    assert_eq!(
        sh(&*same, "a", "stat -c %u /workspace/file; touch /workspace/file && echo mine")
            .await
            .unwrap(),
        "0\nmine"
    );
    again.shutdown(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_can_be_examined_and_measured() {
    let report = probe(Path::new(FIXTURE)).await.unwrap();
    let names: Vec<&str> = report.walls.iter().map(|w| w.name.as_str()).collect();
    let walls = [
        "namespaces",
        "network",
        "user ids",
        "limits",
        "disks",
        "seccomp",
        "landlock",
        "executable",
    ];
    assert_eq!(names, walls);
    assert_eq!(report.walls[1].state, vaquero_sandbox::WallState::Ok);
    assert_eq!(report.walls[0].state, vaquero_sandbox::WallState::Ok);
    let bare = measure_bare(Path::new(FIXTURE), 5).await.unwrap();
    assert_eq!(bare.len(), 5);
    assert!(bare.iter().all(|took| *took > Duration::ZERO && *took < Duration::from_secs(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_all_work_and_an_idle_one_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let provider = start(dir.path()).await;
    let mark = format!("many-{}", std::process::id());
    let keys: Vec<SandboxKey> = (0..100).map(|n| key(&format!("{mark}-{n}"))).collect();
    let small = Limits { memory_bytes: 128 << 20, workspace_bytes: 64 << 20, ..Limits::default() };
    let spec = SandboxSpec { limits: small, ..spec(1) };
    let made = futures::future::try_join_all(keys.iter().map(|k| provider.ensure(k, &spec)));
    let made = made.await.unwrap();
    let said = futures::future::join_all(made.iter().enumerate().map(|(number, sandbox)| {
        let command = format!("echo {number} >/workspace/number; cat /workspace/number");
        async move { sh(sandbox.as_ref(), "a", &command).await.unwrap() }
    }));
    let said: Vec<String> = said.await;
    assert_eq!(said, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    let used: Vec<u64> = cgroups_with(&mark)
        .iter()
        .filter_map(|group| {
            let used = fs::read_to_string(group.join("memory.current"))
                .or_else(|_| fs::read_to_string(group.join("memory.usage_in_bytes")));
            used.ok()?.trim().parse().ok()
        })
        .collect();
    if provider.capabilities().limits != LimitsState::Degraded {
        let middle = used.iter().sum::<u64>() / 100;
        assert!(
            used.len() == 100 && middle < 5 << 20,
            "{} groups, {middle} bytes each",
            used.len()
        );
    }
    futures::future::try_join_all(keys.iter().map(|key| provider.destroy(&key.session)))
        .await
        .unwrap();
    provider.shutdown(false).await;
}
