//! Environments: configurations resolved, names unique, an end that is final.

mod rig;

use rig::{Rig, id};
use serde_json::json;

#[tokio::test]
async fn configurations_are_shown_resolved() {
    let rig = Rig::new().await;
    insta::assert_json_snapshot!("environment", rig.environment("one").await);
    let limited = json!({ "type": "cloud", "networking": { "type": "limited", "allowed_hosts": ["*.example.com"] }, "packages": { "pip": ["numpy==2"] } });
    let refused = rig.post("/v1/environments", json!({ "name": "l", "config": limited })).await;
    assert!(refused.invalid().contains("allow_package_managers"));
    let mut open = limited;
    open["networking"]["allow_package_managers"] = json!(true);
    let made = rig.post("/v1/environments", json!({ "name": "l", "config": open })).await.ok();
    assert_eq!(made["config"]["networking"]["allow_mcp_servers"], false);
    assert_eq!(
        made["config"]["packages"],
        json!({ "type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": ["numpy==2"] })
    );
    let hosted = rig
        .post("/v1/environments", json!({ "name": "h", "config": { "type": "self_hosted" } }))
        .await
        .ok();
    assert_eq!(hosted["config"], json!({ "type": "self_hosted" }));
}

#[tokio::test]
async fn names_are_unique_and_bodies_strict() {
    let rig = Rig::new().await;
    rig.environment("one").await;
    let twin = rig.post("/v1/environments", json!({ "name": "one" })).await;
    assert_eq!((twin.refusal().0, twin.header("x-should-retry")), (409, "false"));
    for (body, path) in [
        (json!({}), "name:"),
        (json!({ "name": "x", "config": { "type": "moon" } }), "config.type"),
        (
            json!({ "name": "x", "config": { "type": "self_hosted", "networking": {} } }),
            "config.networking",
        ),
        (
            json!({ "name": "x", "config": { "type": "cloud", "networking": { "type": "limited", "allowed_hosts": ["https://a.com"] } } }),
            "config.networking.allowed_hosts.0",
        ),
        (
            json!({ "name": "x", "config": { "type": "cloud", "packages": { "brew": [] } } }),
            "config.packages.brew",
        ),
        (
            json!({ "name": "x", "config": { "type": "cloud", "packages": { "pip": ["a", "b;id"] } } }),
            "config.packages.pip.1",
        ),
        (
            json!({ "name": "x", "config": { "type": "cloud", "setup": ["true", ""] } }),
            "config.setup.1",
        ),
        (
            json!({ "name": "x", "config": { "type": "cloud", "env": { "A B": "x" } } }),
            "config.env",
        ),
        (json!({ "name": "x", "config": { "type": "cloud", "env": { "A": 1 } } }), "config.env.A"),
        (
            json!({ "name": "x", "config": { "type": "cloud", "env": { "A": "x".repeat(20_000) } } }),
            "config.env",
        ),
        (json!({ "name": "x", "metadata": [] }), "metadata"),
    ] {
        let answer = rig.post("/v1/environments", body.clone()).await;
        assert!(answer.invalid().starts_with(path), "{body}: {}", answer.body);
    }
}

#[tokio::test]
async fn updates_keep_what_they_do_not_name() {
    let rig = Rig::new().await;
    let config = json!({ "type": "cloud", "networking": { "type": "limited", "allowed_hosts": ["a.com"], "allow_package_managers": true } });
    let made = rig.post("/v1/environments", json!({ "name": "one", "description": "d", "config": config, "metadata": { "a": "1" } })).await.ok();
    let path = format!("/v1/environments/{}", id(&made));
    let changed = rig.post(&path, json!({ "metadata": { "a": "", "b": "2" }, "config": { "type": "cloud", "packages": { "npm": ["left-pad"] } } })).await.ok();
    assert_eq!(changed["metadata"], json!({ "b": "2" }));
    assert_eq!(changed["config"]["networking"]["allowed_hosts"], json!(["a.com"]));
    assert_eq!(changed["config"]["packages"]["npm"], json!(["left-pad"]));
    let other = rig.post(&path, json!({ "config": { "type": "self_hosted" } })).await;
    other.invalid();
    assert_eq!(other.body["error"]["details"]["error_code"], "invalid_config_type_change");
    rig.environment("two").await;
    assert_eq!(rig.post(&path, json!({ "name": "two" })).await.refusal().0, 409);
}

#[tokio::test]
async fn archived_and_deleted() {
    let rig = Rig::new().await;
    let path = format!("/v1/environments/{}", id(&rig.environment("one").await));
    assert!(rig.act(&format!("{path}/archive")).await.ok()["archived_at"].is_string());
    let late = rig.post(&path, json!({ "name": "two" })).await;
    late.invalid();
    assert_eq!(late.body["error"]["details"]["error_code"], "environment_archived");
    let agent = rig.agent(json!({})).await;
    let body = json!({ "agent": agent["id"], "environment_id": path.rsplit('/').next() });
    assert!(rig.post("/v1/sessions", body).await.invalid().contains("archived"));
    assert_eq!(rig.delete(&path).await.ok()["type"], "environment_deleted");
    assert_eq!(rig.get(&path).await.refusal().0, 404);
    assert_eq!(rig.delete(&path).await.refusal().0, 404);
    rig.environment("one").await;
}

#[tokio::test]
async fn a_name_that_not_every_store_can_keep_is_refused() {
    let rig = Rig::new().await;
    let refused = rig.post("/v1/environments", serde_json::json!({ "name": "a\0b" })).await;
    assert_eq!(refused.invalid(), "name: must not contain a NUL character");
}

#[tokio::test]
async fn setup_and_variables_are_shown_where_there_are_any() {
    let rig = Rig::new().await;
    let config = json!({ "type": "cloud", "setup": ["make tools"], "env": { "COLOUR": "red" } });
    let made = rig.post("/v1/environments", json!({ "name": "one", "config": config })).await.ok();
    assert_eq!(made["config"]["setup"], json!(["make tools"]));
    assert_eq!(made["config"]["env"], json!({ "COLOUR": "red" }));
    let path = format!("/v1/environments/{}", id(&made));
    let config = json!({ "type": "cloud", "setup": [], "env": {} });
    let changed = rig.post(&path, json!({ "config": config })).await.ok();
    assert!(changed["config"].get("setup").is_none() && changed["config"].get("env").is_none());
}
