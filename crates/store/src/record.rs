//! How clients page through a session's log. The records themselves are in `vaquero_types::record`.

use serde::{Deserialize, Serialize};
use vaquero_types::{SessionId, ThreadId, Timestamp};

pub use vaquero_types::record::{NewRecord, Record, RecordKind, Seq};

/// Where a session's log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The newest record.
    pub seq: Seq,
    /// The session is deleted; its last record says so.
    pub deleted: bool,
}

/// Which events a client wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct EventQuery {
    /// The session.
    pub session: SessionId,
    /// Only this thread's.
    pub thread: Option<ThreadId>,
    /// Only these types; empty for all.
    pub types: Vec<String>,
    /// Only events processed after (exclusive) / from (inclusive) / before / up to these instants. Queued events are left out when any is set.
    pub after: Option<Timestamp>,
    /// Inclusive lower bound.
    pub from: Option<Timestamp>,
    /// Exclusive upper bound.
    pub before: Option<Timestamp>,
    /// Inclusive upper bound.
    pub until: Option<Timestamp>,
    /// Newest first.
    pub descending: bool,
    /// Where the page before ended.
    pub cursor: Option<EventCursor>,
    /// Most events on the page, at least 1.
    pub limit: usize,
}

/// Where a page of events ended: the last processed record seen, and the last queued one if the page got that far. Queued events never move the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCursor {
    /// The last processed record's position; 0 if none was seen yet.
    pub processed: Seq,
    /// The last queued record's position; 0 if none was seen yet.
    pub queued: Seq,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq)]
pub struct EventPage {
    /// The events.
    pub records: Vec<Record>,
    /// Where to go on; none on the last page.
    pub next: Option<EventCursor>,
}
