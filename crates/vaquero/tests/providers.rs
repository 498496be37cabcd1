//! Which provider makes a session's sandboxes: what is refused, and one of the operator's own.
#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use serde_json::json;
use std::process::Command;
use vaquero_testkit::{Model, Server};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_cannot_is_refused_when_a_session_is_made() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "local");
    server.start().await?;
    let client = server.client();
    for (config, says) in [
        (json!({ "type": "cloud", "provider": "docker" }), "this server has local"),
        (json!({ "type": "cloud", "image": "debian:stable" }), "not made of images"),
    ] {
        let refused = client.session_in(config).await.err().context("refused")?.to_string();
        assert!(refused.contains("400") && refused.contains(says), "{refused}");
    }
    for config in [
        json!({ "type": "cloud", "provider": "with spaces" }),
        json!({ "type": "cloud", "image": 5 }),
        json!({ "type": "cloud", "image": "" }),
    ] {
        let body = json!({ "name": format!("{config}"), "config": config });
        let refused = client.post("/v1/environments", body).await.err().context("refused")?;
        assert!(refused.to_string().contains("400"), "{refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_runs_in_sandboxes_of_a_program_of_ones_own() -> anyhow::Result<()> {
    let there = |program: &str| {
        Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success())
    };
    let root = Command::new("id").arg("-u").output().is_ok_and(|said| said.stdout == b"0\n");
    if !(there("bwrap") && there("python3") && root) {
        return Ok(());
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/bubblewrap.py");
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "local,plugin");
    server.set("VAQUERO_SANDBOX_PLUGIN", &format!("python3 {script}"));
    server.start().await?;
    let plugin = json!({ "type": "cloud", "provider": "plugin" });
    let session = server.client().session_in(plugin).await?;
    let said = server.client().sh(&session, "echo hello >file; echo $$ >/tmp/shell; id -u").await?;
    assert_eq!(said, "0\n");
    let setup = json!({ "type": "cloud", "provider": "plugin", "setup": ["true"] });
    let refused = server.client().session_in(setup).await.err().context("refused")?;
    assert!(refused.to_string().contains("not set up by the server"), "{refused}");

    // It outlives its server, and the program that made it.
    server.kill().await?;
    server.start().await?;
    let said =
        server.client().sh(&session, "cat file; kill -0 $(cat /tmp/shell) && echo alive").await?;
    assert_eq!(said, "hello\nalive\n");
    server.client().delete(&format!("/v1/sessions/{session}")).await?;
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_word_that_is_no_provider_is_named() -> anyhow::Result<()> {
    for (words, says) in [
        ("podman", "`podman` is no provider"),
        ("local,local", "named twice"),
        ("plugin", "set sandbox_plugin as well"),
    ] {
        let data = tempfile::tempdir()?;
        let mut command = Command::new(EXE);
        command.args(["serve", "--listen", "127.0.0.1:0", "--sandbox", words, "--data-dir"]);
        let said = command.arg(data.path()).current_dir(data.path()).output()?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains(says), "{text}");
    }
    Ok(())
}
