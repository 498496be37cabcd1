//! The real process, killed: the next one goes on from the log, loses nothing and does nothing twice.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use vaquero_testkit::{Model, Server, eventually, of_type, text_of};
use vaquero_worker::crash::{POINTS, VARIABLE};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// Two answers, a tool call between them that leaves a mark each time it runs.
const SCRIPT: &str = "!say first\n!bash echo ran >> /workspace/marks; sleep 0.2; wc -l < /workspace/marks\n!next\n!say last";

/// What must hold of every finished log.
fn check(events: &[Value]) {
    let mut results: BTreeMap<&str, u32> = BTreeMap::new();
    for result in of_type(events, "agent.tool_result") {
        *results.entry(result["tool_use_id"].as_str().expect("an id")).or_default() += 1;
    }
    for call in of_type(events, "agent.tool_use") {
        assert_eq!(
            results.remove(call["id"].as_str().expect("an id")),
            Some(1),
            "settled exactly once: {events:#?}"
        );
    }
    assert!(results.is_empty(), "results without calls: {results:?}");
    let starts = of_type(events, "span.model_request_start").len();
    assert_eq!(starts, of_type(events, "span.model_request_end").len(), "every span ends");
    for (index, event) in events.iter().enumerate() {
        if event["type"] == "session.status_idle" {
            assert_eq!(events[index - 1]["type"], "session.usage");
        }
    }
    let mut ids: Vec<&str> = events.iter().filter_map(|event| event["id"].as_str()).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "no event twice");
    let times: Vec<&str> =
        events.iter().filter_map(|event| event["processed_at"].as_str()).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "processed in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_named_point_is_survived() -> anyhow::Result<()> {
    let model = Model::start().await?;
    for point in POINTS {
        let mut server = Server::new(EXE, &model.base)?;
        server.set(VARIABLE, point);
        server.start().await?;
        let session = server.client().tool_session().await?;
        // The server may be gone before it can answer; what it accepted is durable all the same.
        drop(server.client().say(&session, SCRIPT).await);
        server.ended().await?;
        server.unset(VARIABLE);
        server.start().await?;
        let events = server.client().idle(&session).await?;
        check(&events);
        let messages: Vec<String> =
            of_type(&events, "agent.message").into_iter().map(text_of).collect();
        assert_eq!(messages, ["first", "last"], "killed at {point}: {events:#?}");
        let results = of_type(&events, "agent.tool_result");
        let result = text_of(results[0]);
        if point == "after-generation" {
            // The generation is durable and its sandbox was never made: nobody can know that nothing ran in it.
            assert!(result.contains("is unknown"), "killed at {point}: {result}");
        } else {
            assert_eq!(
                result, "1\n",
                "killed at {point}: the command ran once and its result was kept"
            );
        }
        assert_eq!(of_type(&events, "user.message").len(), 1);
    }
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_kills_in_one_turn_are_survived() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set(VARIABLE, "before-turn-start");
    server.start().await?;
    let session = server.client().tool_session().await?;
    drop(server.client().say(&session, SCRIPT).await);
    server.ended().await?;
    for point in ["model-answering", "before-answer", "tool-running", "before-result"] {
        server.set(VARIABLE, point);
        server.start_doomed().await?;
    }
    server.unset(VARIABLE);
    server.start().await?;
    let events = server.client().idle(&session).await?;
    check(&events);
    assert_eq!(text_of(of_type(&events, "agent.tool_result")[0]), "1\n");
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

static NAPS: AtomicU32 = AtomicU32::new(0);

/// Starts the server, and a session in it that runs a command which takes a while.
async fn with_a_command(server: &mut Server) -> anyhow::Result<String> {
    server.start().await?;
    let client = server.client();
    let session = client.tool_session().await?;
    // A length of its own, by which the host knows the process.
    let nap = format!("2.{:07}{:02}", std::process::id(), NAPS.fetch_add(1, Ordering::Relaxed));
    let script = format!(
        "!bash echo started >> /workspace/marks; sleep {nap}; wc -l < /workspace/marks\n!next\n!say last"
    );
    client.say(&session, &script).await?;
    eventually("called", || async {
        let events = client.events(&session).await.ok()?;
        (!of_type(&events, "agent.tool_use").is_empty()).then_some(())
    })
    .await?;
    eventually("started", || async { runs(&nap).then_some(()) }).await?;
    Ok(session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_command_outlives_the_server_and_is_collected() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    let session = with_a_command(&mut server).await?;
    server.kill().await?;
    server.start().await?;
    let events = server.client().idle(&session).await?;
    check(&events);
    assert_eq!(text_of(of_type(&events, "agent.tool_result")[0]), "1\n");
    Ok(())
}

/// A file of this name anywhere below `directory`.
/// Whether a process of this machine has this argument.
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_turn_survives_restarts_and_goes_on_with_its_answer() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let tool = serde_json::json!({
        "type": "custom", "name": "ask", "description": "asks", "input_schema": { "type": "object" }
    });
    let session = server.client().session(serde_json::json!([tool])).await?;
    server.client().say(&session, "!tool ask {}\n!next\n!say thanks").await?;
    let events = server.client().idle(&session).await?;
    let call = of_type(&events, "agent.custom_tool_use")[0]["id"].clone();
    for _ in 0..3 {
        server.kill().await?;
        server.start().await?;
    }
    let unchanged = server.client().events(&session).await?;
    assert_eq!(unchanged, events, "nothing happens by itself");
    let result = serde_json::json!({ "type": "user.custom_tool_result", "custom_tool_use_id": call, "content": [{ "type": "text", "text": "42" }] });
    let path = format!("/v1/sessions/{session}/events");
    server.client().post(&path, serde_json::json!({ "events": [result] })).await?;
    let events = server.client().idle(&session).await?;
    assert_eq!(text_of(of_type(&events, "agent.message")[0]), "thanks");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_server_hands_its_turns_over() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    let session = with_a_command(&mut server).await?;
    assert!(server.terminate().await?, "it ends well");
    server.start().await?;
    let events = server.client().idle(&session).await?;
    check(&events);
    assert_eq!(text_of(of_type(&events, "agent.tool_result")[0]), "1\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_directory_is_refused() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let output = tokio::process::Command::new(EXE)
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(server.data().join("data"))
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("in use by another server"), "{said}");
    Ok(())
}
