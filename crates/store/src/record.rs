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

/// What a page holds once its processed events are read.
#[derive(Clone, Debug, PartialEq)]
pub enum Begun {
    /// All of it.
    Whole(EventPage),
    /// Queued events come next.
    Rest(PageRest),
}

/// A page whose queued events are still to be read: up to `limit` of them, past position `after`.
#[derive(Clone, Debug, PartialEq)]
pub struct PageRest {
    /// Queued events up to here were seen on earlier pages.
    pub after: Seq,
    /// One more than fit, so that a next page is known of.
    pub limit: usize,
    records: Vec<Record>,
    processed: Seq,
}

impl EventQuery {
    /// Where the page begins.
    pub fn start(&self) -> EventCursor {
        self.cursor.unwrap_or(EventCursor { processed: 0, queued: 0 })
    }

    /// Whether processed events can be on the page; newest first, they all come before the queued ones.
    pub fn begins_processed(&self) -> bool {
        !self.descending || self.start().queued == 0
    }

    /// The page's first part: up to `limit + 1` processed events from where it begins.
    pub fn begin(&self, mut records: Vec<Record>) -> Begun {
        let start = self.start();
        let more = records.len() > self.limit;
        records.truncate(self.limit);
        let processed = records.last().map_or(start.processed, |record| record.seq);
        if more {
            let next = Some(EventCursor { processed, queued: 0 });
            return Begun::Whole(EventPage { records, next });
        }
        if [self.after, self.from, self.before, self.until].iter().any(Option::is_some) {
            return Begun::Whole(EventPage { records, next: None });
        }
        let limit = self.limit - records.len() + 1;
        Begun::Rest(PageRest { after: start.queued, limit, records, processed })
    }
}

impl PageRest {
    /// The page with the queued events that were read.
    pub fn finish(mut self, mut queued: Vec<Record>) -> EventPage {
        let more = queued.len() >= self.limit;
        queued.truncate(self.limit - 1);
        let last = queued.last().map_or(self.after, |record| record.seq);
        self.records.extend(queued);
        let next = more.then_some(EventCursor { processed: self.processed, queued: last });
        EventPage { records: self.records, next }
    }
}
