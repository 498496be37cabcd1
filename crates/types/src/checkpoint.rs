//! Where the files of a session's workspace are to come from, as far as it matters beside the worker that keeps them.

use crate::{EventId, SessionId};
use serde::{Deserialize, Serialize};

/// The part of a checkpoint's document that says where files come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// The sandbox generation that holds the workspace; 0 before the first.
    pub generation: u64,
    /// The worker it is with; empty if with none.
    pub holder: String,
    /// The workspace is still to be brought to the holder.
    #[serde(default)]
    pub restore: bool,
    /// What a fork began with, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

/// A session whose files another one begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The session.
    pub session: SessionId,
    /// The calls that were settled where it was forked, in order. The n-th of them is the n-th call of the fork.
    pub calls: Vec<EventId>,
}
