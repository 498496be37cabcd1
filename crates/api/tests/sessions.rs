//! Sessions: frozen agents, overrides, what cannot be had yet, lists, and their ends.

mod rig;

use rig::{Rig, id, merge, message, names};
use serde_json::{Value, json};

#[tokio::test]
async fn a_session_is_shown_whole() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    insta::assert_json_snapshot!("session", rig.get(&format!("/v1/sessions/{session}")).await.ok());
}

#[tokio::test]
async fn it_freezes_its_agent() {
    let rig = Rig::new().await;
    let agent = rig.agent(json!({ "system": "one" })).await;
    let environment = rig.environment("e").await;
    let path = format!("/v1/agents/{}", id(&agent));
    let second = rig.post(&path, json!({ "system": "two" })).await.ok();
    let make = |agent: Value| {
        let body = json!({ "agent": agent, "environment_id": environment["id"] });
        rig.post("/v1/sessions", body)
    };
    let latest = make(agent["id"].clone()).await.ok();
    let pinned = make(json!({ "type": "agent", "id": agent["id"], "version": 1 })).await.ok();
    rig.post(&path, json!({ "system": "three" })).await.ok();
    for (session, version, system) in [(&latest, 2, "two"), (&pinned, 1, "one")] {
        let found = rig.get(&format!("/v1/sessions/{}", id(session))).await.ok();
        assert_eq!(
            (&found["agent"]["version"], &found["agent"]["system"]),
            (&json!(version), &json!(system))
        );
    }
    assert_eq!(second["version"], 2);
    assert_eq!(
        make(json!({ "type": "agent", "id": agent["id"], "version": 9 })).await.refusal().0,
        404
    );
    let overridden = make(json!({ "type": "agent_with_overrides", "id": agent["id"], "version": 1, "model": { "id": "other", "effort": "low" }, "system": null, "tools": [{ "type": "agent_toolset_20260401" }] })).await.ok();
    let shown = &overridden["agent"];
    assert_eq!(
        (&shown["id"], &shown["version"], &shown["system"]),
        (&agent["id"], &json!(1), &Value::Null)
    );
    assert_eq!(
        (&shown["model"]["id"], &shown["model"]["effort"]["type"]),
        (&json!("other"), &json!("low"))
    );
    let none =
        make(json!({ "type": "agent_with_overrides", "id": agent["id"], "model": null })).await;
    none.invalid();
    assert_eq!(none.body["error"]["details"]["error_code"], "agent_model_required");
    assert!(
        make(json!({ "type": "agent_with_overrides", "id": agent["id"], "name": "x" }))
            .await
            .invalid()
            .starts_with("agent.name")
    );
}

#[tokio::test]
async fn what_cannot_be_had_yet_is_refused_by_name() {
    let rig = Rig::new().await;
    let plain = id(&rig.agent(json!({})).await);
    let cloud = id(&rig.environment("cloud").await);
    let refuse = async |agent: &str, environment: &str, more: Value| {
        let mut body = json!({ "agent": agent, "environment_id": environment });
        merge(&mut body, more);
        let answer = rig.post("/v1/sessions", body).await;
        answer.invalid().to_owned()
    };
    for (more, word) in [
        (json!({ "resources": [{ "type": "file", "file_id": "file_1" }] }), "resources"),
        (
            json!({ "budget": { "type": "limit", "max_list_cost": { "amount": "1", "currency": "USD" } } }),
            "budget",
        ),
        (
            json!({ "initial_events": [{ "type": "user.define_outcome", "description": "d", "rubric": { "type": "text", "content": "c" } }] }),
            "outcomes",
        ),
        (json!({ "nonsense": 1 }), "nonsense"),
        (json!({ "initial_events": [{ "type": "user.interrupt" }] }), "initial_events.0"),
    ] {
        let message = refuse(&plain, &cloud, more).await;
        assert!(message.contains(word), "{message}");
    }
    let agents = [
        (
            json!({ "mcp_servers": [{ "type": "url", "name": "s", "url": "https://example.com" }], "tools": [{ "type": "mcp_toolset", "mcp_server_name": "s" }] }),
            "MCP",
        ),
        (
            json!({ "skills": [{ "type": "anthropic", "skill_id": "pdf" }], "tools": [{ "type": "agent_toolset_20260401" }] }),
            "skills",
        ),
        (
            json!({ "multiagent": { "type": "coordinator", "agents": [{ "type": "self" }] } }),
            "multiagent",
        ),
        (
            json!({ "tools": [{ "type": "agent_toolset_20260401", "configs": [{ "name": "web_search", "enabled": true }] }] }),
            "web_search",
        ),
    ];
    for (more, word) in agents {
        let agent = id(&rig.agent(more).await);
        let message = refuse(&agent, &cloud, json!({})).await;
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(rig.get("/v1/sessions").await.ok()["data"], json!([]));
    let body = json!({ "agent": plain, "environment_id": "env_none" });
    assert_eq!(rig.post("/v1/sessions", body).await.refusal().0, 404);
}

#[tokio::test]
async fn initial_events_are_there_before_the_answer() {
    let rig = Rig::new().await;
    let (agent, environment) = (rig.agent(json!({})).await, rig.environment("e").await);
    let body = json!({ "agent": agent["id"], "environment_id": environment["id"], "initial_events": [message("one"), message("two")] });
    let session = rig.post("/v1/sessions", body).await.ok();
    assert_eq!(session["status"], "running");
    let events = rig.get(&format!("/v1/sessions/{}/events", id(&session))).await.ok();
    assert_eq!(
        names(&events, "type"),
        ["session.status_running", "session.thread_status_running", "user.message", "user.message"]
    );
    assert_eq!(events["data"][2]["processed_at"], Value::Null);
}

#[tokio::test]
async fn updates_change_what_may_change_and_say_so_in_the_log() {
    let rig = Rig::new().await;
    let session = rig.session(json!([{ "type": "agent_toolset_20260401" }])).await;
    let path = format!("/v1/sessions/{session}");
    rig.post(&path, json!({})).await.ok();
    let events = format!("{path}/events");
    assert_eq!(rig.get(&events).await.ok()["data"], json!([]), "no change, no event");
    let changed = rig.post(&path, json!({ "title": "t", "metadata": { "a": "1" } })).await.ok();
    assert_eq!((&changed["title"], &changed["metadata"]), (&json!("t"), &json!({ "a": "1" })));
    rig.post(&path, json!({ "title": "t" })).await.ok();
    rig.post(&path, json!({ "agent": { "tools": [] } })).await.ok();
    let log = rig.get(&events).await.ok();
    assert_eq!(names(&log, "type"), ["session.updated", "session.updated"]);
    assert_eq!(log["data"][1]["agent"]["tools"], json!([]));
    for (body, path_or_word) in [
        (json!({ "environment_id": "env_1" }), "environment_id"),
        (json!({ "vault_ids": [] }), "vault_ids"),
        (json!({ "agent": { "model": "x" } }), "only `tools` and `mcp_servers`"),
        (
            json!({ "budget": { "type": "limit", "max_list_cost": { "amount": "1", "currency": "USD" } } }),
            "budget",
        ),
        (json!({ "metadata": { "a": 1 } }), "metadata.a"),
    ] {
        let answer = rig.post(&path, body.clone()).await;
        assert!(answer.invalid().contains(path_or_word), "{body}: {}", answer.body);
    }
}

#[tokio::test]
async fn lists_filter_and_page_both_ways() {
    let rig = Rig::new().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(rig.session(json!([])).await);
    }
    let body = json!({ "events": [message("go")] });
    rig.post(&format!("/v1/sessions/{}/events", sessions[1]), body).await.ok();
    let ids = async |query: &str| {
        let page = rig.get(&format!("/v1/sessions?{query}")).await.ok();
        names(&page, "id")
            .into_iter()
            .map(|id| sessions.iter().position(|known| known == id).expect("known"))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [2, 1, 0]);
    assert_eq!(ids("order=asc").await, [0, 1, 2]);
    assert_eq!(ids("statuses[]=running").await, [1]);
    assert_eq!(ids("statuses%5B%5D=idle&statuses[]=running").await, [2, 1, 0]);
    let agent = rig.get(&format!("/v1/sessions/{}", sessions[2])).await.ok()["agent"]["id"].clone();
    let agent = agent.as_str().expect("an id");
    assert_eq!(ids(&format!("agent_id={agent}")).await, [2]);
    assert_eq!(ids(&format!("agent_id={agent}&agent_version=2")).await, Vec::<usize>::new());
    assert_eq!(ids("deployment_id=depl_1").await, Vec::<usize>::new());
    let first = rig.get("/v1/sessions?limit=2").await.ok();
    assert_eq!(first["prev_page"], Value::Null);
    let second = rig
        .get(&format!("/v1/sessions?limit=2&page={}", first["next_page"].as_str().expect("more")))
        .await
        .ok();
    assert_eq!((names(&second, "id").len(), &second["next_page"]), (1, &Value::Null));
    let back = rig
        .get(&format!(
            "/v1/sessions?limit=2&page={}",
            second["prev_page"].as_str().expect("a way back")
        ))
        .await
        .ok();
    assert_eq!(names(&back, "id"), names(&first, "id"));
    let cursor = first["next_page"].as_str().expect("more");
    for query in [
        format!("order=asc&page={cursor}"),
        "agent_version=1".to_owned(),
        "statuses[]=asleep".to_owned(),
        "order=up".to_owned(),
    ] {
        rig.get(&format!("/v1/sessions?{query}")).await.invalid();
    }
}

#[tokio::test]
async fn archive_and_delete_are_for_sessions_at_rest() {
    let mut rig = Rig::new().await;
    let (busy, still) = (rig.session(json!([])).await, rig.session(json!([])).await);
    rig.post(&format!("/v1/sessions/{busy}/events"), json!({ "events": [message("go")] }))
        .await
        .ok();
    assert!(rig.act(&format!("/v1/sessions/{busy}/archive")).await.invalid().contains("running"));
    assert!(rig.delete(&format!("/v1/sessions/{busy}")).await.invalid().contains("running"));
    let archived = rig.act(&format!("/v1/sessions/{still}/archive")).await.ok();
    assert_eq!(archived["status"], "terminated");
    let events = format!("/v1/sessions/{still}/events");
    assert_eq!(
        names(&rig.get(&events).await.ok(), "type").last(),
        Some(&"session.status_terminated")
    );
    let late = rig.post(&events, json!({ "events": [message("hello?")] })).await;
    assert_eq!(late.invalid(), format!("Cannot send events to archived session: {still}"));
    assert_eq!(rig.ended.recv().await.expect("told").as_str(), still, "its sandbox goes");
    let deleted = rig.delete(&format!("/v1/sessions/{still}")).await.ok();
    assert_eq!(deleted, json!({ "id": still, "type": "session_deleted" }));
    for path in [format!("/v1/sessions/{still}"), events] {
        assert_eq!(rig.get(&path).await.refusal().0, 404);
    }
    assert_eq!(rig.delete(&format!("/v1/sessions/{still}")).await.refusal().0, 404);
}

#[tokio::test]
async fn the_primary_thread() {
    let rig = Rig::new().await;
    let session = rig.session(json!([])).await;
    let threads = rig.get(&format!("/v1/sessions/{session}/threads")).await.ok();
    insta::assert_json_snapshot!("thread", threads["data"][0], { ".agent" => "[agent]" });
    let path = format!("/v1/sessions/{session}/threads/{}", id(&threads["data"][0]));
    assert_eq!(rig.get(&path).await.ok()["id"], threads["data"][0]["id"]);
    assert_eq!(rig.get(&format!("{path}/events")).await.ok()["data"], json!([]));
    rig.get(&format!("{path}/events?order=asc")).await.invalid();
    assert_eq!(
        rig.get(&format!("/v1/sessions/{session}/threads/sthr_none")).await.refusal().0,
        404
    );
}
