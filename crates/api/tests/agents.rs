//! Agents: resolved in every answer, versioned by every change, and no version without one.

mod rig;

use rig::{Rig, id, merge, names};
use serde_json::{Value, json};

async fn refuse(rig: &Rig, more: Value) -> String {
    let mut body = json!({ "name": "a", "model": "m" });
    merge(&mut body, more);
    rig.post("/v1/agents", body).await.invalid().to_owned()
}

#[tokio::test]
async fn an_agent_is_shown_resolved() {
    let rig = Rig::new().await;
    let tools = json!([
        { "type": "agent_toolset_20260401", "configs": [{ "name": "bash", "permission_policy": { "type": "always_ask" } }, { "name": "web_search", "enabled": false }] },
        { "type": "custom", "name": "ask", "description": "asks", "input_schema": { "type": "object", "properties": { "q": { "type": "string" } } } },
    ]);
    let agent = rig.agent(json!({ "tools": tools, "metadata": { "k": "v" }, "system": "s" })).await;
    insta::assert_json_snapshot!("agent", agent);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_its_path() {
    let rig = Rig::new().await;
    let custom = |name: &str| json!({ "type": "custom", "name": name, "description": "d", "input_schema": { "type": "object" } });
    let cases = [
        (json!({ "name": null }), "name:"),
        (json!({ "name": "" }), "name:"),
        (json!({ "name": "x".repeat(257) }), "name:"),
        (json!({ "model": 5 }), "model:"),
        (json!({ "model": { "id": "m", "effort": "heroic" } }), "model.effort"),
        (json!({ "model": { "id": "claude-haiku-4-5", "speed": "fast" } }), "model.speed"),
        (
            json!({ "model": { "id": "claude-sonnet-4-5", "inference_geo": "us" } }),
            "model.inference_geo",
        ),
        (json!({ "model": { "id": "m", "colour": "red" } }), "model.colour"),
        (json!({ "description": "x".repeat(2049) }), "description:"),
        (json!({ "system": "x".repeat(100_001) }), "system:"),
        (json!({ "nonsense": 1 }), "nonsense:"),
        (json!({ "metadata": { "k": 1 } }), "metadata.k"),
        (json!({ "metadata": { "x".repeat(65): "v" } }), "metadata"),
        (json!({ "tools": {} }), "tools:"),
        (json!({ "tools": [{ "type": "nothing" }] }), "tools.0.type"),
        (
            json!({ "tools": [{ "type": "agent_toolset_20260401", "configs": [{ "name": "fly" }] }] }),
            "tools.0.configs.0.name",
        ),
        (json!({ "tools": [custom("bash")] }), "tools.0.name"),
        (json!({ "tools": [custom("mcp__x")] }), "tools.0.name"),
        (json!({ "tools": [custom("a"), custom("a")] }), "tools.1.name"),
        (
            json!({ "tools": [{ "type": "mcp_toolset", "mcp_server_name": "none" }] }),
            "tools.0.mcp_server_name",
        ),
        (
            json!({ "mcp_servers": [{ "type": "url", "name": "s", "url": "https://example.com" }] }),
            "mcp_servers",
        ),
    ];
    for (more, path) in cases {
        let message = refuse(&rig, more.clone()).await;
        assert!(message.starts_with(path), "{more}: {message}");
    }
    assert_eq!(rig.get("/v1/agents").await.ok()["data"], json!([]), "nothing was made");
}

#[tokio::test]
async fn a_change_makes_a_version_and_no_change_makes_none() {
    let rig = Rig::new().await;
    let agent = rig.agent(json!({ "description": "d", "metadata": { "a": "1", "b": "2" } })).await;
    let path = format!("/v1/agents/{}", id(&agent));
    for same in [
        json!({}),
        json!({ "name": "a" }),
        json!({ "metadata": { "a": "1" } }),
        json!({ "version": 1 }),
        json!({ "model": "claude-opus-5-5" }),
    ] {
        assert_eq!(rig.post(&path, same).await.ok(), agent);
    }
    let changed = rig
        .post(&path, json!({ "description": "", "metadata": { "a": null, "c": "3" } }))
        .await
        .ok();
    assert_eq!((&changed["version"], &changed["description"]), (&json!(2), &Value::Null));
    assert_eq!(changed["metadata"], json!({ "b": "2", "c": "3" }));
    assert!(changed["updated_at"].as_str() > agent["updated_at"].as_str());
    let stale = rig.post(&path, json!({ "version": 1, "name": "a" })).await;
    assert_eq!((stale.refusal().0, stale.header("x-should-retry")), (409, "false"));
    assert!(rig.post(&path, json!({ "version": 0 })).await.invalid().starts_with("version:"));
    assert!(rig.post(&path, json!({ "name": null })).await.invalid().starts_with("name:"));
    assert_eq!(rig.get(&format!("{path}?version=1")).await.ok(), agent);
    assert_eq!(rig.get(&format!("{path}?version=3")).await.refusal().0, 404);
    let versions = rig.get(&format!("{path}/versions")).await.ok();
    assert_eq!(versions["data"], json!([changed, agent]));
}

#[tokio::test]
async fn an_agent_that_lists_itself_keeps_its_version() {
    let rig = Rig::new().await;
    let roster = json!({ "type": "coordinator", "agents": [{ "type": "self" }] });
    let agent = rig.agent(json!({ "multiagent": roster })).await;
    let path = format!("/v1/agents/{}", id(&agent));
    assert_eq!(rig.post(&path, json!({ "multiagent": roster })).await.ok(), agent);
    let changed = rig.post(&path, json!({ "name": "b" })).await.ok();
    assert_eq!(changed["version"], 2);
    assert_eq!(changed["multiagent"]["agents"][0]["version"], 2, "itself, as it is now");
}

#[tokio::test]
async fn archived_is_archived() {
    let rig = Rig::new().await;
    let path = format!("/v1/agents/{}", id(&rig.agent(json!({})).await));
    let archived = rig.act(&format!("{path}/archive")).await.ok();
    assert!(archived["archived_at"].is_string());
    assert_eq!(
        rig.act(&format!("{path}/archive")).await.ok()["archived_at"],
        archived["archived_at"]
    );
    assert!(rig.post(&path, json!({ "name": "b" })).await.invalid().contains("archived"));
    assert_eq!(rig.get("/v1/agents").await.ok()["data"], json!([]));
    assert_eq!(
        rig.get("/v1/agents?include_archived=true").await.ok()["data"].as_array().map(Vec::len),
        Some(1)
    );
    let environment = rig.environment("e").await;
    let body = json!({ "agent": archived["id"], "environment_id": environment["id"] });
    assert!(rig.post("/v1/sessions", body).await.invalid().contains("archived"));
}

#[tokio::test]
async fn lists_page_newest_first_and_cursors_are_strict() {
    let rig = Rig::new().await;
    for number in 0..5 {
        rig.agent(json!({ "name": format!("a{number}") })).await;
    }
    let mut seen: Vec<String> = Vec::new();
    let mut path = "/v1/agents?limit=2".to_owned();
    loop {
        let page = rig.get(&path).await.ok();
        seen.extend(names(&page, "name").into_iter().map(str::to_owned));
        let Some(next) = page["next_page"].as_str() else { break };
        path = format!("/v1/agents?limit=2&page={next}");
    }
    assert_eq!(seen, ["a4", "a3", "a2", "a1", "a0"]);
    for (query, path) in [
        ("limit=0", "limit:"),
        ("limit=101", "limit:"),
        ("limit=x", "limit:"),
        ("page=x", "page:"),
        ("nonsense=1", "nonsense:"),
        ("limit=1&limit=2", "limit:"),
        ("created_at[gte]=yesterday", "created_at[gte]:"),
        ("include_archived=perhaps", "include_archived:"),
    ] {
        let answer = rig.get(&format!("/v1/agents?{query}")).await;
        assert!(answer.invalid().starts_with(path), "{query}: {}", answer.body);
    }
    let all = rig.get("/v1/agents").await.ok();
    let middle = all["data"][2]["created_at"].as_str().expect("a time");
    let late = rig.get(&format!("/v1/agents?created_at%5Bgte%5D={middle}")).await.ok();
    assert_eq!(names(&late, "name"), ["a4", "a3", "a2"]);
    let cursor = rig.get("/v1/agents?limit=2").await.ok()["next_page"].clone();
    let misused = format!("/v1/sessions?page={}", cursor.as_str().expect("a cursor"));
    assert!(rig.get(&misused).await.invalid().starts_with("page:"));
}
