//! One, two and four servers on one PostgreSQL: turns per second when each message goes to one server and its stream is read from another; the time from a server's death to
//! the next step of its sessions; what a long log and many parked sessions cost.

use crate::{Args, instant::Instantly, machine, sessions};
use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use vaquero_testkit::{Client, Database, Server};

const LEASE: Duration = Duration::from_secs(5);

async fn start(args: &Args, model: &Instantly, database: &Database) -> anyhow::Result<Server> {
    let mut server = args.server(model)?;
    server.set("VAQUERO_DATABASE_URL", &database.url);
    server.set("VAQUERO_LEASE_SECONDS", &LEASE.as_secs().to_string());
    server.set("VAQUERO_TURNS", "4000");
    server.set("VAQUERO_LOG", "error");
    server.start().await?;
    Ok(server)
}

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    for count in [1, 2, 4] {
        turns(args, count).await?;
    }
    failover(args).await?;
    growth(args).await
}

async fn turns(args: &Args, count: usize) -> anyhow::Result<()> {
    let database = Database::create().await?.context("a database")?;
    let model = Instantly::start().await?;
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(start(args, &model, &database).await?);
    }
    let clients: Vec<Client> = servers.iter().map(|server| server.client().clone()).collect();
    let at_once = 64;
    let each = args.count(4_000).div_ceil(at_once);
    let mut streams = Vec::new();
    for (number, session) in
        sessions::make(&clients[0], json!([]), at_once).await?.into_iter().enumerate()
    {
        let (says, reads) = (&clients[number % count], &clients[(number + 1) % count]);
        let stream = sessions::Following::open(reads, &session).await?;
        streams.push((stream, session, says.clone()));
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (mut stream, session, client) in streams {
        tasks.spawn(async move {
            let (mut turns, mut seen) = (Vec::new(), Vec::new());
            for _ in 0..each {
                let started = Instant::now();
                client.say(&session, "go").await?;
                stream.until("session.status_running").await?;
                seen.push(started.elapsed());
                stream.until("session.status_idle").await?;
                turns.push(started.elapsed());
            }
            anyhow::Ok((turns, seen))
        });
    }
    let (mut times, mut seen) = (machine::Times::default(), machine::Times::default());
    while let Some(done) = tasks.join_next().await {
        let (one, other) = done??;
        times.0.extend(one);
        seen.0.extend(other);
    }
    let rate = f64::from(u32::try_from(at_once * each)?) / started.elapsed().as_secs_f64();
    println!(
        "{count} servers on one PostgreSQL, {at_once} sessions at once: {rate:.0} turns per second"
    );
    println!("  a turn as its client sees it: {}", times.line());
    println!("  a message until its follower on the next server sees it: {}", seen.line());
    Ok(())
}

async fn failover(args: &Args) -> anyhow::Result<()> {
    let database = Database::create().await?.context("a database")?;
    let mut model = Instantly::start().await?;
    let mut one = start(args, &model, &database).await?;
    let client = one.client().clone();
    let count = args.count(400);
    let found = sessions::make(&client, json!([]), count).await?;
    stream::iter(&found)
        .map(|session| async { client.say(session, "#hold").await.map(drop) })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    for _ in 0..count {
        model.arrivals.recv().await;
    }
    let _two = start(args, &model, &database).await?;
    one.kill().await?;
    let killed = Instant::now();
    let mut times = machine::Times::default();
    for _ in 0..count {
        let at = model.arrivals.recv().await.context("the model runs")?;
        times.0.push(at.saturating_duration_since(killed));
    }
    println!(
        "kill -9 of a server with {count} running sessions, leases of {} s: another asks the model again after {}",
        LEASE.as_secs(),
        times.line()
    );
    Ok(())
}

/// Does a page, a stream and a turn cost more the longer the log, or the more sessions are parked?
async fn growth(args: &Args) -> anyhow::Result<()> {
    let database = Database::create().await?.context("a database")?;
    let mut model = Instantly::start().await?;
    let server = start(args, &model, &database).await?;
    let client = server.client().clone();
    let session = sessions::make(&client, json!([]), 1).await?.pop().context("a session")?;
    client.say(&session, "go").await?;
    client.idle(&session).await?;
    let mut length = 0;
    for wanted in [10, 1_000, args.count(100_000)] {
        // As if clients and brains had written them: the log alone, by the store's own numbers.
        let sql = format!(
            "INSERT INTO log (session, seq, kind, event_id, thread, event_type, at, body, epoch) \
                SELECT s.n, s.head + i, 0, 'sevt_load' || (s.head + i), s.primary_thread, 'span.model_request_start', s.last_at + i, '{{}}', s.epoch \
                FROM sessions s, generate_series(1, {}) AS i WHERE s.id = '{session}'; \
             UPDATE sessions SET head = head + {0}, last_at = last_at + {0}, last_event_at = last_at + {0} WHERE id = '{session}'; ANALYZE log",
            wanted - length
        );
        database.run(&sql).await?;
        length = wanted;
        // The first turn folds what is new and keeps a snapshot; the ones after it are what counts.
        turn(&client, &mut model, &session).await?;
        let (mut page, mut stream, mut turns) =
            (machine::Times::default(), machine::Times::default(), machine::Times::default());
        for _ in 0..args.count(200) {
            let started = Instant::now();
            client.get(&format!("/v1/sessions/{session}/events?limit=20&order=desc")).await?;
            page.0.push(started.elapsed());
            let started = Instant::now();
            drop(sessions::Following::open(&client, &session).await?);
            stream.0.push(started.elapsed());
            turns.0.push(turn(&client, &mut model, &session).await?);
        }
        println!("a log of {wanted} events: reading a page {}", page.line());
        println!("  opening a stream {}", stream.line());
        println!("  a message until the model is asked {}", turns.line());
    }
    let parked = args.count(1_000_000);
    let sql = format!(
        "INSERT INTO sessions SELECT nextval('session_numbers'), 'sesn_parked' || i, workspace, 'idle', agent, agent_version, environment, 'sthr_parked' || i, \
            created_at, updated_at, NULL, head, client_head, revision, last_at, last_event_at, epoch, 0, NULL, NULL, NULL, NULL, gate, usage, activity, false \
            FROM sessions, generate_series(1, {parked}) AS i WHERE id = '{session}'; ANALYZE sessions"
    );
    database.run(&sql).await?;
    let mut turns = machine::Times::default();
    for _ in 0..args.count(200) {
        turns.0.push(turn(&client, &mut model, &session).await?);
    }
    println!("{parked} parked sessions: a message until the model is asked {}", turns.line());
    let tenants = args.count(10_000);
    let sql = format!(
        "INSERT INTO documents SELECT 'tenant' || i, kind, id || i, parent, unique_key, created_at, archived_at, revision, body \
            FROM documents, generate_series(1, {tenants}) AS i WHERE kind IN ('agent', 'environment'); \
         UPDATE sessions SET workspace = 'tenant' || (n % {tenants} + 1) WHERE id LIKE 'sesn_parked%'; ANALYZE sessions; ANALYZE documents"
    );
    database.run(&sql).await?;
    // Or lists would walk over what the update left behind.
    database.run("VACUUM (ANALYZE) sessions").await?;
    let (mut lists, mut turns) = (machine::Times::default(), machine::Times::default());
    for _ in 0..args.count(200) {
        let started = Instant::now();
        client.get("/v1/sessions?limit=20").await?;
        client.get("/v1/agents?limit=20").await?;
        lists.0.push(started.elapsed());
        turns.0.push(turn(&client, &mut model, &session).await?);
    }
    println!(
        "the same in {tenants} workspaces: a page of sessions and one of agents {}",
        lists.line()
    );
    println!("  a message until the model is asked {}", turns.line());
    Ok(())
}

/// A message, until the model is asked; then the rest of the turn.
async fn turn(client: &Client, model: &mut Instantly, session: &str) -> anyhow::Result<Duration> {
    while model.arrivals.try_recv().is_ok() {}
    let started = Instant::now();
    client.say(session, "go").await?;
    let asked = model.arrivals.recv().await.context("the model runs")?;
    client.idle_row(session).await?;
    Ok(asked.saturating_duration_since(started))
}
