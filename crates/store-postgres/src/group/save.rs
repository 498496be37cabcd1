//! The second round trip: what was decided, as rows. Columns are gathered first, so that one statement per table writes them all.

use super::{
    Param, Query,
    load::{Numbers, columns},
};
use crate::{
    rows::{int, json, kind_number, micros},
    statements::Statements,
};
use futures::FutureExt;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tokio_postgres::{Client, Statement};
use vaquero_store::{
    Answer, AnswerKey, Document, Snapshot,
    workset::{ANSWER_AGE, DocumentKey, Grown, Put, Session, SessionState, WorkSet},
};
use vaquero_types::{SessionId, ThreadId, Timestamp, thread::Thread};

/// Rows of documents.
#[derive(Default)]
struct Documents {
    key: [Vec<String>; 3],
    parent: Vec<Option<String>>,
    unique_key: Vec<Option<String>>,
    created_at: Vec<i64>,
    archived_at: Vec<Option<i64>>,
    revision: Vec<i64>,
    body: Vec<String>,
}

impl Documents {
    fn push(&mut self, document: Document) {
        let Document {
            workspace,
            kind,
            id,
            parent,
            unique_key,
            created_at,
            archived_at,
            revision,
            body,
        } = document;
        self.key[0].push(workspace.as_str().to_owned());
        self.key[1].push(kind);
        self.key[2].push(id);
        self.parent.push(parent);
        self.unique_key.push(unique_key);
        self.created_at.push(created_at.as_micros());
        self.archived_at.push(micros(archived_at));
        self.revision.push(int(revision));
        self.body.push(body);
    }

    fn params(&self) -> [Param<'_>; 9] {
        let [workspace, kind, id] = &self.key;
        [
            workspace,
            kind,
            id,
            &self.parent,
            &self.unique_key,
            &self.created_at,
            &self.archived_at,
            &self.revision,
            &self.body,
        ]
    }
}

/// Rows of sessions that are made, with their threads.
#[derive(Default)]
struct New {
    n: Vec<i64>,
    id: Vec<String>,
    workspace: Vec<String>,
    agent: Vec<String>,
    agent_version: Vec<i64>,
    environment: Vec<String>,
    primary_thread: Vec<String>,
    created_at: Vec<i64>,
    body: Vec<String>,
    threads: Threads,
}

#[derive(Default)]
struct Threads {
    session: Vec<i64>,
    id: Vec<String>,
    parent: Vec<Option<String>>,
    status: Vec<&'static str>,
    created_at: Vec<i64>,
    updated_at: Vec<i64>,
    archived_at: Vec<Option<i64>>,
    usage: Vec<String>,
    activity: Vec<String>,
}

impl New {
    fn push(&mut self, n: i64, row: vaquero_store::SessionRow, all: &[Thread]) {
        self.n.push(n);
        self.id.push(row.id.as_str().to_owned());
        self.workspace.push(row.workspace.as_str().to_owned());
        self.agent.push(row.agent.as_str().to_owned());
        self.agent_version.push(int(row.agent_version));
        self.environment.push(row.environment.as_str().to_owned());
        self.primary_thread.push(row.primary_thread.as_str().to_owned());
        self.created_at.push(row.created_at.as_micros());
        self.body.push(row.body);
        for thread in all {
            self.threads.push(n, thread);
        }
    }

    fn params(&self) -> [Param<'_>; 8] {
        [
            &self.n,
            &self.id,
            &self.workspace,
            &self.agent,
            &self.agent_version,
            &self.environment,
            &self.primary_thread,
            &self.created_at,
        ]
    }
}

impl Threads {
    fn push(&mut self, n: i64, thread: &Thread) {
        self.session.push(n);
        self.id.push(thread.id.as_str().to_owned());
        self.parent.push(thread.parent.as_ref().map(|id: &ThreadId| id.as_str().to_owned()));
        self.status.push(thread.status.as_str());
        self.created_at.push(thread.created_at.as_micros());
        self.updated_at.push(thread.updated_at.as_micros());
        self.archived_at.push(micros(thread.archived_at));
        self.usage.push(json(&thread.usage));
        self.activity.push(json(&thread.activity));
    }

    fn params(&self) -> [Param<'_>; 9] {
        [
            &self.session,
            &self.id,
            &self.parent,
            &self.status,
            &self.created_at,
            &self.updated_at,
            &self.archived_at,
            &self.usage,
            &self.activity,
        ]
    }
}

/// What changes in rows of sessions.
#[derive(Default)]
struct States {
    n: Vec<i64>,
    status: Vec<&'static str>,
    updated_at: Vec<i64>,
    archived_at: Vec<Option<i64>>,
    head: Vec<i64>,
    client_head: Vec<i64>,
    revision: Vec<i64>,
    epoch: Vec<i64>,
    last_at: Vec<i64>,
    last_event_at: Vec<i64>,
    gate: Vec<String>,
    usage: Vec<String>,
    activity: Vec<String>,
    ready_at: Vec<Option<i64>>,
    leased_until: Vec<Option<i64>>,
    claims: Vec<i32>,
    hands: Vec<Option<String>>,
    deleted: Vec<bool>,
}

impl States {
    fn push(&mut self, n: i64, state: SessionState) {
        self.n.push(n);
        self.status.push(state.status.as_str());
        self.updated_at.push(state.updated_at.as_micros());
        self.archived_at.push(micros(state.archived_at));
        self.head.push(int(state.head));
        self.client_head.push(int(state.client_head));
        self.revision.push(int(state.revision));
        self.epoch.push(int(state.epoch));
        self.last_at.push(state.last_at.as_micros());
        self.last_event_at.push(state.last_event_at.as_micros());
        self.gate.push(json(&state.gate));
        self.usage.push(json(&state.usage));
        self.activity.push(json(&state.activity));
        self.ready_at.push(micros(state.ready_at));
        self.leased_until.push(micros(state.leased_until));
        self.claims.push(i32::try_from(state.claims).unwrap_or(i32::MAX));
        self.hands.push(state.hands);
        self.deleted.push(state.deleted);
    }

    fn params(&self) -> [Param<'_>; 18] {
        [
            &self.n,
            &self.status,
            &self.updated_at,
            &self.archived_at,
            &self.head,
            &self.client_head,
            &self.revision,
            &self.epoch,
            &self.last_at,
            &self.last_event_at,
            &self.gate,
            &self.usage,
            &self.activity,
            &self.ready_at,
            &self.leased_until,
            &self.claims,
            &self.hands,
            &self.deleted,
        ]
    }
}

/// What changes in primary threads.
#[derive(Default)]
struct ThreadStates {
    session: Vec<i64>,
    status: Vec<&'static str>,
    usage: Vec<String>,
    activity: Vec<String>,
    archived_at: Vec<Option<i64>>,
    at: Vec<i64>,
}

/// Rows of the log.
#[derive(Default)]
struct Log {
    session: Vec<i64>,
    seq: Vec<i64>,
    kind: Vec<i16>,
    event_id: Vec<String>,
    thread: Vec<String>,
    event_type: Vec<String>,
    at: Vec<i64>,
    body: Vec<String>,
    epoch: Vec<Option<i64>>,
}

impl Log {
    fn push(&mut self, n: i64, Grown { record, epoch }: &Grown) {
        self.session.push(n);
        self.seq.push(int(record.seq));
        self.kind.push(kind_number(record.new.kind));
        self.event_id.push(record.new.event_id.as_str().to_owned());
        self.thread.push(record.new.thread.as_str().to_owned());
        self.event_type.push(record.new.event_type.clone());
        self.at.push(record.at.as_micros());
        self.body.push(record.new.body.to_string());
        self.epoch.push(epoch.map(int));
    }

    fn params(&self) -> [Param<'_>; 9] {
        [
            &self.session,
            &self.seq,
            &self.kind,
            &self.event_id,
            &self.thread,
            &self.event_type,
            &self.at,
            &self.body,
            &self.epoch,
        ]
    }
}

#[derive(Default)]
struct Snapshots {
    session: Vec<i64>,
    seq: Vec<i64>,
    version: Vec<i32>,
    body: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Answers {
    workspace: Vec<String>,
    operation: Vec<String>,
    key: Vec<String>,
    at: Vec<i64>,
    request_digest: Vec<String>,
    status: Vec<i32>,
    body: Vec<String>,
    session: Vec<Option<String>>,
    events: Vec<Option<String>>,
    oldest: i64,
}

/// Everything a group writes, as columns.
#[derive(Default)]
pub(super) struct Writes {
    removed: [Vec<String>; 3],
    updated: Documents,
    inserted: Documents,
    new: New,
    states: States,
    bodies: (Vec<i64>, Vec<String>),
    threads: ThreadStates,
    deleted: (Vec<i64>, Vec<String>),
    log: Log,
    snapshots: Snapshots,
    answers: Answers,
}

impl Writes {
    pub(super) fn of(set: WorkSet, mut numbers: Numbers, stored: &BTreeSet<DocumentKey>) -> Self {
        let mut writes = Self::default();
        writes.documents(set.put_documents, stored);
        let gone: HashSet<SessionId> = set
            .sessions
            .iter()
            .filter(|(_, session)| session.state.deleted)
            .map(|(id, _)| id.clone())
            .collect();
        let mut sessions: Vec<_> =
            set.sessions.into_iter().filter(|(_, session)| session.changed).collect();
        sessions.sort_by_cached_key(|(id, _)| numbers.of(id));
        for (id, session) in sessions {
            writes.session(numbers.of(&id), id, session);
        }
        for (id, snapshot) in set.put_snapshots.into_iter().filter(|(id, _)| !gone.contains(id)) {
            writes.snapshot(numbers.of(&id), snapshot);
        }
        for (key, answer, at) in set.put_answers {
            if !answer.events.as_ref().is_some_and(|(session, _)| gone.contains(session)) {
                writes.answer(key, answer, at);
            }
        }
        writes
    }

    fn documents(&mut self, put: BTreeMap<DocumentKey, Put>, stored: &BTreeSet<DocumentKey>) {
        let removed = put.iter().filter(|(_, put)| **put == Put::Removed);
        self.removed = columns(removed.map(|(key, _)| key));
        for (key, put) in put {
            let Put::Written(document) = put else { continue };
            // What is stored is locked; what is not may have been made meanwhile, and then the insert fails and the group is tried again.
            let rows = if stored.contains(&key) { &mut self.updated } else { &mut self.inserted };
            rows.push(document);
        }
    }

    fn session(&mut self, n: i64, id: SessionId, mut session: Session) {
        if let Some((row, threads)) = session.new.take() {
            self.new.push(n, row, &threads);
        }
        for grown in session.grown() {
            self.log.push(n, grown);
        }
        if session.state.deleted {
            self.deleted.0.push(n);
            self.deleted.1.push(id.as_str().to_owned());
        } else {
            if let Some(body) = session.body {
                self.bodies.0.push(n);
                self.bodies.1.push(body);
            }
            if let Some(at) = session.thread_changed_at {
                self.threads.session.push(n);
                self.threads.status.push(session.state.status.as_str());
                self.threads.usage.push(json(&session.state.usage));
                self.threads.activity.push(json(&session.state.activity));
                self.threads.archived_at.push(micros(session.state.archived_at));
                self.threads.at.push(at.as_micros());
            }
        }
        self.states.push(n, session.state);
    }

    fn snapshot(&mut self, n: i64, snapshot: Snapshot) {
        self.snapshots.session.push(n);
        self.snapshots.seq.push(int(snapshot.seq));
        self.snapshots.version.push(i32::try_from(snapshot.version).unwrap_or(i32::MAX));
        self.snapshots.body.push(snapshot.body);
    }

    fn answer(&mut self, key: AnswerKey, answer: Answer, at: Timestamp) {
        let answers = &mut self.answers;
        let (session, events) = match &answer.events {
            Some((session, events)) => (Some(session.as_str().to_owned()), Some(json(events))),
            None => (None, None),
        };
        answers.workspace.push(key.workspace.as_str().to_owned());
        answers.operation.push(key.operation);
        answers.key.push(key.key);
        answers.at.push(at.as_micros());
        answers.request_digest.push(answer.request_digest);
        answers.status.push(i32::from(answer.status));
        answers.body.push(answer.body);
        answers.session.push(session);
        answers.events.push(events);
        let age = i64::try_from(ANSWER_AGE.as_micros()).unwrap_or(i64::MAX);
        answers.oldest = at.as_micros().saturating_sub(age);
    }

    /// Queues the statements, in an order that no constraint minds.
    pub(super) fn queue<'a>(
        &'a self,
        client: &'a Client,
        s: &'a Statements,
        queries: &mut Vec<Query<'a, ()>>,
    ) {
        let mut run = |wanted: bool, statement: &'a Statement, params: Vec<Param<'a>>| {
            if wanted {
                let query = async move { client.execute(statement, &params).await.map(drop) };
                queries.push(query.boxed());
            }
        };
        let [workspaces, kinds, ids] = &self.removed;
        run(!ids.is_empty(), &s.delete_documents, vec![workspaces, kinds, ids]);
        run(!self.updated.body.is_empty(), &s.update_documents, self.updated.params().to_vec());
        run(!self.inserted.body.is_empty(), &s.insert_documents, self.inserted.params().to_vec());
        let new = &self.new;
        run(!new.n.is_empty(), &s.insert_sessions, new.params().to_vec());
        run(!new.n.is_empty(), &s.insert_bodies, vec![&new.n, &new.body]);
        run(!new.n.is_empty(), &s.insert_threads, new.threads.params().to_vec());
        run(!self.states.n.is_empty(), &s.update_sessions, self.states.params().to_vec());
        let (sessions, bodies) = &self.bodies;
        run(!sessions.is_empty(), &s.update_bodies, vec![sessions, bodies]);
        let threads = &self.threads;
        run(
            !threads.session.is_empty(),
            &s.update_threads,
            vec![
                &threads.session,
                &threads.status,
                &threads.usage,
                &threads.activity,
                &threads.archived_at,
                &threads.at,
            ],
        );
        let (numbers, names) = &self.deleted;
        let gone = !numbers.is_empty();
        for statement in [&s.delete_log, &s.delete_threads, &s.delete_snapshots, &s.delete_bodies] {
            run(gone, statement, vec![numbers]);
        }
        run(gone, &s.delete_answers, vec![names]);
        run(!self.log.seq.is_empty(), &s.insert_log, self.log.params().to_vec());
        let snapshots = &self.snapshots;
        run(
            !snapshots.session.is_empty(),
            &s.put_snapshots,
            vec![&snapshots.session, &snapshots.seq, &snapshots.version, &snapshots.body],
        );
        let answers = &self.answers;
        run(!answers.key.is_empty(), &s.old_answers, vec![&answers.oldest]);
        run(
            !answers.key.is_empty(),
            &s.insert_answers,
            vec![
                &answers.workspace,
                &answers.operation,
                &answers.key,
                &answers.at,
                &answers.request_digest,
                &answers.status,
                &answers.body,
                &answers.session,
                &answers.events,
            ],
        );
    }
}
