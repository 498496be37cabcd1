//! What each write does to the tables. Works on a copy: a refusal leaves nothing behind.

use super::{DocumentKey, Effects, Kept, Tables};
use crate::{
    Append, Author, CommitError, Committed, Expect, Lease, NewRecord, Record, RecordKind, Seq,
    SessionChange, Write,
};
use std::time::Duration;
use vaquero_types::{SessionId, Timestamp};

/// How long an answer holds its idempotency key.
const ANSWER_AGE: Duration = Duration::from_secs(24 * 3600);

impl Tables {
    pub(super) fn apply(
        &mut self,
        writes: Vec<Write>,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<Committed, CommitError> {
        let mut committed = Committed::default();
        for write in writes {
            match write {
                Write::PutDocument { mut document, expect } => {
                    let key =
                        (document.workspace.clone(), document.kind.clone(), document.id.clone());
                    document.revision = self.check(&key, expect)?.unwrap_or(0) + 1;
                    let taken = self.documents.values().any(|other| {
                        other.unique_key.is_some()
                            && other.unique_key == document.unique_key
                            && other.workspace == document.workspace
                            && other.kind == document.kind
                            && other.id != document.id
                    });
                    if taken {
                        return Err(CommitError::Duplicate {
                            key: document.unique_key.unwrap_or_default(),
                        });
                    }
                    self.documents.insert(key, document);
                }
                Write::DeleteDocument { workspace, kind, id, expect } => {
                    let key = (workspace, kind, id);
                    self.check(&key, expect)?;
                    self.documents.remove(&key);
                }
                Write::CheckDocument { workspace, kind, id, expect } => {
                    self.check(&(workspace, kind, id), expect)?;
                }
                Write::CreateSession { row, thread } => self.create(row, thread)?,
                Write::Append(append) => {
                    committed.appended.push(self.append(append, now, effects)?);
                }
                Write::DeleteSession { session, revision, record } => {
                    self.delete(&session, revision, record, now)?;
                    effects.grown.push((session, Seq::MAX));
                }
                Write::PutSnapshot { session, snapshot } => {
                    if let Some(kept) = self.sessions.get_mut(&session).filter(|kept| !kept.deleted)
                    {
                        kept.snapshot = Some(snapshot);
                    }
                }
                Write::PutAnswer { key, answer } => {
                    self.answers.retain(|_, (at, _)| now.since(*at) <= ANSWER_AGE);
                    if self.answers.contains_key(&key) {
                        return Err(CommitError::Answered);
                    }
                    self.answers.insert(key, (now, answer));
                }
            }
        }
        Ok(committed)
    }

    fn check(&self, key: &DocumentKey, expect: Expect) -> Result<Option<u64>, CommitError> {
        let found = self.documents.get(key).map(|document| document.revision);
        match (expect, found) {
            (Expect::Any, _) | (Expect::Absent, None) => Ok(found),
            (Expect::Revision(wanted), Some(found)) if found == wanted => Ok(Some(found)),
            (Expect::Revision(_), None) => Err(CommitError::NotFound),
            (Expect::Absent | Expect::Revision(_), Some(_)) => Err(CommitError::Changed),
        }
    }

    fn create(
        &mut self,
        mut row: crate::SessionRow,
        thread: vaquero_types::thread::Thread,
    ) -> Result<(), CommitError> {
        if self.sessions.contains_key(&row.id) {
            return Err(CommitError::Changed);
        }
        (row.head, row.client_head, row.epoch, row.revision) = (0, 0, 0, 1);
        self.order.push(row.id.clone());
        let kept = Kept {
            row,
            threads: vec![thread],
            log: Vec::new(),
            last_at: Timestamp::default(),
            last_event_at: Timestamp::default(),
            claims: 0,
            leased_until: None,
            ready_at: None,
            snapshot: None,
            deleted: false,
        };
        self.sessions.insert(kept.row.id.clone(), kept);
        Ok(())
    }

    pub(super) fn leased(&mut self, lease: &Lease) -> Result<&mut Kept, CommitError> {
        let kept = self.sessions.get_mut(&lease.session);
        let holds = |kept: &&mut Kept| {
            !kept.deleted && kept.row.epoch == lease.epoch && kept.leased_until.is_some()
        };
        kept.filter(holds).ok_or(CommitError::LeaseLost { session: lease.session.clone() })
    }

    fn append(
        &mut self,
        append: Append,
        now: Timestamp,
        effects: &mut Effects,
    ) -> Result<Vec<(Seq, Timestamp)>, CommitError> {
        let Append { session, author, records, change } = append;
        let kept = self.sessions.get_mut(&session).filter(|kept| !kept.deleted);
        let Some(kept) = kept else {
            return Err(match author {
                Author::Client { .. } => CommitError::NotFound,
                Author::Worker { .. } => CommitError::LeaseLost { session },
            });
        };
        let before: Vec<_> = records.iter().map(|record| kept.made_before(record)).collect();
        if !records.is_empty() && before.iter().all(Option::is_some) {
            return Ok(before.into_iter().flatten().collect());
        }
        match &author {
            Author::Client { revision } if *revision != kept.row.revision => {
                return Err(CommitError::Changed);
            }
            Author::Worker { epoch, .. } if *epoch != kept.row.epoch => {
                return Err(CommitError::LeaseLost { session });
            }
            Author::Worker { seen: Some(seen), .. } if *seen < kept.row.client_head => {
                return Err(CommitError::Grown);
            }
            Author::Client { .. } | Author::Worker { .. } => {}
        }
        let by_client = matches!(author, Author::Client { .. }) && !records.is_empty();
        let placed: Vec<(Seq, Timestamp)> = records
            .into_iter()
            .zip(before)
            .map(|(record, before)| before.unwrap_or_else(|| kept.place(record, now)))
            .collect();
        if by_client {
            kept.row.client_head = kept.row.head;
        }
        effects.ready |= change.ready == Some(true);
        kept.change(change, by_client, now);
        effects.grown.push((session, kept.row.head));
        Ok(placed)
    }

    fn delete(
        &mut self,
        session: &SessionId,
        revision: u64,
        record: NewRecord,
        now: Timestamp,
    ) -> Result<(), CommitError> {
        let kept = self.sessions.get_mut(session).filter(|kept| !kept.deleted);
        let kept = kept.ok_or(CommitError::NotFound)?;
        if kept.row.revision != revision {
            return Err(CommitError::Changed);
        }
        kept.log.clear();
        kept.threads.clear();
        kept.snapshot = None;
        kept.place(record, now);
        kept.deleted = true;
        kept.ready_at = None;
        kept.leased_until = None;
        kept.row.epoch += 1;
        kept.row.body = String::new();
        self.answers.retain(|_, (_, answer)| {
            answer.events.as_ref().is_none_or(|(owner, _)| owner != session)
        });
        Ok(())
    }
}

impl Kept {
    fn made_before(&self, record: &NewRecord) -> Option<(Seq, Timestamp)> {
        let same =
            |kept: &&Record| kept.new.event_id == record.event_id && kept.new.kind == record.kind;
        self.log.iter().find(same).map(|kept| (kept.seq, kept.at))
    }

    fn place(&mut self, record: NewRecord, now: Timestamp) -> (Seq, Timestamp) {
        self.row.head += 1;
        let mut at = now.max(self.last_at);
        if record.kind == RecordKind::Event {
            at = at.max(self.last_event_at.plus(Duration::from_micros(1)));
            self.last_event_at = at;
        }
        self.last_at = at;
        self.log.push(Record { seq: self.row.head, at, new: record });
        (self.row.head, at)
    }

    fn change(&mut self, change: SessionChange, by_client: bool, now: Timestamp) {
        let decisive = by_client
            || change.status.is_some()
            || !change.gate.is_empty()
            || change.body.is_some()
            || change.archived_at.is_some();
        let row = &mut self.row;
        row.revision += u64::from(decisive);
        if decisive || change.usage.is_some() {
            row.updated_at = row.updated_at.max(now);
        }
        change.gate.iter().for_each(|step| row.gate.apply(step));
        row.status = change.status.unwrap_or(row.status);
        row.usage = change.usage.unwrap_or(row.usage);
        row.activity = change.activity.unwrap_or(row.activity);
        row.archived_at = change.archived_at.or(row.archived_at);
        row.body = change.body.unwrap_or_else(|| std::mem::take(&mut row.body));
        let touches_thread = change.status.is_some()
            || change.usage.is_some()
            || change.activity.is_some()
            || change.archived_at.is_some();
        let primary = self.threads.iter_mut().find(|thread| thread.id == row.primary_thread);
        if let Some(thread) = primary.filter(|_| touches_thread) {
            thread.status = row.status;
            thread.usage = row.usage;
            thread.activity = row.activity;
            thread.archived_at = change.archived_at.or(thread.archived_at);
            thread.updated_at = thread.updated_at.max(now);
        }
        if change.progress {
            self.claims = 0;
        }
        match change.ready {
            Some(true) => self.ready_at = self.ready_at.or(Some(now)),
            Some(false) => (self.ready_at, self.leased_until, self.claims) = (None, None, 0),
            None => {}
        }
    }
}
