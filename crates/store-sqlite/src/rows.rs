//! Between rows and values.

use rusqlite::{
    Row,
    types::{FromSql, Type},
};
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

fn parse<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn status(word: &str) -> rusqlite::Result<Status> {
    Status::parse(word).ok_or_else(|| {
        let error = format!("unknown status `{word}`");
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
    })
}

pub(crate) const SESSION_COLUMNS: &str = "id, workspace, status, agent, agent_version, environment, primary_thread, created_at, updated_at, \
archived_at, head, client_head, revision, epoch, gate, usage, activity, (SELECT body FROM bodies WHERE bodies.session = sessions.n)";

/// Reads a row's columns in the order they were selected: looking each up by its name costs as much as reading it.
struct Columns<'row> {
    row: &'row Row<'row>,
    next: usize,
}

impl Columns<'_> {
    fn get<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1)
    }

    fn natural(&mut self) -> rusqlite::Result<u64> {
        Ok(u64::try_from(self.get::<i64>()?).unwrap_or(0))
    }

    fn instant(&mut self) -> rusqlite::Result<Timestamp> {
        self.get().map(Timestamp::from_micros)
    }

    fn parsed<T: DeserializeOwned>(&mut self) -> rusqlite::Result<T> {
        parse(&self.get::<String>()?)
    }
}

pub(crate) fn session(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let mut columns = Columns { row, next: 0 };
    Ok(SessionRow {
        id: SessionId::from_wire(columns.get::<String>()?),
        workspace: WorkspaceId::from_wire(columns.get::<String>()?),
        status: status(&columns.get::<String>()?)?,
        agent: AgentId::from_wire(columns.get::<String>()?),
        agent_version: columns.natural()?,
        environment: EnvironmentId::from_wire(columns.get::<String>()?),
        primary_thread: ThreadId::from_wire(columns.get::<String>()?),
        created_at: columns.instant()?,
        updated_at: columns.instant()?,
        archived_at: columns.get::<Option<i64>>()?.map(Timestamp::from_micros),
        head: columns.natural()?,
        client_head: columns.natural()?,
        revision: columns.natural()?,
        epoch: columns.natural()?,
        gate: columns.parsed()?,
        usage: columns.parsed()?,
        activity: columns.parsed()?,
        body: columns.get()?,
    })
}

pub(crate) fn thread(row: &Row<'_>, session: &SessionId) -> rusqlite::Result<Thread> {
    Ok(Thread {
        id: ThreadId::from_wire(row.get::<_, String>("id")?),
        session: session.clone(),
        parent: row.get::<_, Option<String>>("parent")?.map(ThreadId::from_wire),
        status: status(&row.get::<_, String>("status")?)?,
        created_at: instant(row, "created_at")?,
        updated_at: instant(row, "updated_at")?,
        archived_at: optional_instant(row, "archived_at")?,
        usage: parse(&row.get::<_, String>("usage")?)?,
        activity: parse(&row.get::<_, String>("activity")?)?,
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
    let mut columns = Columns { row, next: 0 };
    let seq = columns.natural()?;
    let kind = match columns.get::<i64>()? {
        0 => RecordKind::Event,
        1 => RecordKind::Received,
        _ => RecordKind::Transcript,
    };
    let event_id = EventId::from_wire(columns.get::<String>()?);
    let thread = ThreadId::from_wire(columns.get::<String>()?);
    let event_type = columns.get()?;
    let at = columns.instant()?;
    let body = columns.get::<String>()?.into();
    Ok(Record { seq, at, new: NewRecord { kind, event_id, thread, event_type, body } })
}
