//! Durable appends: how many the embedded store takes in a second, and how long one waits, by the number of writers. Each append is one event in a commit of its
//! own, flushed to disk before it is answered; writers that come together share a flush.

#![expect(clippy::print_stdout, reason = "a program whose output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "it measures with the real clock")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use vaquero_store::{
    Append, Author, NewRecord, RecordKind, SessionChange, SessionRow, Store, Write,
};
use vaquero_store_sqlite::{SqliteStore, measure_fdatasync};
use vaquero_types::{
    AgentId, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId,
    gate::Gate,
    session::Status,
    thread::Thread,
    usage::{Activity, Usage},
};

const BODY: &str = r#"{"content":[{"type":"text","text":"About as much as a model says in one breath, give or take a word or two."}]}"#;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000 + micros)
}

fn session(n: usize) -> Write {
    let (id, thread) = (SessionId::new(n as u128), ThreadId::new(n as u128));
    let row = SessionRow {
        id: id.clone(),
        workspace: WorkspaceId::from_wire("wrkspc_bench"),
        status: Status::Idle,
        agent: AgentId::new(1),
        agent_version: 1,
        environment: EnvironmentId::new(1),
        primary_thread: thread.clone(),
        created_at: at(0),
        updated_at: at(0),
        archived_at: None,
        head: 0,
        client_head: 0,
        revision: 1,
        epoch: 0,
        gate: Gate::default(),
        usage: Usage::default(),
        activity: Activity::default(),
        body: "{}".to_owned(),
    };
    let thread = Thread {
        id: thread,
        session: id,
        parent: None,
        status: Status::Idle,
        created_at: at(0),
        updated_at: at(0),
        archived_at: None,
        usage: Usage::default(),
        activity: Activity::default(),
    };
    Write::CreateSession { row, thread }
}

fn append(session: usize, event: u128) -> Write {
    Write::Append(Append {
        session: SessionId::new(session as u128),
        author: Author::Worker { epoch: 0, seen: None },
        records: vec![NewRecord {
            kind: RecordKind::Event,
            event_id: EventId::new(event),
            thread: ThreadId::new(session as u128),
            event_type: "agent.message".to_owned(),
            body: BODY.into(),
        }],
        change: SessionChange::default(),
    })
}

async fn measure(writers: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(SqliteStore::open(directory.path()).expect("a store"));
    for writer in 0..writers {
        store.commit(vec![session(writer)], at(0)).await.expect("created");
    }
    let (start, span) = (Instant::now(), Duration::from_secs(3));
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < span {
                let event = (writer as u128) << 64 | times.len() as u128;
                let begun = Instant::now();
                store.commit(vec![append(writer, event)], at(1)).await.expect("durable");
                times.push(begun.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let took = start.elapsed().as_secs_f64();
    times.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    let rate = times.len() as f64 / took;
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{writers:>4} writers: {rate:>7.0} durable appends per second, p50 {:.2?}, p99 {:.2?}",
        at(50),
        at(99)
    );
    store.close();
}

#[tokio::main]
async fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let fdatasync = measure_fdatasync(directory.path()).expect("a disk");
    println!("fdatasync of this disk: {fdatasync:.2?} (median)");
    for writers in [1, 8, 32, 128, 512] {
        measure(writers).await;
    }
}
