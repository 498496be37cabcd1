//! The store for many machines: PostgreSQL 15 or newer. Any number of servers share one database. Nothing outside this crate names its SQL.
//!
//! Commits are gathered into groups, each one transaction of two round trips on one of a few connections (`writer`, `group`); what they may do is decided by the rules that
//! every store shares (`vaquero_store::workset`). Reads have connections of their own (`read`). Servers wake each other by notifications (`hub`).

mod clock;
mod connect;
mod group;
mod hub;
mod read;
mod rows;
mod schema;
mod statements;
mod writer;

pub use group::Clock;

use async_trait::async_trait;
use clock::DatabaseClock;
use connect::Database;
use group::{Done, Work};
use hub::Hub;
use read::Readers;
use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vaquero_store::{
    Answer, AnswerKey, Claimed, CommitError, Committed, Document, DocumentPage, DocumentQuery,
    EventPage, EventQuery, Lease, Live, Position, Record, Seq, SessionPage, SessionQuery,
    SessionRow, Snapshot, Store, StoreError, WorkerName, Write,
};
use vaquero_types::{EventId, SessionId, SystemClock, Timestamp, WorkspaceId, thread::Thread};
use writer::Writer;

/// Connections that write; a group fills one while the other waits for its flush.
const WRITERS: usize = 2;
/// Connections beside those that read: the writers, one that tells and one that listens.
const OTHERS: usize = WRITERS + 2;

/// Why a store could not be opened. No message holds the password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is wrong.
    #[error("the database URL cannot be used: {0}")]
    Url(String),
    /// Certificates cannot be checked as the URL asks for.
    #[error("the database's certificate cannot be checked: {0}")]
    Certificates(String),
    /// Nobody answers there.
    #[error("the database {place} cannot be reached: {reason}")]
    Unreachable {
        /// Host, port and name.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// The server answered with a refusal.
    #[error("the database refuses: {0}")]
    Refused(String),
    /// PostgreSQL is too old.
    #[error("the database is PostgreSQL {found}; version 15 or newer is needed")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// It cannot be written to.
    #[error("the database {place} is read-only (a standby?); name the primary")]
    ReadOnly {
        /// Host, port and name.
        place: String,
    },
    /// The database was written by a newer release.
    #[error(
        "the database has schema version {found}, this release knows versions up to {known}; start the newer release that wrote it"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Too few connections were allowed.
    #[error("at least {least} connections to the database are needed")]
    TooFewConnections {
        /// The least that work.
        least: usize,
    },
}

/// How to open a store.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=…`
    pub url: String,
    /// Most connections of this process.
    pub connections: usize,
    /// Whose clock counts.
    pub clock: Clock,
    /// This machine's clock.
    pub own_clock: Arc<dyn vaquero_types::Clock>,
}

impl PostgresConfig {
    /// The usual settings for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections: 16,
            clock: Clock::Database,
            own_clock: Arc::new(SystemClock),
        }
    }
}

/// What a database is, as far as an operator wants to know before a server uses it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Host, port and name.
    pub place: String,
    /// The server's version.
    pub version: String,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// The schema it has; 0 for none yet.
    pub schema: i64,
    /// The schema this release makes of it.
    pub known: i64,
    /// Connections the server allows to all clients together.
    pub max_connections: i64,
    /// The time a small durable transaction takes: the median of 15.
    pub commit: Duration,
    /// Settings under which committed work can be lost.
    pub unsafe_settings: Vec<String>,
}

/// Looks at a database without changing it.
pub async fn inspect(config: &PostgresConfig) -> Result<Report, OpenError> {
    let database = Database::new(&config.url)?;
    let client = database.reach().await?;
    let version = check(&database, &client).await?;
    let schema = schema::found(&client).await?;
    if schema > schema::known() {
        return Err(OpenError::Newer { found: schema, known: schema::known() });
    }
    let setting = async |name: &str| {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await;
        row.map(|row| row.get::<_, String>(0)).map_err(connect::refused)
    };
    let max_connections = setting("max_connections").await?.parse().unwrap_or(0);
    let mut unsafe_settings = Vec::new();
    for name in ["fsync", "full_page_writes"] {
        if setting(name).await? == "off" {
            unsafe_settings.push(format!("{name} = off"));
        }
    }
    let row = client
        .query_opt("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
        .await
        .map_err(connect::refused)?;
    let encrypted = row.is_some_and(|row| row.get(0));
    let commit = measure(&client).await?;
    database.close();
    let (place, known) = (database.place.clone(), schema::known());
    Ok(Report {
        place,
        version,
        encrypted,
        schema,
        known,
        max_connections,
        commit,
        unsafe_settings,
    })
}

/// The median time of a transaction that writes nothing but its own end.
async fn measure(client: &tokio_postgres::Client) -> Result<Duration, OpenError> {
    let mut times = Vec::new();
    for _ in 0..15 {
        #[expect(clippy::disallowed_methods, reason = "this measures real time")]
        let start = std::time::Instant::now();
        client
            .batch_execute("BEGIN; SELECT pg_logical_emit_message(true, 'vaquero', ''); COMMIT")
            .await
            .map_err(connect::refused)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Refuses what no server could work with; the version otherwise.
async fn check(database: &Database, client: &tokio_postgres::Client) -> Result<String, OpenError> {
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::integer, \
        current_setting('transaction_read_only')::boolean, current_setting('server_encoding')";
    let row = client.query_one(sql, &[]).await.map_err(connect::refused)?;
    let (version, number): (String, i32) = (row.get(0), row.get(1));
    if number < 150_000 {
        return Err(OpenError::TooOld { found: version });
    }
    if row.get(2) {
        return Err(OpenError::ReadOnly { place: database.place.clone() });
    }
    let encoding: String = row.get(3);
    if encoding != "UTF8" {
        return Err(OpenError::Refused(format!("its encoding is {encoding}; UTF8 is needed")));
    }
    Ok(version)
}

/// A store in a PostgreSQL database that other servers may share.
#[derive(Debug)]
pub struct PostgresStore {
    database: Database,
    readers: Arc<Readers>,
    writer: RwLock<Option<Arc<Writer>>>,
    hub: Arc<Hub>,
    clock: Arc<DatabaseClock>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl PostgresStore {
    /// Opens the store, bringing the database's schema to this release's version. `worker` names this server: leases under that name are from before its start, and void.
    pub async fn open(config: &PostgresConfig, worker: &str) -> Result<Self, OpenError> {
        let Some(reading) = config.connections.checked_sub(OTHERS).filter(|count| *count > 0)
        else {
            return Err(OpenError::TooFewConnections { least: OTHERS + 1 });
        };
        let database = Database::new(&config.url)?;
        let mut client = database.reach().await?;
        check(&database, &client).await?;
        schema::migrate(&mut client).await?;
        client
            .execute(
                "UPDATE sessions SET lease_worker = NULL, lease_until = NULL WHERE ready_at IS NOT NULL AND lease_worker = $1",
                &[&worker],
            )
            .await
            .map_err(connect::refused)?;
        let clock = Arc::new(DatabaseClock::new(Arc::clone(&config.own_clock)));
        clock.set(&client).await.map_err(connect::refused)?;
        let readers = Readers::new(&database, reading);
        let readers = Arc::new(readers.map_err(|error| OpenError::Refused(error.to_string()))?);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let hub = Hub::start(&database, &readers, &clock, &tasks, &stop);
        let writer = Writer::start(&database, WRITERS, config.clock, &hub);
        hub.wakes.ready();
        Ok(Self {
            database,
            readers,
            writer: RwLock::new(Some(Arc::new(writer))),
            hub,
            clock,
            stop,
            tasks,
        })
    }

    /// The time all servers of this database go by.
    pub fn clock(&self) -> Arc<dyn vaquero_types::Clock> {
        Arc::clone(&self.clock) as Arc<dyn vaquero_types::Clock>
    }

    /// Where deltas go and come from, on this server and others.
    pub fn live(&self) -> Arc<dyn Live> {
        Arc::clone(&self.hub) as Arc<dyn Live>
    }

    /// Finishes what is queued and lets go of the database. Later calls answer `Closed`.
    pub async fn close(&self) {
        let writer = self.writer.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer.and_then(Arc::into_inner) {
            writer.close().await;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.readers.close();
        self.database.close();
    }

    async fn ask(&self, work: Work) -> Result<Done, StoreError> {
        let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner).clone();
        writer.ok_or(StoreError::Closed)?.ask(work).await
    }

    async fn unit(&self, work: Work) -> Result<(), CommitError> {
        match self.ask(work).await? {
            Done::Unit(result) => result,
            other => Err(misunderstood(&other).into()),
        }
    }
}

fn misunderstood(done: &Done) -> StoreError {
    StoreError::Backend(format!("the writer answered another question: {done:?}").into())
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError> {
        match self.ask(Work::Commit { writes, now }).await? {
            Done::Commit(result) => result,
            other => Err(misunderstood(&other).into()),
        }
    }

    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.readers.document(workspace.as_str(), kind, "id", id).await
    }

    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.readers.document(workspace.as_str(), kind, "unique_key", unique_key).await
    }

    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError> {
        self.readers.documents(query).await
    }

    async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        self.readers.answer(key, now, max_age).await
    }

    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        self.readers.session(id).await
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        self.readers.sessions(query).await
    }

    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        self.readers.kept_by(worker, ids).await
    }

    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.readers.outdated(archived, before, limit).await
    }

    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        self.readers.threads(session).await
    }

    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.readers.records(session, after, max_bytes).await
    }

    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError> {
        self.readers.position(session).await
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.readers.events(query).await
    }

    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        self.readers.event(session, event).await
    }

    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError> {
        let watch = self.hub.wakes.watch(session);
        let head = async {
            let position = self.position(session).await?;
            Ok(position.filter(|found| !found.deleted).map_or(Seq::MAX, |found| found.seq))
        };
        watch.past(seen, head).await
    }

    async fn wait_ready(&self) -> Result<(), StoreError> {
        self.hub.wait_ready().await;
        Ok(())
    }

    async fn heartbeat(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match self.ask(Work::Heartbeat { worker: worker.clone(), ttl, now }).await? {
            Done::Unit(_) => Ok(()),
            other => Err(misunderstood(&other)),
        }
    }

    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        match self.ask(Work::Claim { worker: worker.clone(), ttl, now }).await? {
            Done::Claim(claimed) => Ok(claimed.map(|claimed| *claimed)),
            other => Err(misunderstood(&other)),
        }
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<(), CommitError> {
        self.unit(Work::Renew { lease: lease.clone(), ttl, now }).await
    }

    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        self.unit(Work::Release { lease: lease.clone(), handover }).await
    }

    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        self.readers.snapshot(session).await
    }
}
