//! Between rows and values.

use rusqlite::{Row, types::Type};
use serde::{Serialize, de::DeserializeOwned};
use vaquero_store::{Document, NewRecord, Record, RecordKind, SessionRow, StoreError};
use vaquero_types::{
    AgentId, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId, session::Status,
    thread::Thread,
};

/// What SQLite failed with, as the seam names it.
pub(crate) fn failed(error: rusqlite::Error) -> StoreError {
    let full = matches!(
        &error,
        rusqlite::Error::SqliteFailure(inner, _) if inner.code == rusqlite::ErrorCode::DiskFull
    );
    if full { StoreError::Full(Box::new(error)) } else { StoreError::Backend(Box::new(error)) }
}

pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn natural(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

pub(crate) fn instant(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp::from_micros)
}

fn optional_instant(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}

pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("stored values are plain data")
}

fn parsed<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn status(row: &Row<'_>) -> rusqlite::Result<Status> {
    let word: String = row.get("status")?;
    Status::parse(&word).ok_or_else(|| {
        let error = format!("unknown status `{word}`");
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
    })
}

pub(crate) const SESSION_COLUMNS: &str = "id, workspace, status, agent, agent_version, environment, primary_thread, created_at, updated_at, \
archived_at, head, client_head, revision, epoch, gate, usage, activity, body";

pub(crate) fn session(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    Ok(SessionRow {
        id: SessionId::from_wire(row.get::<_, String>("id")?),
        workspace: WorkspaceId::from_wire(row.get::<_, String>("workspace")?),
        status: status(row)?,
        agent: AgentId::from_wire(row.get::<_, String>("agent")?),
        agent_version: natural(row, "agent_version")?,
        environment: EnvironmentId::from_wire(row.get::<_, String>("environment")?),
        primary_thread: ThreadId::from_wire(row.get::<_, String>("primary_thread")?),
        created_at: instant(row, "created_at")?,
        updated_at: instant(row, "updated_at")?,
        archived_at: optional_instant(row, "archived_at")?,
        head: natural(row, "head")?,
        client_head: natural(row, "client_head")?,
        revision: natural(row, "revision")?,
        epoch: natural(row, "epoch")?,
        gate: parsed(row, "gate")?,
        usage: parsed(row, "usage")?,
        activity: parsed(row, "activity")?,
        body: row.get("body")?,
    })
}

pub(crate) fn thread(row: &Row<'_>, session: &SessionId) -> rusqlite::Result<Thread> {
    Ok(Thread {
        id: ThreadId::from_wire(row.get::<_, String>("id")?),
        session: session.clone(),
        parent: row.get::<_, Option<String>>("parent")?.map(ThreadId::from_wire),
        status: status(row)?,
        created_at: instant(row, "created_at")?,
        updated_at: instant(row, "updated_at")?,
        archived_at: optional_instant(row, "archived_at")?,
        usage: parsed(row, "usage")?,
        activity: parsed(row, "activity")?,
    })
}

pub(crate) fn document(row: &Row<'_>) -> rusqlite::Result<Document> {
    Ok(Document {
        workspace: WorkspaceId::from_wire(row.get::<_, String>("workspace")?),
        kind: row.get("kind")?,
        id: row.get("id")?,
        parent: row.get("parent")?,
        unique_key: row.get("unique_key")?,
        created_at: instant(row, "created_at")?,
        archived_at: optional_instant(row, "archived_at")?,
        revision: natural(row, "revision")?,
        body: row.get("body")?,
    })
}

pub(crate) const RECORD_COLUMNS: &str = "seq, kind, event_id, thread, event_type, at, body";

pub(crate) const fn kind_number(kind: RecordKind) -> i64 {
    match kind {
        RecordKind::Event => 0,
        RecordKind::Received => 1,
        RecordKind::Transcript => 2,
    }
}

pub(crate) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let kind = match row.get::<_, i64>("kind")? {
        0 => RecordKind::Event,
        1 => RecordKind::Received,
        _ => RecordKind::Transcript,
    };
    Ok(Record {
        seq: natural(row, "seq")?,
        at: instant(row, "at")?,
        new: NewRecord {
            kind,
            event_id: EventId::from_wire(row.get::<_, String>("event_id")?),
            thread: ThreadId::from_wire(row.get::<_, String>("thread")?),
            event_type: row.get("event_type")?,
            body: row.get::<_, String>("body")?.into(),
        },
    })
}
