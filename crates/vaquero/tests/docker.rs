//! Containers of a Docker engine behind a whole server: chosen by an environment, left for another provider, and their engine killed and started under them.
#![cfg(feature = "docker")]
#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{path::Path, process::Stdio};
use tokio::process::{Child, Command};
use vaquero_testkit::{Client, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// The engine that `cargo xtask test` started; none where there cannot be one.
fn host() -> Option<String> {
    let host = std::env::var("VAQUERO_TEST_DOCKER").expect(
        "`cargo xtask docker` starts an engine for this; VAQUERO_TEST_DOCKER=none leaves it out",
    );
    (host != "none").then_some(host)
}

async fn environment_of(client: &Client, session: &str) -> anyhow::Result<String> {
    let session = client.get(&format!("/v1/sessions/{session}")).await?;
    Ok(session["environment_id"].as_str().context("an id")?.to_owned())
}

async fn configure(client: &Client, environment: &str, config: Value) -> anyhow::Result<Value> {
    let path = format!("/v1/environments/{environment}");
    client.post(&path, json!({ "config": config })).await
}

async fn provider_of(client: &Client, session: &str, wanted: &str) -> anyhow::Result<()> {
    let path = format!("/v1/sessions/{session}/sandbox");
    eventually("the provider is on record", || async {
        let shown = client.get(&path).await.ok()?;
        (shown["data"][0]["provider"] == wanted).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moves_between_providers_by_configuration_alone() -> anyhow::Result<()> {
    let Some(host) = host() else { return Ok(()) };
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "local,docker");
    server.set_docker(&host);
    server.start().await?;
    let client = server.client();
    let cloud = json!({ "type": "cloud" });
    let session = client.session_in(cloud.clone()).await?;
    let environment = environment_of(client, &session).await?;
    let make = "mkdir -p d; echo made locally >d/f; chmod 640 d/f; head -c 3000000 /dev/urandom >big; sha256sum big; ls /etc/image-mark";
    let made = client.sh(&session, make).await?;
    assert!(made.contains("No such file"), "it is no container yet: {made}");
    provider_of(client, &session, "local").await?;

    let docker = json!({ "type": "cloud", "provider": "docker", "image": "vaquero-test:marked" });
    let shown = configure(client, &environment, docker).await?;
    assert_eq!(shown["config"]["provider"], "docker");
    let look = "cat d/f /etc/image-mark; sha256sum big; stat -c %a d/f; echo more >>d/f";
    let found = client.sh(&session, look).await?;
    let hash = made.split_whitespace().next().context("a hash")?;
    assert!(found.starts_with("made locally\nmarked\n") && found.contains(hash), "{found}");
    assert!(found.ends_with("640\n"), "{found}");
    provider_of(client, &session, "docker").await?;

    let local = json!({ "type": "cloud", "provider": null, "image": null });
    let shown = configure(client, &environment, local).await?;
    assert_eq!(shown["config"].get("provider"), None);
    let back = client.sh(&session, "cat d/f; sha256sum big; ls /etc/image-mark").await?;
    assert!(back.starts_with("made locally\nmore\n") && back.contains(hash), "{back}");
    assert!(back.contains("No such file"), "{back}");
    let left = server.data().join("data/docker/workspaces").join(&session);
    assert!(!left.exists(), "its files are in one place");
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

/// An engine of this test's own, with the image of the other one.
struct Engine {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Engine {
    fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "dockerd",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ]);
        for (option, place) in [("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")] {
            command.arg(format!("--{option}={}", at(place).display()));
        }
        command.args(["--host", &self.host()]).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn()?);
        let socket = at("docker.sock");
        eventually("the engine listens", || async {
            tokio::net::UnixStream::connect(&socket).await.ok().map(drop)
        })
        .await
    }

    /// As a crash does: its containers live on.
    async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("it runs")?;
        child.kill().await?;
        // What says that it lives; the engine's own containerd dies with it.
        for left in ["pid", "docker.sock", "exec/containerd/containerd.pid"] {
            std::fs::remove_file(self.dir.path().join(left))?;
        }
        Ok(())
    }

    async fn take_image(&self, from: &str) -> anyhow::Result<()> {
        let ours = self.dir.path().join("docker.sock");
        let script = "curl -sf --unix-socket \"$1\" http://docker/images/vaquero-test:latest/get \
            | curl -sf --unix-socket \"$2\" -X POST -H 'Content-Type: application/x-tar' -T - http://docker/images/load";
        let theirs = from.trim_start_matches("unix://");
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", theirs]).arg(ours).stdout(Stdio::null());
        ensure!(command.status().await?.success(), "the image cannot be copied");
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers first, and what they were made of goes with it.
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            let script = format!("kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done");
            drop(std::process::Command::new("timeout").args(["30", "sh", "-c", &script]).status());
        }
    }
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, |entries| entries.flatten().count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_is_killed_and_started_under_running_sessions() -> anyhow::Result<()> {
    let Some(host) = host() else { return Ok(()) };
    let mut engine = Engine { dir: tempfile::tempdir()?, child: None };
    engine.start().await?;
    engine.take_image(&host).await?;
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "docker");
    server.set_docker(&engine.host());
    // What is left is counted at the end.
    server.set("VAQUERO_SANDBOX_SPARES", "0");
    server.start().await?;
    let client = server.client();
    let session = client.session_in(json!({ "type": "cloud" })).await?;
    client.sh(&session, "echo kept >kept; echo $$ >/tmp/alive").await?;

    engine.kill().await?;
    let found = client.sh(&session, "cat kept /tmp/alive").await?;
    assert!(found.starts_with("kept\n"), "a sandbox that runs needs no engine: {found}");
    let other = client.session_in(json!({ "type": "cloud" })).await?;
    let refused = client.sh(&other, "echo in vain").await?;
    assert!(refused.contains("Docker engine"), "the model is told why: {refused}");

    client.say(&session, "!bash echo began >>began; sleep 600\n!next\n!say over").await?;
    eventually("the command runs", || async {
        let files = server.data().join("data/docker/workspaces").join(&session);
        files.join("workspace/began").exists().then_some(())
    })
    .await?;
    // It ends what it finds running, and the call with it.
    engine.start().await?;
    let events = client.idle(&session).await?;
    let last = of_type(&events, "agent.tool_result").pop().map(text_of).context("a result")?;
    assert!(last.contains("sandbox ended"), "{last}");
    let found = client.sh(&session, "cat kept began; ls /tmp/alive").await?;
    assert!(found.starts_with("kept\nbegan\nls: "), "fresh hands, the same files: {found}");
    let found = client.sh(&other, "echo now it works").await?;
    assert_eq!(found, "now it works\n");

    for session in [&session, &other] {
        client.delete(&format!("/v1/sessions/{session}")).await?;
    }
    eventually("nothing is left of them", || async {
        let dir = server.data().join("data/docker");
        (files(&dir.join("workspaces")) + files(&dir.join("lines")) == 0).then_some(())
    })
    .await?;
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}
