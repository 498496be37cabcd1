//! A log as an earlier version wrote it still folds to the same state. The file is never regenerated: old logs do not change.

use serde::Deserialize;
use vaquero_core::State;
use vaquero_types::{
    EventId, ThreadId, Timestamp,
    record::{NewRecord, Record, RecordKind},
};

#[derive(Deserialize)]
struct Row {
    kind: u8,
    id: String,
    r#type: String,
    at: i64,
    body: serde_json::Value,
}

fn read(text: &str) -> Vec<Record> {
    let rows: Vec<Row> = serde_json::from_str(text).expect("a golden log");
    let record = |(index, row): (usize, Row)| Record {
        seq: index as u64 + 1,
        at: Timestamp::from_micros(row.at),
        new: NewRecord {
            kind: match row.kind {
                0 => RecordKind::Event,
                1 => RecordKind::Received,
                _ => RecordKind::Transcript,
            },
            event_id: EventId::from_wire(row.id),
            thread: ThreadId::from_wire("sthr_1"),
            event_type: row.r#type,
            body: row.body.to_string().into(),
        },
    };
    rows.into_iter().enumerate().map(record).collect()
}

#[test]
fn a_log_folds_to_the_state_it_always_did() {
    let log = read(include_str!("golden/tools-and-asks.json"));
    let mut state = State::default();
    let half = log.len() / 2;
    for record in &log[..half] {
        state.apply(record);
    }
    let mut resumed =
        State::from_snapshot(vaquero_core::state::STATE_VERSION, &state.to_snapshot())
            .expect("a snapshot");
    for record in &log[half..] {
        state.apply(record);
    }
    for record in &log {
        resumed.apply(record);
    }
    assert_eq!(state, resumed, "from a snapshot, and with records it knows already");
    insta::assert_json_snapshot!("tools-and-asks", state);
}
