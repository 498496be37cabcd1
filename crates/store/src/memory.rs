//! The in-memory store: the same promises as the others but for outliving the process. For tests, and as the plainest statement of the rules.

mod tables;

use crate::{
    Answer, AnswerKey, Begun, Claimed, CommitError, Committed, Document, DocumentPage,
    DocumentQuery, EventPage, EventQuery, Lease, Order, Position, Record, RecordKind, Seq,
    SessionPage, SessionQuery, SessionRow, Snapshot, Store, StoreError, WorkerName, Write,
    notify::Wakes,
    workset::{DocumentKey, Needs, SessionState},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId, session::Status, thread::Thread};

/// A session with all that belongs to it.
#[derive(Clone, Debug)]
struct Kept {
    row: SessionRow,
    state: SessionState,
    threads: Vec<Thread>,
    log: Vec<Record>,
    snapshot: Option<Snapshot>,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    documents: BTreeMap<DocumentKey, Document>,
    sessions: BTreeMap<SessionId, Kept>,
    answers: BTreeMap<AnswerKey, (Timestamp, Answer)>,
    workers: BTreeMap<WorkerName, Timestamp>,
}

/// The in-memory store.
#[derive(Debug, Default)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
    wakes: Wakes,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a session that exists is asked for.
    fn of<T>(&self, session: &SessionId, read: impl FnOnce(&Kept) -> T) -> Option<T> {
        self.tables().sessions.get(session).filter(|kept| !kept.state.deleted).map(read)
    }
}

fn page<T>(mut found: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = found.len() > limit;
    found.truncate(limit);
    (found, more)
}

/// Whether `item` comes after the cursor in this order.
fn follows<K: Ord>(order: Order, item: &K, cursor: Option<&K>) -> bool {
    cursor.is_none_or(|cursor| match order {
        Order::Ascending => item > cursor,
        Order::Descending => item < cursor,
    })
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError> {
        let mut needs = Needs::default();
        needs.add(&writes);
        let mut tables = self.tables();
        let mut set = tables.load(&needs, now);
        let committed = set.commit(writes, now)?;
        let ready = set.ready;
        let grown = tables.save(set);
        drop(tables);
        for (session, head) in &grown {
            self.wakes.grown(session, *head);
        }
        if ready {
            self.wakes.ready();
        }
        Ok(committed)
    }

    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        let key = (workspace.clone(), kind.to_owned(), id.to_owned());
        Ok(self.tables().documents.get(&key).cloned())
    }

    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError> {
        let tables = self.tables();
        let found = tables.documents.values().find(|document| {
            document.workspace == *workspace
                && document.kind == kind
                && document.unique_key.as_deref() == Some(unique_key)
        });
        Ok(found.cloned())
    }

    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError> {
        let key = |document: &Document| (document.created_at, document.id.clone());
        let mut found: Vec<Document> = self
            .tables()
            .documents
            .values()
            .filter(|document| {
                document.workspace == query.workspace
                    && document.kind == query.kind
                    && (query.parent.is_none() || document.parent == query.parent)
                    && (query.include_archived || document.archived_at.is_none())
                    && query.from.is_none_or(|from| document.created_at >= from)
                    && query.until.is_none_or(|until| document.created_at <= until)
                    && follows(query.order, &key(document), query.cursor.as_ref())
            })
            .cloned()
            .collect();
        found.sort_by_key(key);
        if query.order == Order::Descending {
            found.reverse();
        }
        let (documents, more) = page(found, query.limit);
        Ok(DocumentPage { documents, more })
    }

    async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        let tables = self.tables();
        let found = tables.answers.get(key).filter(|(at, _)| now.since(*at) <= max_age);
        Ok(found.map(|(_, answer)| answer.clone()))
    }

    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        Ok(self.of(id, |kept| kept.row.clone()))
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        let key = |row: &SessionRow| (row.created_at, row.id.clone());
        let mut found: Vec<SessionRow> = self
            .tables()
            .sessions
            .values()
            .filter(|kept| !kept.state.deleted)
            .map(|kept| &kept.row)
            .filter(|row| {
                row.workspace == query.workspace
                    && query.agent.as_ref().is_none_or(|agent| row.agent == *agent)
                    && query.agent_version.is_none_or(|version| row.agent_version == version)
                    && (query.statuses.is_empty() || query.statuses.contains(&row.status))
                    && query.after.is_none_or(|bound| row.created_at > bound)
                    && query.from.is_none_or(|bound| row.created_at >= bound)
                    && query.before.is_none_or(|bound| row.created_at < bound)
                    && query.until.is_none_or(|bound| row.created_at <= bound)
                    && (query.include_archived || row.archived_at.is_none())
                    && follows(query.order, &key(row), query.cursor.as_ref())
            })
            .cloned()
            .collect();
        found.sort_by_key(key);
        if query.order == Order::Descending {
            found.reverse();
        }
        let (sessions, more) = page(found, query.limit);
        Ok(SessionPage { sessions, more })
    }

    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        let here = |id: &&SessionId| {
            let kept = |kept: &Kept| {
                kept.state.archived_at.is_none()
                    && kept.state.hands.as_ref().is_none_or(|hands| hands == worker)
            };
            self.of(id, kept).unwrap_or(false)
        };
        Ok(ids.iter().filter(here).cloned().collect())
    }

    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let tables = self.tables();
        let outdated = tables.sessions.values().filter(|kept| {
            let state = &kept.state;
            !state.deleted
                && state.archived_at.is_some() == archived
                && (archived || state.status == Status::Idle)
                && state.updated_at < before
        });
        Ok(outdated.map(|kept| kept.row.clone()).take(limit).collect())
    }

    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        Ok(self.of(session, |kept| kept.threads.clone()).unwrap_or_default())
    }

    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let tables = self.tables();
        let Some(kept) = tables.sessions.get(session) else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        let mut bytes = 0;
        for record in kept.log.iter().filter(|record| record.seq > after) {
            bytes += record.new.body.len();
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            records.push(record.clone());
        }
        Ok(records)
    }

    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError> {
        let tables = self.tables();
        let kept = tables.sessions.get(session);
        Ok(kept.map(|kept| Position { seq: kept.state.head, deleted: kept.state.deleted }))
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let log = self.of(&query.session, |kept| kept.log.clone()).unwrap_or_default();
        Ok(list(&log, query))
    }

    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        let found = self.of(session, |kept| {
            let public = kept.log.iter().filter(|record| record.new.kind != RecordKind::Transcript);
            public.clone().find(|record| record.new.event_id == *event).cloned()
        });
        Ok(found.flatten())
    }

    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError> {
        let watch = self.wakes.watch(session);
        let head = async {
            let position = self.position(session).await?;
            Ok(position
                .filter(|position| !position.deleted)
                .map_or(Seq::MAX, |position| position.seq))
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
        self.tables().workers.insert(worker.clone(), now.plus(ttl));
        Ok(())
    }

    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        let mut tables = self.tables();
        let Tables { sessions, workers, .. } = &mut *tables;
        let elsewhere = |hands: &WorkerName| {
            hands != worker && workers.get(hands).is_some_and(|until| *until >= now)
        };
        let free = |kept: &&mut Kept| {
            let state = &kept.state;
            state.ready_at.is_some()
                && state.leased_until.is_none_or(|until| until < now)
                && !state.hands.as_ref().is_some_and(elsewhere)
        };
        let oldest = sessions.values_mut().filter(free).min_by_key(|kept| kept.state.ready_at);
        let Some(kept) = oldest else { return Ok(None) };
        kept.state.epoch += 1;
        kept.state.claims += 1;
        kept.state.leased_until = Some(now.plus(ttl));
        kept.state.show(&mut kept.row);
        let lease = Lease {
            session: kept.row.id.clone(),
            workspace: kept.row.workspace.clone(),
            epoch: kept.state.epoch,
            claims: kept.state.claims,
        };
        let claimed = Claimed { lease, row: kept.row.clone() };
        drop(tables);
        self.wakes.ready();
        Ok(Some(claimed))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<(), CommitError> {
        let mut tables = self.tables();
        let mut set = tables.load(&Needs::of_lease(lease), now);
        set.renew(lease, ttl, now)?;
        tables.save(set);
        Ok(())
    }

    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        let mut tables = self.tables();
        let mut set = tables.load(&Needs::of_lease(lease), Timestamp::default());
        set.release(lease, handover)?;
        tables.save(set);
        drop(tables);
        self.wakes.ready();
        Ok(())
    }

    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        Ok(self.of(session, |kept| kept.snapshot.clone()).flatten())
    }
}

/// A page of events, straight from the rule: processed ones in order, then those that wait.
fn list(log: &[Record], query: &EventQuery) -> EventPage {
    let cursor = query.start();
    let taken: BTreeSet<&EventId> = log
        .iter()
        .filter(|record| record.new.kind == RecordKind::Event)
        .map(|record| &record.new.event_id)
        .collect();
    let wanted = |record: &&Record| {
        query.thread.as_ref().is_none_or(|thread| record.new.thread == *thread)
            && (query.types.is_empty() || query.types.contains(&record.new.event_type))
    };
    let in_bounds = |record: &&Record| {
        query.after.is_none_or(|bound| record.at > bound)
            && query.from.is_none_or(|bound| record.at >= bound)
            && query.before.is_none_or(|bound| record.at < bound)
            && query.until.is_none_or(|bound| record.at <= bound)
    };
    let mut processed: Vec<Record> = log
        .iter()
        .filter(|record| record.new.kind == RecordKind::Event)
        .filter(wanted)
        .filter(in_bounds)
        .cloned()
        .collect();
    if query.descending {
        processed.reverse();
        processed.retain(|record| cursor.processed == 0 || record.seq < cursor.processed);
    } else {
        processed.retain(|record| record.seq > cursor.processed);
    }
    if !query.begins_processed() {
        processed.clear();
    }
    processed.truncate(query.limit + 1);
    let rest = match query.begin(processed) {
        Begun::Whole(page) => return page,
        Begun::Rest(rest) => rest,
    };
    let waiting: Vec<Record> = log
        .iter()
        .filter(|record| record.new.kind == RecordKind::Received)
        .filter(|record| record.seq > rest.after && !taken.contains(&record.new.event_id))
        .filter(wanted)
        .take(rest.limit)
        .cloned()
        .collect();
    rest.finish(waiting)
}
