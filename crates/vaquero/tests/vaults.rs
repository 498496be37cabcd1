//! Secrets are hunted for wherever a server writes or says anything, and their keys are changed while it runs.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};
use vaquero_testkit::{Model, Server};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");
/// In each secret here.
const HUSH: &str = "hush-e95a07";
/// What it looks like in base64, wherever in a text it stands.
const HUSH_BASE64: [&str; 3] = ["aHVzaC1lOTVhM", "h1c2gtZTk1YTA", "odXNoLWU5NWEwN"];

fn vaquero(server: &Server, args: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(EXE);
    command.args(args).arg("--data-dir").arg(server.data().join("data"));
    for name in ["VAQUERO_DATABASE_URL", "VAQUERO_VAULT_KEY"] {
        if let Some(value) = server.variable(name) {
            command.env(name, value);
        }
    }
    Ok(command.stdin(Stdio::null()).output()?)
}

/// Every file below a place that holds the secret.
fn found_in(place: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(found_in(&entry.path())?);
        } else if kind.is_file() {
            let bytes = fs::read(entry.path())?;
            let text = String::from_utf8_lossy(&bytes);
            if text.contains(HUSH) || HUSH_BASE64.iter().any(|form| text.contains(form)) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    Ok(found)
}

async fn credential(server: &Server, vault: &str, name: &str) -> anyhow::Result<String> {
    let auth = json!({
        "type": "environment_variable", "secret_name": name, "secret_value": format!("{HUSH}-{name}"),
        "networking": { "type": "unrestricted" },
    });
    let path = format!("/v1/vaults/{vault}/credentials");
    let made = server.client().post(&path, json!({ "auth": auth })).await?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

/// A change that needs the stored secret to open.
async fn touch(server: &Server, vault: &str, id: &str) -> anyhow::Result<Value> {
    let auth = json!({ "type": "environment_variable", "secret_value": format!("{HUSH}-again") });
    let path = format!("/v1/vaults/{vault}/credentials/{id}");
    server.client().post(&path, json!({ "auth": auth })).await
}

async fn vault(server: &Server) -> anyhow::Result<String> {
    let made = server.client().post("/v1/vaults", json!({ "display_name": "v" })).await?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_nowhere_to_be_found() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set_embedded();
    server.set("VAQUERO_LOG", "trace");
    let log = server.log_to_file();
    server.start().await?;
    let vault = vault(&server).await?;
    let kept = credential(&server, &vault, "KEPT").await?;
    let gone = credential(&server, &vault, "GONE").await?;
    touch(&server, &vault, &kept).await?;
    let client = server.client();
    client.post(&format!("/v1/vaults/{vault}/credentials/{gone}/archive"), json!({})).await?;
    let wrong = json!({ "auth": { "type": "environment_variable", "secret_value": [HUSH] } });
    let refused = client.post(&format!("/v1/vaults/{vault}/credentials/{kept}"), wrong).await;
    assert!(refused.is_err_and(|error| !error.to_string().contains(HUSH)));
    let listed =
        client.get(&format!("/v1/vaults/{vault}/credentials?include_archived=true")).await?;
    let metrics = client.request(reqwest::Method::GET, "/metrics").send().await?.text().await?;
    assert!(!listed.to_string().contains(HUSH) && !metrics.contains(HUSH));
    let export = server.data().join("export.jsonl");
    let exported = vaquero(&server, &["export", &export.display().to_string()])?;
    assert!(exported.status.success(), "{exported:?}");
    assert!(fs::read_to_string(&export)?.contains(&kept), "the credential itself is in it");
    let backup = server.data().join("backup.db");
    assert!(vaquero(&server, &["backup", &backup.display().to_string()])?.status.success());
    let no_files: [String; 0] = [];
    assert_eq!(found_in(server.data())?, no_files);
    assert!(server.terminate().await?);
    assert_eq!(found_in(server.data())?, no_files, "at rest");
    assert!(fs::read_to_string(&log)?.contains("DEBUG"), "the log was looked through");
    let key = server.data().join("data/vault.key");
    assert_eq!(fs::metadata(&key)?.permissions().mode() & 0o777, 0o600);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_while_a_server_runs() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set_embedded();
    server.start().await?;
    let vault = vault(&server).await?;
    let one = credential(&server, &vault, "ONE").await?;
    let two = credential(&server, &vault, "TWO").await?;
    let file = server.data().join("data/vault.key");
    let before = fs::read_to_string(&file)?;
    let rotated = vaquero(&server, &["vault", "rotate"])?;
    let said = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(said.starts_with("2 credentials sealed anew"), "{said} {rotated:?}");
    let after = fs::read_to_string(&file)?;
    assert!(
        !after.starts_with(before.trim()) && after.lines().count() == 2,
        "new, and the last one"
    );
    touch(&server, &vault, &one).await?;
    assert!(server.terminate().await?);
    server.start().await?;
    touch(&server, &vault, &two).await?;
    let again = vaquero(&server, &["vault", "rotate"])?;
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("2 credentials"), "{again:?}");
    assert!(!fs::read_to_string(&file)?.contains(before.trim()), "the first key is gone");
    // Whoever comes with another key is told, and nothing is lost.
    assert!(server.terminate().await?);
    let right = fs::read_to_string(&file)?;
    fs::write(&file, before)?;
    server.start().await?;
    let refused = touch(&server, &vault, &one).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("the key it was sealed with")));
    assert!(server.terminate().await?);
    fs::write(&file, right)?;
    server.start().await?;
    touch(&server, &vault, &one).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_the_environment_are_checked_and_rotated() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    let (old, new) = (
        "b2xkIGtleSBvbGQga2V5IG9sZCBrZXkgb2xkIGtleSE=",
        "bmV3IGtleSBuZXcga2V5IG5ldyBrZXkgbmV3IGtleSE=",
    );
    server.set("VAQUERO_VAULT_KEY", old);
    server.start().await?;
    let vault = vault(&server).await?;
    let id = credential(&server, &vault, "ONE").await?;
    assert!(!server.data().join("data/vault.key").exists());
    assert!(server.terminate().await?);
    server.set("VAQUERO_VAULT_KEY", &format!("{new},{old}"));
    server.start().await?;
    let rotated = vaquero(&server, &["vault", "rotate"])?;
    let said = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(said.starts_with("1 credentials sealed anew"), "{said} {rotated:?}");
    assert!(server.terminate().await?);
    server.set("VAQUERO_VAULT_KEY", new);
    server.start().await?;
    touch(&server, &vault, &id).await?;
    assert!(server.terminate().await?);
    let mut wrong = Command::new(EXE);
    wrong.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(server.data().join("other"));
    let output = wrong.env("VAQUERO_VAULT_KEY", "short").output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("VAQUERO_VAULT_KEY") && said.contains("openssl rand"), "{said}");
    Ok(())
}
