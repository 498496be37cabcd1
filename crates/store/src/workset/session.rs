//! One session while commits are applied to it.

use super::Made;
use crate::{
    Append, Author, CommitError, NewRecord, Record, RecordKind, Restored, Seq, SessionChange,
    SessionRow, WorkerName,
};
use std::time::Duration;
use vaquero_types::{
    Timestamp,
    gate::Gate,
    session::Status,
    thread::Thread,
    usage::{Activity, Usage},
};

/// The part of a session's row that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionState {
    /// What it is doing.
    pub status: Status,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// The newest record.
    pub head: Seq,
    /// The newest record that a client wrote.
    pub client_head: Seq,
    /// Counts what a client's request is checked against.
    pub revision: u64,
    /// The lease generation.
    pub epoch: u64,
    /// The instant of the newest record.
    pub last_at: Timestamp,
    /// The instant of the newest public event.
    pub last_event_at: Timestamp,
    /// The calls a client must answer.
    pub gate: Gate,
    /// Tokens used.
    pub usage: Usage,
    /// Running time.
    pub activity: Activity,
    /// Since when it is ready to claim.
    pub ready_at: Option<Timestamp>,
    /// Until when it is leased.
    pub leased_until: Option<Timestamp>,
    /// Claims without progress.
    pub claims: u32,
    /// Whose hands hold its workspace.
    pub hands: Option<WorkerName>,
    /// Only its tombstone is left.
    pub deleted: bool,
}

impl SessionState {
    /// The state of a session that has just been made.
    pub fn of(row: &SessionRow) -> Self {
        Self {
            status: row.status,
            updated_at: row.updated_at,
            archived_at: row.archived_at,
            head: 0,
            client_head: 0,
            revision: 1,
            epoch: 0,
            last_at: Timestamp::default(),
            last_event_at: Timestamp::default(),
            gate: row.gate.clone(),
            usage: row.usage,
            activity: row.activity,
            ready_at: None,
            leased_until: None,
            claims: 0,
            hands: None,
            deleted: false,
        }
    }

    /// Brings a row up to date.
    pub fn show(&self, row: &mut SessionRow) {
        row.status = self.status;
        row.updated_at = self.updated_at;
        row.archived_at = self.archived_at;
        row.head = self.head;
        row.client_head = self.client_head;
        row.revision = self.revision;
        row.epoch = self.epoch;
        row.gate = self.gate.clone();
        row.usage = self.usage;
        row.activity = self.activity;
    }
}

/// A record to append, and the lease it was written under, if a brain wrote it.
#[derive(Clone, Debug)]
pub struct Grown {
    /// The record.
    pub record: Record,
    /// The epoch.
    pub epoch: Option<u64>,
}

/// A session with what is to be written of it.
#[derive(Debug)]
pub struct Session {
    /// As it is now.
    pub state: SessionState,
    /// Its records that writes may repeat.
    pub made: Made,
    /// Its row and threads, if it is to be made.
    pub new: Option<(SessionRow, Vec<Thread>)>,
    /// Records of this set, the first `discarded` of which went with the session.
    grown: Vec<Grown>,
    discarded: usize,
    /// Its new JSON body.
    pub body: Option<String>,
    /// The row is to be written.
    pub changed: bool,
    /// Its primary thread changed then.
    pub thread_changed_at: Option<Timestamp>,
}

/// A session as it was before a commit.
pub(super) struct Saved {
    state: SessionState,
    grown: usize,
    discarded: usize,
    body: Option<String>,
    changed: bool,
    thread_changed_at: Option<Timestamp>,
}

impl Session {
    /// One that was read.
    pub fn found(state: SessionState) -> Self {
        Self {
            state,
            made: Made::new(),
            new: None,
            grown: Vec::new(),
            discarded: 0,
            body: None,
            changed: false,
            thread_changed_at: None,
        }
    }

    pub(super) fn new(row: SessionRow, thread: Thread) -> Self {
        let state = SessionState::of(&row);
        Self { new: Some((row, vec![thread])), changed: true, ..Self::found(state) }
    }

    /// One that was elsewhere before.
    pub(super) fn restored(restored: Restored, now: Timestamp) -> Self {
        let Restored { row, threads, records, ready } = restored;
        let last = |wanted: fn(&&Record) -> bool| {
            records.iter().rev().find(wanted).map_or_else(Timestamp::default, |record| record.at)
        };
        let state = SessionState {
            head: row.head,
            client_head: row.client_head,
            last_at: last(|_| true),
            last_event_at: last(|record| record.new.kind == RecordKind::Event),
            ready_at: ready.then_some(now),
            ..SessionState::of(&row)
        };
        let grown = records.into_iter().map(|record| Grown { record, epoch: None }).collect();
        Self { new: Some((row, threads)), grown, changed: true, ..Self::found(state) }
    }

    pub(super) fn save(&self) -> Saved {
        Saved {
            state: self.state.clone(),
            grown: self.grown.len(),
            discarded: self.discarded,
            body: self.body.clone(),
            changed: self.changed,
            thread_changed_at: self.thread_changed_at,
        }
    }

    pub(super) fn restore(&mut self, saved: Saved) {
        for Grown { record, .. } in self.grown.drain(saved.grown..) {
            self.made.remove(&(record.new.event_id, record.new.kind));
        }
        (self.state, self.discarded, self.body) = (saved.state, saved.discarded, saved.body);
        (self.changed, self.thread_changed_at) = (saved.changed, saved.thread_changed_at);
    }

    /// The records to append.
    pub fn grown(&self) -> &[Grown] {
        &self.grown[self.discarded..]
    }

    /// Appends; `true` beside the places if everything had been there before.
    pub(super) fn append(
        &mut self,
        append: Append,
        now: Timestamp,
    ) -> Result<(Vec<(Seq, Timestamp)>, bool), CommitError> {
        let Append { session, author, records, change } = append;
        let before: Vec<_> = records
            .iter()
            .map(|record| self.made.get(&(record.event_id.clone(), record.kind)).copied())
            .collect();
        if !records.is_empty() && before.iter().all(Option::is_some) {
            return Ok((before.into_iter().flatten().collect(), true));
        }
        match &author {
            Author::Client { revision } if *revision != self.state.revision => {
                return Err(CommitError::Changed);
            }
            Author::Worker { epoch, .. } if *epoch != self.state.epoch => {
                return Err(CommitError::LeaseLost { session });
            }
            Author::Worker { seen: Some(seen), .. } if *seen < self.state.client_head => {
                return Err(CommitError::Grown);
            }
            Author::Client { .. } | Author::Worker { .. } => {}
        }
        let epoch = match author {
            Author::Worker { epoch, .. } => Some(epoch),
            Author::Client { .. } => None,
        };
        let by_client = epoch.is_none() && !records.is_empty();
        let placed = records
            .into_iter()
            .zip(before)
            .map(|(record, before)| before.unwrap_or_else(|| self.place(record, epoch, now)))
            .collect();
        if by_client {
            self.state.client_head = self.state.head;
        }
        self.change(change, by_client, now);
        Ok((placed, false))
    }

    fn place(&mut self, record: NewRecord, epoch: Option<u64>, now: Timestamp) -> (Seq, Timestamp) {
        let state = &mut self.state;
        state.head += 1;
        let mut at = now.max(state.last_at);
        if record.kind == RecordKind::Event {
            at = at.max(state.last_event_at.plus(Duration::from_micros(1)));
            state.last_event_at = at;
        }
        state.last_at = at;
        self.made.insert((record.event_id.clone(), record.kind), (state.head, at));
        let record = Record { seq: state.head, at, new: record };
        self.grown.push(Grown { record, epoch });
        (state.head, at)
    }

    fn change(&mut self, change: SessionChange, by_client: bool, now: Timestamp) {
        let state = &mut self.state;
        let decisive = by_client
            || change.status.is_some()
            || !change.gate.is_empty()
            || change.body.is_some()
            || change.archived_at.is_some();
        state.revision += u64::from(decisive);
        if decisive || change.usage.is_some() {
            state.updated_at = state.updated_at.max(now);
        }
        let touches_thread = change.status.is_some()
            || change.usage.is_some()
            || change.activity.is_some()
            || change.archived_at.is_some();
        if touches_thread {
            self.thread_changed_at = self.thread_changed_at.max(Some(now));
        }
        change.gate.iter().for_each(|step| state.gate.apply(step));
        state.status = change.status.unwrap_or(state.status);
        state.usage = change.usage.unwrap_or(state.usage);
        state.activity = change.activity.unwrap_or(state.activity);
        state.archived_at = change.archived_at.or(state.archived_at);
        state.hands = change.hands.or_else(|| state.hands.take());
        if change.progress {
            state.claims = 0;
        }
        match change.ready {
            Some(true) => state.ready_at = state.ready_at.or(Some(now)),
            Some(false) => {
                (state.ready_at, state.leased_until, state.claims) = (None, None, 0);
            }
            None => {}
        }
        self.body = change.body.or_else(|| self.body.take());
        self.changed = true;
    }

    /// Leaves nothing but a tombstone.
    pub(super) fn delete(&mut self, record: NewRecord, now: Timestamp) {
        self.discarded = self.grown.len();
        self.place(record, None, now);
        let state = &mut self.state;
        (state.deleted, state.ready_at, state.leased_until) = (true, None, None);
        state.epoch += 1;
        self.body = Some(String::new());
        self.changed = true;
    }
}
