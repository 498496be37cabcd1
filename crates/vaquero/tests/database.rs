//! A shared database in trouble, and requests repeated on another server: clear errors, and nothing lost or done twice.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use futures::future::try_join_all;
use serde_json::{Value, json};
use vaquero_testkit::{Client, Database, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

async fn serve(model: &Model, database: &Database) -> anyhow::Result<Server> {
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_DATABASE_URL", &database.url);
    server.set("VAQUERO_LEASE_SECONDS", "2");
    server.set("VAQUERO_LOG", "error");
    server.start().await?;
    Ok(server)
}

/// A server with a turn under way.
async fn running(model: &Model, database: &Database) -> anyhow::Result<(Server, String)> {
    let server = serve(model, database).await?;
    let session = server.client().session(json!([])).await?;
    server.client().say(&session, "!delay 300\n!say kept").await?;
    Ok((server, session))
}

/// A POST that must be refused; what its error says.
async fn refused(client: &Client, path: &str, body: Value) -> anyhow::Result<String> {
    let error = client.post(path, body).await.err().context("it must be refused")?;
    Ok(error.to_string())
}

fn message(text: &str) -> Value {
    json!({ "events": [{ "type": "user.message", "content": [{ "type": "text", "text": text }] }] })
}

/// Every commit that adds to a log fails as it does on a full disk.
const FILL: &str = "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ \
    BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$; \
    CREATE TRIGGER fill BEFORE INSERT ON log FOR EACH STATEMENT EXECUTE FUNCTION fill()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_is_named_and_loses_nothing() -> anyhow::Result<()> {
    let Some(database) = Database::create().await? else { return Ok(()) };
    let model = Model::start().await?;
    let (server, session) = running(&model, &database).await?;
    let client = server.client();
    database.run(FILL).await?;
    let path = format!("/v1/sessions/{session}/events");
    let said = refused(client, &path, message("no room for this")).await?;
    assert!(said.contains("529") && said.contains("no disk space left"), "{said}");
    assert!(client.get(&path).await.is_ok(), "reading goes on");
    // The turn's own commits have failed by now, or will.
    database.run("DROP TRIGGER fill ON log").await?;
    let events = client.idle(&session).await?;
    let messages: Vec<String> = of_type(&events, "user.message").into_iter().map(text_of).collect();
    assert_eq!(messages, ["!delay 300\n!say kept"]);
    let answers: Vec<String> = of_type(&events, "agent.message").into_iter().map(text_of).collect();
    assert_eq!(answers, ["kept"]);
    Ok(())
}

const END_CONNECTIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'CURRENT_NAME' AND pid <> pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_named_and_waited_for() -> anyhow::Result<()> {
    let Some(database) = Database::create().await? else { return Ok(()) };
    let model = Model::start().await?;
    let (server, session) = running(&model, &database).await?;
    let client = server.client();
    // As on a primary that has become a standby: connections are ended, new ones are read-only.
    database.run("ALTER DATABASE CURRENT_NAME SET default_transaction_read_only = on").await?;
    database.run(END_CONNECTIONS).await?;
    let path = format!("/v1/sessions/{session}/events");
    let said = refused(client, &path, message("not now")).await?;
    assert!(said.contains("529") && said.contains("takes no writes at the moment"), "{said}");
    database.run("BEGIN READ WRITE; ALTER DATABASE CURRENT_NAME RESET default_transaction_read_only; COMMIT").await?;
    database.run(END_CONNECTIONS).await?;
    let events = client.idle(&session).await?;
    assert_eq!(of_type(&events, "user.message").len(), 1);
    assert_eq!(of_type(&events, "agent.message").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_repeated_on_another_server_is_performed_once() -> anyhow::Result<()> {
    let Some(database) = Database::create().await? else { return Ok(()) };
    let model = Model::start().await?;
    let (one, two) = (serve(&model, &database).await?, serve(&model, &database).await?);
    let clients = [one.client(), two.client()];
    let send = |place: usize, path: String, key: &'static str, body: Value| async move {
        let request = clients[place % 2].request(reqwest::Method::POST, &path);
        let response = request.header("idempotency-key", key).json(&body).send().await?;
        anyhow::Ok((response.status().as_u16(), response.text().await?))
    };
    let agent = json!({ "name": "once", "model": "scripted" });
    let twins = try_join_all(
        (0..8).map(|place| send(place, "/v1/agents".to_owned(), "agent", agent.clone())),
    )
    .await?;
    assert!(twins.iter().all(|twin| *twin == twins[0]) && twins[0].0 == 200, "{twins:?}");
    let agents = one.client().get("/v1/agents").await?;
    assert_eq!(agents["data"].as_array().map(Vec::len), Some(1));

    let session = one.client().session(json!([])).await?;
    let path = format!("/v1/sessions/{session}/events");
    let sent =
        try_join_all((0..8).map(|place| send(place, path.clone(), "say", message("!say once"))))
            .await?;
    assert!(sent.iter().all(|twin| *twin == sent[0]) && sent[0].0 == 200, "{sent:?}");
    let events = eventually("answered", || async {
        let events = two.client().idle(&session).await.ok()?;
        (!of_type(&events, "agent.message").is_empty()).then_some(events)
    })
    .await?;
    assert_eq!(of_type(&events, "user.message").len(), 1);
    let (status, other) = send(1, path, "say", message("!say something else")).await?;
    assert!(status >= 400 && other.contains("Idempotency-Key"), "{status} {other}");
    Ok(())
}
