//! Which deltas a client sees: a prefix of each event's text, nothing after a gap, nothing after the event itself.

use super::frames;
use crate::reject::Result;
use bytes::Bytes;
use serde_json::json;
use std::collections::HashMap;
use vaquero_store::{Delta, Record};
use vaquero_types::{ApiError, EventId, ThreadId};

const KNOWN: [&str; 2] = ["agent.message", "agent.thinking"];
/// Most values of `event_deltas`.
const MOST: usize = 100;

/// What a client has seen of the events being written.
#[derive(Debug)]
pub(super) struct Previews {
    message: bool,
    thinking: bool,
    /// Events that began in this stream's sight; false once something of them was missed.
    open: HashMap<EventId, bool>,
}

impl Previews {
    pub(super) fn decode(wanted: &[String]) -> Result<Self> {
        if wanted.len() > MOST {
            return Err(ApiError::invalid(format!(
                "event_deltas: at most {MOST} values are allowed"
            ))
            .into());
        }
        if let Some(other) = wanted.iter().find(|value| !KNOWN.contains(&value.as_str())) {
            let message = format!(
                "event_deltas: unknown value `{other}`; expected `agent.message` or `agent.thinking`"
            );
            return Err(ApiError::invalid(message).into());
        }
        let has = |name: &str| wanted.iter().any(|value| value == name);
        Ok(Self { message: has(KNOWN[0]), thinking: has(KNOWN[1]), open: HashMap::new() })
    }

    pub(super) fn wanted(&self) -> bool {
        self.message || self.thinking
    }

    /// The frame a delta becomes, if this client is to see it.
    pub(super) fn frame(&mut self, delta: &Delta, only: Option<&ThreadId>) -> Option<Bytes> {
        match delta {
            Delta::Start { thread, event, event_type } => {
                let wanted = match *event_type {
                    "agent.message" => self.message,
                    "agent.thinking" => self.thinking,
                    _ => false,
                };
                if !wanted
                    || only.is_some_and(|only| only != thread)
                    || self.open.contains_key(event)
                {
                    return None;
                }
                self.open.insert(event.clone(), true);
                let data =
                    json!({ "type": "event_start", "event": { "type": event_type, "id": event } });
                Some(frames::provisional("event_start", &data))
            }
            Delta::Text { event, index, text, .. } => {
                if self.open.get(event) != Some(&true) {
                    return None;
                }
                let content = json!({ "type": "text", "text": &**text });
                let delta = json!({ "type": "content_delta", "index": index, "content": content });
                let data = json!({ "type": "event_delta", "event_id": event, "delta": delta });
                Some(frames::provisional("event_delta", &data))
            }
        }
    }

    /// Deltas were lost: whose, nobody knows, so everything under way stays cut off here.
    pub(super) fn shed(&mut self) {
        self.open.values_mut().for_each(|whole| *whole = false);
    }

    /// A record is about to be shown; no delta of its event may follow.
    pub(super) fn durable(&mut self, record: &Record) {
        match record.new.event_type.as_str() {
            "agent.message" | "agent.thinking" if self.wanted() => {
                self.open.insert(record.new.event_id.clone(), false);
            }
            // By the end of a request nothing of the one before can still be on its way.
            "span.model_request_start" => self.open.clear(),
            _ => {}
        }
    }
}
