//! What is computed on every turn: folding a log, going on from a snapshot, and the line a client sees of an event.

use divan::{Bencher, black_box};
use serde_json::json;
use vaquero_core::{State, state::STATE_VERSION, transcript::Transcript};
use vaquero_types::{
    EventId, ThreadId, Timestamp,
    record::{NewRecord, Record, RecordKind},
};

fn main() {
    divan::main();
}

/// A log of turns: a question, an answer, and what the API shows of both.
fn log(turns: u64) -> Vec<Record> {
    let thread = ThreadId::new(1);
    let text = json!([{ "type": "text", "text": "About as much as somebody says in one breath, give or take a word." }]);
    let mut log = Vec::new();
    let mut add = |new: NewRecord| {
        let seq = log.len() as u64 + 1;
        log.push(Record { seq, at: Timestamp::from_micros(0), new });
    };
    for turn in 0..u128::from(turns) {
        let content = text.as_array().cloned().unwrap_or_default();
        let event = |n: u128, event_type: &str| NewRecord {
            kind: RecordKind::Event,
            event_id: EventId::new(turn * 10 + n),
            thread: thread.clone(),
            event_type: event_type.to_owned(),
            body: json!({ "content": text }).to_string().into(),
        };
        add(event(1, "user.message"));
        add(Transcript::User { content: content.clone() }
            .record(EventId::new(turn * 10 + 2), &thread));
        add(event(3, "span.model_request_start"));
        add(event(4, "agent.message"));
        add(event(5, "span.model_request_end"));
        let answer =
            Transcript::Assistant { content, calls: Vec::new(), window_tokens: 1, goes_on: false };
        add(answer.record(EventId::new(turn * 10 + 6), &thread));
        add(event(7, "session.status_idle"));
    }
    log
}

fn folded(log: &[Record]) -> State {
    let mut state = State::default();
    for record in log {
        state.apply(record);
    }
    state
}

#[divan::bench(args = [10, 100, 1_000])]
fn fold(bencher: Bencher<'_, '_>, turns: u64) {
    let log = log(turns);
    bencher.bench_local(|| folded(black_box(&log)));
}

#[divan::bench(args = [10, 100, 1_000])]
fn from_snapshot(bencher: Bencher<'_, '_>, turns: u64) {
    let snapshot = folded(&log(turns)).to_snapshot();
    bencher.bench_local(|| State::from_snapshot(STATE_VERSION, black_box(&snapshot)));
}

#[divan::bench]
fn render(bencher: Bencher<'_, '_>) {
    let log = log(1);
    bencher.bench_local(|| black_box(&log[0]).render());
}
