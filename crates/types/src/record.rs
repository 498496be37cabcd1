//! Records: the rows of a session's log, as stores keep them and brains fold them.

use crate::{EventId, ThreadId, Timestamp};
use std::sync::Arc;

/// A position in a session's log: 1 is the first record, 0 is before it.
pub type Seq = u64;

/// What a record is to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A public event.
    Event,
    /// A client's event that the agent has not taken yet; its `Event` record follows later under the same event id.
    Received,
    /// Private to brains.
    Transcript,
}

/// A record to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// What it is to a client.
    pub kind: RecordKind,
    /// The event's id; a transcript record has one of its own, by which its append is idempotent.
    pub event_id: EventId,
    /// The thread it belongs to.
    pub thread: ThreadId,
    /// The event's type (`agent.message`), or the transcript record's.
    pub event_type: String,
    /// A JSON object without `id`, `type` and `processed_at`.
    pub body: Arc<str>,
}

/// A record as kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its position.
    pub seq: Seq,
    /// When it was committed; for an `Event` this is its `processed_at`. Never earlier than the record before, and strictly later for each `Event`.
    pub at: Timestamp,
    /// The rest.
    pub new: NewRecord,
}

impl Record {
    /// The event as the API shows it, one line of JSON.
    pub fn render(&self) -> String {
        let processed_at = match self.new.kind {
            RecordKind::Event => format!("\"{}\"", self.at),
            RecordKind::Received | RecordKind::Transcript => "null".to_owned(),
        };
        let head = format!(
            "{{\"id\":\"{}\",\"type\":\"{}\",\"processed_at\":{processed_at}",
            self.new.event_id, self.new.event_type
        );
        let inner = self.new.body.strip_prefix('{').unwrap_or("}");
        if inner.trim_start().starts_with('}') {
            format!("{head}}}")
        } else {
            format!("{head},{inner}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_rendered_with_its_envelope() {
        let record = |kind, body: &str| Record {
            seq: 1,
            at: Timestamp::from_micros(0),
            new: NewRecord {
                kind,
                event_id: EventId::from_wire("sevt_1"),
                thread: ThreadId::from_wire("sthr_1"),
                event_type: "user.message".to_owned(),
                body: body.into(),
            },
        };
        assert_eq!(
            record(RecordKind::Event, r#"{"content":[]}"#).render(),
            r#"{"id":"sevt_1","type":"user.message","processed_at":"1970-01-01T00:00:00.000000Z","content":[]}"#
        );
        assert_eq!(
            record(RecordKind::Received, "{}").render(),
            r#"{"id":"sevt_1","type":"user.message","processed_at":null}"#
        );
    }
}
