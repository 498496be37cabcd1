//! What a store can refuse or fail at, named for what the caller does next.

use vaquero_types::SessionId;

/// The store itself failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left; the operator must make room.
    #[error("no space left in the data directory or database")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database cannot be reached, or takes no writes, for now.
    #[error("the database is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database failed.
    #[error("the store failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored value cannot be decoded.
    #[error("a stored {what} cannot be read")]
    Corrupt {
        /// Table, column and id.
        what: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a commit was refused. Nothing of it happened, except for `Store`, whose outcome may be unknown: repeat it.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The document or session row changed since it was read: read again and decide again.
    #[error("changed since it was read")]
    Changed,
    /// A document with this unique key exists.
    #[error("the key `{key}` is taken")]
    Duplicate {
        /// The key.
        key: String,
    },
    /// The document or session does not exist.
    #[error("not found")]
    NotFound,
    /// Another epoch has begun, or the session is gone: stop the turn.
    #[error("the lease on {session} is lost")]
    LeaseLost {
        /// The session.
        session: SessionId,
    },
    /// The client has written since: take it into account first.
    #[error("the log has grown")]
    Grown,
    /// The idempotency key has an answer: give that one.
    #[error("answered before")]
    Answered,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
