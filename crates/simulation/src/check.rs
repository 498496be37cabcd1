//! What must hold when everything has come to rest, whatever happened before.

use crate::{Accepted, Shared, clients::Followed, lock};
use serde_json::Value;
use std::collections::BTreeMap;
use vaquero_store::{Record, RecordKind};
use vaquero_types::SessionId;

type Logs = BTreeMap<SessionId, Vec<Record>>;

fn of_type<'a>(log: &'a [Record], name: &'a str) -> impl Iterator<Item = &'a Record> {
    log.iter()
        .filter(move |record| record.new.kind == RecordKind::Event && record.new.event_type == name)
}

/// Calls in the logs.
pub(crate) fn calls(logs: &Logs) -> usize {
    logs.values().map(|log| of_type(log, "agent.tool_use").count()).sum()
}

pub(crate) fn check(
    shared: &Shared,
    logs: &Logs,
    accepted: &Accepted,
    followed: &Followed,
) -> Vec<String> {
    let seen = lock(&shared.seen);
    let mut broken = seen.complaints.clone();
    for (call, times) in seen.executed.iter().filter(|(_, times)| **times > 1) {
        broken.push(format!("{call} was carried out {times} times"));
    }
    for (session, log) in logs {
        let mut wrong = |what: String| broken.push(format!("{session}: {what}"));
        if log.iter().zip(1..).any(|(record, place)| record.seq != place) {
            wrong("the log has a gap".to_owned());
        }
        if log.windows(2).any(|pair| pair[0].at > pair[1].at) {
            wrong("time goes backwards".to_owned());
        }
        let epochs: Vec<u64> =
            seen.epochs.get(session).into_iter().flatten().map(|(_, epoch)| *epoch).collect();
        if epochs.windows(2).any(|pair| pair[0] > pair[1]) {
            wrong("epochs interleave".to_owned());
        }
        for id in accepted.get(session).into_iter().flatten() {
            let times = log
                .iter()
                .filter(|record| record.new.kind == RecordKind::Event && record.new.event_id == *id)
                .count();
            if times != 1 {
                wrong(format!("{id} was accepted and processed {times} times"));
            }
        }
        let messages = of_type(log, "user.message").count();
        let told = accepted.get(session).map_or(0, std::collections::BTreeSet::len);
        if messages != told {
            wrong(format!("{messages} messages in the log, {told} accepted"));
        }
        let mut results: BTreeMap<String, usize> = BTreeMap::new();
        for record in of_type(log, "agent.tool_result") {
            let body: Value = serde_json::from_str(&record.new.body).unwrap_or_default();
            *results
                .entry(body["tool_use_id"].as_str().unwrap_or_default().to_owned())
                .or_default() += 1;
        }
        for call in of_type(log, "agent.tool_use") {
            let times = results.remove(call.new.event_id.as_str()).unwrap_or(0);
            if times != 1 {
                wrong(format!("{} is settled {times} times", call.new.event_id));
            }
        }
        if !results.is_empty() {
            wrong(format!("results of no call: {results:?}"));
        }
        let spans = |name| of_type(log, name).count();
        if spans("span.model_request_start") != spans("span.model_request_end") {
            wrong("a span does not end".to_owned());
        }
        let public: Vec<(u64, String, bool)> = log
            .iter()
            .filter(|record| record.new.kind != RecordKind::Transcript)
            .map(|record| {
                let id = record.new.event_id.as_str().to_owned();
                (record.seq, id, record.new.kind == RecordKind::Event)
            })
            .collect();
        if followed.get(session) != Some(&public) {
            wrong("a follower did not see exactly the log".to_owned());
        }
    }
    broken
}
