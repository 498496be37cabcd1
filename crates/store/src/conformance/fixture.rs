//! What the cases are made of.

use crate::{
    Append, Author, CommitError, Committed, Document, Expect, Lease, NewRecord, Record, RecordKind,
    SessionChange, SessionRow, SharedStore, Write,
};
use std::time::Duration;
use vaquero_types::{
    AgentId, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId,
    gate::Gate,
    session::Status,
    thread::Thread,
    usage::{Activity, Usage},
};

/// How long a wait may take before the case fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const TTL: Duration = Duration::from_secs(30);

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

pub(super) fn workspace(name: &str) -> WorkspaceId {
    WorkspaceId::from_wire(format!("wrkspc_{name}"))
}

pub(super) fn session_id(name: &str) -> SessionId {
    SessionId::from_wire(format!("sesn_{name}"))
}

pub(super) fn thread_id(name: &str) -> ThreadId {
    ThreadId::from_wire(format!("sthr_{name}"))
}

pub(super) fn document(name: &str, second: i64) -> Document {
    Document {
        workspace: workspace("a"),
        kind: "thing".to_owned(),
        id: name.to_owned(),
        parent: None,
        unique_key: None,
        created_at: at(second),
        archived_at: None,
        revision: 0,
        body: format!("{{\"name\":\"{name}\"}}"),
    }
}

pub(super) fn put(document: Document, expect: Expect) -> Write {
    Write::PutDocument { document, expect }
}

pub(super) fn new_session(name: &str, second: i64) -> Write {
    let row = SessionRow {
        id: session_id(name),
        workspace: workspace("a"),
        status: Status::Idle,
        agent: AgentId::from_wire("agent_1"),
        agent_version: 1,
        environment: EnvironmentId::from_wire("env_1"),
        primary_thread: thread_id(name),
        created_at: at(second),
        updated_at: at(second),
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
        id: row.primary_thread.clone(),
        session: row.id.clone(),
        parent: None,
        status: Status::Idle,
        created_at: at(second),
        updated_at: at(second),
        archived_at: None,
        usage: Usage::default(),
        activity: Activity::default(),
    };
    Write::CreateSession { row, thread }
}

pub(super) fn record(session: &str, kind: RecordKind, event: &str, event_type: &str) -> NewRecord {
    NewRecord {
        kind,
        event_id: EventId::from_wire(format!("sevt_{event}")),
        thread: thread_id(session),
        event_type: event_type.to_owned(),
        body: format!("{{\"n\":\"{event}\"}}").into(),
    }
}

pub(super) fn event(session: &str, event: &str) -> NewRecord {
    record(session, RecordKind::Event, event, "agent.message")
}

pub(super) fn append(
    session: &str,
    author: Author,
    records: Vec<NewRecord>,
    change: SessionChange,
) -> Write {
    Write::Append(Append { session: session_id(session), author, records, change })
}

/// A client's message that makes the session ready.
pub(super) async fn message(
    store: &SharedStore,
    session: &str,
    event: &str,
    second: i64,
) -> Result<Committed, CommitError> {
    let row = store.session(&session_id(session)).await.expect("readable").expect("there");
    let author = Author::Client { revision: row.revision };
    let received = record(session, RecordKind::Received, event, "user.message");
    let change = SessionChange { ready: Some(true), ..SessionChange::default() };
    store.commit(vec![append(session, author, vec![received], change)], at(second)).await
}

pub(super) async fn claimed(store: &SharedStore, second: i64) -> Lease {
    let lease = store.claim(&"worker".to_owned(), TTL, at(second)).await.expect("claimable");
    lease.expect("a session is ready").lease
}

pub(super) fn by(lease: &Lease) -> Author {
    Author::Worker { epoch: lease.epoch, seen: None }
}

pub(super) async fn log(store: &SharedStore, session: &str) -> Vec<Record> {
    store.read(&session_id(session), 0, usize::MAX).await.expect("readable")
}

pub(super) fn names(records: &[Record]) -> Vec<String> {
    let name =
        |record: &Record| record.new.event_id.as_str().trim_start_matches("sevt_").to_owned();
    records.iter().map(name).collect()
}
