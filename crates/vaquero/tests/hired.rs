//! `vaquero worker`: another machine's hands for a server's queue.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use vaquero_testkit::{Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// A worker, killed when it goes.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Rig {
    server: Server,
    environment: String,
    key: String,
    agent: String,
    place: tempfile::TempDir,
    _model: Model,
}

async fn rig() -> anyhow::Result<Rig> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set_embedded();
    server.set("VAQUERO_WORK_LEASE_SECONDS", "5");
    server.start().await?;
    let client = server.client();
    let body = json!({ "name": "hosted", "config": { "type": "self_hosted" } });
    let id = |made: Value| made["id"].as_str().map(str::to_owned).context("an id");
    let environment = id(client.post("/v1/environments", body).await?)?;
    let mut command = Command::new(EXE);
    command.args(["key", "create", "--environment", &environment, "--data-dir"]);
    let output = command.arg(server.data().join("data")).output()?;
    let key = String::from_utf8(output.stdout)?.trim().to_owned();
    let tools = json!([{ "type": "agent_toolset_20260401" }]);
    let body = json!({ "name": "a", "model": "scripted", "tools": tools });
    let agent = id(client.post("/v1/agents", body).await?)?;
    Ok(Rig { server, environment, key, agent, place: tempfile::tempdir()?, _model: model })
}

impl Rig {
    fn worker(&self, arguments: &[&str]) -> anyhow::Result<Worker> {
        let mut command = self.command(&self.key, arguments);
        Ok(Worker(command.spawn()?))
    }

    fn command(&self, key: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(EXE);
        command
            .args([
                "worker",
                "--sandbox-limits",
                "degraded",
                "--max-idle-seconds",
                "1",
                "--base-url",
            ])
            .arg(&self.server.client().base)
            .args(["--environment", &self.environment, "--data-dir"])
            .arg(self.place.path().join("worker"))
            .args(arguments)
            .env("ANTHROPIC_ENVIRONMENT_KEY", key)
            .env("VAQUERO_LOG", "warn")
            .current_dir(self.place.path())
            .stdout(Stdio::null());
        command
    }

    async fn session(&self, text: &str) -> anyhow::Result<String> {
        let message =
            json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] });
        let body = json!({ "agent": self.agent, "environment_id": self.environment, "initial_events": [message] });
        let made = self.server.client().post("/v1/sessions", body).await?;
        made["id"].as_str().map(str::to_owned).context("an id")
    }

    /// The texts of a session's results, once its agent has said so.
    async fn said(&self, session: &str, text: &str) -> anyhow::Result<Vec<String>> {
        let client = self.server.client();
        let events = eventually("the turn ends", async || {
            let events = client.events(session).await.ok()?;
            let said = of_type(&events, "agent.message");
            said.iter().any(|event| text_of(event) == text).then_some(events)
        })
        .await?;
        Ok(of_type(&events, "user.tool_result").into_iter().map(text_of).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_served_from_sandboxes_with_all_their_walls() -> anyhow::Result<()> {
    let rig = rig().await?;
    let _worker = rig.worker(&["--allowed-hosts", "allowed.test"])?;
    let session = rig
        .session(
            "!bash echo hi > f; cat f; pwd; ls /home; curl -s http://other.test/\n!next\n!say done",
        )
        .await?;
    let results = rig.said(&session, "done").await?;
    assert!(results[0].starts_with("hi\n/workspace"), "{results:?}");
    assert!(results[0].contains("`other.test` is not among the allowed_hosts"), "{results:?}");
    // It leaves a session that rests, and comes back to its files.
    let client = rig.server.client();
    client.say(&session, "!tool read {\"file_path\": \"/workspace/f\"}\n!next\n!say again").await?;
    let results = rig.said(&session, "again").await?;
    assert_eq!(results.len(), 2);
    assert!(results[1].contains("hi"), "{results:?}");
    let second = rig.command(&rig.key, &[]).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("another worker uses"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_in_a_call_loses_nothing() -> anyhow::Result<()> {
    let rig = rig().await?;
    let worker = rig.worker(&[])?;
    // Longer than the item's lease: the next worker finds the call at work.
    let session = rig.session("!bash echo run >> log; sleep 9; cat log\n!next\n!say done").await?;
    eventually("the call runs", async || runs("sleep 9").then_some(())).await?;
    drop(worker);
    assert!(runs("sleep 9"), "it does without its worker");
    let _worker = rig.worker(&[])?;
    let results = rig.said(&session, "done").await?;
    assert_eq!(results, ["run\n"], "it ran once");
    Ok(())
}

/// Whether a process with this command line lives.
fn runs(command: &str) -> bool {
    let wanted = command.replace(' ', "\0");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).trim_end_matches('\0') == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_opens_nothing_is_named() -> anyhow::Result<()> {
    let rig = rig().await?;
    let refused = rig.command("vq_env_nothing", &[]).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("the queue refuses: 401"), "{said}");
    let refused = rig
        .command(&rig.key, &["--sandbox", "unsafe-host", "--allowed-hosts", "a.test"])
        .stderr(Stdio::piped())
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("sandbox required"), "{said}");
    Ok(())
}
