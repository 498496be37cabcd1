//! Forks: a new session from any event of an old one, its log and its files.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use vaquero_testkit::{Client, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// A session of an agent with the built-in tools, whose conversation the model will see go on in several ways.
async fn session(client: &Client) -> anyhow::Result<String> {
    session_in(client, json!({ "type": "cloud" })).await
}

async fn session_in(client: &Client, config: Value) -> anyhow::Result<String> {
    let tools = json!([{ "type": "agent_toolset_20260401" }]);
    let system = "This conversation may be forked.";
    let agent = json!({ "name": "a", "model": "scripted", "system": system, "tools": tools });
    let agent = client.post("/v1/agents", agent).await?;
    let environment = json!({ "name": "e", "config": config });
    let environment = client.post("/v1/environments", environment).await?;
    let body = json!({ "agent": agent["id"], "environment_id": environment["id"] });
    let made = client.post("/v1/sessions", body).await?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

async fn fork(client: &Client, session: &str, body: Value) -> anyhow::Result<String> {
    let made = client.post(&format!("/v1/sessions/{session}/fork"), body).await?;
    assert_eq!((&made["type"], &made["status"]), (&json!("session"), &json!("idle")));
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

/// The directories of blobs below a directory.
fn walk(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        // Links in what sandboxes see lead everywhere.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path().display().to_string();
            found.extend(walk(&entry.path()));
            if path.contains("/workspaces/wrkspc_") {
                found.push(path);
            }
        }
    }
    found
}

fn ids(events: &[Value]) -> BTreeSet<&str> {
    events.iter().filter_map(|event| event["id"].as_str()).collect()
}

/// Where several servers could share a database, files are only kept where all of them see them.
async fn server(model: &Model) -> anyhow::Result<Server> {
    let mut server = Server::new(EXE, &model.base)?;
    if std::env::var("VAQUERO_TEST_STORE").is_ok() {
        let blobs = server.data().join("shared");
        server.set("VAQUERO_BLOB_URL", &format!("file://{}", blobs.display()));
    }
    server.start().await?;
    Ok(server)
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_has_the_log_and_the_files_of_its_event_and_goes_its_own_way() -> anyhow::Result<()>
{
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let session = session(client).await?;
    client
        .sh(&session, "echo first >a; mkdir -p deep && head -c 3000000 /dev/zero >deep/large")
        .await?;
    let first = client.idle(&session).await?;
    client.sh(&session, "echo second >a; echo more >b; rm -r deep").await?;
    let both = client.idle(&session).await?;
    let event = first.last().context("events")?["id"].clone();

    let early = fork(client, &session, json!({ "event_id": event, "title": "early" })).await?;
    let copied = client.events(&early).await?;
    assert_eq!(types(&copied), types(&first));
    assert!(ids(&copied).is_disjoint(&ids(&both)), "events have ids of their own");
    let call = &of_type(&copied, "agent.tool_use")[0]["id"];
    assert_eq!(&of_type(&copied, "agent.tool_result")[0]["tool_use_id"], call);
    assert_eq!(copied[0]["processed_at"], first[0]["processed_at"]);
    let look = "cat a; ls; stat -c %s deep/large";
    let said = client.sh(&early, look).await?;
    assert!(
        said.starts_with("This session was forked") && said.contains("as they were then"),
        "{said}"
    );
    assert!(said.ends_with("first\na\ndeep\n3000000\n"), "{said}");

    let late = fork(client, &session, json!({})).await?;
    assert_eq!(types(&client.events(&late).await?), types(&both));
    let said = client.sh(&late, "cat a b; ls").await?;
    assert!(said.ends_with("second\nmore\na\nb\n"), "{said}");

    // Nobody sees what the others do from here on.
    client.sh(&early, "echo fork >a").await?;
    assert_eq!(client.sh(&session, "cat a").await?, "second\n");
    assert_eq!(client.sh(&early, "cat a").await?, "fork\n");
    // A fork of a fork, at an event that both have, after the first is gone.
    let nested =
        fork(client, &early, json!({ "event_id": copied.last().context("events")?["id"] })).await?;
    client.delete(&format!("/v1/sessions/{session}")).await?;
    let said = client.sh(&nested, "cat a").await?;
    assert!(said.ends_with("first\n"), "{said}");
    // What nobody began with goes with its session; what somebody did stays.
    let kept = |id: &str| walk(server.data()).iter().any(|path| path.ends_with(&format!("/{id}")));
    eventually("checkpoints of all", || async {
        [&late, &early, &session].into_iter().all(|id| kept(id)).then_some(())
    })
    .await?;
    client.delete(&format!("/v1/sessions/{late}")).await?;
    eventually("its files are gone", || async { (!kept(&late)).then_some(()) }).await?;
    assert!(kept(&session), "a fork began with its files");
    let shown = client.get(&format!("/v1/sessions/{early}")).await?;
    assert_eq!(shown["title"], "early");
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_in_the_middle_of_a_turn_is_at_rest() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let client = server.client();
    let session = client.tool_session().await?;
    client
        .say(&session, "!say before\n!bash echo one >f\n!next\n!bash echo two >f\n!next\n!say done")
        .await?;
    let events = client.idle(&session).await?;
    for (number, event) in events.iter().enumerate() {
        let forked = fork(client, &session, json!({ "event_id": event["id"] })).await?;
        let copied = client.events(&forked).await?;
        assert!(copied.len() > number, "{number}: {:?}", types(&copied));
        assert_eq!(types(&copied)[..=number], types(&events)[..=number]);
        let last = copied.last().context("events")?;
        assert_eq!(last["type"], "session.status_idle", "{number}: {:?}", types(&copied));
        for call in of_type(&copied, "agent.tool_use") {
            let results = of_type(&copied, "agent.tool_result");
            let own = results.iter().filter(|result| result["tool_use_id"] == call["id"]).count();
            assert_eq!(own, 1, "{number}: every call has one result");
        }
    }
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_of_a_session_that_waits_for_its_client_goes_on_without_the_call()
-> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let client = server.client();
    let ask = json!({ "permission_policy": { "type": "always_ask" } });
    let tools = json!([{ "type": "agent_toolset_20260401", "default_config": ask }]);
    let session = client.session(tools).await?;
    client.say(&session, "!say before\n!bash echo one >f\n!next\n!say after").await?;
    let events = client.idle(&session).await?;
    assert_eq!(events.last().context("events")?["stop_reason"]["type"], "requires_action");
    let forked = fork(client, &session, json!({})).await?;
    client.say(&forked, "!say and on").await?;
    let copied = client.idle(&forked).await?;
    let said: Vec<String> = of_type(&copied, "agent.message").into_iter().map(text_of).collect();
    assert_eq!(said, ["before", "and on"]);
    let result = of_type(&copied, "agent.tool_result").pop().context("a result")?;
    assert_eq!(result["is_error"], true);
    // The old session still waits, and its client can still answer.
    let call = &of_type(&events, "agent.tool_use")[0]["id"];
    let allow = json!({ "type": "user.tool_confirmation", "tool_use_id": call, "result": "allow" });
    client.post(&format!("/v1/sessions/{session}/events"), json!({ "events": [allow] })).await?;
    let events = client.idle(&session).await?;
    assert_eq!(of_type(&events, "agent.tool_result")[0]["is_error"], false);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_forked_is_refused() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_WORKSPACE_HISTORY", "0");
    server.start().await?;
    let client = server.client();
    let session = client.tool_session().await?;
    client.sh(&session, "echo kept >a").await?;
    for (id, body, wanted) in [
        ("sesn_none", json!({}), "404"),
        (session.as_str(), json!({ "event_id": "sevt_none" }), "404"),
        (session.as_str(), json!({ "event_id": 5 }), "400"),
        (session.as_str(), json!({ "at": "sevt_none" }), "400"),
    ] {
        let Err(refused) = fork(client, id, body.clone()).await else { panic!("{body}: forked") };
        assert!(refused.to_string().starts_with(wanted), "{body}: {refused}");
    }
    // Without history there are no files, and the model is told.
    let forked = fork(client, &session, json!({ "metadata": { "a": "b" } })).await?;
    let said = client.sh(&forked, "ls -A").await?;
    assert!(said.contains("no checkpoint of its files was kept"), "{said}");
    let untouched = client.tool_session().await?;
    let forked = fork(client, &untouched, json!({})).await?;
    assert_eq!(client.sh(&forked, "ls -A").await?, "(no output)");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_has_the_files_of_all_its_sandboxes() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let config = json!({ "type": "cloud", "sandboxes": [{ "name": "twin" }] });
    let session = session_in(client, config).await?;
    let in_twin = async |session: &str, command: &str| -> anyhow::Result<String> {
        let input = json!({ "command": command });
        client.say(session, &format!("!tool execute_twin {input}\n!next\n!say done")).await?;
        let events = client.idle(session).await?;
        of_type(&events, "agent.tool_result").pop().map(text_of).context("a result")
    };
    client.sh(&session, "echo of the default one >a").await?;
    in_twin(&session, "echo of the twin >a").await?;
    let branch = fork(client, &session, json!({})).await?;
    in_twin(&session, "echo changed >a").await?;
    assert!(client.sh(&branch, "cat a").await?.ends_with("of the default one\n"));
    assert!(in_twin(&branch, "cat a").await?.ends_with("of the twin\n"));
    assert_eq!(in_twin(&session, "cat a; echo here").await?, "changed\nhere\n");
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}
