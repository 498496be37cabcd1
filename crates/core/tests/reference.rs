//! Random lives of a session against a reference that knows only what a client sees: the public log.

mod world;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use vaquero_core::{
    Message, Role,
    turn::{Ending, FailureKind, Purpose},
};
use vaquero_types::{EventId, record::RecordKind, session::Status};
use world::{World, confirm, message, result, text, tool_use};

/// Something that happens to a session.
#[derive(Clone, Debug)]
enum Op {
    Say(u8),
    Interrupt,
    InterruptAndSay(u8),
    /// The same, while the brain's next append is on its way: messages, an interrupt before them.
    Meanwhile(u8, bool),
    /// Answers one of the waiting calls, or one that does not wait.
    Answer(u8, bool),
    AnswerAll,
    /// One answer, while the brain's next append is on its way.
    AnswerMeanwhile,
    ModelSays(bool),
    ModelCalls(Vec<u8>),
    /// It refuses, runs into its limit, or pauses.
    ModelStops(u8),
    ModelFails(u8),
    Finish(u8),
    Tick,
    BrainDies,
    /// It dies, and for a while no other one comes.
    NoBrain,
    HandsDie,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1..4u8).prop_map(Op::Say),
        1 => Just(Op::Interrupt),
        1 => (1..3u8).prop_map(Op::InterruptAndSay),
        2 => (0..3u8, any::<bool>()).prop_map(|(count, interrupts)| Op::Meanwhile(count, interrupts)),
        1 => Just(Op::AnswerMeanwhile),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(which, allow)| Op::Answer(which, allow)),
        1 => Just(Op::AnswerAll),
        3 => any::<bool>().prop_map(Op::ModelSays),
        5 => prop::collection::vec(0..5u8, 1..5).prop_map(Op::ModelCalls),
        2 => (0..6u8).prop_map(Op::ModelStops),
        2 => (0..7u8).prop_map(Op::ModelFails),
        5 => any::<u8>().prop_map(Op::Finish),
        2 => Just(Op::Tick),
        2 => Just(Op::BrainDies),
        1 => Just(Op::NoBrain),
        1 => Just(Op::HandsDie),
    ]
}

#[derive(Default)]
struct Names {
    next: u32,
}

impl Names {
    fn fresh(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{what}-{}", self.next)
    }
}

fn perform(world: &mut World, op: &Op, names: &mut Names) {
    match op {
        Op::Say(count) => {
            let messages: Vec<Value> = (0..*count).map(|_| message(&names.fresh("user"))).collect();
            let waits = world.status == Status::Idle && !waiting(world).is_empty();
            assert_eq!(
                world.send(&messages).is_err(),
                waits,
                "only answers are taken while it waits"
            );
        }
        Op::Interrupt => drop(world.send(&[json!({ "type": "user.interrupt" })]).expect("always")),
        Op::InterruptAndSay(count) => {
            let mut events = vec![json!({ "type": "user.interrupt" })];
            events.extend((0..*count).map(|_| message(&names.fresh("user"))));
            world.send(&events).expect("always");
        }
        Op::Meanwhile(count, interrupts) => {
            let interrupt = interrupts.then(|| json!({ "type": "user.interrupt" }));
            world.meanwhile = interrupt.into_iter().collect();
            world.meanwhile.extend((0..*count).map(|_| message(&names.fresh("user"))));
        }
        Op::AnswerMeanwhile => {
            let first = waiting(world).into_iter().next();
            world.meanwhile =
                first.map(|call| answer_to(world, &call, true, names)).into_iter().collect();
        }
        Op::Answer(which, allow) => {
            let open = waiting(world);
            let all: Vec<EventId> = calls(world).into_keys().collect();
            let Some(call) = pick(if which.is_multiple_of(4) { &all } else { &open }, *which)
            else {
                return;
            };
            let accepted = world.send(&[answer_to(world, &call, *allow, names)]).is_ok();
            assert_eq!(
                accepted,
                open.contains(&call),
                "an answer is taken once, and only where one is due"
            );
        }
        Op::AnswerAll => {
            let answers: Vec<Value> =
                waiting(world).iter().map(|call| answer_to(world, call, true, names)).collect();
            if !answers.is_empty() {
                world.send(&answers).expect("all are due");
            }
        }
        Op::ModelSays(thinks) => {
            let mut blocks = vec![text(&names.fresh("model"))];
            if *thinks {
                blocks.insert(0, json!({ "type": "thinking", "thinking": "hm", "signature": "s" }));
            }
            world.answer(blocks, Ending::EndTurn);
        }
        Op::ModelCalls(kinds) => {
            if matches!(world.asked, Some((Purpose::Compaction, _))) {
                world.answer(vec![text("summary")], Ending::EndTurn);
                return;
            }
            let tools = ["bash", "read", "write", "ask", "fly"];
            let blocks =
                kinds.iter().map(|kind| tool_use(&names.fresh("toolu"), tools[usize::from(*kind)]));
            world.answer(blocks.collect(), Ending::ToolUse);
        }
        Op::ModelStops(how) => {
            let words = text(&names.fresh("model"));
            let refusal = Ending::Refusal { category: None, explanation: None };
            match how {
                0 => world.answer(Vec::new(), refusal),
                1 => world.answer(vec![words], refusal),
                2 => world.answer(vec![words], Ending::MaxTokens),
                3 if matches!(world.asked, Some((Purpose::Answer, _))) => {
                    let call = tool_use(&names.fresh("toolu"), "bash");
                    world.answer(vec![words, call], Ending::MaxTokens);
                }
                4 if matches!(world.asked, Some((Purpose::Answer, _))) => {
                    let tools = ["bash", "write", "ask", "fly"];
                    let calls = tools.map(|tool| tool_use(&names.fresh("toolu"), tool));
                    world.answer(calls.to_vec(), refusal);
                }
                _ => world.answer(vec![words], Ending::Pause),
            }
        }
        Op::ModelFails(kind) => world.fail(match kind {
            0 => FailureKind::Overloaded,
            1 => FailureKind::RateLimited,
            2 | 3 => FailureKind::Failed,
            4 => FailureKind::ContextTooLong,
            5 => FailureKind::Media,
            _ => FailureKind::Invalid,
        }),
        Op::Finish(which) => {
            if let Some(call) = pick(&world.calls_that_run(), *which) {
                world.finish(&call);
            }
        }
        Op::Tick => world.tick(),
        Op::NoBrain => {
            world.die();
            world.stalled = true;
        }
        Op::BrainDies => {
            world.stalled = false;
            world.die();
            world.claim();
        }
        Op::HandsDie => {
            // The brain hears of it as a failure of every call that ran.
            for call in world.lose_hands() {
                if world.has_brain() {
                    world.input(world::done(&call, "gone", true));
                }
            }
        }
    }
}

fn pick(from: &[EventId], which: u8) -> Option<EventId> {
    (!from.is_empty()).then(|| from[usize::from(which) % from.len()].clone())
}

fn answer_to(world: &World, call: &EventId, allow: bool, names: &mut Names) -> Value {
    if calls(world)[call] == "agent.custom_tool_use" {
        result(call, &names.fresh("result"))
    } else {
        confirm(call, allow)
    }
}

/// Every call of the public log, with the type of its event.
fn calls(world: &World) -> BTreeMap<EventId, String> {
    let found = world.events().into_iter().filter(|(kind, ..)| kind.ends_with("tool_use"));
    found.map(|(kind, id, _)| (id, kind.to_owned())).collect()
}

fn call_of(body: &Value) -> Option<&str> {
    body["tool_use_id"].as_str().or_else(|| body["custom_tool_use_id"].as_str())
}

/// The reference: calls that wait for a client, by what a client has seen and sent.
fn waiting(world: &World) -> Vec<EventId> {
    let mut open = Vec::new();
    let mut closed: BTreeSet<String> = BTreeSet::new();
    for record in &world.log {
        let body: Value = serde_json::from_str(&record.new.body).unwrap_or_default();
        match (record.new.kind, record.new.event_type.as_str()) {
            (RecordKind::Event, "agent.custom_tool_use") => open.push(record.new.event_id.clone()),
            (RecordKind::Event, "agent.tool_use") if body["evaluated_permission"] == "ask" => {
                open.push(record.new.event_id.clone());
            }
            (RecordKind::Received, "user.interrupt") => open.clear(),
            (RecordKind::Transcript, _) => {}
            (_, "agent.tool_result" | "user.tool_confirmation" | "user.custom_tool_result") => {
                let call = call_of(&body);
                closed.extend(call.map(str::to_owned));
            }
            _ => {}
        }
    }
    open.retain(|call| !closed.contains(call.as_str()));
    open
}

/// What must hold after everything that happens.
fn check(world: &World) {
    let events = world.events();
    for (index, (kind, _, body)) in events.iter().enumerate() {
        if *kind == "session.status_idle" {
            assert_eq!(events[index - 1].0, "session.usage", "usage stands before idle");
            assert_eq!(events[index - 2].0, "session.thread_status_idle");
            assert_eq!(events[index - 2].2["stop_reason"], body["stop_reason"]);
        }
    }
    let mut last: Option<&str> = None;
    for (kind, ..) in events.iter().filter(|(kind, ..)| kind.starts_with("session.status_")) {
        // A waiting session says again what it still waits for; nothing else is said twice.
        assert!(last != Some(*kind) || *kind == "session.status_idle", "{kind} twice in a row");
        assert!(last != Some("session.status_idle") || *kind != "session.status_rescheduled");
        last = Some(kind);
    }
    let said = match last {
        None | Some("session.status_idle") => Status::Idle,
        Some("session.status_running") => Status::Running,
        _ => Status::Rescheduling,
    };
    assert_eq!(world.status, said, "the row says what the log says");
    let works = world.has_brain() || world.stalled;
    assert!(works || world.status == Status::Idle, "somebody works, or it is idle");
    assert!(!world.has_brain() || world.status != Status::Idle, "nobody works on what is idle");
    if world.status == Status::Idle {
        let open = waiting(world);
        assert_eq!(world.gate.unanswered(), open);
        if let Some((.., body)) =
            events.iter().rev().find(|(kind, ..)| *kind == "session.status_idle")
        {
            let shown = &body["stop_reason"]["event_ids"];
            assert!(
                if open.is_empty() { shown.is_null() } else { *shown == json!(open) },
                "{shown} but {open:?}"
            );
        }
    }
    if world.status == Status::Idle && waiting(world).is_empty() {
        let of = |kind| {
            let found = world.log.iter().filter(move |record| record.new.kind == kind);
            found.map(|record| &record.new.event_id).collect::<BTreeSet<_>>()
        };
        let (received, processed) = (of(RecordKind::Received), of(RecordKind::Event));
        assert!(received.is_subset(&processed), "at rest nothing is left in the queue");
    }
    let (mut begun, mut ended) = (0, 0);
    for (kind, ..) in &events {
        begun += u32::from(*kind == "span.model_request_start");
        ended += u32::from(*kind == "span.model_request_end");
        assert!(begun == ended || begun == ended + 1, "spans do not overlap");
    }
    if world.status == Status::Idle {
        assert_eq!(begun, ended, "no request is left open");
    }
    let mut settled: BTreeMap<String, u32> = BTreeMap::new();
    for (_, _, body) in events
        .iter()
        .filter(|(kind, ..)| *kind == "agent.tool_result" || *kind == "user.custom_tool_result")
    {
        let call = call_of(body);
        *settled.entry(call.unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert!(settled.values().all(|count| *count == 1), "a call is settled once: {settled:?}");
    assert!(world.starts.values().all(|count| *count == 1), "a call is started once");
    let times: Vec<_> = world.log.iter().map(|record| record.at).collect();
    assert!(times.is_sorted());
}

/// Calls that no client allowed never run.
fn check_permissions(world: &World) {
    for call in world.starts.keys() {
        let (_, _, body) =
            world.events().into_iter().find(|(_, id, _)| id == call).expect("in the log");
        let allowed = body["evaluated_permission"] == "allow"
            || world.events().iter().any(|(kind, _, body)| {
                *kind == "user.tool_confirmation"
                    && body["tool_use_id"] == json!(call)
                    && body["result"] == "allow"
            });
        assert!(allowed, "{call} ran without permission");
    }
}

/// A request is a valid conversation, and what the public log shows is in it.
fn check_request(messages: &[Message], world: &World, compacted: bool) {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    let mut before = None;
    let mut words = BTreeSet::new();
    let failed: BTreeSet<String> = world
        .events()
        .iter()
        .filter(|(kind, _, body)| *kind == "agent.tool_result" && body["is_error"] == true)
        .map(|(.., body)| body["content"][0]["text"].as_str().unwrap_or_default().to_owned())
        .collect();
    for Message { role, content } in messages {
        assert!(before != Some(*role), "two messages of one side in a row");
        assert!(!content.is_empty());
        before = Some(*role);
        let results: Vec<&str> =
            content.iter().filter_map(|block| block["tool_use_id"].as_str()).collect();
        let unique: BTreeSet<&str> = results.iter().copied().collect();
        assert_eq!(
            (unique.len(), &unique),
            (results.len(), &open),
            "each call has its result in the next message"
        );
        for block in content.iter().filter(|block| block["type"] == "tool_result") {
            let said = block["content"][0]["text"].as_str().unwrap_or_default();
            assert_eq!(block["is_error"] == true, failed.contains(said), "{said}");
        }
        let first_other = content
            .iter()
            .position(|block| block["type"] != "tool_result")
            .unwrap_or(content.len());
        assert!(results.len() <= first_other, "results come first");
        open = content
            .iter()
            .filter(|block| block["type"] == "tool_use")
            .filter_map(|block| block["id"].as_str())
            .collect();
        words.extend(content.iter().filter_map(|block| block["text"].as_str()));
    }
    assert!(open.is_empty());
    let last = messages.last().map(|last| last.role);
    assert!(last == Some(Role::User) || world.paused, "somebody waits for an answer");
    if compacted {
        return;
    }
    let shown = world.events();
    let shown =
        shown.iter().filter(|(kind, ..)| *kind == "user.message" || *kind == "agent.message");
    for (_, _, body) in shown {
        let said = body["content"][0]["text"].as_str().unwrap_or_default();
        assert!(words.contains(said), "`{said}` is shown and not in the context");
    }
}

/// History is a prefix of history: only the last message may have grown.
fn check_prefix(requests: &[Vec<Message>]) {
    for pair in requests.windows(2) {
        let (old, new) = (&pair[0], &pair[1]);
        let whole = old.len() - 1;
        assert_eq!(old[..whole], new[..whole]);
        assert!(new[whole].content.starts_with(&old[whole].content));
    }
}

/// Lets everything that waits come to its end.
fn settle(world: &mut World, names: &mut Names) {
    world.stalled = false;
    for _ in 0..200 {
        world.claim();
        if world.status == Status::Idle && waiting(world).is_empty() {
            return;
        }
        if world.asked.is_some() {
            world.answer(vec![text(&names.fresh("model"))], Ending::EndTurn);
        }
        for call in world.calls_that_run() {
            world.finish(&call);
        }
        perform(world, &Op::AnswerAll, names);
        if world.status == Status::Rescheduling {
            world.tick();
        }
    }
    panic!("it never comes to rest: {:?}", world.types());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_keeps_the_promises(ops in prop::collection::vec(op(), 1..50)) {
        let (mut world, mut names) = (World::new(), Names::default());
        let mut seen = 0;
        for op in &ops {
            perform(&mut world, op, &mut names);
            check(&world);
            if world.requests.len() > seen {
                seen = world.requests.len();
                let compacted = world.types().contains(&"agent.thread_context_compacted");
                if world.asked.is_some() {
                    check_request(&world.requests[seen - 1], &world, compacted);
                }
                if !compacted {
                    check_prefix(&world.requests);
                }
            }
        }
        settle(&mut world, &mut names);
        check(&world);
        check_permissions(&world);
        let made = calls(&world).len();
        let kinds = world.types();
        let settled = kinds.iter().filter(|kind| **kind == "agent.tool_result" || **kind == "user.custom_tool_result").count();
        prop_assert_eq!(made, settled, "every call is settled in the end");
        prop_assert_eq!(world.usage, world.answered, "every answer is paid once");
    }
}
