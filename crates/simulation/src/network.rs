//! Between a server and its database: calls take time, are cut off before or after they had their effect, and wait while the server stands still.

use crate::{Sabotage, Shared, dice::Dice};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use vaquero_store::{
    Answer, AnswerKey, Author, Claimed, CommitError, Committed, Document, DocumentPage,
    DocumentQuery, EventPage, EventQuery, Lease, Position, Record, RecordKind, Seq, SessionPage,
    SessionQuery, SessionRow, Snapshot, Store, StoreError, WorkerName, Write,
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId, session::Status, thread::Thread};

/// What a server goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is well.
    Well,
    /// It stands still: nothing it does has an effect, and time passes.
    Still,
    /// The database cannot be reached.
    CutOff,
}

/// The way of one server to the database, and to everything else outside of it.
pub(crate) struct Wire {
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    fate: Mutex<Fate>,
    /// Not a `watch`: that one wakes in an order of its own.
    turned: Notify,
    calls: AtomicU64,
    /// Client events that were answered before they are durable (only with that sabotage).
    promised: Mutex<HashMap<EventId, Record>>,
    late: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut() -> StoreError {
    StoreError::Backend("the connection is cut".into())
}

impl Wire {
    pub(crate) fn new(number: usize, shared: Arc<Shared>) -> Self {
        Self {
            number,
            shared,
            fate: Mutex::new(Fate::Well),
            turned: Notify::new(),
            calls: AtomicU64::new(0),
            promised: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// What waited to be written dies with the server.
    pub(crate) fn dies(&self) {
        lock(&self.late).abort_all();
        lock(&self.promised).clear();
    }

    pub(crate) fn dice(&self, purpose: &str) -> Dice {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        Dice::of(self.shared.seed, (self.number, purpose, call))
    }

    /// Waits while the server stands still.
    pub(crate) async fn moves(&self) {
        loop {
            let turned = self.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            if self.fate() != Fate::Still {
                return;
            }
            turned.await;
        }
    }

    pub(crate) fn fate(&self) -> Fate {
        *lock(&self.fate)
    }

    pub(crate) fn turn(&self, fate: Fate) {
        *lock(&self.fate) = fate;
        self.turned.notify_waiters();
    }

    async fn pass<T>(&self, purpose: &str, call: impl Future<Output = T>) -> Result<T, StoreError> {
        let mut dice = self.dice(purpose);
        self.moves().await;
        sleep(Duration::from_micros(dice.roll(3_000))).await;
        let troubled = self.shared.troubled();
        if self.fate() == Fate::CutOff || (troubled && dice.rarely(60)) {
            sleep(Duration::from_millis(dice.roll(2_000))).await;
            return Err(cut());
        }
        let done = call.await;
        sleep(Duration::from_micros(dice.roll(3_000))).await;
        self.moves().await;
        // It has happened; whoever asked does not hear of it.
        if troubled && (self.fate() == Fate::CutOff || dice.rarely(60)) {
            return Err(cut());
        }
        Ok(done)
    }

    async fn read<T>(
        &self,
        purpose: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.pass(purpose, call).await?
    }

    fn store(&self) -> &dyn Store {
        &self.shared.store
    }

    /// Without a fence every brain is taken for the one that holds the lease.
    async fn unfenced(&self, mut writes: Vec<Write>) -> Vec<Write> {
        for write in &mut writes {
            let Write::Append(append) = write else { continue };
            if let Author::Worker { epoch, seen } = &mut append.author
                && let Ok(Some(row)) = self.store().session(&append.session).await
            {
                (*epoch, *seen) = (row.epoch, None);
            }
        }
        writes
    }

    /// Answers now and writes later, unless the server dies first.
    fn promise(&self, writes: Vec<Write>) -> Committed {
        let mut promised = lock(&self.promised);
        for write in &writes {
            let Write::Append(append) = write else { continue };
            for new in append.records.iter().filter(|new| new.kind == RecordKind::Received) {
                let record = Record { seq: 0, at: self.shared.now(), new: new.clone() };
                promised.insert(new.event_id.clone(), record);
            }
        }
        let shared = Arc::clone(&self.shared);
        lock(&self.late).spawn(async move {
            sleep(Duration::from_millis(400)).await;
            drop(shared.store.commit(writes, shared.now()).await);
        });
        Committed::default()
    }

    async fn apply(&self, writes: Vec<Write>) -> Result<Committed, CommitError> {
        let authors: Vec<(SessionId, Option<u64>)> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Append(append) => Some((
                    append.session.clone(),
                    match append.author {
                        Author::Worker { epoch, .. } => Some(epoch),
                        Author::Client { .. } => None,
                    },
                )),
                _ => None,
            })
            .collect();
        let writes = match self.shared.sabotage {
            Sabotage::NoFence => self.unfenced(writes).await,
            Sabotage::EarlyReply
                if self.shared.troubled()
                    && authors.iter().any(|(_, epoch)| epoch.is_none())
                    && self.dice("promise").rarely(3) =>
            {
                return Ok(self.promise(writes));
            }
            _ => writes,
        };
        let committed = self.store().commit(writes, self.shared.now()).await?;
        for ((session, epoch), placed) in authors.into_iter().zip(&committed.appended) {
            self.shared.wrote(self.number, &session, epoch, placed);
        }
        Ok(committed)
    }

    /// A session that another worker holds, as if it were free.
    async fn claim_again(&self) -> Option<Claimed> {
        let query = SessionQuery {
            workspace: self.shared.workspace.clone(),
            agent: None,
            agent_version: None,
            statuses: vec![Status::Running],
            after: None,
            from: None,
            before: None,
            until: None,
            include_archived: false,
            order: vaquero_store::Order::Ascending,
            cursor: None,
            limit: 1,
        };
        let row = self.store().sessions(&query).await.ok()?.sessions.pop()?;
        let lease = Lease {
            session: row.id.clone(),
            workspace: row.workspace.clone(),
            epoch: row.epoch,
            claims: 1,
        };
        (row.epoch > 0).then_some(Claimed { lease, row })
    }
}

#[async_trait]
impl Store for Wire {
    async fn commit(&self, writes: Vec<Write>, _now: Timestamp) -> Result<Committed, CommitError> {
        self.pass("commit", self.apply(writes)).await?
    }

    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.read("document", self.store().document(workspace, kind, id)).await
    }

    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.read("document", self.store().document_by_key(workspace, kind, unique_key)).await
    }

    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError> {
        self.read("documents", self.store().documents(query)).await
    }

    async fn answer(
        &self,
        key: &AnswerKey,
        _now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        self.read("answer", self.store().answer(key, self.shared.now(), max_age)).await
    }

    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        self.read("session", self.store().session(id)).await
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        self.read("sessions", self.store().sessions(query)).await
    }

    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        self.read("kept", self.store().kept_by(worker, ids)).await
    }

    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.read("outdated", self.store().outdated(archived, before, limit)).await
    }

    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        self.read("threads", self.store().threads(session)).await
    }

    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.read("read", self.store().read(session, after, max_bytes)).await
    }

    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError> {
        self.read("position", self.store().position(session)).await
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.read("events", self.store().events(query)).await
    }

    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        let promised = lock(&self.promised).get(event).cloned();
        if promised.is_some() {
            return Ok(promised);
        }
        self.read("event", self.store().event(session, event)).await
    }

    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError> {
        loop {
            let lost = self.dice("notification").rarely(4);
            let notified = async {
                if lost {
                    std::future::pending::<()>().await;
                }
                drop(self.store().wait_past(session, seen).await);
            };
            tokio::select! {
                biased;
                () = notified => return Ok(()),
                () = self.poll() => {}
            }
            let position = self.position(session).await?;
            if position.is_none_or(|position| position.deleted || position.seq > seen) {
                return Ok(());
            }
        }
    }

    async fn wait_ready(&self) -> Result<(), StoreError> {
        let lost = self.dice("notification").rarely(4);
        let notified = async {
            if lost {
                // It is taken from the others all the same.
                drop(self.store().wait_ready().await);
                std::future::pending::<()>().await;
            }
            drop(self.store().wait_ready().await);
        };
        tokio::select! {
            biased;
            () = notified => {}
            () = self.poll() => {}
        }
        Ok(())
    }

    async fn heartbeat(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        _now: Timestamp,
    ) -> Result<(), StoreError> {
        self.read("heartbeat", self.store().heartbeat(worker, ttl, self.shared.now())).await
    }

    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        _now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        let claim = async {
            let claimed = self.store().claim(worker, ttl, self.shared.now()).await?;
            let again = self.shared.sabotage == Sabotage::DoubleClaim
                && claimed.is_none()
                && self.shared.troubled();
            Ok(if again { self.claim_again().await } else { claimed })
        };
        self.read("claim", claim).await
    }

    async fn renew(
        &self,
        lease: &Lease,
        ttl: Duration,
        _now: Timestamp,
    ) -> Result<(), CommitError> {
        let mut lease = lease.clone();
        if self.shared.sabotage == Sabotage::NoFence
            && let Some(row) = self.store().session(&lease.session).await?
        {
            lease.epoch = row.epoch;
        }
        let renewed = self.store().renew(&lease, ttl, self.shared.now());
        self.pass("renew", renewed).await?
    }

    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        self.pass("release", self.store().release(lease, handover)).await?
    }

    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        self.read("snapshot", self.store().snapshot(session)).await
    }
}

impl Wire {
    /// The poll that stands behind the notifications.
    async fn poll(&self) {
        if self.shared.sabotage == Sabotage::LostWakeUp {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(500 + self.dice("poll").roll(500))).await;
    }
}
