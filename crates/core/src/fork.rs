//! A fork: how much of a log another session begins with, and what leaves that session at rest.

use crate::{
    state::State,
    transcript::Transcript,
    turn::{Batch, Facts, Limits, Machine},
};
use std::collections::BTreeSet;
use vaquero_types::{
    EventId, IdGen, Timestamp,
    environment::DEFAULT_SANDBOX,
    record::{Record, RecordKind},
};

/// How many records a fork at `event` takes: all up to it and what belongs to it. An answer of the model is taken whole. None: there is no such event.
pub fn cut(records: &[Record], event: &EventId) -> Option<usize> {
    let shows = |record: &Record| {
        record.new.kind != RecordKind::Transcript && record.new.event_id == *event
    };
    let mut last = records.iter().rposition(shows)?;
    let name = |at: usize| records[at].new.event_type.as_str();
    let before = (0..=last).rfind(|at| name(*at).starts_with("span.model_request_"));
    if before.is_some_and(|at| name(at) == "span.model_request_start")
        && before != Some(last)
        && let Some(end) =
            (last + 1..records.len()).find(|at| name(*at) == "span.model_request_end")
    {
        last = end;
    }
    let belongs = records[last + 1..].iter().take_while(|r| r.new.kind == RecordKind::Transcript);
    Some(last + 1 + belongs.count())
}

/// What leaves a session with this log at rest; nothing if it is.
pub fn rest(records: &[Record], facts: Facts, now: Timestamp, ids: &dyn IdGen) -> Option<Batch> {
    let mut state = State::default();
    for record in records {
        state.apply(record);
    }
    let status = |record: &&Record| record.new.event_type.starts_with("session.status_");
    let last = records.iter().rev().find(status).map(|record| record.new.event_type.as_str());
    let idle = last.is_none_or(|name| name == "session.status_idle");
    if idle && !state.begun() && state.queue.is_empty() {
        return None;
    }
    Some(Machine::new(state, facts, Limits::default()).rest(now, ids))
}

/// The sandboxes that a log has made, by their names.
pub fn sandboxes(records: &[Record]) -> BTreeSet<String> {
    let transcript = records.iter().filter(|record| record.new.kind == RecordKind::Transcript);
    let made =
        transcript.filter_map(|record| match serde_json::from_str(&record.new.body).ok()? {
            Transcript::Generation { sandbox, .. } => {
                Some(sandbox.unwrap_or_else(|| DEFAULT_SANDBOX.to_owned()))
            }
            _ => None,
        });
    made.collect()
}

/// The calls that are settled in a log, in order.
pub fn settled(records: &[Record]) -> Vec<EventId> {
    let results = records.iter().filter(|record| {
        record.new.kind == RecordKind::Event && record.new.event_type == "agent.tool_result"
    });
    results
        .filter_map(|record| {
            let body: serde_json::Value = serde_json::from_str(&record.new.body).ok()?;
            body["tool_use_id"].as_str().map(EventId::from_wire)
        })
        .collect()
}
