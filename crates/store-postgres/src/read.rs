//! Reads: one statement each, on a bounded number of connections, repeated while the database is away for a moment.

use crate::{
    connect::{Database, SETTINGS},
    rows::{
        self, Columns, DOCUMENT_COLUMNS, RECORD_COLUMNS, SESSION_COLUMNS, THREAD_COLUMNS, failed,
        int, kind_number, said,
    },
};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Error, Row, error::SqlState, types::ToSql};
use vaquero_store::{
    Answer, AnswerKey, Begun, Document, DocumentPage, DocumentQuery, EventPage, EventQuery, Order,
    Position, Record, RecordKind, Seq, SessionPage, SessionQuery, SessionRow, Snapshot, StoreError,
};
use vaquero_types::{EventId, SessionId, Timestamp, thread::Thread};

/// How long a read keeps trying while the database is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(25);
/// Most records read at once.
const RECORDS: i64 = 1_024;

pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// Whether the same thing may go well in a moment.
pub(crate) fn passing(error: &Error) -> bool {
    let Some(code) = error.code() else { return true };
    let known = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::TOO_MANY_CONNECTIONS,
        // The primary may just have become a standby; a new connection finds the new one.
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    // 08: connections; 57P0x: the server stops or starts; 25P03: it ended a transaction that stood still.
    let text = code.code();
    text.starts_with("08") || text.starts_with("57P") || text == "25P03" || known.contains(code)
}

/// Connections for reading.
#[derive(Debug)]
pub(crate) struct Readers {
    pool: Pool,
}

impl Readers {
    pub(crate) fn new(database: &Database, connections: usize) -> Result<Self, StoreError> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(database.config.clone(), database.tls.clone(), config);
        let settle = Hook::async_fn(|client, _| {
            Box::pin(
                async move { client.batch_execute(SETTINGS).await.map_err(HookError::Backend) },
            )
        });
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(PATIENCE))
            .create_timeout(Some(PATIENCE))
            .post_create(settle)
            .build();
        Ok(Self { pool: pool.map_err(|error| StoreError::Backend(Box::new(error)))? })
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// The rows of a query. Text that PostgreSQL cannot hold is found nowhere.
    pub(crate) async fn rows(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(20);
        loop {
            let failure = match timeout(ATTEMPT, self.attempt(sql, params)).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(PoolError::Backend(error))) => {
                    if error.code() == Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE) {
                        return Ok(Vec::new());
                    }
                    if !passing(&error) {
                        return Err(failed(error));
                    }
                    StoreError::Away(said(&error))
                }
                Ok(Err(PoolError::Closed)) => return Err(StoreError::Closed),
                Ok(Err(error)) => StoreError::Away(Box::new(error)),
                Err(_) => StoreError::Away("the database does not answer".into()),
            };
            if Instant::now() + pause > deadline {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn attempt(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, PoolError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(sql).await?;
        Ok(client.query(&statement, params).await?)
    }

    async fn row(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, params).await?.pop())
    }

    pub(crate) async fn document(
        &self,
        workspace: &str,
        kind: &str,
        column: &'static str,
        value: &str,
    ) -> Result<Option<Document>, StoreError> {
        let sql = format!(
            "SELECT {DOCUMENT_COLUMNS} FROM documents WHERE workspace = $1 AND kind = $2 AND {column} = $3"
        );
        self.row(&sql, &[&workspace, &kind, &value]).await?.as_ref().map(rows::document).transpose()
    }

    pub(crate) async fn documents(
        &self,
        query: &DocumentQuery,
    ) -> Result<DocumentPage, StoreError> {
        let mut filter =
            Filter::new(&format!("SELECT {DOCUMENT_COLUMNS} FROM documents WHERE true"));
        filter.and("workspace =", query.workspace.as_str().to_owned());
        filter.and("kind =", query.kind.clone());
        if let Some(parent) = &query.parent {
            filter.and("parent =", parent.clone());
        }
        if !query.include_archived {
            filter.sql.push_str(" AND archived_at IS NULL");
        }
        filter.bound("created_at >=", query.from);
        filter.bound("created_at <=", query.until);
        filter.page(query.order, query.cursor.clone(), query.limit);
        let rows = filter.rows(self).await?;
        let documents = rows.iter().map(rows::document).collect::<Result<Vec<_>, _>>()?;
        let (documents, more) = page(documents, query.limit);
        Ok(DocumentPage { documents, more })
    }

    pub(crate) async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        let age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
        let oldest = now.as_micros().saturating_sub(age);
        let sql = "SELECT request_digest, status, body, session, events FROM answers \
            WHERE workspace = $1 AND operation = $2 AND key = $3 AND at >= $4";
        let workspace = key.workspace.as_str();
        let found = self.row(sql, &[&workspace, &key.operation, &key.key, &oldest]).await?;
        let Some(row) = found else { return Ok(None) };
        let mut columns = Columns::of(&row);
        let request_digest = columns.get()?;
        let status = u16::try_from(columns.get::<i32>()?).unwrap_or(500);
        let body = columns.get()?;
        let session: Option<String> = columns.get()?;
        let ids = columns.get::<Option<&str>>()?;
        let ids = ids.and_then(|ids| serde_json::from_str::<Vec<EventId>>(ids).ok());
        let events = session.map(SessionId::from_wire).zip(ids);
        Ok(Some(Answer { request_digest, status, body, events }))
    }

    pub(crate) async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        let sql = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE id = $1 AND NOT deleted");
        let row = self.row(&sql, &[&id.as_str()]).await?;
        row.as_ref().map(|row| rows::session(&mut Columns::of(row))).transpose()
    }

    pub(crate) async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        let mut filter =
            Filter::new(&format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE NOT deleted"));
        filter.and("workspace =", query.workspace.as_str().to_owned());
        if let Some(agent) = &query.agent {
            filter.and("agent =", agent.as_str().to_owned());
        }
        if let Some(version) = query.agent_version {
            filter.and("agent_version =", int(version));
        }
        filter.among("status", query.statuses.iter().map(|status| status.as_str().to_owned()));
        filter.bound("created_at >", query.after);
        filter.bound("created_at >=", query.from);
        filter.bound("created_at <", query.before);
        filter.bound("created_at <=", query.until);
        if !query.include_archived {
            filter.sql.push_str(" AND archived_at IS NULL");
        }
        let cursor = query.cursor.as_ref().map(|(at, id)| (*at, id.as_str().to_owned()));
        filter.page(query.order, cursor, query.limit);
        let rows = filter.rows(self).await?;
        let sessions = rows
            .iter()
            .map(|row| rows::session(&mut Columns::of(row)))
            .collect::<Result<Vec<_>, _>>()?;
        let (sessions, more) = page(sessions, query.limit);
        Ok(SessionPage { sessions, more })
    }

    pub(crate) async fn kept_by(
        &self,
        worker: &str,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        let ids: Vec<&str> = ids.iter().map(SessionId::as_str).collect();
        let sql = "SELECT s.id FROM unnest($1::text[]) WITH ORDINALITY AS u(id, place) JOIN sessions s ON s.id = u.id \
            WHERE NOT s.deleted AND s.archived_at IS NULL AND (s.hands IS NULL OR s.hands = $2) ORDER BY u.place";
        let rows = self.rows(sql, &[&ids, &worker]).await?;
        rows.iter().map(|row| Columns::of(row).id(SessionId::from_wire)).collect()
    }

    pub(crate) async fn outdated(
        &self,
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
            "SELECT {SESSION_COLUMNS} FROM sessions WHERE NOT deleted AND {rest}"
        ));
        filter.and("updated_at <", before.as_micros());
        filter.sql.push_str(&format!(" LIMIT {limit}"));
        let rows = filter.rows(self).await?;
        rows.iter().map(|row| rows::session(&mut Columns::of(row))).collect()
    }

    pub(crate) async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        let sql = format!(
            "SELECT {THREAD_COLUMNS} FROM threads t JOIN sessions s ON s.n = t.session WHERE s.id = $1 AND NOT s.deleted \
             ORDER BY t.parent IS NOT NULL, t.created_at, t.id"
        );
        let rows = self.rows(&sql, &[&session.as_str()]).await?;
        rows.iter().map(|row| rows::thread(row, session)).collect()
    }

    pub(crate) async fn position(
        &self,
        session: &SessionId,
    ) -> Result<Option<Position>, StoreError> {
        let sql = "SELECT head, deleted FROM sessions WHERE id = $1";
        let row = self.row(sql, &[&session.as_str()]).await?;
        let Some(row) = row else { return Ok(None) };
        let mut columns = Columns::of(&row);
        Ok(Some(Position { seq: columns.natural()?, deleted: columns.get()? }))
    }

    /// Where these sessions' logs end; `u64::MAX` for those that are deleted.
    pub(crate) async fn heads(
        &self,
        sessions: &[SessionId],
    ) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        let ids: Vec<&str> = sessions.iter().map(SessionId::as_str).collect();
        let sql = "SELECT id, head, deleted FROM sessions WHERE id = ANY($1)";
        let rows = self.rows(sql, &[&ids]).await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                let (id, head) = (columns.id(SessionId::from_wire)?, columns.natural()?);
                Ok((id, if columns.get()? { Seq::MAX } else { head }))
            })
            .collect()
    }

    /// Whether any session waits for a worker.
    pub(crate) async fn any_ready(&self) -> Result<bool, StoreError> {
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM sessions WHERE ready_at IS NOT NULL AND (lease_until IS NULL OR lease_until < {}))",
            crate::statements::CLOCK
        );
        let row = self.row(&sql, &[]).await?;
        row.map_or(Ok(false), |row| Columns::of(&row).get())
    }

    pub(crate) async fn records(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        // How far the bytes go is known from the sizes alone, which are read without the bodies.
        let sql = format!(
            "WITH sizes AS (SELECT l.session, l.seq, octet_length(l.body) AS bytes FROM log l \
                WHERE l.session = (SELECT n FROM sessions WHERE id = $1) AND l.seq > $2 ORDER BY l.seq LIMIT {RECORDS}), \
             sums AS (SELECT session, seq, row_number() OVER (ORDER BY seq) AS place, sum(bytes) OVER (ORDER BY seq) AS total FROM sizes) \
             SELECT {RECORD_COLUMNS} FROM sums JOIN log r ON r.session = sums.session AND r.seq = sums.seq \
             WHERE sums.place = 1 OR sums.total <= $3 ORDER BY r.seq"
        );
        let bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let rows = self.rows(&sql, &[&session.as_str(), &int(after), &bytes]).await?;
        rows.iter().map(rows::record).collect()
    }

    pub(crate) async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        let sql = format!(
            "SELECT {RECORD_COLUMNS} FROM log r WHERE r.session = (SELECT n FROM sessions WHERE id = $1 AND NOT deleted) \
             AND r.event_id = $2 AND r.kind < 2 ORDER BY r.seq LIMIT 1"
        );
        let row = self.row(&sql, &[&session.as_str(), &event.as_str()]).await?;
        row.as_ref().map(rows::record).transpose()
    }

    pub(crate) async fn snapshot(
        &self,
        session: &SessionId,
    ) -> Result<Option<Snapshot>, StoreError> {
        let sql = "SELECT p.seq, p.version, p.body FROM sessions s JOIN snapshots p ON p.session = s.n WHERE s.id = $1 AND NOT s.deleted";
        let Some(row) = self.row(sql, &[&session.as_str()]).await? else { return Ok(None) };
        let mut columns = Columns::of(&row);
        let seq = columns.natural()?;
        let version = u32::try_from(columns.get::<i32>()?).unwrap_or(0);
        Ok(Some(Snapshot { seq, version, body: columns.get()? }))
    }

    pub(crate) async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let processed =
            if query.begins_processed() { self.processed(query).await? } else { Vec::new() };
        match query.begin(processed) {
            Begun::Whole(page) => Ok(page),
            Begun::Rest(rest) => {
                let queued = self.queued(query, rest.after, rest.limit).await?;
                Ok(rest.finish(queued))
            }
        }
    }

    async fn processed(&self, query: &EventQuery) -> Result<Vec<Record>, StoreError> {
        let cursor = query.start();
        let mut filter = Filter::of_events(query, RecordKind::Event);
        if !query.descending {
            filter.and("r.seq >", int(cursor.processed));
        } else if cursor.processed > 0 {
            filter.and("r.seq <", int(cursor.processed));
        }
        filter.bound("r.at >", query.after);
        filter.bound("r.at >=", query.from);
        filter.bound("r.at <", query.before);
        filter.bound("r.at <=", query.until);
        let word = if query.descending { "DESC" } else { "ASC" };
        filter.sql.push_str(&format!(" ORDER BY r.seq {word} LIMIT {}", query.limit + 1));
        filter.rows(self).await?.iter().map(rows::record).collect()
    }

    async fn queued(
        &self,
        query: &EventQuery,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut filter = Filter::of_events(query, RecordKind::Received);
        filter.and("r.seq >", int(after));
        filter.sql.push_str(&format!(
            " AND NOT EXISTS (SELECT 1 FROM log e WHERE e.session = r.session AND e.event_id = r.event_id AND e.kind = 0) \
             ORDER BY r.seq LIMIT {limit}"
        ));
        filter.rows(self).await?.iter().map(rows::record).collect()
    }
}

fn page<T>(mut rows: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = rows.len() > limit;
    rows.truncate(limit);
    (rows, more)
}

/// A WHERE clause that grows with its parameters.
struct Filter {
    sql: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Filter {
    fn new(sql: &str) -> Self {
        Self { sql: sql.to_owned(), values: Vec::new() }
    }

    fn of_events(query: &EventQuery, kind: RecordKind) -> Self {
        // The number of the session as a value: only then does the log's own order spare the sorting of all of it.
        let mut filter = Self::new(&format!(
            "SELECT {RECORD_COLUMNS} FROM log r WHERE r.session = (SELECT n FROM sessions WHERE id = $1 AND NOT deleted)"
        ));
        filter.values.push(Box::new(query.session.as_str().to_owned()));
        filter.sql.push_str(&format!(" AND r.kind = {}", kind_number(kind)));
        if let Some(thread) = &query.thread {
            filter.and("r.thread =", thread.as_str().to_owned());
        }
        filter.among("r.event_type", query.types.iter().cloned());
        filter
    }

    fn and(&mut self, condition: &str, value: impl ToSql + Sync + Send + 'static) {
        self.values.push(Box::new(value));
        self.sql.push_str(&format!(" AND {condition} ${}", self.values.len()));
    }

    fn bound(&mut self, condition: &str, bound: Option<Timestamp>) {
        if let Some(bound) = bound {
            self.and(condition, bound.as_micros());
        }
    }

    fn among(&mut self, column: &str, values: impl Iterator<Item = String>) {
        let values: Vec<String> = values.collect();
        if !values.is_empty() {
            // What PostgreSQL cannot hold matches nothing, and must not spoil what matches.
            let fitting: Vec<String> =
                values.into_iter().filter(|value| !value.contains('\0')).collect();
            self.values.push(Box::new(fitting));
            self.sql.push_str(&format!(" AND {column} = ANY(${})", self.values.len()));
        }
    }

    /// Goes on after a row in the order of `created_at` and `id`.
    fn page(&mut self, order: Order, cursor: Option<(Timestamp, String)>, limit: usize) {
        let (sign, word) = if order == Order::Ascending { (">", "ASC") } else { ("<", "DESC") };
        if let Some((at, id)) = cursor {
            self.values.push(Box::new(at.as_micros()));
            self.values.push(Box::new(id));
            let count = self.values.len();
            self.sql.push_str(&format!(" AND (created_at, id) {sign} (${}, ${count})", count - 1));
        }
        self.sql.push_str(&format!(" ORDER BY created_at {word}, id {word} LIMIT {}", limit + 1));
    }

    async fn rows(&self, readers: &Readers) -> Result<Vec<Row>, StoreError> {
        let params: Vec<Param<'_>> =
            self.values.iter().map(|value| value.as_ref() as Param<'_>).collect();
        readers.rows(&self.sql, &params).await
    }
}
