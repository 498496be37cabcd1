//! Raw sockets, dead clients, many sessions at once: each has an answer, and the server goes on.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use futures::future::try_join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vaquero_testkit::{KEY, Model, PATIENCE, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

async fn server(model: &Model) -> anyhow::Result<Server> {
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    Ok(server)
}

async fn connect(server: &Server) -> anyhow::Result<TcpStream> {
    let address = server.client().base.strip_prefix("http://").context("an address")?;
    Ok(TcpStream::connect(address).await?)
}

/// Sends bytes as they are and reads to the end of the connection, or of the first answer.
async fn raw(server: &Server, bytes: &[u8]) -> anyhow::Result<String> {
    let mut stream = connect(server).await?;
    stream.write_all(bytes).await?;
    let mut answer = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let read = timeout(PATIENCE, stream.read(&mut answer[length..])).await?.unwrap_or(0);
        length += read;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        if read == 0 || text.contains("\"request_id\"") {
            return Ok(text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_is_refused_and_the_server_goes_on() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let head = format!("POST /v1/agents HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n");
    for nonsense in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("{head}content-length: -5\r\n\r\n"),
        format!("{head}content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
        format!("{head}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\nZZ\r\n"),
        format!("GET /v1/agents HTTP/1.1\r\nhost: x\r\nx-filler: {}\r\n\r\n", "x".repeat(1 << 20)),
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n".to_owned(),
    ] {
        let answer = raw(&server, nonsense.as_bytes()).await?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        let ours = answer.contains("\r\nrequest-id: req_") && answer.contains("\"error\"");
        assert!(answer.is_empty() || ours, "{answer}");
    }
    let huge =
        raw(&server, format!("{head}content-length: 99999999999\r\n\r\n").as_bytes()).await?;
    assert!(huge.starts_with("HTTP/1.1 413") && huge.contains("request_too_large"), "{huge}");
    let expects = raw(
        &server,
        format!("{head}expect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n").as_bytes(),
    )
    .await?;
    assert!(expects.starts_with("HTTP/1.1 413"), "refused before it is sent: {expects}");
    server.client().get("/v1/agents").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_takes_nothing_with_it() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let session = client.session(json!([])).await?;
    let body = json!({ "events": [{ "type": "user.message", "content": [{ "type": "text", "text": "!say hi" }] }] }).to_string();
    let path = format!("/v1/sessions/{session}/events");
    let mut stream = connect(&server).await?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    drop(stream);
    let mut half = connect(&server).await?;
    half.write_all(format!("POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 500\r\n\r\n{{\"events\"").as_bytes()).await?;
    drop(half);
    // What was sent whole is done even if nobody reads the answer; what was not is not.
    let messages = eventually("answered", || async {
        let events = client.events(&session).await.ok()?;
        let messages = of_type(&events, "user.message").len();
        (!of_type(&events, "agent.message").is_empty()).then_some(messages)
    })
    .await?;
    assert_eq!(messages, 1);
    let mut followers = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(&server).await?;
        stream
            .write_all(
                format!("GET {path}/stream HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        let mut first = [0; 64];
        timeout(PATIENCE, stream.read(&mut first)).await??;
        assert!(first.starts_with(b"HTTP/1.1 200"), "headers come at once");
        followers.push(stream);
    }
    let open = || async {
        let metrics = reqwest::Client::builder().no_proxy().build().ok()?;
        let text =
            metrics.get(format!("{}/metrics", client.base)).send().await.ok()?.text().await.ok()?;
        let line = text.lines().find(|line| line.starts_with("vaquero_streams_open "))?.to_owned();
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    eventually("fifty streams", || async { (open().await? >= 50.0).then_some(()) }).await?;
    drop(followers);
    client.say(&session, "!say again").await?;
    eventually("streams of the dead are closed", || async { (open().await? < 1.0).then_some(()) })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_sessions_at_once_each_in_a_sandbox_of_its_own() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let sessions = try_join_all((0..50).map(|_| client.tool_session())).await?;
    let script = |index: usize| {
        format!(
            "!bash echo {index} > mine; sleep 0.3; cat mine; ls /workspace | wc -l\n!next\n!say done {index}"
        )
    };
    try_join_all(
        sessions
            .iter()
            .enumerate()
            .map(|(index, session)| async move { client.say(session, &script(index)).await }),
    )
    .await?;
    for (index, session) in sessions.iter().enumerate() {
        let events = client.idle(session).await?;
        let results = of_type(&events, "agent.tool_result");
        assert_eq!(text_of(results[0]), format!("{index}\n1\n"), "{events:#?}");
        assert_eq!(text_of(of_type(&events, "agent.message")[0]), format!("done {index}"));
    }
    try_join_all(
        sessions
            .iter()
            .map(|session| async move { client.delete(&format!("/v1/sessions/{session}")).await }),
    )
    .await?;
    let workspaces = server.data().join("data/workspaces");
    eventually("every trace removed", || async {
        let mut left = std::fs::read_dir(&workspaces).ok()?.flatten();
        left.all(|entry| !entry.file_name().to_string_lossy().starts_with("sesn_")).then_some(())
    })
    .await?;
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_messages_is_taken_in_order() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let session = client.session(json!([])).await?;
    for index in 0..100 {
        client.say(&session, &format!("!say {index}")).await?;
    }
    let events = client.idle(&session).await?;
    let messages: Vec<String> = of_type(&events, "user.message").into_iter().map(text_of).collect();
    let expected: Vec<String> = (0..100).map(|index| format!("!say {index}")).collect();
    assert_eq!(messages, expected);
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_calls_of_the_shell_run_in_the_order_the_model_made_them() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let session = client.tool_session().await?;
    let (mut calls, mut expected) = (String::new(), String::new());
    for n in 0..20 {
        calls.push_str(&format!("!bash echo {n} >> order\n"));
        expected.push_str(&format!("{n}\n"));
    }
    client.say(&session, &format!("{calls}!bash cat order\n!next\n!say done")).await?;
    let events = client.idle(&session).await?;
    let shown: Vec<String> =
        of_type(&events, "agent.tool_result").into_iter().map(text_of).collect();
    assert!(shown.contains(&expected), "{shown:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_that_the_model_cannot_take_does_not_end_the_session() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let server = server(&model).await?;
    let client = server.client();
    let session = client.tool_session().await?;
    let script = "!bash echo no picture > a.png\n!next\n!tool read {\"file_path\":\"a.png\"}\n!next\n!say done";
    client.say(&session, script).await?;
    let events = client.idle(&session).await?;
    assert_eq!(of_type(&events, "session.error").len(), 1, "{events:#?}");
    assert_eq!(text_of(of_type(&events, "agent.message")[0]), "done");
    client.say(&session, "!say still here").await?;
    let events = client.idle(&session).await?;
    assert_eq!(text_of(of_type(&events, "agent.message")[1]), "still here");
    assert_eq!(of_type(&events, "session.error").len(), 1);
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

/// Starts the server in a mount namespace of its own, in which its data directory is a small disk.
const SMALL_DISK: &str = r#"#!/bin/sh
for last; do data=$last; done
mkdir -p "$data"
exec unshare --mount sh -c 'mount -t tmpfs -o size=6m none "$0" && exec "$@"' "$data" EXE "$@"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_nothing_is_lost() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        // Only root can make a small disk.
        return Ok(());
    }
    if std::env::var("VAQUERO_TEST_STORE").is_ok_and(|store| store == "postgres") {
        // The disk is the embedded store's.
        return Ok(());
    }
    let model = Model::start().await?;
    let place = tempfile::tempdir()?;
    let wrapper = place.path().join("vaquero-on-a-small-disk");
    std::fs::write(&wrapper, SMALL_DISK.replace("EXE", EXE))?;
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut server = Server::new(&wrapper, &model.base)?;
    server.start().await?;
    let client = server.client();
    let session = client.session(json!([])).await?;
    client.say(&session, &format!("!delay 1500\n!say {}", "word ".repeat(4_000))).await?;
    let asked = eventually("asked", || async { (model.scripted.requests() > 0).then_some(()) });
    asked.await?;
    for size in [90_000, 1] {
        let body = json!({ "name": "filler", "model": "m", "system": "x".repeat(size) });
        let mut refused = None;
        for _ in 0..5_000 {
            let answer =
                client.request(reqwest::Method::POST, "/v1/agents").json(&body).send().await?;
            if !answer.status().is_success() {
                refused = Some(answer);
                break;
            }
        }
        let refused = refused.context("the disk never fills")?;
        assert_eq!(refused.status(), 529);
        assert_eq!(refused.headers()["x-should-retry"], "true");
        assert!(refused.text().await?.contains("no disk space left"));
    }
    let answered = || async {
        of_type(&client.events(&session).await.ok()?, "agent.message").len().checked_sub(1)
    };
    assert_eq!(client.get(&format!("/v1/sessions/{session}")).await?["status"], "running");
    assert!(answered().await.is_none(), "reads go on, and the answer has no room yet");
    let pid = server.pid().context("it runs")?.to_string();
    let data = server.data().join("data");
    let room = tokio::process::Command::new("nsenter")
        .args(["--target", &pid, "--mount", "mount", "-o", "remount,size=64m"])
        .arg(&data)
        .status()
        .await?;
    assert!(room.success());
    let events = client.idle(&session).await?;
    assert_eq!(of_type(&events, "agent.message").len(), 1);
    assert_eq!(
        of_type(&events, "span.model_request_start").len(),
        1,
        "it was asked once: {events:#?}"
    );
    client.say(&session, "!say and on").await?;
    assert_eq!(of_type(&client.idle(&session).await?, "agent.message").len(), 2);
    Ok(())
}
