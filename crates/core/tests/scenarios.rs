//! The life of a session, scene by scene: what the log shows, in order.

mod world;

use serde_json::json;
use std::time::Duration;
use vaquero_core::{
    Limits,
    turn::{Ending, FailureKind},
};
use vaquero_types::{EventId, session::Status};
use world::{World, confirm, message, result, text, tool_use};

const START: [&str; 4] = [
    "session.status_running",
    "session.thread_status_running",
    "user.message",
    "span.model_request_start",
];
const END: [&str; 3] = ["session.thread_status_idle", "session.usage", "session.status_idle"];

fn begun() -> World {
    let mut world = World::new();
    world.send(&[message("go")]).expect("accepted");
    world
}

/// The ids of the calls of an answer that asks for these tools.
fn calling(world: &mut World, names: &[&str]) -> Vec<EventId> {
    let blocks =
        names.iter().enumerate().map(|(n, name)| tool_use(&format!("toolu_{n}"), name)).collect();
    world.answer(blocks, Ending::ToolUse);
    let calls = world.events().into_iter().filter(|(kind, ..)| kind.ends_with("tool_use"));
    calls.map(|(_, id, _)| id).collect()
}

#[track_caller]
fn tail(world: &World, expected: &[&str]) {
    let types = world.types();
    assert_eq!(types[types.len().saturating_sub(expected.len())..], *expected, "{types:?}");
}

fn stop_reason(world: &World) -> serde_json::Value {
    let events = world.events();
    let idle = events.iter().rev().find(|(kind, ..)| *kind == "session.status_idle");
    idle.map(|(_, _, body)| body["stop_reason"].clone()).unwrap_or_default()
}

fn last_results(world: &World) -> Vec<String> {
    let of = |body: &serde_json::Value| {
        body["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    };
    world
        .events()
        .iter()
        .filter(|(kind, ..)| *kind == "agent.tool_result")
        .map(|(.., body)| of(body))
        .collect()
}

#[test]
fn a_turn_without_tools() {
    let mut world = begun();
    world.answer(
        vec![json!({ "type": "thinking", "thinking": "hm", "signature": "s" }), text("hi")],
        Ending::EndTurn,
    );
    let expected: Vec<&str> = START
        .into_iter()
        .chain(["agent.thinking", "agent.message", "span.model_request_end"])
        .chain(END)
        .collect();
    assert_eq!(world.types(), expected);
    assert_eq!((world.status, stop_reason(&world)), (Status::Idle, json!({ "type": "end_turn" })));
    assert!(!world.has_brain());
}

#[test]
fn parallel_calls_are_settled_before_the_model_is_asked_again() {
    let mut world = begun();
    let calls = calling(&mut world, &["bash", "read"]);
    assert_eq!(world.calls_that_run().len(), 2);
    world.finish(&calls[1]);
    assert!(world.asked.is_none());
    world.finish(&calls[0]);
    tail(
        &world,
        &[
            "agent.tool_use",
            "agent.tool_use",
            "span.model_request_end",
            "agent.tool_result",
            "agent.tool_result",
            "span.model_request_start",
        ],
    );
    let last = world.requests.last().and_then(|messages| messages.last()).expect("results");
    assert_eq!(last.content.iter().filter(|block| block["type"] == "tool_result").count(), 2);
}

#[test]
fn what_waits_for_a_client_parks_the_turn_and_answers_come_one_by_one() {
    let mut world = begun();
    let calls = calling(&mut world, &["write", "ask"]);
    tail(&world, &END);
    assert_eq!(stop_reason(&world), json!({ "type": "requires_action", "event_ids": calls }));
    assert!(!world.has_brain(), "a parked turn costs nothing");
    let refused = world.send(&[message("hello?")]).expect_err("it waits");
    assert!(refused.message.contains("waiting on responses to events"));
    world.send(&[result(&calls[1], "42")]).expect("an answer");
    assert_eq!(stop_reason(&world), json!({ "type": "requires_action", "event_ids": [calls[0]] }));
    assert!(world.send(&[result(&calls[1], "43")]).is_err(), "answered already");
    world.send(&[confirm(&calls[0], true)]).expect("an answer");
    assert_eq!(world.calls_that_run(), [calls[0].clone()]);
    world.finish(&calls[0]);
    assert!(world.asked.is_some());
}

#[test]
fn a_denied_call_is_settled_with_the_reason() {
    let mut world = begun();
    let calls = calling(&mut world, &["write"]);
    let deny = json!({ "type": "user.tool_confirmation", "tool_use_id": calls[0], "result": "deny", "deny_message": "not now" });
    world.send(&[deny]).expect("an answer");
    assert_eq!(
        last_results(&world),
        ["Permission to use write has been rejected. Rejection message: not now"]
    );
    assert!(world.starts.is_empty() && world.asked.is_some());
}

#[test]
fn allowed_calls_run_while_others_wait() {
    let mut world = begun();
    let calls = calling(&mut world, &["bash", "write"]);
    assert_eq!((world.calls_that_run(), world.status), (vec![calls[0].clone()], Status::Running));
    world.finish(&calls[0]);
    assert_eq!(stop_reason(&world), json!({ "type": "requires_action", "event_ids": [calls[1]] }));
}

#[test]
fn an_interrupt_stops_the_model() {
    let mut world = begun();
    world.send(&[json!({ "type": "user.interrupt" })]).expect("accepted");
    let expected: Vec<&str> =
        ["user.interrupt", "span.model_request_end"].into_iter().chain(END).collect();
    assert_eq!(world.status, Status::Idle);
    let types = world.types();
    assert!(expected.iter().all(|kind| types.contains(kind)), "{types:?}");
    tail(&world, &END);
}

#[test]
fn an_interrupt_settles_running_calls_and_waiting_ones() {
    for tools in [vec!["bash"], vec!["write"], vec!["bash", "write", "ask"]] {
        let mut world = begun();
        calling(&mut world, &tools);
        world.send(&[json!({ "type": "user.interrupt" })]).expect("accepted");
        assert_eq!(last_results(&world).len(), tools.len());
        assert_eq!(stop_reason(&world), json!({ "type": "end_turn" }));
        assert!(world.gate.calls.is_empty() && world.asked.is_none());
        world.send(&[message("on")]).expect("accepted");
        assert!(world.asked.is_some());
    }
}

#[test]
fn a_message_behind_an_interrupt_starts_the_next_turn() {
    let mut world = begun();
    world.send(&[json!({ "type": "user.interrupt" }), message("rather this")]).expect("accepted");
    tail(
        &world,
        &[
            "session.status_idle",
            "session.status_running",
            "session.thread_status_running",
            "user.message",
            "span.model_request_start",
        ],
    );
    assert!(world.asked.is_some());
}

#[test]
fn an_interrupt_stops_a_turn_that_no_brain_has_begun() {
    let mut world = World::new();
    world.stalled = true;
    world.send(&[message("do")]).expect("accepted");
    world.send(&[json!({ "type": "user.interrupt" })]).expect("accepted");
    world.send(&[json!({ "type": "user.interrupt" })]).expect("accepted");
    world.stalled = false;
    world.claim();
    tail(&world, &["user.message", "user.interrupt", "user.interrupt", END[0], END[1], END[2]]);
    assert!(world.asked.is_none());
    world.send(&[message("on")]).expect("accepted");
    let (_, context) = world.asked.clone().expect("a request");
    let said = serde_json::to_string(&context).expect("plain data");
    assert!(said.contains("do") && said.contains("on"), "what was said is remembered: {said}");
}

#[test]
fn a_message_behind_an_interrupt_of_what_had_not_begun_starts_a_turn() {
    let mut world = World::new();
    world.stalled = true;
    world.send(&[message("do")]).expect("accepted");
    world.send(&[json!({ "type": "user.interrupt" }), message("rather")]).expect("accepted");
    world.stalled = false;
    world.claim();
    tail(&world, &["user.message", "span.model_request_start"]);
    assert_eq!(world.types().iter().filter(|kind| **kind == "session.status_idle").count(), 1);
    assert!(world.asked.is_some());
}

#[test]
fn a_message_queued_behind_a_turn_outlives_its_interrupt() {
    let mut world = begun();
    world.send(&[message("then this")]).expect("accepted");
    world.send(&[json!({ "type": "user.interrupt" })]).expect("accepted");
    tail(&world, &["user.message", "span.model_request_start"]);
    assert!(world.asked.is_some());
}

#[test]
fn a_message_sent_meanwhile_is_taken_in_the_same_run() {
    let mut world = begun();
    world.send(&[message("and this")]).expect("accepted");
    world.answer(vec![text("first")], Ending::EndTurn);
    tail(
        &world,
        &["agent.message", "span.model_request_end", "user.message", "span.model_request_start"],
    );
    world.answer(vec![text("second")], Ending::EndTurn);
    assert_eq!(world.types().iter().filter(|kind| **kind == "session.status_idle").count(), 1);
}

#[test]
fn a_message_that_comes_while_a_request_begins_waits_for_the_next() {
    let mut world = World::new();
    world.meanwhile = vec![message("and this")];
    world.send(&[message("go")]).expect("accepted");
    tail(&world, &START);
    let asked = world.asked.clone().expect("the model is asked").1;
    assert_eq!(*asked[0].content, [text("go")]);
    world.answer(vec![text("first")], Ending::EndTurn);
    tail(&world, &["span.model_request_end", "user.message", "span.model_request_start"]);
}

#[test]
fn a_message_that_came_during_a_refused_request_starts_the_next_turn() {
    let mut world = begun();
    world.send(&[message("then this")]).expect("accepted");
    world.answer(Vec::new(), Ending::Refusal { category: None, explanation: None });
    assert_eq!(stop_reason(&world), json!({ "type": "refusal" }));
    tail(&world, &[&END[2..], &START[..]].concat());
}

#[test]
fn failures_are_repeated_and_then_given_up() {
    let mut world = begun();
    world.fail(FailureKind::Overloaded);
    tail(
        &world,
        &[
            "span.model_request_end",
            "session.error",
            "session.thread_status_rescheduled",
            "session.status_rescheduled",
        ],
    );
    assert_eq!(world.status, Status::Rescheduling);
    world.tick();
    tail(
        &world,
        &["session.status_running", "session.thread_status_running", "span.model_request_start"],
    );
    world.fail(FailureKind::RateLimited);
    world.tick();
    world.fail(FailureKind::Failed);
    assert_eq!(stop_reason(&world), json!({ "type": "retries_exhausted" }));
    let events = world.events();
    let errors: Vec<_> = events
        .iter()
        .filter(|(kind, ..)| *kind == "session.error")
        .map(|(.., body)| &body["error"]["retry_status"]["type"])
        .collect();
    assert_eq!(errors, ["retrying", "retrying", "exhausted"]);
    world.send(&[message("again")]).expect("accepted");
    assert!(world.asked.is_some(), "a new message starts a new turn");
}

#[test]
fn a_picture_that_the_model_cannot_take_is_left_out() {
    let picture = json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } });
    let mut world = World::new();
    world
        .send(&[json!({ "type": "user.message", "content": [text("look"), picture] })])
        .expect("accepted");
    world.fail(FailureKind::Media);
    tail(&world, &["span.model_request_end", "session.error", "span.model_request_start"]);
    let asked = world.asked.clone().expect("it is asked again").1;
    assert_eq!(asked[0].content[0], text("look"));
    assert!(asked[0].content[1]["text"].as_str().is_some_and(|text| text.contains("left out")));
    world.fail(FailureKind::Media);
    assert_eq!(stop_reason(&world), json!({ "type": "retries_exhausted" }), "there is no other");
}

#[test]
fn what_more_attempts_will_not_mend_is_given_up_at_once() {
    for kind in [FailureKind::Invalid, FailureKind::Billing, FailureKind::NotConfigured] {
        let mut world = begun();
        world.fail(kind);
        assert_eq!(stop_reason(&world), json!({ "type": "retries_exhausted" }));
    }
}

#[test]
fn a_refusal_ends_the_turn_with_its_category() {
    let mut world = begun();
    world.answer(
        vec![text("I")],
        Ending::Refusal { category: Some("cyber".to_owned()), explanation: None },
    );
    assert_eq!(stop_reason(&world), json!({ "type": "refusal" }));
    let events = world.events();
    assert_eq!(
        events.last().map(|(.., body)| body["stop_details"]["category"].clone()),
        Some(json!("cyber"))
    );
}

#[test]
fn a_call_cut_off_by_the_limit_on_output_does_not_run() {
    let mut world = begun();
    world.answer(vec![tool_use("t", "bash")], Ending::MaxTokens);
    assert!(last_results(&world)[0].contains("cut off") && world.starts.is_empty());
    assert!(world.asked.is_some());
}

#[test]
fn an_unknown_tool_is_answered_and_not_run() {
    let mut world = begun();
    calling(&mut world, &["fly"]);
    assert!(last_results(&world)[0].contains("no tool `fly`") && world.asked.is_some());
}

#[test]
fn a_full_window_is_compacted() {
    let mut world = begun();
    world.answer(vec![text("one")], Ending::EndTurn);
    world.send(&[message("two")]).expect("accepted");
    world.fail(FailureKind::ContextTooLong);
    let (purpose, _) = world.asked.clone().expect("a summary is asked for");
    assert_eq!(purpose, vaquero_core::turn::Purpose::Compaction);
    world.answer(vec![text("so far: one")], Ending::EndTurn);
    assert!(world.types().contains(&"agent.thread_context_compacted"));
    let request = world.requests.last().expect("asked again");
    let words = serde_json::to_string(request).expect("JSON");
    assert!(
        words.contains("so far: one") && words.contains("two") && !words.contains("\"go\""),
        "{words}"
    );
}

#[test]
fn limits_of_a_turn_end_it_with_a_typed_error() {
    let error = |world: &World| {
        let events = world.events();
        let error = events.iter().rev().find(|(kind, ..)| *kind == "session.error");
        error.map(|(.., body)| body["error"]["type"].clone()).unwrap_or_default()
    };
    let limited = |limits: Limits| {
        let mut world = World::new();
        world.limits = limits;
        world.send(&[message("go")]).expect("accepted");
        world
    };
    let mut world = limited(Limits { model_calls: 1, ..Limits::default() });
    let calls = calling(&mut world, &["bash"]);
    world.finish(&calls[0]);
    assert_eq!(error(&world), "tool_use_limit_reached_error");
    let mut world = limited(Limits { tool_calls: 1, ..Limits::default() });
    calling(&mut world, &["bash", "bash"]);
    assert_eq!(error(&world), "tool_use_limit_reached_error");
    let mut world = limited(Limits { turn_time: Duration::from_secs(10), ..Limits::default() });
    calling(&mut world, &["bash"]);
    world.tick();
    assert_eq!((error(&world), world.status), (json!("unknown_error"), Status::Idle));
    assert_eq!(stop_reason(&world), json!({ "type": "retries_exhausted" }));
}

#[test]
fn a_brain_that_dies_is_followed_by_one_that_knows() {
    let mut world = begun();
    world.die();
    world.claim();
    assert!(world.asked.is_some(), "the request is made again");
    let calls = calling(&mut world, &["bash"]);
    world.die();
    world.claim();
    assert_eq!(world.starts[&calls[0]], 1, "a call that runs is waited for");
    world.finish(&calls[0]);
    let second = calling(&mut world, &["bash"]);
    world.die();
    world.lose_hands();
    world.claim();
    assert_eq!(
        world.starts[second.last().expect("a call")],
        1,
        "a call whose hands are gone is not run again"
    );
    assert_eq!(last_results(&world), ["out", "outcome unknown"]);
    world.answer(vec![text("done")], Ending::EndTurn);
    assert_eq!(world.status, Status::Idle);
}

#[test]
fn a_session_claimed_in_vain_is_given_up() {
    let mut world = begun();
    for _ in 0..=world.limits.claims {
        world.die();
        world.claim();
    }
    assert_eq!(stop_reason(&world), json!({ "type": "retries_exhausted" }));
}
