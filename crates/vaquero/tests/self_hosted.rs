//! A self-hosted environment's worker, step by step, while its server is killed and started again.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::process::Command;
use vaquero_testkit::{Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// A worker's requests, with its key or its item's token.
struct Worker {
    http: reqwest::Client,
    base: String,
    bearer: String,
}

impl Worker {
    async fn ask(&self, method: reqwest::Method, path: &str, body: Value) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method, url).bearer_auth(&self.bearer);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.json::<Value>().await?);
        anyhow::ensure!(status.is_success(), "{status} {body}");
        Ok(body)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(reqwest::Method::GET, path, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.ask(reqwest::Method::POST, path, body).await
    }
}

fn key(server: &Server, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(EXE);
    command.arg("key").args(arguments).arg("--data-dir").arg(server.data().join("data"));
    let output = command.current_dir(std::env::temp_dir()).output()?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    anyhow::ensure!(output.status.success(), "{said}");
    Ok(said.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_goes_on_when_its_server_comes_back() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set_embedded();
    server.start().await?;
    let client = server.client();
    let body = json!({ "name": "hosted", "config": { "type": "self_hosted" } });
    let environment = client.post("/v1/environments", body).await?;
    let environment = environment["id"].as_str().context("an id")?.to_owned();
    let unknown = key(&server, &["create", "--environment", "env_none"]);
    let unknown = unknown.expect_err("there is none").to_string();
    assert!(unknown.contains("there is no self_hosted environment `env_none`"), "{unknown}");
    let bearer = key(&server, &["create", "--environment", &environment])?;
    let listed = key(&server, &["list"])?;
    let line = listed.lines().find(|line| line.contains(&environment)).context("it is listed")?;
    let id = line.split_whitespace().next().context("its id")?.to_owned();

    let tools = json!([{ "type": "agent_toolset_20260401" }]);
    let agent = json!({ "name": "a", "model": "scripted", "tools": tools });
    let agent = client.post("/v1/agents", agent).await?;
    let text = "!bash echo one\n!bash echo two\n!next\n!say done";
    let message = json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] });
    let body =
        json!({ "agent": agent["id"], "environment_id": environment, "initial_events": [message] });
    let session = client.post("/v1/sessions", body).await?;
    let session = session["id"].as_str().context("an id")?.to_owned();
    let idle = client.idle(&session).await?;
    let calls: Vec<String> = of_type(&idle, "agent.tool_use")
        .iter()
        .filter_map(|call| call["id"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(calls.len(), 2);

    let queue = format!("/v1/environments/{environment}/work");
    let mut worker =
        Worker { http: reqwest::Client::new(), base: server.client().base.clone(), bearer };
    let item = worker.get(&format!("{queue}/poll")).await?;
    let one = format!("{queue}/{}", item["id"].as_str().context("an id")?);
    worker.post(&format!("{one}/ack"), Value::Null).await?;
    let beat = worker
        .post(&format!("{one}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT"), Value::Null)
        .await?;
    let secret = URL_SAFE_NO_PAD.decode(item["secret"].as_str().context("a secret")?)?;
    let secret: Value = serde_json::from_slice(&secret)?;
    let token = secret["sessions_token"].as_str().context("a token")?.to_owned();
    let own = std::mem::replace(&mut worker.bearer, token);
    let events = format!("/v1/sessions/{session}/events");
    let result = |call: &str, text: &str| {
        let content = json!([{ "type": "text", "text": text }]);
        json!({ "events": [{ "type": "user.tool_result", "tool_use_id": call, "content": content }] })
    };
    worker.post(&events, result(&calls[0], "one")).await?;
    let twice = worker.post(&events, result(&calls[0], "one")).await;
    assert!(twice.expect_err("it has one").to_string().contains("has been answered already"));
    let shown = client.get(&format!("/v1/sessions/{session}")).await?;
    assert_eq!(shown["status"], "idle", "the other result is still to come");

    server.kill().await?;
    server.start().await?;
    worker.base = server.client().base.clone();
    let last = beat["last_heartbeat"].as_str().context("an instant")?;
    let path = format!("{one}/heartbeat?expected_last_heartbeat={last}");
    let beat = worker.post(&path, Value::Null).await?;
    assert_eq!((&beat["state"], &beat["lease_extended"]), (&json!("active"), &json!(true)));
    worker.post(&events, result(&calls[1], "two")).await?;
    let client = server.client();
    let all = eventually("the turn ends", async || {
        let all = client.events(&session).await.ok()?;
        all.iter().any(|event| text_of(event) == "done").then_some(all)
    })
    .await?;
    assert_eq!(of_type(&all, "user.tool_result").len(), 2);
    assert!(of_type(&all, "agent.tool_result").is_empty());
    worker.post(&format!("{one}/stop"), json!({ "force": true })).await?;
    assert!(worker.get(&format!("/v1/sessions/{session}")).await.is_err(), "its token has ended");

    // The next message is the next item, until the key is revoked.
    worker.bearer = own;
    assert_eq!(worker.get(&format!("{queue}/poll")).await?, Value::Null);
    client.say(&session, "!bash echo more\n!next\n!say over").await?;
    let next = worker.get(&format!("{queue}/poll?block_ms=900")).await?;
    assert_eq!(next["data"]["id"], json!(session));
    key(&server, &["revoke", &id])?;
    let refused = worker.get(&format!("{queue}/poll")).await;
    assert!(refused.expect_err("it is revoked").to_string().starts_with("401"));
    Ok(())
}
