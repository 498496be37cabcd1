//! The changes a commit can make, each with the conditions under which it may happen.

use crate::{
    document::Document,
    lease::WorkerName,
    record::{NewRecord, Record, Seq},
    session::{SessionRow, Snapshot},
};
use vaquero_types::{
    EventId, SessionId, Timestamp, WorkspaceId,
    gate::GateChange,
    session::Status,
    thread::Thread,
    usage::{Activity, Usage},
};

/// One change. All writes of a commit happen together.
#[derive(Clone, Debug)]
pub enum Write {
    /// Creates or replaces a document (its `revision` is set by the store).
    PutDocument {
        /// The document.
        document: Document,
        /// What must hold before.
        expect: Expect,
    },
    /// Removes a document.
    DeleteDocument {
        /// Its workspace.
        workspace: WorkspaceId,
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
        /// What must hold before.
        expect: Expect,
    },
    /// Requires a document to be as it was read (`Expect::Revision`) or not to exist, without changing it.
    CheckDocument {
        /// Its workspace.
        workspace: WorkspaceId,
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
        /// What must hold.
        expect: Expect,
    },
    /// Creates a session with its primary thread. Its log is empty: appends of the same commit may follow. `head`, `client_head`, `epoch` are set by the store.
    CreateSession {
        /// The row.
        row: SessionRow,
        /// Its primary thread.
        thread: Thread,
    },
    /// Creates a session with everything it had elsewhere. Refused with `Changed` if there is, or was, one of this id.
    RestoreSession(Restored),
    /// Appends records to a session's log and changes its row with them.
    Append(Append),
    /// Removes a session, its log and threads, and leaves a tombstone: the `session.deleted` record, written last.
    DeleteSession {
        /// The session.
        session: SessionId,
        /// The row's revision that the caller checked.
        revision: u64,
        /// The record that stays.
        record: NewRecord,
    },
    /// Keeps the folded state of a session.
    PutSnapshot {
        /// The session.
        session: SessionId,
        /// The state.
        snapshot: Snapshot,
    },
    /// Keeps the answer of a request that carried an idempotency key; refused with [`CommitError::Answered`](crate::CommitError) if the key has one younger than a day.
    PutAnswer {
        /// The request.
        key: AnswerKey,
        /// What it was answered.
        answer: Answer,
    },
}

/// A session as it was elsewhere.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The row; `head` and `client_head` are taken from it, `epoch` begins anew.
    pub row: SessionRow,
    /// Its threads, the primary one first.
    pub threads: Vec<Thread>,
    /// Its log, from the first record to `head`, with the instants it had.
    pub records: Vec<Record>,
    /// A worker is to go on with it.
    pub ready: bool,
}

/// What must hold of a document before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// It does not exist.
    Absent,
    /// It exists with this revision.
    Revision(u64),
}

/// Records to append, by whom, and the change of the row that goes with them.
#[derive(Clone, Debug)]
pub struct Append {
    /// The session.
    pub session: SessionId,
    /// Who writes; decides which condition must hold.
    pub author: Author,
    /// The records, in order. Ones that were appended before are skipped.
    pub records: Vec<NewRecord>,
    /// The change of the row.
    pub change: SessionChange,
}

/// Who appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Author {
    /// A client's request, checked against this revision of the row. Moves `client_head` if there are records.
    Client {
        /// The revision; a later one refuses with `Changed`.
        revision: u64,
    },
    /// The holder of the lease.
    Worker {
        /// Its epoch; a later one refuses with `LeaseLost`.
        epoch: u64,
        /// The newest client record it has taken into account; a newer one refuses with `Grown`. None: not checked.
        seen: Option<Seq>,
    },
}

/// What changes in a session's row; `None` keeps.
#[derive(Clone, Debug, Default)]
pub struct SessionChange {
    /// The status of the session and its primary thread.
    pub status: Option<Status>,
    /// Changes of the gate, in order.
    pub gate: Vec<GateChange>,
    /// Tokens used, in total.
    pub usage: Option<Usage>,
    /// Running time, in total.
    pub activity: Option<Activity>,
    /// The new JSON body.
    pub body: Option<String>,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// Makes it ready to claim, or (`false`) not, which also gives up the lease.
    pub ready: Option<bool>,
    /// The turn got somewhere: the count of claims without progress starts again.
    pub progress: bool,
    /// Whose hands hold the workspace from now on: that worker claims the session first.
    pub hands: Option<WorkerName>,
}

/// Whose request an answer belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnswerKey {
    /// The workspace of the API key.
    pub workspace: WorkspaceId,
    /// Method and path (`POST /v1/agents`).
    pub operation: String,
    /// The client's key.
    pub key: String,
}

/// What an idempotent request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// A digest of the request's body, to tell a repetition from a misuse.
    pub request_digest: String,
    /// The HTTP status.
    pub status: u16,
    /// The JSON body; ignored if `events` names records.
    pub body: String,
    /// The events whose accepted form was the answer's `data`.
    pub events: Option<(SessionId, Vec<EventId>)>,
}

/// What a commit did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// For every append, in order: position and instant of each of its records, also of those that had been there before.
    pub appended: Vec<Vec<(Seq, Timestamp)>>,
}
