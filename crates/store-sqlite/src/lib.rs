//! The embedded store: SQLite in one data directory, one writer thread with group commit, readers beside it. Nothing outside this crate names SQL.

mod commit;
mod directory;
mod read;
mod rows;
mod schema;
mod tails;
mod writer;

pub use directory::{DirectoryLock, OpenError, measure_fdatasync};

use async_trait::async_trait;
use read::Readers;
use rusqlite::Connection;
use std::{path::Path, sync::Arc, time::Duration};
use tails::Tails;
use vaquero_store::{
    Answer, AnswerKey, Claimed, CommitError, Committed, Document, DocumentPage, DocumentQuery,
    EventPage, EventQuery, Lease, Position, Record, Seq, SessionPage, SessionQuery, SessionRow,
    Snapshot, Store, StoreError, WorkerName, Write, notify::Wakes,
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId, thread::Thread};
use writer::Writer;

/// The embedded store. Closing it (or dropping it) finishes what is queued and gives up the directory.
#[derive(Debug)]
pub struct SqliteStore {
    readers: Readers,
    writer: Writer,
    wakes: Arc<Wakes>,
    tails: Arc<Tails>,
    _lock: DirectoryLock,
}

impl SqliteStore {
    /// Opens the store in `directory`, making it if it does not exist, and voids all leases: under the directory's lock no other server can hold one.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let lock = DirectoryLock::take(directory)?;
        let path = directory.join("vaquero.db");
        let mut connection = schema::connect(&path)?;
        schema::migrate(&mut connection)?;
        connection.execute_batch(
            "UPDATE sessions SET lease_worker = NULL, lease_until = NULL WHERE lease_until IS NOT NULL; DELETE FROM workers;",
        )?;
        let wakes = Arc::new(Wakes::default());
        wakes.ready();
        let tails = Arc::new(Tails::default());
        Ok(Self {
            readers: Readers::new(path),
            writer: Writer::start(connection, Arc::clone(&wakes), Arc::clone(&tails))?,
            wakes,
            tails,
            _lock: lock,
        })
    }

    /// Finishes what is queued, folds the write-ahead log into the database and stops the writer. Later calls answer `Closed`.
    pub fn close(&self) {
        self.writer.close();
    }

    /// Writes a copy of the database as it is at one moment, while the store is in use. `to` must not exist.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        self.read_with(move |db| read::backup(db, &to)).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.with(read).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError> {
        self.writer.commit(writes, now).await
    }

    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.readers.point(|db| read::document(db, workspace, kind, "id", id))
    }

    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.readers.point(|db| read::document(db, workspace, kind, "unique_key", unique_key))
    }

    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError> {
        let query = query.clone();
        self.read_with(move |db| read::documents(db, &query)).await
    }

    async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        let key = key.clone();
        self.read_with(move |db| read::answer(db, &key, now, max_age)).await
    }

    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        self.readers.point(|db| read::session(db, id))
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        let query = query.clone();
        self.read_with(move |db| read::sessions(db, &query)).await
    }

    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        let (worker, ids) = (worker.clone(), ids.to_vec());
        self.read_with(move |db| read::kept_by(db, &worker, &ids)).await
    }

    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.read_with(move |db| read::outdated(db, archived, before, limit)).await
    }

    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        let session = session.clone();
        self.read_with(move |db| read::threads(db, &session)).await
    }

    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        if let Some(records) = self.tails.read(session, after, max_bytes) {
            return Ok(records);
        }
        let session = session.clone();
        self.read_with(move |db| read::records(db, &session, after, max_bytes)).await
    }

    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError> {
        self.readers.point(|db| read::position(db, session))
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let query = query.clone();
        self.read_with(move |db| read::events(db, &query)).await
    }

    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        if let Some(record) = self.tails.received(session, event) {
            return Ok(Some(record));
        }
        let (session, event) = (session.clone(), event.clone());
        self.read_with(move |db| read::event(db, &session, &event)).await
    }

    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError> {
        let watch = self.wakes.watch(session);
        let head =
            async {
                if let Some(head) = self.tails.head(session) {
                    return Ok(head);
                }
                let position = self.position(session).await?;
                Ok(position.map_or(Seq::MAX, |position| {
                    if position.deleted { Seq::MAX } else { position.seq }
                }))
            };
        watch.past(seen, head).await
    }

    async fn wait_ready(&self) -> Result<(), StoreError> {
        self.wakes.wait_ready().await;
        Ok(())
    }

    async fn heartbeat(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.writer.heartbeat(worker.clone(), ttl, now).await
    }

    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        self.writer.claim(worker.clone(), ttl, now).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<(), CommitError> {
        self.writer.renew(lease.clone(), ttl, now).await
    }

    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        self.writer.release(lease.clone(), handover).await
    }

    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        let session = session.clone();
        self.read_with(move |db| read::snapshot(db, &session)).await
    }
}
