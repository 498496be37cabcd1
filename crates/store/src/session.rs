//! Sessions as stored, and how clients page through them.

use crate::{document::Order, record::Seq};
use vaquero_types::{
    AgentId, EnvironmentId, SessionId, ThreadId, Timestamp, WorkspaceId,
    gate::Gate,
    session::Status,
    usage::{Activity, Usage},
};

/// A session's row: what clients filter by, what an accepted message is checked against, and the rest as a JSON body.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// The workspace that owns it.
    pub workspace: WorkspaceId,
    /// What it is doing.
    pub status: Status,
    /// The agent it runs.
    pub agent: AgentId,
    /// The version of that agent.
    pub agent_version: u64,
    /// The environment it runs in.
    pub environment: EnvironmentId,
    /// Its primary thread.
    pub primary_thread: ThreadId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// The newest record of its log.
    pub head: Seq,
    /// The newest record that a client wrote.
    pub client_head: Seq,
    /// Counts the changes of status, gate, body and archival, and the client's records: what a client's request was checked against.
    pub revision: u64,
    /// The lease generation: raised by every claim.
    pub epoch: u64,
    /// The calls a client must answer.
    pub gate: Gate,
    /// Tokens used.
    pub usage: Usage,
    /// Running time.
    pub activity: Activity,
    /// Everything else, as JSON: agent snapshot, title, metadata, resources, …
    pub body: String,
}

/// Which sessions a client wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionQuery {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Only this agent's.
    pub agent: Option<AgentId>,
    /// Only this version's of that agent.
    pub agent_version: Option<u64>,
    /// Only these statuses; empty for all.
    pub statuses: Vec<Status>,
    /// Created after (exclusive).
    pub after: Option<Timestamp>,
    /// Created at or after.
    pub from: Option<Timestamp>,
    /// Created before (exclusive).
    pub before: Option<Timestamp>,
    /// Created at or before.
    pub until: Option<Timestamp>,
    /// Also archived ones.
    pub include_archived: bool,
    /// The direction.
    pub order: Order,
    /// The creation time and id of the last session of the page before.
    pub cursor: Option<(Timestamp, SessionId)>,
    /// Most sessions on the page, at least 1.
    pub limit: usize,
}

/// A page of sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionRow>,
    /// Whether more follow.
    pub more: bool,
}

/// A folded state, to start the next fold from. It can always be rebuilt from the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The last record folded in.
    pub seq: Seq,
    /// The format of `body`; a reader that does not know it folds from the start.
    pub version: u32,
    /// The state.
    pub body: Vec<u8>,
}
