//! The work queue of a self-hosted environment: what a worker of any make sees of it.

mod rig;

use axum::{body::Body, http::StatusCode};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rig::{Answer, Rig, id};
use serde_json::{Value, json};
use std::time::Duration;
use vaquero_api::{Settings, keys};
use vaquero_types::{EnvironmentId, RandomIds, SystemClock, WorkspaceId};

/// A self-hosted environment, its key, and an agent.
struct Place {
    rig: Rig,
    environment: String,
    key: String,
    agent: String,
}

async fn place() -> Place {
    place_with(Settings::default()).await
}

async fn place_with(settings: Settings) -> Place {
    let rig = Rig::with(settings).await;
    let config = json!({ "name": "hosted", "config": { "type": "self_hosted" } });
    let environment = id(&rig.post("/v1/environments", config).await.ok());
    let workspace = WorkspaceId::from_wire(keys::DEFAULT_WORKSPACE);
    let own = EnvironmentId::from_wire(environment.clone());
    let made =
        keys::create_for_workers(rig.store.as_ref(), &SystemClock, &RandomIds, &workspace, &own);
    let (key, _) = made.await.expect("a key");
    let agent = rig.agent(json!({ "tools": [{ "type": "agent_toolset_20260401" }] })).await;
    let agent = id(&agent);
    Place { rig, environment, key, agent }
}

impl Place {
    async fn send(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.rig.send(Rig::request(method, path, &headers, body)).await
    }

    async fn queue(&self, method: &str, path: &str, body: Value) -> Answer {
        let path = format!("/v1/environments/{}/work{path}", self.environment);
        self.send(&self.key, method, &path, body).await
    }

    async fn poll(&self) -> Value {
        self.queue("GET", "/poll", Value::Null).await.ok()
    }

    async fn beat(&self, work: &str, last: &str) -> Answer {
        let last: String = form_urlencoded::byte_serialize(last.as_bytes()).collect();
        let path = format!("/{work}/heartbeat?expected_last_heartbeat={last}");
        self.queue("POST", &path, Value::Null).await
    }

    /// A session, with something to do or not.
    async fn session(&self, text: Option<&str>) -> String {
        let events: Vec<Value> = text.map(message).into_iter().collect();
        let body = json!({ "agent": self.agent, "environment_id": self.environment, "initial_events": events });
        id(&self.rig.post("/v1/sessions", body).await.ok())
    }
}

fn message(text: &str) -> Value {
    json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] })
}

#[tokio::test]
async fn a_session_with_something_to_do_is_queued_once() {
    let place = place().await;
    assert_eq!(place.poll().await, Value::Null, "nothing, and that as JSON");
    let session = place.session(None).await;
    assert_eq!(place.poll().await, Value::Null, "it has nothing to do yet");
    let events = format!("/v1/sessions/{session}/events");
    for text in ["one", "two"] {
        place.rig.post(&events, json!({ "events": [message(text)] })).await.ok();
    }
    let work = place.poll().await;
    assert_eq!((&work["type"], &work["state"]), (&json!("work"), &json!("queued")));
    assert_eq!(work["data"], json!({ "type": "session", "id": session }));
    assert_eq!(work["environment_id"], json!(place.environment));
    let secret = URL_SAFE_NO_PAD.decode(work["secret"].as_str().expect("a secret"));
    let secret: Value = serde_json::from_slice(&secret.expect("base64")).expect("JSON");
    let token = secret["sessions_token"].as_str().expect("a token");
    assert_eq!(place.poll().await, Value::Null, "it is handed out");
    let shown = place.queue("GET", "", Value::Null).await.ok();
    assert_eq!(shown["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&shown["data"][0]["secret"], &shown["data"][0]["lease"]),
        (&Value::Null, &Value::Null)
    );
    assert!(!shown.to_string().contains(token));
    let stats = place.queue("GET", "/stats", Value::Null).await.ok();
    assert_eq!((&stats["depth"], &stats["pending"]), (&json!(0), &json!(1)));
    assert_eq!(
        (&stats["workers_polling"], &stats["type"]),
        (&json!(1), &json!("work_queue_stats"))
    );
    let again = place.queue("GET", "/poll?reclaim_older_than_ms=1", Value::Null).await.ok();
    assert_eq!(again["id"], work["id"], "whoever had it did not take it");
    assert_ne!(again["secret"], work["secret"]);
    let refused = place.queue("GET", "/poll?block_ms=1000", Value::Null).await;
    assert!(refused.invalid().starts_with("block_ms"));
    let refused = place.queue("GET", "/poll?block_ms=0", Value::Null).await;
    assert!(refused.invalid().starts_with("block_ms"));
}

#[tokio::test]
async fn a_worker_takes_keeps_and_ends_an_item() {
    let place = place().await;
    place.session(Some("go")).await;
    let work = place.poll().await;
    let id = id(&work);
    let early = place.beat(&id, "NO_HEARTBEAT").await;
    assert_eq!(early.status, StatusCode::PRECONDITION_FAILED, "not before it is taken");
    let taken = place.queue("POST", &format!("/{id}/ack"), Value::Null).await.ok();
    assert_eq!(taken["state"], "starting");
    assert!(taken["acknowledged_at"].is_string() && taken["started_at"].is_null());
    let twice = place.queue("POST", &format!("/{id}/ack"), Value::Null).await;
    assert_eq!(twice.refusal().0, 409);
    assert_eq!(twice.header("x-should-retry"), "false");
    let first = place.beat(&id, "NO_HEARTBEAT").await.ok();
    assert_eq!((&first["type"], &first["state"]), (&json!("work_heartbeat"), &json!("active")));
    assert_eq!((&first["lease_extended"], &first["ttl_seconds"]), (&json!(true), &json!(60)));
    let lost = place.beat(&id, "NO_HEARTBEAT").await;
    assert_eq!(lost.status, StatusCode::PRECONDITION_FAILED);
    let details = &lost.body["error"]["details"];
    assert_eq!(details["error_code"], "heartbeat_precondition_failed");
    assert_eq!(details["current_state"]["last_heartbeat"], first["last_heartbeat"]);
    assert_eq!(details["current_state"]["lease_extended"], false);
    let last = first["last_heartbeat"].as_str().expect("an instant");
    let path = format!("/{id}/heartbeat?expected_last_heartbeat={last}&desired_ttl_seconds=90");
    let second = place.queue("POST", &path, Value::Null).await.ok();
    assert_eq!(second["ttl_seconds"], 90);
    // The application asks, the worker hears, and says that it is done.
    let own = format!("/v1/environments/{}/work/{id}", place.environment);
    let stopping = place.rig.post(&format!("{own}/stop"), json!({})).await.ok();
    assert_eq!(stopping["state"], "stopping");
    let heard = place.beat(&id, "whatever").await.ok();
    assert_eq!((&heard["state"], &heard["lease_extended"]), (&json!("stopping"), &json!(false)));
    let over = place.queue("POST", &format!("/{id}/stop"), json!({ "force": true })).await.ok();
    assert_eq!(over["state"], "stopped");
    assert_eq!(place.queue("POST", &format!("/{id}/stop"), Value::Null).await.refusal().0, 409);
    let renamed = place.rig.post(&own, json!({ "metadata": { "a": "b" } })).await.ok();
    assert_eq!(renamed["metadata"], json!({ "a": "b" }));
    assert_eq!(place.rig.get(&own).await.ok()["stopped_at"], over["stopped_at"]);
}

#[tokio::test]
async fn an_item_whose_worker_is_silent_goes_to_the_next() {
    // The rig's clock goes on by a millisecond whenever it is asked.
    let settings = Settings { work_lease: Duration::from_secs(0), ..Settings::default() };
    let place = place_with(settings).await;
    place.session(Some("go")).await;
    let work = place.poll().await;
    let id = id(&work);
    place.queue("POST", &format!("/{id}/ack"), Value::Null).await.ok();
    let again = place.poll().await;
    assert_eq!(again["id"], work["id"], "it was taken, and nobody was heard of");
    assert_eq!(again["acknowledged_at"], Value::Null);
    place.queue("POST", &format!("/{id}/ack"), Value::Null).await.ok();
    let beat = place.beat(&id, "NO_HEARTBEAT").await.ok();
    assert_eq!(place.poll().await["id"], work["id"], "its lease has ended");
    let late = place.beat(&id, beat["last_heartbeat"].as_str().expect("an instant")).await;
    assert_eq!(late.status, StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn keys_open_what_they_are_for() {
    let place = place().await;
    let (one, other) = (place.session(Some("go")).await, place.session(Some("go")).await);
    let cloud = place.rig.environment("cloud").await;
    let body = json!({ "agent": place.agent, "environment_id": cloud["id"] });
    let elsewhere = id(&place.rig.post("/v1/sessions", body).await.ok());
    let work = place.poll().await;
    assert_eq!(work["data"]["id"], json!(one), "the oldest first");
    let secret = URL_SAFE_NO_PAD.decode(work["secret"].as_str().expect("a secret"));
    let secret: Value = serde_json::from_slice(&secret.expect("base64")).expect("JSON");
    let token = secret["sessions_token"].as_str().expect("a token");
    let queue = format!("/v1/environments/{}/work", place.environment);
    let item = format!("{queue}/{}", id(&work));
    let session = |id: &str| format!("/v1/sessions/{id}");
    let events = |id: &str| format!("/v1/sessions/{id}/events");
    let api = rig::KEY;
    for (key, method, path, status) in [
        (api, "GET", format!("{queue}/poll"), 403),
        (api, "GET", queue.clone(), 403),
        (api, "GET", format!("{queue}/stats"), 200),
        (api, "GET", item.clone(), 200),
        (place.key.as_str(), "GET", queue.clone(), 200),
        (&place.key, "GET", item.clone(), 403),
        (&place.key, "GET", session(&one), 200),
        (&place.key, "GET", events(&other), 200),
        (&place.key, "GET", session(&elsewhere), 403),
        (&place.key, "GET", session("sesn_none"), 404),
        (&place.key, "GET", session(&elsewhere.replacen('s', "%73", 1)), 404),
        (token, "GET", session(&other.replacen('s', "%73", 1)), 403),
        (&place.key, "DELETE", session(&one), 403),
        (&place.key, "GET", "/v1/agents".to_owned(), 403),
        (&place.key, "GET", "/v1/environments/env_other/work/poll".to_owned(), 403),
        (token, "GET", session(&one), 200),
        (token, "GET", events(&one), 200),
        (token, "GET", session(&other), 403),
        (token, "GET", format!("{queue}/poll"), 403),
        (token, "GET", "/v1/vaults".to_owned(), 403),
        ("vq_work_unknown", "GET", session(&one), 401),
    ] {
        let answer = place.send(key, method, &path, Value::Null).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
    }
    place.send(token, "POST", &format!("{item}/stop"), json!({ "force": true })).await.ok();
    let ended = place.send(token, "GET", &session(&one), Value::Null).await;
    assert_eq!(ended.refusal().0, 401, "with the item, its token ends");
    let cloud = format!("/v1/environments/{}/work/stats", cloud["id"].as_str().expect("an id"));
    assert!(place.rig.get(&cloud).await.invalid().contains("is not self_hosted"));
}
