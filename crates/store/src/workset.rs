//! The rules of a commit, free of any database: which rows it needs, when each write is refused, and what it does. A store that can read, lock and write rows
//! keeps the seam's promises by working through these: load what [`Needs`] names, let [`WorkSet`] decide, write what it then holds.
//!
//! A set may serve many commits, one after the other: a refused one leaves no trace in it.

mod session;

pub use session::{Grown, Session, SessionState};

use crate::{
    Answer, AnswerKey, Author, CommitError, Committed, Document, Expect, Lease, RecordKind,
    Snapshot, Write,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use vaquero_types::{EventId, SessionId, Timestamp, WorkspaceId};

/// How long an answer holds its idempotency key.
pub const ANSWER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Workspace, kind, and an id or a unique key.
pub type DocumentKey = (WorkspaceId, String, String);

/// What has to be read before writes can be applied.
#[derive(Debug, Default)]
pub struct Needs {
    /// Documents by id; `true` if they are going to change.
    pub documents: BTreeMap<DocumentKey, bool>,
    /// Who holds these unique keys.
    pub unique_keys: BTreeSet<DocumentKey>,
    /// Sessions.
    pub sessions: BTreeSet<SessionId>,
    /// Sessions that will be made.
    pub new_sessions: usize,
    /// Events that may have been appended before.
    pub records: BTreeSet<(SessionId, EventId)>,
    /// Whether these requests were answered.
    pub answers: BTreeSet<AnswerKey>,
}

impl Needs {
    /// Adds what `writes` need.
    pub fn add(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::PutDocument { document, .. } => {
                    let (workspace, kind) = (&document.workspace, &document.kind);
                    self.documents.insert(key(workspace, kind, &document.id), true);
                    if let Some(unique) = &document.unique_key {
                        self.unique_keys.insert(key(workspace, kind, unique));
                    }
                }
                Write::DeleteDocument { workspace, kind, id, .. } => {
                    self.documents.insert(key(workspace, kind, id), true);
                }
                Write::CheckDocument { workspace, kind, id, .. } => {
                    self.documents.entry(key(workspace, kind, id)).or_insert(false);
                }
                Write::CreateSession { row, .. } => {
                    self.sessions.insert(row.id.clone());
                    self.new_sessions += 1;
                }
                Write::RestoreSession(restored) => {
                    self.sessions.insert(restored.row.id.clone());
                    self.new_sessions += 1;
                }
                Write::Append(append) => {
                    self.sessions.insert(append.session.clone());
                    let events = append.records.iter().map(|record| record.event_id.clone());
                    self.records.extend(events.map(|event| (append.session.clone(), event)));
                }
                Write::DeleteSession { session, .. } | Write::PutSnapshot { session, .. } => {
                    self.sessions.insert(session.clone());
                }
                Write::PutAnswer { key, .. } => {
                    self.answers.insert(key.clone());
                }
            }
        }
    }
}

impl Needs {
    /// What renewing or releasing a lease needs.
    pub fn of_lease(lease: &Lease) -> Self {
        Self { sessions: BTreeSet::from([lease.session.clone()]), ..Self::default() }
    }
}

fn key(workspace: &WorkspaceId, kind: &str, name: &str) -> DocumentKey {
    (workspace.clone(), kind.to_owned(), name.to_owned())
}

/// A document as far as the rules look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its revision.
    pub revision: u64,
    /// The unique key it holds.
    pub unique_key: Option<String>,
}

/// What becomes of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// It is written so.
    Written(Document),
    /// It is removed.
    Removed,
}

/// Rows as they were read, then as they are to be written.
#[derive(Debug, Default)]
pub struct WorkSet {
    /// Documents that exist.
    pub documents: BTreeMap<DocumentKey, Found>,
    /// The ids of documents that hold a unique key.
    pub holders: BTreeMap<DocumentKey, String>,
    /// Sessions that exist or existed.
    pub sessions: HashMap<SessionId, Session>,
    /// Requests that were answered within a day.
    pub answered: BTreeSet<AnswerKey>,
    /// What becomes of documents.
    pub put_documents: BTreeMap<DocumentKey, Put>,
    /// Answers to keep.
    pub put_answers: Vec<(AnswerKey, Answer, Timestamp)>,
    /// Snapshots to keep.
    pub put_snapshots: BTreeMap<SessionId, Snapshot>,
    /// A session became ready to claim.
    pub ready: bool,
}

/// What a refused commit has to be undone by.
#[derive(Default)]
struct Undo {
    documents: Vec<(DocumentKey, Option<Found>, Option<Put>)>,
    holders: Vec<(DocumentKey, Option<String>)>,
    sessions: Vec<(SessionId, Option<session::Saved>)>,
    snapshots: Vec<(SessionId, Option<Snapshot>)>,
    answers: usize,
    ready: bool,
}

fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl WorkSet {
    /// Applies the writes of one commit, all or none.
    pub fn commit(&mut self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError> {
        let mut undo =
            Undo { answers: self.put_answers.len(), ready: self.ready, ..Undo::default() };
        let mut committed = Committed::default();
        for write in writes {
            if let Err(refused) = self.apply(write, now, &mut committed, &mut undo) {
                self.revert(undo);
                return Err(refused);
            }
        }
        Ok(committed)
    }

    /// Extends a lease until `now + ttl`.
    pub fn renew(
        &mut self,
        lease: &Lease,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), CommitError> {
        self.leased(lease)?.leased_until = Some(now.plus(ttl));
        Ok(())
    }

    /// Gives a lease back.
    pub fn release(&mut self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        let state = self.leased(lease)?;
        state.leased_until = None;
        state.claims = state.claims.saturating_sub(u32::from(handover));
        self.ready = true;
        Ok(())
    }

    fn leased(&mut self, lease: &Lease) -> Result<&mut SessionState, CommitError> {
        let found = self.sessions.get_mut(&lease.session).filter(|session| {
            let state = &session.state;
            !state.deleted && state.epoch == lease.epoch && state.leased_until.is_some()
        });
        let session = found.ok_or(CommitError::LeaseLost { session: lease.session.clone() })?;
        session.changed = true;
        Ok(&mut session.state)
    }

    fn revert(&mut self, undo: Undo) {
        for (key, found, put) in undo.documents.into_iter().rev() {
            restore(&mut self.documents, key.clone(), found);
            restore(&mut self.put_documents, key, put);
        }
        for (key, holder) in undo.holders.into_iter().rev() {
            restore(&mut self.holders, key, holder);
        }
        for (id, saved) in undo.sessions.into_iter().rev() {
            match saved {
                Some(saved) => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.restore(saved);
                    }
                }
                None => drop(self.sessions.remove(&id)),
            }
        }
        for (id, snapshot) in undo.snapshots.into_iter().rev() {
            restore(&mut self.put_snapshots, id, snapshot);
        }
        for (key, ..) in self.put_answers.drain(undo.answers..) {
            self.answered.remove(&key);
        }
        self.ready = undo.ready;
    }

    fn apply(
        &mut self,
        write: Write,
        now: Timestamp,
        committed: &mut Committed,
        undo: &mut Undo,
    ) -> Result<(), CommitError> {
        match write {
            Write::PutDocument { document, expect } => self.put(document, expect, undo),
            Write::DeleteDocument { workspace, kind, id, expect } => {
                let key = (workspace, kind, id);
                if self.check(&key, expect)?.is_some() {
                    self.set_document(key, None, undo);
                }
                Ok(())
            }
            Write::CheckDocument { workspace, kind, id, expect } => {
                self.check(&(workspace, kind, id), expect).map(drop)
            }
            Write::CreateSession { row, thread } => {
                if self.sessions.contains_key(&row.id) {
                    return Err(CommitError::Changed);
                }
                undo.sessions.push((row.id.clone(), None));
                self.sessions.insert(row.id.clone(), Session::new(row, thread));
                Ok(())
            }
            Write::RestoreSession(restored) => {
                let id = restored.row.id.clone();
                if self.sessions.contains_key(&id) {
                    return Err(CommitError::Changed);
                }
                undo.sessions.push((id.clone(), None));
                self.ready |= restored.ready;
                self.sessions.insert(id, Session::restored(restored, now));
                Ok(())
            }
            Write::Append(append) => {
                let missing = match append.author {
                    Author::Client { .. } => CommitError::NotFound,
                    Author::Worker { .. } => {
                        CommitError::LeaseLost { session: append.session.clone() }
                    }
                };
                let ready = append.change.ready == Some(true);
                let session = self.living(&append.session, undo).ok_or(missing)?;
                let (placed, made_before) = session.append(append, now)?;
                self.ready |= ready && !made_before;
                committed.appended.push(placed);
                Ok(())
            }
            Write::DeleteSession { session, revision, record } => {
                let found = self.living(&session, undo).ok_or(CommitError::NotFound)?;
                if found.state.revision != revision {
                    return Err(CommitError::Changed);
                }
                found.delete(record, now);
                Ok(())
            }
            Write::PutSnapshot { session, snapshot } => {
                if self.sessions.get(&session).is_some_and(|found| !found.state.deleted) {
                    let before = self.put_snapshots.insert(session.clone(), snapshot);
                    undo.snapshots.push((session, before));
                }
                Ok(())
            }
            Write::PutAnswer { key, answer } => {
                if !self.answered.insert(key.clone()) {
                    return Err(CommitError::Answered);
                }
                self.put_answers.push((key, answer, now));
                Ok(())
            }
        }
    }

    /// A session that exists, with its way back remembered.
    fn living(&mut self, id: &SessionId, undo: &mut Undo) -> Option<&mut Session> {
        let session = self.sessions.get_mut(id).filter(|session| !session.state.deleted)?;
        undo.sessions.push((id.clone(), Some(session.save())));
        Some(session)
    }

    fn check(&self, key: &DocumentKey, expect: Expect) -> Result<Option<u64>, CommitError> {
        let found = self.documents.get(key).map(|found| found.revision);
        match (expect, found) {
            (Expect::Any, _) | (Expect::Absent, None) => Ok(found),
            (Expect::Revision(wanted), Some(found)) if found == wanted => Ok(Some(found)),
            (Expect::Revision(_), None) => Err(CommitError::NotFound),
            (Expect::Absent | Expect::Revision(_), Some(_)) => Err(CommitError::Changed),
        }
    }

    fn put(
        &mut self,
        mut document: Document,
        expect: Expect,
        undo: &mut Undo,
    ) -> Result<(), CommitError> {
        let own = key(&document.workspace, &document.kind, &document.id);
        document.revision = self.check(&own, expect)?.unwrap_or(0) + 1;
        if let Some(unique) = &document.unique_key {
            let wanted = key(&document.workspace, &document.kind, unique);
            if self.holders.get(&wanted).is_some_and(|holder| *holder != document.id) {
                return Err(CommitError::Duplicate { key: unique.clone() });
            }
        }
        self.set_document(own, Some(document), undo);
        Ok(())
    }

    fn set_document(&mut self, own: DocumentKey, document: Option<Document>, undo: &mut Undo) {
        let found = document.as_ref().map(|document| Found {
            revision: document.revision,
            unique_key: document.unique_key.clone(),
        });
        let taken = found.as_ref().and_then(|found| found.unique_key.clone());
        let before = match found {
            Some(found) => self.documents.insert(own.clone(), found),
            None => self.documents.remove(&own),
        };
        if let Some(released) = before.as_ref().and_then(|found| found.unique_key.as_deref()) {
            let released = key(&own.0, &own.1, released);
            let holder = self.holders.remove(&released);
            undo.holders.push((released, holder));
        }
        if let Some(taken) = taken {
            let taken = key(&own.0, &own.1, &taken);
            let holder = self.holders.insert(taken.clone(), own.2.clone());
            undo.holders.push((taken, holder));
        }
        let put = document.map_or(Put::Removed, Put::Written);
        let put = self.put_documents.insert(own.clone(), put);
        undo.documents.push((own, before, put));
    }
}

/// What is known of records: where each stands.
pub type Made = HashMap<(EventId, RecordKind), (crate::Seq, Timestamp)>;
