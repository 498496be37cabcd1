//! Which provider makes a session's sandboxes: what is refused, and one of the operator's own.
#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use serde_json::json;
use std::process::Command;
use vaquero_testkit::{Model, Server, eventually};

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
        json!({ "type": "cloud", "warm_pool": { "size": 0 } }),
        json!({ "type": "cloud", "warm_pool": { "size": 65 } }),
        json!({ "type": "cloud", "warm_pool": { "max_age_seconds": 59 } }),
        json!({ "type": "cloud", "warm_pool": { "max_age_seconds": 86_401 } }),
        json!({ "type": "cloud", "warm_pool": { "age": 1 } }),
        json!({ "type": "cloud", "warm_pool": 3 }),
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
    let mut doctor = Command::new(EXE);
    doctor.arg("doctor").current_dir(server.data()).env("VAQUERO_SANDBOX", "plugin");
    doctor.env("VAQUERO_SANDBOX_PLUGIN", format!("python3 {script}"));
    doctor.env("VAQUERO_SANDBOX_LIMITS", "degraded").env("VAQUERO_LISTEN", "127.0.0.1:0");
    let said = doctor.output()?;
    let (out, err) = (String::from_utf8(said.stdout)?, String::from_utf8(said.stderr)?);
    assert!(out.contains("ok  sandbox, plugin: one was made"), "{out}{err}");
    let left = std::fs::read_dir(server.data())?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("doctor")).collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
    let plugin = json!({ "type": "cloud", "provider": "plugin" });
    let session = server.client().session_in(plugin).await?;
    let said = server.client().sh(&session, "echo hello >file; echo $$ >/tmp/shell; id -u").await?;
    assert_eq!(said, "0\n");
    let warm = json!({ "type": "cloud", "provider": "plugin", "warm_pool": {} });
    let refused = server.client().session_in(warm).await.err().context("refused")?;
    assert!(refused.to_string().contains("before they are wanted"), "{refused}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_keeps_sandboxes_ready_for_its_sessions() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "local");
    server.start().await?;
    let client = server.client();
    let config = json!({
        "type": "cloud",
        "env": { "GREETING": "hello" },
        "setup": ["echo begun >/workspace/begun"],
        "sandboxes": [{ "name": "tests" }],
        "warm_pool": { "size": 2 },
    });
    let made = client.post("/v1/environments", json!({ "name": "warm", "config": config })).await?;
    assert_eq!(made["config"]["warm_pool"], json!({ "size": 2, "max_age_seconds": 3_600 }));
    let id = made["id"].as_str().context("an id")?.to_owned();
    let pools = [format!("pool=\"{id}\""), format!("pool=\"{id}-tests\"")];
    let full = async |server: &Server, name: &str, wanted: &str| {
        eventually("as it should be", async || {
            for pool in &pools {
                if server.client().metric(name, &[pool]).await.as_deref() != Some(wanted) {
                    return None;
                }
            }
            Some(())
        })
        .await
    };
    full(&server, "vaquero_sandbox_pool_ready", "2").await?;

    let session = client.session_of(&id).await?;
    let said = client.sh(&session, "echo $GREETING; ls").await?;
    assert_eq!(said, "hello\nbegun\n");
    let from_pool = [pools[0].as_str(), "from=\"pool\""];
    assert_eq!(
        client.metric("vaquero_sandbox_claim_seconds_count", &from_pool).await.as_deref(),
        Some("1")
    );
    full(&server, "vaquero_sandbox_pool_ready", "2").await?;

    // A server that is gone leaves none behind, and the next one has its own.
    server.kill().await?;
    server.start().await?;
    full(&server, "vaquero_sandbox_pool_ready", "2").await?;
    let client = server.client();
    assert_eq!(client.sh(&session, "ls; echo again").await?, "begun\nagain\n");

    // What changes is made anew, and what is not wanted any more ends.
    let path = format!("/v1/environments/{id}");
    let config =
        json!({ "type": "cloud", "env": { "GREETING": "hey" }, "warm_pool": { "size": 1 } });
    let changed = client.post(&path, json!({ "config": config })).await?;
    assert_eq!(changed["config"]["warm_pool"], json!({ "size": 1, "max_age_seconds": 3_600 }));
    full(&server, "vaquero_sandbox_pool_size", "1").await?;
    full(&server, "vaquero_sandbox_pool_ready", "1").await?;
    let session = client.session_of(&id).await?;
    assert_eq!(client.sh(&session, "echo $GREETING to you").await?, "hey to you\n");
    client.post(&format!("{path}/archive"), json!({})).await?;
    full(&server, "vaquero_sandbox_pool_size", "0").await?;
    let files = std::fs::read_dir(server.data().join("data/workspaces"))?.flatten();
    let spares: Vec<_> =
        files.filter(|e| e.file_name().to_string_lossy().starts_with("spare-")).collect();
    assert!(spares.len() <= 1, "but for the server's own: {spares:?}");
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
