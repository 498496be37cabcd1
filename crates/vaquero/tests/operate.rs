//! What operators do: move a workspace from one store to another, copy a store in use, stop everything, look a database over before using it.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Output},
};
use vaquero_testkit::{Database, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

fn vaquero(arguments: &[&str], data: &Path, database: Option<&str>) -> Output {
    let mut command = Command::new(EXE);
    command.args(arguments).arg("--data-dir").arg(data).current_dir(std::env::temp_dir());
    if let Some(database) = database {
        command.env("VAQUERO_DATABASE_URL", database);
    }
    command.output().expect("it runs")
}

#[track_caller]
fn done(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a client sees of a session.
async fn seen(server: &Server, session: &str) -> anyhow::Result<(Value, Vec<Value>)> {
    let client = server.client();
    let mut row = client.get(&format!("/v1/sessions/{session}")).await?;
    row["stats"]["duration_seconds"] = Value::Null;
    Ok((row, client.events(session).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_moves_from_the_embedded_store_to_postgres_and_goes_on() -> anyhow::Result<()> {
    let Some(database) = Database::create().await? else { return Ok(()) };
    let model = Model::start().await?;
    let mut old = Server::new(EXE, &model.base)?;
    old.set_embedded();
    old.start().await?;
    let client = old.client();
    let session = client.tool_session().await?;
    client.say(&session, "!think hm\n!bash echo text > file; cat file\n!next\n!say done").await?;
    client.idle(&session).await?;
    let waiting = client.session(json!([{ "type": "custom", "name": "ask", "description": "d", "input_schema": { "type": "object" } }])).await?;
    client.say(&waiting, "!tool ask {}").await?;
    let asked = of_type(&client.idle(&waiting).await?, "agent.custom_tool_use")[0]["id"].clone();
    let before = (seen(&old, &session).await?, seen(&old, &waiting).await?);

    // While the server runs: it is asked to write the file.
    let place = tempfile::tempdir()?;
    let file = place.path().join("all.jsonl");
    let data = old.data().join("data");
    let name = file.to_str().expect("UTF-8");
    let said = done(&vaquero(&["export", name], &data, None));
    assert!(said.contains("2 sessions"), "{said}");
    let again = refused(&vaquero(&["export", name], &data, None));
    assert!(again.contains("cannot be made"), "nothing is overwritten: {again}");
    let one = place.path().join("one.jsonl");
    let one = one.to_str().expect("UTF-8");
    let said = done(&vaquero(&["export", "--session", &session, one], &data, None));
    assert!(said.contains("1 sessions"), "{said}");
    let none = refused(&vaquero(&["export", "--session", "sesn_none", "none"], &data, None));
    assert!(none.contains("there is no session `sesn_none`"), "{none}");
    let text = std::fs::read_to_string(&file)?;
    assert!(!text.contains("api_key") && !text.contains("test-key"), "no keys leave");
    assert!(old.terminate().await?);

    let mut new = Server::new(EXE, &model.base)?;
    new.set("VAQUERO_DATABASE_URL", &database.url);
    new.start().await?;
    let cut = place.path().join("cut.jsonl");
    std::fs::write(&cut, &text[..text.len() / 2])?;
    let cut = refused(&vaquero(
        &["import", cut.to_str().expect("UTF-8")],
        &new.data().join("x"),
        Some(&database.url),
    ));
    assert!(cut.contains("line "), "{cut}");
    let said = done(&vaquero(&["import", name], &new.data().join("x"), Some(&database.url)));
    assert!(said.contains("skipped") || said.contains("2 sessions"), "{said}");
    let said = done(&vaquero(&["import", name], &new.data().join("x"), Some(&database.url)));
    assert!(said.contains("0 sessions") && said.contains("skipped"), "a second time: {said}");
    let after = (seen(&new, &session).await?, seen(&new, &waiting).await?);
    assert_eq!(before, after, "a client sees no difference");

    let client = new.client();
    client.say(&session, "!bash ls\n!next\n!say on").await?;
    let events = eventually("over", || async {
        let events = client.events(&session).await.ok()?;
        (of_type(&events, "session.status_idle").len() == 2).then_some(events)
    })
    .await?;
    let result = text_of(of_type(&events, "agent.tool_result")[1]);
    assert!(result.contains("its files are lost"), "the model is told: {result}");
    assert_eq!(text_of(of_type(&events, "agent.message")[1]), "on");
    let answer = json!({ "type": "user.custom_tool_result", "custom_tool_use_id": asked, "content": [{ "type": "text", "text": "yes" }] });
    client.post(&format!("/v1/sessions/{waiting}/events"), json!({ "events": [answer] })).await?;
    eventually("answered", || async {
        let events = client.events(&waiting).await.ok()?;
        (of_type(&events, "session.status_idle").len() == 2).then_some(())
    })
    .await?;
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_is_copied_while_it_is_in_use() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set_embedded();
    server.start().await?;
    let session = server.client().session(json!([])).await?;
    server.client().say(&session, "!say hello").await?;
    server.client().idle(&session).await?;
    let before = seen(&server, &session).await?;
    let place = tempfile::tempdir()?;
    let copy = place.path().join("vaquero.db");
    let data = server.data().join("data");
    done(&vaquero(&["backup", copy.to_str().expect("UTF-8")], &data, None));
    let twice = refused(&vaquero(&["backup", copy.to_str().expect("UTF-8")], &data, None));
    assert!(twice.contains("cannot be made"), "{twice}");
    server.client().say(&session, "!say later").await?;
    server.client().idle(&session).await?;
    assert!(server.terminate().await?);
    std::fs::remove_file(data.join("vaquero.db"))?;
    for rest in ["vaquero.db-wal", "vaquero.db-shm"] {
        drop(std::fs::remove_file(data.join(rest)));
    }
    std::fs::copy(&copy, data.join("vaquero.db"))?;
    server.start().await?;
    assert_eq!(seen(&server, &session).await?, before, "as it was when it was copied");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_can_be_stopped_at_once() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let client = server.client().clone();
    for by_api in [true, false] {
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session = client.session(json!([])).await?;
            client.say(&session, "!delay 60000\n!say late").await?;
            sessions.push(session);
        }
        let idle = client.session(json!([])).await?;
        if by_api {
            let stopped = client.post("/v1/sessions/stop_all", json!({})).await?;
            let mut named: Vec<_> = stopped["data"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            named.sort_unstable();
            sessions.sort_unstable();
            assert_eq!(named, sessions);
        } else {
            let database = server.variable("VAQUERO_DATABASE_URL");
            let data = server.data().join("data");
            let said = done(&vaquero(&["stop-all"], &data, database.as_deref()));
            assert!(said.contains("3 sessions interrupted") && !said.contains(&idle), "{said}");
        }
        for session in &sessions {
            let events = client.idle(session).await?;
            assert_eq!(of_type(&events, "user.interrupt").len(), 1);
            assert!(of_type(&events, "agent.message").is_empty());
        }
    }
    let elsewhere = client.post("/v1/sessions/stop_all", json!({ "all": true })).await;
    assert!(elsewhere.is_err_and(|error| error.to_string().contains("all")), "unknown fields");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_looked_over_and_its_faults_are_named() -> anyhow::Result<()> {
    let Some(database) = Database::create().await? else { return Ok(()) };
    let place = tempfile::tempdir()?;
    let serve = |url: &str| {
        refused(&vaquero(&["serve", "--listen", "127.0.0.1:0"], place.path(), Some(url)))
    };
    let doctor = |url: &str| {
        let output = vaquero(&["doctor", "--database-url", url], place.path(), None);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let looked = doctor(&database.url);
    assert!(looked.contains("ok  database: localhost:"), "{looked}");
    assert!(looked.contains("PostgreSQL 1") && looked.contains("a commit takes"), "{looked}");
    assert!(looked.contains("version 0; the first server of this release makes it"), "{looked}");
    assert!(looked.contains("fsync = off: committed work can be lost"), "{looked}");
    let key = done(&vaquero(&["key", "create"], place.path(), Some(&database.url)));
    assert!(key.starts_with("vq_"), "{key}");
    assert!(doctor(&database.url).contains("as this release needs it"));

    let wrong = database.url.replace("throw-away", "guessed-wrong");
    for said in [serve(&wrong), doctor(&wrong)] {
        assert!(said.contains("password authentication failed"), "{said}");
        assert!(!said.contains("guessed-wrong"), "no password in any message: {said}");
    }
    let missing = serve(&format!("{}x", database.url));
    assert!(missing.contains("does not exist"), "{missing}");
    database.run("ALTER DATABASE CURRENT_NAME SET default_transaction_read_only = on").await?;
    let read_only = serve(&database.url);
    assert!(read_only.contains("is read-only"), "{read_only}");
    database.run("BEGIN READ WRITE; ALTER DATABASE CURRENT_NAME RESET default_transaction_read_only; UPDATE vaquero_schema SET version = 99; COMMIT").await?;
    let newer = serve(&database.url);
    assert!(newer.contains("schema version 99, this release knows"), "{newer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_kept_long_enough_are_deleted() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.start().await?;
    let client = server.client().clone();
    let (archived, idle) = (client.session(json!([])).await?, client.session(json!([])).await?);
    client.post(&format!("/v1/sessions/{archived}/archive"), json!({})).await?;
    assert!(server.terminate().await?);
    // Tomorrow is another day.
    server.set("VAQUERO_RETENTION_ARCHIVED_DAYS", "1");
    server.set("VAQUERO_RETENTION_IDLE_DAYS", "30");
    server.set("VAQUERO_TEST_CLOCK_SKEW", &(2 * 24 * 3600).to_string());
    let shared = server.variable("VAQUERO_DATABASE_URL").is_some();
    server.start().await?;
    let client = server.client().clone();
    let gone = || async {
        let found = client.get(&format!("/v1/sessions/{archived}")).await;
        found.is_err().then_some(())
    };
    if shared {
        // There the database's clock counts, and it has not moved.
        assert!(gone().await.is_none());
    } else {
        eventually("deleted", gone).await?;
    }
    assert!(client.get(&format!("/v1/sessions/{idle}")).await.is_ok());
    Ok(())
}
