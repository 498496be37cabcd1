//! Leases: the right of one worker to write a session's agent events.

use crate::SessionRow;
use vaquero_types::{SessionId, WorkspaceId};

/// The name of a worker, unique among those that share a store.
pub type WorkerName = String;

/// A claimed session. It stands until it expires, is released, or a later epoch begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The session.
    pub session: SessionId,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// The generation; every append carries it and is refused once it is stale.
    pub epoch: u64,
    /// How often the session was claimed without progress, this claim included.
    pub claims: u32,
}

/// What a claim gives: the lease, and the session as it is at that moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// The lease.
    pub lease: Lease,
    /// The session.
    pub row: SessionRow,
}
