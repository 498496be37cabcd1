//! Threads: the lines of work inside a session. Every session has a primary one.

use crate::{
    SessionId, ThreadId, Timestamp,
    session::Status,
    usage::{Activity, Usage},
};

/// A thread as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Thread {
    /// Its id.
    pub id: ThreadId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The thread that made it; none for the primary one.
    pub parent: Option<ThreadId>,
    /// What it is doing.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// Tokens its model requests used.
    pub usage: Usage,
    /// How long it has run.
    pub activity: Activity,
}
