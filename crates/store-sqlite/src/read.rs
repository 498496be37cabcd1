//! Reads, on connections of their own beside the writer. Each sees everything that was committed before it began.

use crate::{
    rows::{self, RECORD_COLUMNS, SESSION_COLUMNS, failed, int, kind_number},
    schema,
};
use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;
use vaquero_store::{
    Answer, AnswerKey, Begun, Document, DocumentPage, DocumentQuery, EventPage, EventQuery, Order,
    Position, Record, RecordKind, Seq, SessionPage, SessionQuery, SessionRow, Snapshot, StoreError,
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId, thread::Thread};

/// Most reads at the same time.
const READERS: usize = 8;

/// Connections for reading, opened as needed and kept.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    slots: Semaphore,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, idle: Arc::default(), slots: Semaphore::new(READERS) }
    }

    /// Runs a read of a row or two where the caller is: going to another thread and back takes longer than such a read.
    pub(crate) fn point<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => schema::connect(&self.path).map_err(failed)?,
        };
        let result = read(&connection);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result
    }

    /// Runs `read` on a blocking thread.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _slot = self.slots.acquire().await.map_err(|_| StoreError::Closed)?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let task = tokio::task::spawn_blocking(move || {
            let connection = match kept {
                Some(connection) => connection,
                None => schema::connect(&path).map_err(failed)?,
            };
            let result = read(&connection);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        });
        task.await.map_err(|_| StoreError::Closed)?
    }
}

fn optional<T>(result: rusqlite::Result<T>) -> Result<Option<T>, StoreError> {
    result.optional().map_err(failed)
}

pub(crate) fn document(
    db: &Connection,
    workspace: &WorkspaceId,
    kind: &str,
    column: &'static str,
    value: &str,
) -> Result<Option<Document>, StoreError> {
    let sql =
        format!("SELECT * FROM documents WHERE workspace = ?1 AND kind = ?2 AND {column} = ?3");
    let mut statement = db.prepare_cached(&sql).map_err(failed)?;
    optional(statement.query_row(params![workspace.as_str(), kind, value], rows::document))
}

/// A WHERE clause that grows with its parameters.
struct Filter {
    sql: String,
    values: Vec<Box<dyn ToSql>>,
}

impl Filter {
    fn new(sql: &str) -> Self {
        Self { sql: sql.to_owned(), values: Vec::new() }
    }

    fn and(&mut self, condition: &str, value: impl ToSql + 'static) {
        self.values.push(Box::new(value));
        self.sql.push_str(&format!(" AND {condition} ?{}", self.values.len()));
    }

    fn and_in(&mut self, column: &str, values: impl Iterator<Item = String>) {
        let marks: Vec<String> = values
            .map(|value| {
                self.values.push(Box::new(value));
                format!("?{}", self.values.len())
            })
            .collect();
        if !marks.is_empty() {
            self.sql.push_str(&format!(" AND {column} IN ({})", marks.join(", ")));
        }
    }

    /// Goes on after a row in the order of `created_at` and `id`.
    fn after(&mut self, order: Order, cursor: Option<(Timestamp, String)>) {
        let Some((at, id)) = cursor else { return };
        self.values.push(Box::new(at.as_micros()));
        self.values.push(Box::new(id));
        let count = self.values.len();
        let sign = if order == Order::Ascending { ">" } else { "<" };
        self.sql.push_str(&format!(" AND (created_at, id) {sign} (?{}, ?{count})", count - 1));
    }

    fn order(&mut self, order: Order, limit: usize) {
        let word = if order == Order::Ascending { "ASC" } else { "DESC" };
        self.sql.push_str(&format!(" ORDER BY created_at {word}, id {word} LIMIT {}", limit + 1));
    }

    fn rows<T>(
        &self,
        db: &Connection,
        map: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = db.prepare_cached(&self.sql).map_err(failed)?;
        let rows = statement.query_map(params_from_iter(&self.values), map).map_err(failed)?;
        rows.collect::<rusqlite::Result<Vec<T>>>().map_err(failed)
    }
}

fn page<T>(mut rows: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = rows.len() > limit;
    rows.truncate(limit);
    (rows, more)
}

pub(crate) fn documents(
    db: &Connection,
    query: &DocumentQuery,
) -> Result<DocumentPage, StoreError> {
    let mut filter = Filter::new("SELECT * FROM documents WHERE 1");
    filter.and("workspace =", query.workspace.as_str().to_owned());
    filter.and("kind =", query.kind.clone());
    if let Some(parent) = &query.parent {
        filter.and("parent =", parent.clone());
    }
    if !query.include_archived {
        filter.sql.push_str(" AND archived_at IS NULL");
    }
    if let Some(from) = query.from {
        filter.and("created_at >=", from.as_micros());
    }
    if let Some(until) = query.until {
        filter.and("created_at <=", until.as_micros());
    }
    filter.after(query.order, query.cursor.clone());
    filter.order(query.order, query.limit);
    let (documents, more) = page(filter.rows(db, rows::document)?, query.limit);
    Ok(DocumentPage { documents, more })
}

pub(crate) fn answer(
    db: &Connection,
    key: &AnswerKey,
    now: Timestamp,
    max_age: Duration,
) -> Result<Option<Answer>, StoreError> {
    let oldest = now.as_micros() - i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
    let mut statement = db
        .prepare_cached("SELECT * FROM answers WHERE workspace = ?1 AND operation = ?2 AND key = ?3 AND at >= ?4")
        .map_err(failed)?;
    let values = params![key.workspace.as_str(), key.operation, key.key, oldest];
    optional(statement.query_row(values, |row| {
        let session: Option<String> = row.get("session")?;
        let events: Option<String> = row.get("events")?;
        let ids = events.and_then(|ids| serde_json::from_str::<Vec<EventId>>(&ids).ok());
        Ok(Answer {
            request_digest: row.get("request_digest")?,
            status: row.get("status")?,
            body: row.get("body")?,
            events: session.map(SessionId::from_wire).zip(ids),
        })
    }))
}

pub(crate) fn session(db: &Connection, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
    let sql = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE id = ?1 AND deleted = 0");
    let mut statement = db.prepare_cached(&sql).map_err(failed)?;
    optional(statement.query_row([id.as_str()], rows::session))
}

pub(crate) fn sessions(db: &Connection, query: &SessionQuery) -> Result<SessionPage, StoreError> {
    let mut filter =
        Filter::new(&format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE deleted = 0"));
    filter.and("workspace =", query.workspace.as_str().to_owned());
    if let Some(agent) = &query.agent {
        filter.and("agent =", agent.as_str().to_owned());
    }
    if let Some(version) = query.agent_version {
        filter.and("agent_version =", int(version));
    }
    filter.and_in("status", query.statuses.iter().map(|status| status.as_str().to_owned()));
    let bounds = [
        ("created_at >", query.after),
        ("created_at >=", query.from),
        ("created_at <", query.before),
        ("created_at <=", query.until),
    ];
    for (condition, bound) in bounds {
        if let Some(bound) = bound {
            filter.and(condition, bound.as_micros());
        }
    }
    if !query.include_archived {
        filter.sql.push_str(" AND archived_at IS NULL");
    }
    let cursor = query.cursor.as_ref().map(|(at, id)| (*at, id.as_str().to_owned()));
    filter.after(query.order, cursor);
    filter.order(query.order, query.limit);
    let (sessions, more) = page(filter.rows(db, rows::session)?, query.limit);
    Ok(SessionPage { sessions, more })
}

pub(crate) fn kept_by(
    db: &Connection,
    worker: &str,
    ids: &[SessionId],
) -> Result<Vec<SessionId>, StoreError> {
    let sql = "SELECT 1 FROM sessions WHERE id = ?1 AND deleted = 0 AND archived_at IS NULL AND (hands IS NULL OR hands = ?2)";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let mut kept = Vec::new();
    for id in ids {
        if statement.exists(params![id.as_str(), worker]).map_err(failed)? {
            kept.push(id.clone());
        }
    }
    Ok(kept)
}

pub(crate) fn outdated(
    db: &Connection,
    archived: bool,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<SessionRow>, StoreError> {
    let rest = if archived {
        "archived_at IS NOT NULL"
    } else {
        "archived_at IS NULL AND status = 'idle'"
    };
    let mut filter = Filter::new(&format!(
        "SELECT {SESSION_COLUMNS} FROM sessions WHERE deleted = 0 AND {rest}"
    ));
    filter.and("updated_at <", before.as_micros());
    filter.sql.push_str(&format!(" LIMIT {limit}"));
    filter.rows(db, rows::session)
}

pub(crate) fn threads(db: &Connection, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
    let mut filter = Filter::new(
        "SELECT t.* FROM threads t JOIN sessions s ON s.n = t.session WHERE s.deleted = 0",
    );
    filter.and("s.id =", session.as_str().to_owned());
    filter.sql.push_str(" ORDER BY t.parent IS NOT NULL, t.created_at, t.id");
    filter.rows(db, |row| rows::thread(row, session))
}

fn number(db: &Connection, session: &SessionId) -> Result<Option<(i64, u64, bool)>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT n, head, deleted FROM sessions WHERE id = ?1").map_err(failed)?;
    optional(statement.query_row([session.as_str()], |row| {
        Ok((row.get(0)?, rows::natural(row, "head")?, row.get(2)?))
    }))
}

pub(crate) fn position(
    db: &Connection,
    session: &SessionId,
) -> Result<Option<Position>, StoreError> {
    Ok(number(db, session)?.map(|(_, seq, deleted)| Position { seq, deleted }))
}

pub(crate) fn records(
    db: &Connection,
    session: &SessionId,
    after: Seq,
    max_bytes: usize,
) -> Result<Vec<Record>, StoreError> {
    let Some((number, ..)) = number(db, session)? else { return Ok(Vec::new()) };
    let sql =
        format!("SELECT {RECORD_COLUMNS} FROM log WHERE session = ?1 AND seq > ?2 ORDER BY seq");
    let mut statement = db.prepare_cached(&sql).map_err(failed)?;
    let mut rows = statement.query(params![number, int(after)]).map_err(failed)?;
    let mut records = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        let record = rows::record(row).map_err(failed)?;
        bytes += record.new.body.len();
        if !records.is_empty() && bytes > max_bytes {
            break;
        }
        records.push(record);
    }
    Ok(records)
}

pub(crate) fn event(
    db: &Connection,
    session: &SessionId,
    event: &EventId,
) -> Result<Option<Record>, StoreError> {
    let Some((number, _, false)) = number(db, session)? else { return Ok(None) };
    let sql = format!(
        "SELECT {RECORD_COLUMNS} FROM log WHERE session = ?1 AND event_id = ?2 AND kind < 2 ORDER BY seq LIMIT 1"
    );
    let mut statement = db.prepare_cached(&sql).map_err(failed)?;
    optional(statement.query_row(params![number, event.as_str()], rows::record))
}

pub(crate) fn events(db: &Connection, query: &EventQuery) -> Result<EventPage, StoreError> {
    let nothing = EventPage { records: Vec::new(), next: None };
    let Some((number, _, false)) = number(db, &query.session)? else { return Ok(nothing) };
    let processed =
        if query.begins_processed() { processed(db, query, number)? } else { Vec::new() };
    match query.begin(processed) {
        Begun::Whole(page) => Ok(page),
        Begun::Rest(rest) => {
            let queued = queued(db, query, number, rest.after, rest.limit)?;
            Ok(rest.finish(queued))
        }
    }
}

fn common(query: &EventQuery, number: i64, kind: RecordKind) -> Filter {
    let mut filter = Filter::new(&format!("SELECT {RECORD_COLUMNS} FROM log r WHERE 1"));
    filter.and("r.session =", number);
    filter.and("r.kind =", kind_number(kind));
    if let Some(thread) = &query.thread {
        filter.and("r.thread =", thread.as_str().to_owned());
    }
    filter.and_in("r.event_type", query.types.iter().cloned());
    filter
}

fn processed(db: &Connection, query: &EventQuery, number: i64) -> Result<Vec<Record>, StoreError> {
    let cursor = query.start();
    let mut filter = common(query, number, RecordKind::Event);
    if query.descending {
        if cursor.processed > 0 {
            filter.and("r.seq <", int(cursor.processed));
        }
    } else {
        filter.and("r.seq >", int(cursor.processed));
    }
    let bounds = [
        ("r.at >", query.after),
        ("r.at >=", query.from),
        ("r.at <", query.before),
        ("r.at <=", query.until),
    ];
    for (condition, bound) in bounds {
        if let Some(bound) = bound {
            filter.and(condition, bound.as_micros());
        }
    }
    let word = if query.descending { "DESC" } else { "ASC" };
    filter.sql.push_str(&format!(" ORDER BY r.seq {word} LIMIT {}", query.limit + 1));
    filter.rows(db, rows::record)
}

fn queued(
    db: &Connection,
    query: &EventQuery,
    number: i64,
    after: Seq,
    limit: usize,
) -> Result<Vec<Record>, StoreError> {
    let mut filter = common(query, number, RecordKind::Received);
    filter.and("r.seq >", int(after));
    filter.sql.push_str(&format!(" AND NOT EXISTS (SELECT 1 FROM log e WHERE e.session = r.session AND e.event_id = r.event_id AND e.kind = 0) ORDER BY r.seq LIMIT {limit}"
    ));
    filter.rows(db, rows::record)
}

pub(crate) fn snapshot(
    db: &Connection,
    session: &SessionId,
) -> Result<Option<Snapshot>, StoreError> {
    let Some((number, _, false)) = number(db, session)? else { return Ok(None) };
    let mut statement = db
        .prepare_cached("SELECT seq, version, body FROM snapshots WHERE session = ?1")
        .map_err(failed)?;
    optional(statement.query_row([number], |row| {
        Ok(Snapshot { seq: rows::natural(row, "seq")?, version: row.get(1)?, body: row.get(2)? })
    }))
}

pub(crate) fn backup(db: &Connection, to: &std::path::Path) -> Result<(), StoreError> {
    let Some(to) = to.to_str() else {
        return Err(StoreError::Backend("the name of the file is not UTF-8".into()));
    };
    db.execute("VACUUM INTO ?1", [to]).map(drop).map_err(failed)
}
