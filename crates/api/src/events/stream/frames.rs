//! Frames of server-sent events.

use bytes::Bytes;
use serde_json::Value;
use std::io::Write as _;
use vaquero_store::Record;

/// The name of a frame: the event's type, but `message` for types that older SDKs drop by name.
fn name(event_type: &str) -> &str {
    if event_type == "session.usage" || event_type.starts_with("workflow_run.") {
        "message"
    } else {
        event_type
    }
}

/// Adds the frame of a record. Its id resumes the stream right after it.
pub(super) fn durable(batch: &mut Vec<u8>, record: &Record) {
    let name = name(&record.new.event_type);
    let written = write!(batch, "event: {name}\nid: {}\ndata: {}\n\n", record.seq, record.render());
    debug_assert!(written.is_ok(), "writing to memory does not fail");
}

/// The frame of something provisional; it has no id.
pub(super) fn provisional(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}
