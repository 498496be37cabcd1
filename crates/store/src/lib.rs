//! The storage seam: what a store keeps, the one way to change it, and the promises every store is held to by `conformance`.
//!
//! # What is kept
//!
//! * **Sessions**: a typed row each (status, lease, gate, usage), with their threads.
//! * **The log**: the records of a session, numbered from 1 without gaps. Three kinds share the numbering: public *events*; *received* client events that the agent
//!   has not taken yet; and private *transcript* records, which a brain needs and the API never shows.
//! * **Documents**: everything else (agents, environments, API keys, …) as JSON bodies with a few columns to find them by.
//! * **Answers** of requests that carried an idempotency key.
//!
//! # How it changes
//!
//! Only by [`Store::commit`]: a list of [`Write`]s that happen together or not at all and are durable before it returns. Preconditions are part of the writes; a
//! refused commit changes nothing and says which condition failed ([`CommitError`]). Every append is idempotent by record: one that was already made (same session,
//! event id and kind) is skipped, so a commit whose outcome was lost can simply be repeated.
//!
//! The store assigns `seq` and `processed_at`: the writer's clock, but never earlier than the record before.
//!
//! # Adding a store
//!
//! 1. Implement [`Store`]. 2. Call [`conformance::check`] from a test with a way to open a fresh one. Nothing else may be assumed about a store than what that suite holds.

pub mod conformance;
pub mod document;
pub mod error;
pub mod lease;
pub mod live;
pub mod memory;
pub mod notify;
pub mod record;
pub mod sandboxes;
pub mod session;
pub mod workset;
pub mod write;

pub use document::{Document, DocumentPage, DocumentQuery, Order};
pub use error::{CommitError, StoreError};
pub use lease::{Claimed, Lease, WorkerName};
pub use live::{Delta, Live, LocalLive};
pub use memory::MemoryStore;
pub use record::{Begun, EventPage, EventQuery, NewRecord, Position, Record, RecordKind, Seq};
pub use session::{SessionPage, SessionQuery, SessionRow, Snapshot};
pub use write::{
    Answer, AnswerKey, Append, Author, Committed, Expect, Restored, SessionChange, Write,
};

use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use vaquero_types::{EventId, SessionId, ThreadId, Timestamp, WorkspaceId, thread::Thread};

/// A store, shared by everything in the process.
pub type SharedStore = Arc<dyn Store>;

/// Everything durable. Not found is a value; an error means the store itself failed.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes all `writes` durable together, or none. `now` is the writer's clock.
    async fn commit(&self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError>;

    /// One document of a workspace.
    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError>;

    /// The document of a workspace that holds this unique key.
    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError>;

    /// A page of documents.
    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError>;

    /// The kept answer of an idempotent request, unless it is older than `max_age`.
    async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError>;

    /// One session, whatever its workspace (a deleted one is none). Callers that act for a client compare the workspace.
    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError>;

    /// A page of a workspace's sessions.
    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError>;

    /// Those of `ids` whose sessions exist, are not archived, and have their hands with `worker` or nobody: what else a worker keeps for sessions is to go.
    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError>;

    /// Some sessions that changed last before `before` and are at rest: archived ones, or idle ones.
    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError>;

    /// The threads of a session, primary first.
    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError>;

    /// Records of a session after `after`, in order: at least one if there is one, then no more than `max_bytes` of bodies. A deleted session has one record left, its `session.deleted`.
    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError>;

    /// The newest position of a session, also of a deleted one; none if there never was such a session.
    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError>;

    /// A page of the events as a client lists them: each once, by its processed record; those still queued last, in the order they came.
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError>;

    /// The first record of an event (as it was when it was accepted).
    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError>;

    /// Returns once the session has records after `seen` or is deleted. May return early, never misses.
    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError>;

    /// Returns once a session may be ready to claim. May return early, never misses.
    async fn wait_ready(&self) -> Result<(), StoreError>;

    /// Says that `worker` lives, for `ttl` from now.
    async fn heartbeat(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Takes the session that has been ready longest and is not leased, raising its epoch; one whose hands are with another worker that lives is left to that one.
    /// Need not be durable by itself: the first commit under the lease makes it so.
    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError>;

    /// Extends a lease; `LeaseLost` if another epoch has begun or the session is gone.
    async fn renew(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<(), CommitError>;

    /// Gives a lease back without any record: the session stays ready, so the next claim goes on with it. `handover` keeps the count of claims without progress as it was before this claim.
    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError>;

    /// The newest snapshot of a session's folded state.
    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError>;

    /// The id of the primary thread of a session, for callers that have no row at hand.
    async fn primary_thread(&self, session: &SessionId) -> Result<Option<ThreadId>, StoreError> {
        Ok(self.session(session).await?.map(|row| row.primary_thread))
    }
}
