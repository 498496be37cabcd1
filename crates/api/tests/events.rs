//! Events: what may be sent, what comes back, how they are listed and streamed.

mod rig;

use rig::{Rig, message, names};
use serde_json::{Value, json};
use std::sync::Arc;
use vaquero_store::{Delta, Live};
use vaquero_types::{EventId, SessionId, ThreadId};

#[tokio::test]
async fn a_message_is_accepted_together_with_the_status_it_makes() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let path = format!("/v1/sessions/{session}/events");
    let sent = rig.post(&path, json!({ "events": [message("hello")] })).await.ok();
    insta::assert_json_snapshot!("sent", sent);
    assert_eq!(rig.get(&format!("/v1/sessions/{session}")).await.ok()["status"], "running");
    let events = rig.get(&path).await.ok();
    assert_eq!(
        names(&events, "type"),
        ["session.status_running", "session.thread_status_running", "user.message"]
    );
    assert_eq!(events["data"][2], sent["data"][0], "queued ones come last");
}

#[tokio::test]
async fn what_is_refused_is_refused_whole() {
    let rig = Rig::new().await;
    let path = format!("/v1/sessions/{}/events", rig.session(json!([])).await);
    let text = |text: &str| json!([{ "type": "text", "text": text }]);
    let cases = [
        (json!({}), "events"),
        (json!({ "events": [] }), "events:"),
        (json!({ "events": [{}] }), "events.0.type"),
        (json!({ "events": [{ "type": "agent.message" }] }), "events.0.type"),
        (json!({ "events": [message("")] }), "events.0.content.0.text: minimum string length is 1"),
        (json!({ "events": [{ "type": "user.message", "content": "hi" }] }), "events.0.content"),
        (json!({ "events": [{ "type": "user.message", "content": [] }] }), "events.0.content"),
        (
            json!({ "events": [{ "type": "user.message", "content": [{ "type": "redacted" }] }] }),
            "events.0.content.0",
        ),
        (
            json!({ "events": [{ "type": "user.message", "content": text("x"), "id": "sevt_1" }] }),
            "events.0.id",
        ),
        (
            json!({ "events": [message("fine"), { "type": "user.message", "content": [{ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "!!" } }] }] }),
            "events.1.content.0.source.data",
        ),
        (
            json!({ "events": [{ "type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "perhaps" }] }),
            "events.0.result",
        ),
        (
            json!({ "events": [{ "type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow", "deny_message": "no" }] }),
            "events.0.deny_message",
        ),
        (json!({ "events": [{ "type": "user.tool_result", "tool_use_id": "sevt_1" }] }), ""),
        (
            json!({ "events": [{ "type": "user.define_outcome", "description": "d", "rubric": { "type": "text", "content": "c" } }] }),
            "Invalid user.define_outcome event at events[0]",
        ),
        (json!({ "events": [{ "type": "system.message", "content": text("s") }] }), ""),
        (json!({ "events": [message("x")], "more": 1 }), "more"),
    ];
    for (body, beginning) in cases {
        let answer = rig.post(&path, body.clone()).await;
        assert!(answer.invalid().starts_with(beginning), "{body}: {}", answer.body);
    }
    for unknown in [
        json!({ "type": "user.custom_tool_result", "custom_tool_use_id": "sevt_1" }),
        json!({ "type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow" }),
    ] {
        let answer = rig.post(&path, json!({ "events": [unknown] })).await;
        assert!([400, 404].contains(&answer.refusal().0), "{}", answer.body);
    }
    assert_eq!(rig.get(&path).await.ok()["data"], json!([]), "nothing was stored");
    assert_eq!(
        rig.post("/v1/sessions/sesn_none/events", json!({ "events": [message("x")] }))
            .await
            .refusal()
            .0,
        404
    );
}

#[tokio::test]
async fn an_interrupt_of_an_idle_session_changes_nothing() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let path = format!("/v1/sessions/{session}/events");
    rig.post(&path, json!({ "events": [{ "type": "user.interrupt" }] })).await.ok();
    assert_eq!(rig.get(&format!("/v1/sessions/{session}")).await.ok()["status"], "idle");
}

#[tokio::test]
async fn lists_filter_by_type_and_page() {
    let rig = Rig::new().await;
    let path = format!("/v1/sessions/{}/events", rig.session(json!([])).await);
    let three: Vec<Value> = ["a", "b", "c"].into_iter().map(message).collect();
    rig.post(&path, json!({ "events": three })).await.ok();
    let only = rig.get(&format!("{path}?types[]=user.message")).await.ok();
    assert_eq!(only["data"].as_array().map(Vec::len), Some(3));
    let mut seen = Vec::new();
    let mut next = format!("{path}?limit=2");
    loop {
        let page = rig.get(&next).await.ok();
        seen.extend(names(&page, "id").into_iter().map(str::to_owned));
        let Some(cursor) = page["next_page"].as_str() else { break };
        next = format!("{path}?limit=2&page={cursor}");
    }
    let all = rig.get(&path).await.ok();
    assert_eq!(seen, names(&all, "id"), "each once, in order");
    let backwards = rig
        .get(&format!(
            "{path}?order=desc&types[]=session.status_running&types[]=session.thread_status_running"
        ))
        .await
        .ok();
    assert_eq!(
        names(&backwards, "type"),
        ["session.thread_status_running", "session.status_running"]
    );
    for query in ["limit=0", "limit=1001", "order=sideways", "created_at[gte]=x"] {
        rig.get(&format!("{path}?{query}")).await.invalid();
    }
}

#[tokio::test]
async fn a_stream_begins_where_it_is_opened_and_ends_with_the_session() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let path = format!("/v1/sessions/{session}");
    rig.post(&path, json!({ "title": "before" })).await.ok();
    let (headers, mut frames) = rig.stream(&format!("{path}/events/stream"), &[]).await;
    assert!(
        headers["content-type"].to_str().is_ok_and(|kind| kind.starts_with("text/event-stream"))
    );
    assert_eq!(headers["x-accel-buffering"], "no");
    rig.post(&path, json!({ "title": "after" })).await.ok();
    let frame = frames.next().await.expect("a frame");
    let lines: Vec<&str> = frame.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("event: ")), "{frame}");
    assert!(frame.contains("\"title\":\"after\"") && lines.contains(&"id: 2"), "{frame}");
    rig.delete(&path).await.ok();
    assert_eq!(frames.event().await["type"], "session.deleted");
    assert_eq!(frames.next().await, None);
}

#[tokio::test]
async fn a_stream_resumes_after_the_last_event_seen() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let path = format!("/v1/sessions/{session}");
    for title in ["one", "two", "three"] {
        rig.post(&path, json!({ "title": title })).await.ok();
    }
    let stream = format!("{path}/events/stream");
    let (_, mut frames) = rig.stream(&stream, &[("last-event-id", "1")]).await;
    assert_eq!(frames.event().await["title"], "two");
    assert_eq!(frames.event().await["title"], "three");
    for wrong in ["4", "x", "-1"] {
        let request =
            Rig::request("GET", &stream, &[("last-event-id", wrong)], axum::body::Body::empty());
        assert!(rig.send(request).await.invalid().starts_with("last-event-id"));
    }
}

#[tokio::test]
async fn previews_are_for_those_who_ask() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let path = format!("/v1/sessions/{session}");
    let stream = format!("{path}/events/stream");
    for wrong in ["event_deltas[]=agent.tool_use", "event_deltas=x", "nonsense=1"] {
        rig.get(&format!("{stream}?{wrong}")).await.invalid();
    }
    let (_, mut with) = rig.stream(&format!("{stream}?event_deltas[]=agent.message"), &[]).await;
    let (_, mut without) = rig.stream(&stream, &[]).await;
    let thread = rig.get(&format!("{path}/threads")).await.ok()["data"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let (thread, event) = (ThreadId::from_wire(thread), EventId::from_wire("sevt_preview"));
    let id = SessionId::from_wire(session.clone());
    rig.live.publish(
        &id,
        Delta::Start { thread: thread.clone(), event: event.clone(), event_type: "agent.message" },
    );
    rig.live.publish(&id, Delta::Text { thread, event, index: 0, text: Arc::from("hel") });
    let start = with.event().await;
    assert_eq!(
        start,
        json!({ "type": "event_start", "event": { "type": "agent.message", "id": "sevt_preview" } })
    );
    assert_eq!(
        with.event().await["delta"],
        json!({ "type": "content_delta", "index": 0, "content": { "type": "text", "text": "hel" } })
    );
    rig.post(&path, json!({ "title": "t" })).await.ok();
    assert_eq!(without.event().await["type"], "session.updated", "no preview here");
}
