//! What holds for every endpoint: keys, headers, bodies, errors, idempotency, limits.

mod rig;

use axum::body::Body;
use bytes::Bytes;
use rig::{KEY, Rig, id};
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use vaquero_api::{Rates, Settings, keys};
use vaquero_types::{RandomIds, SystemClock, WorkspaceId};

#[tokio::test]
async fn a_key_opens_the_door_in_either_header() {
    let rig = Rig::new().await;
    let bearer = format!("Bearer {KEY}");
    let lower = format!("bearer {KEY}");
    let good: [&[(&str, &str)]; 4] = [
        &[("x-api-key", KEY)],
        &[("authorization", &bearer)],
        &[("authorization", &lower)],
        &[("authorization", &bearer), ("x-api-key", KEY)],
    ];
    for headers in good {
        let answer = rig.send(Rig::request("GET", "/v1/agents", headers, Body::empty())).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        assert_eq!(answer.header("anthropic-workspace-id"), "wrkspc_default");
        assert!(answer.header("request-id").starts_with("req_"));
    }
    let bad: [&[(&str, &str)]; 5] = [
        &[("x-api-key", "")],
        &[("x-api-key", "wrong-key-0123456789")],
        &[("authorization", "Basic dXNlcjpwYXNz")],
        &[("authorization", &bearer), ("x-api-key", "another")],
        &[("authorization", "Bearer")],
    ];
    for headers in bad {
        let answer = rig.send(Rig::request("GET", "/v1/agents", headers, Body::empty())).await;
        assert_eq!(answer.refusal().0, 401, "{headers:?}");
        assert_eq!(answer.refusal().1, "authentication_error");
        assert_eq!(answer.body["request_id"], answer.header("request-id"));
        assert_eq!(answer.header("x-should-retry"), "false");
    }
}

#[tokio::test]
async fn versions_betas_and_workspaces_in_headers() {
    let rig = Rig::new().await;
    let get = |headers: Vec<(&'static str, &'static str)>| {
        let request = Rig::request("GET", "/v1/agents?beta=true", &headers, Body::empty());
        rig.send(request)
    };
    for version in ["2023-06-01", "2026-10-21"] {
        assert_eq!(get(vec![("anthropic-version", version)]).await.status, 200);
    }
    let answer = get(vec![("anthropic-version", "2020-01-01")]).await;
    assert!(answer.invalid().starts_with("anthropic-version: `2020-01-01`"));
    assert_eq!(
        get(vec![("anthropic-beta", "one,managed-agents-2026-04-01,two")]).await.status,
        200
    );
    assert_eq!(get(vec![("anthropic-workspace-id", "wrkspc_default")]).await.status, 200);
    assert_eq!(get(vec![("anthropic-workspace-id", "wrkspc_other")]).await.refusal().0, 403);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_in_the_apis_shape() {
    let rig = Rig::new().await;
    let answer = rig.get("/v1/nothing").await;
    assert_eq!(answer.refusal(), (404, "not_found_error", "there is no `GET /v1/nothing`"));
    let answer = rig.delete("/v1/agents").await;
    let message = "`/v1/agents` takes POST, GET, not DELETE";
    assert_eq!(answer.refusal(), (405, "invalid_request_error", message));
    assert_eq!(answer.body["type"], "error");
    assert!(answer.header("allow").contains("POST"));
    let answer = rig.get("/v1/agents/agent_none").await;
    assert_eq!(answer.refusal(), (404, "not_found_error", "agent `agent_none` not found"));
    assert_eq!(rig.get("/health").await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_no_json_objects() {
    let rig = Rig::new().await;
    let post = |body: &'static [u8], headers: &'static [(&'static str, &'static str)]| {
        rig.send(Rig::request("POST", "/v1/agents", headers, Body::from(body)))
    };
    assert!(post(b"{", &[]).await.invalid().contains("not valid JSON"));
    assert!(post(b"[]", &[]).await.invalid().contains("must be a JSON object, got an array"));
    assert!(post(b"null", &[]).await.invalid().contains("must be a JSON object"));
    assert_eq!(post(b"", &[]).await.invalid(), "name: field required");
    assert!(post(b"{\"name\": \"a\"} x", &[]).await.invalid().contains("not valid JSON"));
    let answer = post(b"{\"name\": \"\xff\"}", &[]).await;
    assert_eq!(answer.body["error"]["details"]["error_code"], "unsupported_charset");
    let answer = post(b"{}", &[("content-encoding", "gzip")]).await;
    assert_eq!(answer.body["error"]["details"]["error_code"], "request_body_encoding_unsupported");
    assert_eq!(post(b"{}", &[("content-encoding", "identity")]).await.refusal().0, 400);
    let deep = format!("{{\"metadata\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = rig.send(Rig::request("POST", "/v1/agents", &[], Body::from(deep))).await;
    assert!(answer.invalid().contains("recursion limit"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_read_to_its_end() {
    let rig = Rig::with(Settings { body_max: 1 << 20, ..Settings::default() }).await;
    let length = (2 << 20).to_string();
    let announced = &[("content-length", length.as_str())];
    let answer = rig.send(Rig::request("POST", "/v1/agents", announced, Body::empty())).await;
    assert_eq!(
        answer.refusal(),
        (413, "request_too_large", "the request body is larger than 1 MB")
    );
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let endless = futures::stream::repeat_with(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1024]))
    });
    let body = Body::from_stream(endless);
    let answer = rig.send(Rig::request("POST", "/v1/agents", &[], body)).await;
    assert_eq!(answer.refusal().0, 413);
    assert_eq!(answer.header("connection"), "close");
    assert!(read.load(Ordering::Relaxed) <= 1026);
}

#[tokio::test]
async fn a_request_with_a_key_happens_once() {
    let rig = Rig::new().await;
    let key = &[("idempotency-key", "one")];
    let body = json!({ "name": "a", "model": "m" });
    let first = rig.post_with("/v1/agents", key, body.clone()).await;
    assert_eq!(first.header("idempotent-replayed"), "");
    let second = rig.post_with("/v1/agents", key, body.clone()).await;
    assert_eq!(second.header("idempotent-replayed"), "true");
    let made = first.ok();
    assert_eq!(made, second.ok());
    let other = rig.post_with("/v1/agents", key, json!({ "name": "b", "model": "m" })).await;
    assert_eq!(other.refusal().0, 409);
    let broken = Rig::request("POST", "/v1/agents", key, Body::from("{"));
    assert_eq!(rig.send(broken).await.refusal().0, 409, "another body is another body");
    let elsewhere = rig.post_with("/v1/environments", key, json!({ "name": "a" })).await;
    assert_eq!(elsewhere.status, 200, "a key belongs to a path");
    assert_eq!(rig.get("/v1/agents").await.ok()["data"].as_array().map(Vec::len), Some(1));
    let refused = &[("idempotency-key", "two")];
    for _ in 0..2 {
        let answer =
            rig.post_with("/v1/agents", refused, json!({ "name": "" , "model": "m" })).await;
        assert!(answer.invalid().starts_with("name:"), "a refusal is kept too");
    }
    let long = "x".repeat(256);
    let answer = rig.post_with("/v1/agents", &[("idempotency-key", &long)], body).await;
    assert!(answer.invalid().starts_with("idempotency-key:"));
    let path = format!("/v1/agents/{}", id(&made));
    assert_eq!(rig.get(&path).await.ok()["version"], 1);
}

#[tokio::test]
async fn twins_get_one_answer() {
    let rig = Arc::new(Rig::new().await);
    let twins = (0..20).map(|_| {
        let rig = Arc::clone(&rig);
        async move {
            let body = json!({ "name": "a", "model": "m" });
            id(&rig.post_with("/v1/agents", &[("idempotency-key", "twin")], body).await.ok())
        }
    });
    let mut ids = futures::future::join_all(twins).await;
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn messages_are_not_sent_twice_under_a_key() {
    let rig = Rig::new().await;
    let path = format!("/v1/sessions/{}/events", rig.session(json!([])).await);
    let body = json!({ "events": [rig::message("hello")] });
    let key = &[("idempotency-key", "m1")];
    let first = rig.post_with(&path, key, body.clone()).await.ok();
    assert_eq!(first, rig.post_with(&path, key, body).await.ok());
    assert_eq!(
        rig.get(&format!("{path}?types[]=user.message")).await.ok()["data"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}

#[tokio::test]
async fn workspaces_do_not_see_each_other() {
    let rig = Rig::new().await;
    let other = WorkspaceId::from_wire("wrkspc_other");
    let (key, record) =
        keys::create(rig.store.as_ref(), &SystemClock, &RandomIds, &other).await.expect("a key");
    let session = rig.session(json!([])).await;
    let agents = rig.get("/v1/agents").await.ok();
    let agent = id(&agents["data"][0]);
    let headers = &[("x-api-key", key.as_str())];
    for path in [
        format!("/v1/agents/{agent}"),
        format!("/v1/agents/{agent}/versions"),
        format!("/v1/sessions/{session}"),
        format!("/v1/sessions/{session}/events"),
        format!("/v1/sessions/{session}/events/stream"),
        format!("/v1/sessions/{session}/threads"),
    ] {
        let answer = rig.send(Rig::request("GET", &path, headers, Body::empty())).await;
        assert_eq!(answer.refusal().0, 404, "{path}");
    }
    for path in ["/v1/agents", "/v1/environments", "/v1/sessions"] {
        let answer = rig.send(Rig::request("GET", path, headers, Body::empty())).await;
        assert_eq!(answer.ok()["data"], json!([]), "{path}");
    }
    let body = json!({ "agent": agent, "environment_id": "env_x" });
    assert_eq!(rig.post_with("/v1/sessions", headers, body).await.refusal().0, 404);
    assert!(keys::revoke(&rig.app, record.id.as_str()).await.expect("revoked"));
    let answer = rig.send(Rig::request("GET", "/v1/agents", headers, Body::empty())).await;
    assert_eq!(answer.refusal().0, 401, "from the next request on");
}

#[tokio::test]
async fn rates_are_limited_where_they_are_set() {
    let rig = Rig::limited(Rates { workspace_create: Some(3), ..Rates::default() }).await;
    let body = json!({ "name": "a", "model": "m" });
    for _ in 0..3 {
        rig.post("/v1/agents", body.clone()).await.ok();
    }
    let answer = rig.post("/v1/agents", body).await;
    assert_eq!(answer.refusal().1, "rate_limit_error");
    assert_eq!(answer.header("x-should-retry"), "true");
    assert!(
        answer
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| (1..=60).contains(&seconds))
    );
    assert_eq!(rig.get("/v1/agents").await.status, 200, "reads have a limit of their own");
}

#[tokio::test]
async fn the_document_describes_exactly_the_routes() {
    let document: serde_json::Value =
        serde_json::from_str(vaquero_api::openapi::DOCUMENT).expect("JSON");
    let mut described: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            described.push(format!(
                "{} {path} {}",
                method.to_uppercase(),
                operation["operationId"].as_str().unwrap_or_default()
            ));
        }
    }
    let ours = vaquero_api::routes::EXTENSIONS.iter().map(|(method, path)| {
        let words = path.trim_start_matches("/v1/").split('/');
        let name: Vec<&str> = words.filter(|word| !word.starts_with('{')).collect();
        (*method, *path, name.join("."))
    });
    let mut routes: Vec<String> = vaquero_api::routes::TABLE
        .iter()
        .map(|(method, path, name)| (*method, *path, (*name).to_owned()))
        .chain(ours)
        .map(|(method, path, name)| format!("{method} {path} {name}"))
        .collect();
    described.sort();
    routes.sort();
    assert_eq!(described, routes);
    let rig = Rig::new().await;
    for (method, path, _) in vaquero_api::routes::TABLE {
        let answer =
            rig.send(Rig::request(method, &path.replace(['{', '}'], ""), &[], Body::empty())).await;
        let (status, _, message) = answer.refusal();
        assert!(
            status != 405 && !message.starts_with("there is no"),
            "{method} {path}: {}",
            answer.body
        );
    }
}
