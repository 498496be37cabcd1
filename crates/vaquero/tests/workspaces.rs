//! Workspaces follow their sessions: when the machine that held a sandbox is gone, another goes on from the last checkpoint, and the model is told what was lost.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use vaquero_testkit::{Client, Database, Model, Server, eventually, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

struct Pair {
    one: Server,
    two: Server,
    blobs: tempfile::TempDir,
    model: Model,
    _database: Database,
}

/// Two servers on one database; with `blobs` they also share a place for large bytes.
async fn pair(blobs: bool) -> anyhow::Result<Option<Pair>> {
    let Some(database) = Database::create().await? else { return Ok(None) };
    let model = Model::start().await?;
    let place = tempfile::tempdir()?;
    let server = || -> anyhow::Result<Server> {
        let mut server = Server::new(EXE, &model.base)?;
        server.set("VAQUERO_DATABASE_URL", &database.url);
        server.set("VAQUERO_LEASE_SECONDS", "2");
        server.set("VAQUERO_LOG", "error");
        if blobs {
            server.set("VAQUERO_BLOB_URL", &format!("file://{}", place.path().display()));
        }
        Ok(server)
    };
    let (mut one, two) = (server()?, server()?);
    one.start().await?;
    Ok(Some(Pair { one, two, blobs: place, model, _database: database }))
}

/// Says something and waits for the end of the turn; the text of its last tool result.
async fn run(client: &Client, session: &str, script: &str) -> anyhow::Result<String> {
    let before = of_type(&client.events(session).await?, "session.status_idle").len();
    client.say(session, script).await?;
    let events = eventually("over", || async {
        let events = client.events(session).await.ok()?;
        (of_type(&events, "session.status_idle").len() > before).then_some(events)
    })
    .await?;
    let results = of_type(&events, "agent.tool_result");
    Ok(results.last().map(|result| text_of(result)).unwrap_or_default())
}

async fn counted(client: &Client, name: &str) -> f64 {
    let request = client.request(reqwest::Method::GET, "/metrics").send().await;
    let Ok(response) = request else { return 0.0 };
    let text = response.text().await.unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Waits until a server has taken this many checkpoints.
async fn checkpointed(client: &Client, count: f64) -> anyhow::Result<()> {
    eventually("checkpointed", || async {
        (counted(client, "vaquero_checkpoints_total").await >= count).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_follows_its_session_to_another_machine() -> anyhow::Result<()> {
    let Some(mut pair) = pair(true).await? else { return Ok(()) };
    let client = pair.one.client().clone();
    let session = client.tool_session().await?;
    let make = "!bash mkdir -p a/b && echo text > a/b/small && head -c 3000000 /dev/zero | tr '\\0' x > large && ln -s a/b/small link && printf '#!/bin/sh\\necho ran' > run && chmod 755 run && echo outside > /tmp/outside\n!next\n!say made";
    run(&client, &session, make).await?;
    checkpointed(&client, 1.0).await?;
    // A small change costs little: what is stored already is not stored again.
    let stored = || walk(pair.blobs.path());
    let (before, _) = stored();
    run(&client, &session, "!bash echo more >> a/b/small\n!next\n!say changed").await?;
    checkpointed(&client, 2.0).await?;
    let (after, newest) = stored();
    assert!(after > before && after - before <= 2, "{before} pieces, then {after}");
    assert!(newest < 100_000, "the change took a piece of {newest} bytes");

    pair.two.start().await?;
    pair.one.kill_with_hands().await?;
    let client = pair.two.client().clone();
    let look = "!bash cat link; ./run; wc -c < large; ls /tmp/outside\n!next\n!say seen";
    let result = run(&client, &session, look).await?;
    assert!(result.contains("everything up to the last finished call is there"), "{result}");
    assert!(result.contains("text\nmore\nran"), "{result}");
    assert!(result.contains("3000000"), "{result}");
    assert!(result.contains("No such file"), "what was outside is gone: {result}");
    let result = run(&client, &session, "!bash cat a/b/small\n!next\n!say again").await?;
    assert_eq!(result, "text\nmore\n", "it is said once");

    // The first server is back, with files of its own that are older: they are not the session's any more.
    checkpointed(&client, 2.0).await?;
    run(&client, &session, "!bash echo newest > a/b/small\n!next\n!say newer").await?;
    checkpointed(&client, 3.0).await?;
    pair.one.start().await?;
    pair.two.kill_with_hands().await?;
    let client = pair.one.client().clone();
    let result = run(&client, &session, "!bash cat a/b/small\n!next\n!say back").await?;
    assert!(result.ends_with("newest\n") && result.contains("is gone"), "{result}");
    assert_eq!(pair.model.scripted.violations(), Vec::<String>::new());

    let row = client.delete(&format!("/v1/sessions/{session}")).await?;
    assert_eq!(row["type"], "session_deleted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_said() -> anyhow::Result<()> {
    let Some(mut pair) = pair(false).await? else { return Ok(()) };
    let client = pair.one.client().clone();
    let session = client.tool_session().await?;
    run(&client, &session, "!bash echo text > file\n!next\n!say made").await?;
    pair.two.start().await?;
    // While its server lives, nobody else takes the session.
    let result = run(pair.two.client(), &session, "!bash cat file\n!next\n!say seen").await?;
    assert_eq!(result, "text\n");
    pair.one.kill_with_hands().await?;
    let result = run(pair.two.client(), &session, "!bash cat file\n!next\n!say seen").await?;
    assert!(
        result.contains("There is no checkpoint of /workspace: its files are lost."),
        "{result}"
    );
    assert!(result.contains("No such file"), "{result}");
    Ok(())
}

/// How many files there are below a directory, and the size of the newest one.
fn walk(directory: &std::path::Path) -> (usize, u64) {
    let mut files = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => left.push(entry.path()),
                Ok(metadata) => files.push((metadata.modified().ok(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    files.sort();
    (files.len(), files.last().map_or(0, |(_, size)| *size))
}
