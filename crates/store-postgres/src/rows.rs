//! Between rows and values.

use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::{Row, error::SqlState, types::FromSql};
use vaquero_store::{
    Document, NewRecord, Record, RecordKind, SessionRow, StoreError, workset::SessionState,
};
use vaquero_types::{
    AgentId, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId, session::Status,
    thread::Thread,
};

/// What PostgreSQL failed with, as the seam names it.
pub(crate) fn failed(error: tokio_postgres::Error) -> StoreError {
    let full = [SqlState::DISK_FULL, SqlState::OUT_OF_MEMORY, SqlState::INSUFFICIENT_RESOURCES];
    if error.code().is_some_and(|code| full.contains(code)) {
        return StoreError::Full(said(&error));
    }
    StoreError::Backend(said(&error))
}

/// The error with the words of the database, which its own display leaves to its source.
pub(crate) fn said(error: &tokio_postgres::Error) -> Box<dyn std::error::Error + Send + Sync> {
    crate::connect::reason(error).into()
}

pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("stored values are plain data")
}

pub(crate) fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_micros)
}

/// Reads a row's columns in the order they were selected.
pub(crate) struct Columns<'row> {
    row: &'row Row,
    next: usize,
}

impl<'row> Columns<'row> {
    pub(crate) fn of(row: &'row Row) -> Self {
        Self { row, next: 0 }
    }

    pub(crate) fn get<T: FromSql<'row>>(&mut self) -> Result<T, StoreError> {
        self.next += 1;
        self.row.try_get(self.next - 1).map_err(failed)
    }

    pub(crate) fn natural(&mut self) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.get::<i64>()?).unwrap_or(0))
    }

    pub(crate) fn instant(&mut self) -> Result<Timestamp, StoreError> {
        self.get().map(Timestamp::from_micros)
    }

    pub(crate) fn optional_instant(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.get::<Option<i64>>()?.map(Timestamp::from_micros))
    }

    pub(crate) fn id<T>(&mut self, wire: impl FnOnce(String) -> T) -> Result<T, StoreError> {
        self.get::<String>().map(wire)
    }

    fn parsed<T: DeserializeOwned>(&mut self, what: &str) -> Result<T, StoreError> {
        serde_json::from_str(self.get::<&str>()?)
            .map_err(|_| StoreError::Corrupt { what: what.to_owned() })
    }

    fn status(&mut self) -> Result<Status, StoreError> {
        let word = self.get::<&str>()?;
        Status::parse(word).ok_or_else(|| StoreError::Corrupt { what: format!("status `{word}`") })
    }
}

pub(crate) const SESSION_COLUMNS: &str = "id, workspace, status, agent, agent_version, environment, primary_thread, created_at, updated_at, archived_at, \
    head, client_head, revision, epoch, gate, usage, activity, (SELECT b.body FROM bodies b WHERE b.session = sessions.n)";

/// What follows [`SESSION_COLUMNS`] may be read from the columns that are left.
pub(crate) fn session(columns: &mut Columns<'_>) -> Result<SessionRow, StoreError> {
    Ok(SessionRow {
        id: columns.id(SessionId::from_wire)?,
        workspace: columns.id(WorkspaceId::from_wire)?,
        status: columns.status()?,
        agent: columns.id(AgentId::from_wire)?,
        agent_version: columns.natural()?,
        environment: columns.id(EnvironmentId::from_wire)?,
        primary_thread: columns.id(ThreadId::from_wire)?,
        created_at: columns.instant()?,
        updated_at: columns.instant()?,
        archived_at: columns.optional_instant()?,
        head: columns.natural()?,
        client_head: columns.natural()?,
        revision: columns.natural()?,
        epoch: columns.natural()?,
        gate: columns.parsed("sessions.gate")?,
        usage: columns.parsed("sessions.usage")?,
        activity: columns.parsed("sessions.activity")?,
        body: columns.get::<Option<String>>()?.unwrap_or_default(),
    })
}

pub(crate) const STATE_COLUMNS: &str = "status, updated_at, archived_at, head, client_head, revision, epoch, last_at, last_event_at, gate, usage, activity, \
    ready_at, lease_until, claims, hands, deleted";

pub(crate) fn state(columns: &mut Columns<'_>) -> Result<SessionState, StoreError> {
    Ok(SessionState {
        status: columns.status()?,
        updated_at: columns.instant()?,
        archived_at: columns.optional_instant()?,
        head: columns.natural()?,
        client_head: columns.natural()?,
        revision: columns.natural()?,
        epoch: columns.natural()?,
        last_at: columns.instant()?,
        last_event_at: columns.instant()?,
        gate: columns.parsed("sessions.gate")?,
        usage: columns.parsed("sessions.usage")?,
        activity: columns.parsed("sessions.activity")?,
        ready_at: columns.optional_instant()?,
        leased_until: columns.optional_instant()?,
        claims: u32::try_from(columns.get::<i32>()?).unwrap_or(0),
        hands: columns.get()?,
        deleted: columns.get()?,
    })
}

pub(crate) const THREAD_COLUMNS: &str =
    "t.id, t.parent, t.status, t.created_at, t.updated_at, t.archived_at, t.usage, t.activity";

pub(crate) fn thread(row: &Row, session: &SessionId) -> Result<Thread, StoreError> {
    let mut columns = Columns::of(row);
    Ok(Thread {
        id: columns.id(ThreadId::from_wire)?,
        session: session.clone(),
        parent: columns.get::<Option<String>>()?.map(ThreadId::from_wire),
        status: columns.status()?,
        created_at: columns.instant()?,
        updated_at: columns.instant()?,
        archived_at: columns.optional_instant()?,
        usage: columns.parsed("threads.usage")?,
        activity: columns.parsed("threads.activity")?,
    })
}

pub(crate) const DOCUMENT_COLUMNS: &str =
    "workspace, kind, id, parent, unique_key, created_at, archived_at, revision, body";

pub(crate) fn document(row: &Row) -> Result<Document, StoreError> {
    let mut columns = Columns::of(row);
    Ok(Document {
        workspace: columns.id(WorkspaceId::from_wire)?,
        kind: columns.get()?,
        id: columns.get()?,
        parent: columns.get()?,
        unique_key: columns.get()?,
        created_at: columns.instant()?,
        archived_at: columns.optional_instant()?,
        revision: columns.natural()?,
        body: columns.get()?,
    })
}

pub(crate) const RECORD_COLUMNS: &str =
    "r.seq, r.kind, r.event_id, r.thread, r.event_type, r.at, r.body";

pub(crate) const fn kind_number(kind: RecordKind) -> i16 {
    match kind {
        RecordKind::Event => 0,
        RecordKind::Received => 1,
        RecordKind::Transcript => 2,
    }
}

pub(crate) const fn kind(number: i16) -> RecordKind {
    match number {
        0 => RecordKind::Event,
        1 => RecordKind::Received,
        _ => RecordKind::Transcript,
    }
}

pub(crate) fn record(row: &Row) -> Result<Record, StoreError> {
    let mut columns = Columns::of(row);
    let seq = columns.natural()?;
    let kind = kind(columns.get()?);
    let event_id = columns.id(EventId::from_wire)?;
    let thread = columns.id(ThreadId::from_wire)?;
    let event_type = columns.get()?;
    let at = columns.instant()?;
    let body = columns.get::<&str>()?.into();
    Ok(Record { seq, at, new: NewRecord { kind, event_id, thread, event_type, body } })
}
