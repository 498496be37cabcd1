//! Vaults and credentials: what is shown, what can be changed, what is never seen again.

mod rig;

use rig::{Rig, id};
use serde_json::{Value, json};

/// In every secret that is sent here, and to be seen nowhere.
const HUSH: &str = "hush-4f1c";

fn hush(what: &str) -> String {
    format!("{HUSH}-{what}")
}

async fn vault(rig: &Rig) -> String {
    id(&rig.post("/v1/vaults", json!({ "display_name": "mine" })).await.ok())
}

fn variable(name: &str) -> Value {
    json!({ "auth": {
        "type": "environment_variable", "secret_name": name, "secret_value": hush(name),
        "networking": { "type": "limited", "allowed_hosts": ["api.example.com", "*.example.org", "192.0.2.1"] },
    } })
}

fn oauth(url: &str) -> Value {
    json!({ "display_name": "oauth", "metadata": { "a": "b" }, "auth": {
        "type": "mcp_oauth", "mcp_server_url": url, "access_token": hush("access"), "expires_at": "2030-01-01T00:00:00Z",
        "refresh": {
            "client_id": "me", "refresh_token": hush("refresh"), "token_endpoint": "https://auth.example.com/token", "scope": "read",
            "token_endpoint_auth": { "type": "client_secret_basic", "client_secret": hush("client") },
        },
    } })
}

#[tokio::test]
async fn a_vault_is_made_changed_and_ended() {
    let rig = Rig::new().await;
    let made = rig
        .post("/v1/vaults", json!({ "display_name": "mine", "metadata": { "k": "v" } }))
        .await
        .ok();
    insta::assert_json_snapshot!("vault", made);
    let path = format!("/v1/vaults/{}", id(&made));
    assert_eq!(rig.get(&path).await.ok(), made);
    let changed = rig
        .post(&path, json!({ "display_name": "yours", "metadata": { "k": null, "n": "1" } }))
        .await
        .ok();
    assert_eq!(
        (&changed["display_name"], &changed["metadata"]),
        (&json!("yours"), &json!({ "n": "1" }))
    );
    let same = rig.post(&path, json!({ "display_name": null })).await.ok();
    assert_eq!(same, changed, "nothing was named");
    for (body, field) in [
        (json!({}), "display_name"),
        (json!({ "display_name": "" }), "display_name"),
        (json!({ "display_name": "x".repeat(256) }), "display_name"),
        (json!({ "display_name": "x", "secret": 1 }), "secret"),
    ] {
        assert!(rig.post("/v1/vaults", body).await.invalid().starts_with(field));
    }
    let archived = rig.post(&format!("{path}/archive"), json!({})).await.ok();
    assert!(archived["archived_at"].is_string());
    assert_eq!(
        rig.post(&format!("{path}/archive"), json!({})).await.ok(),
        archived,
        "twice is once"
    );
    assert!(rig.post(&path, json!({ "display_name": "z" })).await.invalid().contains("archived"));
    assert!(
        rig.post(&format!("{path}/credentials"), variable("A"))
            .await
            .invalid()
            .contains("archived")
    );
    assert_eq!(rig.get("/v1/vaults").await.ok()["data"], json!([]));
    let all = rig.get("/v1/vaults?include_archived=true").await.ok();
    assert_eq!(all["data"].as_array().map(Vec::len), Some(1));
    let gone = rig.delete(&path).await.ok();
    assert_eq!(gone, json!({ "id": made["id"], "type": "vault_deleted" }));
    assert_eq!(rig.get(&path).await.status, 404);
}

#[tokio::test]
async fn credentials_of_every_kind_are_shown_without_their_secrets() {
    let rig = Rig::new().await;
    let path = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    let bearer = json!({ "auth": { "type": "static_bearer", "mcp_server_url": "https://one.example.com/mcp", "token": hush("token") } });
    let mut shown = Vec::new();
    for body in [variable("API_TOKEN"), oauth("https://two.example.com/mcp"), bearer] {
        shown.push(rig.post(&path, body).await.ok());
    }
    insta::assert_json_snapshot!("credentials", shown);
    let listed = rig.get(&path).await.ok();
    shown.reverse();
    assert_eq!(listed["data"], json!(shown), "newest first");
    let one = format!("{path}/{}", id(&shown[0]));
    assert_eq!(rig.get(&one).await.ok(), shown[0]);
    let elsewhere = vault(&rig).await;
    let other = rig.get(&format!("/v1/vaults/{elsewhere}/credentials/{}", id(&shown[0]))).await;
    assert_eq!(other.status, 404, "it is in another vault");
    let every = format!("{shown:?}{listed}");
    assert!(!every.contains(HUSH), "{every}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_without_repeating_it() {
    let rig = Rig::new().await;
    let path = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    let with = |mut body: Value, at: &str, value: Value| {
        *body.pointer_mut(at).expect("a place") = value;
        body
    };
    let mut both_off = variable("A");
    both_off["auth"]["injection_location"] = json!({});
    let mut null = variable("A");
    null["auth"]["injection_location"] = json!({ "header": null, "body": true });
    let hosts = |hosts: Value| with(variable("A"), "/auth/networking/allowed_hosts", hosts);
    let mut no_hosts = variable("A");
    no_hosts["auth"]["networking"] = json!({ "type": "limited" });
    for (body, field) in [
        (json!({ "auth": { "type": "password" } }), "auth.type"),
        (json!({}), "auth"),
        (with(variable("A"), "/auth/secret_name", json!("1A")), "auth.secret_name"),
        (with(variable("A"), "/auth/secret_name", json!("A-B")), "auth.secret_name"),
        (with(variable("A"), "/auth/secret_value", json!("")), "auth.secret_value"),
        (with(variable("A"), "/auth/secret_value", json!([hush("list")])), "auth.secret_value"),
        (hosts(json!(["https://a.example"])), "auth.networking.allowed_hosts.0"),
        (hosts(json!(["a.example:443"])), "auth.networking.allowed_hosts.0"),
        (hosts(json!(["[::1]"])), "auth.networking.allowed_hosts.0"),
        (
            hosts(json!((0..17).map(|n| format!("h{n}.example")).collect::<Vec<_>>())),
            "auth.networking.allowed_hosts",
        ),
        (no_hosts, "auth.networking.allowed_hosts"),
        (both_off, "auth.injection_location"),
        (null, "auth.injection_location.header"),
        (with(oauth("ftp://x"), "/display_name", json!("x")), "auth.mcp_server_url"),
        (
            with(oauth("https://x.example"), "/auth/expires_at", json!("2020-01-01T00:00:00Z")),
            "auth.expires_at",
        ),
        (
            with(
                oauth("https://x.example"),
                "/auth/refresh/token_endpoint_auth",
                json!({ "type": "client_secret_post" }),
            ),
            "auth.refresh.token_endpoint_auth.client_secret",
        ),
        (with(oauth("https://x.example"), "/metadata", json!({ "": "x" })), "metadata"),
    ] {
        let answer = rig.post(&path, body.clone()).await;
        assert!(answer.invalid().starts_with(field), "{body}: {}", answer.body);
        assert!(!answer.body.to_string().contains(HUSH), "{}", answer.body);
    }
    assert_eq!(rig.get(&path).await.ok()["data"], json!([]));
}

#[tokio::test]
async fn metadata_can_say_that_a_credential_is_for_headers() {
    let rig = Rig::new().await;
    let metadata = json!({
        "vaquero.managed_agents.role": "credential",
        "vaquero.managed_agents.kind": "http_headers",
        "vaquero.managed_agents.target_domains": "api.example.com",
        "vaquero.managed_agents.headers_json": r#"{"x-api-key":"{{ .token }}"}"#,
    });
    let mut wrong = metadata.clone();
    wrong["vaquero.managed_agents.kind"] = json!("oauth");
    let refused = rig.post("/v1/vaults", json!({ "display_name": "v", "metadata": wrong })).await;
    assert!(refused.invalid().starts_with("metadata.vaquero.managed_agents.kind: expected"));
    let made = rig.post("/v1/vaults", json!({ "display_name": "v", "metadata": metadata })).await;
    let vault = format!("/v1/vaults/{}", id(&made.ok()));
    let path = format!("{vault}/credentials");
    let token = json!({ "auth": { "type": "static_bearer", "token": hush("token") } });
    for (body, field) in [
        (variable("A"), "auth.type: this vault's credential goes into headers"),
        (
            json!({ "auth": { "type": "static_bearer", "token": hush("t"), "mcp_server_url": "https://m.example" } }),
            "auth.mcp_server_url",
        ),
    ] {
        let refused = rig.post(&path, body).await;
        let said = refused.invalid();
        assert!(said.starts_with(field), "{said}");
    }
    let shown = rig.post(&path, token.clone()).await.ok();
    assert_eq!(shown["auth"], json!({ "type": "static_bearer", "mcp_server_url": "" }));
    assert_eq!(rig.post(&path, token.clone()).await.status, 409, "exactly one is active");
    // What its credentials are for does not change under them.
    let plain = json!({ "metadata": {
        "vaquero.managed_agents.role": null, "vaquero.managed_agents.kind": null,
        "vaquero.managed_agents.target_domains": null, "vaquero.managed_agents.headers_json": null,
    } });
    assert!(rig.post(&vault, plain.clone()).await.invalid().contains("archive them first"));
    let one = json!({ "metadata": { "vaquero.managed_agents.target_domains": "b.example.com" } });
    rig.post(&vault, one).await.ok();
    rig.post(&format!("{path}/{}/archive", id(&shown)), json!({})).await.ok();
    rig.post(&vault, plain).await.ok();
    assert!(rig.post(&path, token).await.invalid().starts_with("auth.mcp_server_url"));
}

#[tokio::test]
async fn what_is_fixed_stays_and_the_rest_changes() {
    let rig = Rig::new().await;
    let path = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    let made = rig.post(&path, variable("TOKEN")).await.ok();
    assert_eq!(made["auth"]["injection_location"], json!({ "header": true, "body": true }));
    let one = format!("{path}/{}", id(&made));
    let change = async |auth: Value| {
        let mut body = json!({ "auth": { "type": "environment_variable" } });
        body["auth"]
            .as_object_mut()
            .expect("an object")
            .extend(auth.as_object().cloned().expect("an object"));
        rig.post(&one, body).await
    };
    let changed = change(json!({ "injection_location": { "body": false } })).await.ok();
    assert_eq!(changed["auth"]["injection_location"], json!({ "header": true, "body": false }));
    assert!(
        change(json!({ "injection_location": { "header": false } }))
            .await
            .invalid()
            .contains("at least one")
    );
    assert!(
        change(json!({ "injection_location": null })).await.invalid().contains("omit the field")
    );
    let changed =
        change(json!({ "networking": { "type": "unrestricted" }, "secret_value": hush("new") }))
            .await
            .ok();
    assert_eq!(changed["auth"]["networking"], json!({ "type": "unrestricted" }));
    assert!(
        change(json!({ "secret_name": "OTHER" })).await.invalid().contains("cannot be changed")
    );
    assert!(
        rig.post(&one, json!({ "auth": { "type": "static_bearer", "token": "x" } }))
            .await
            .invalid()
            .starts_with("auth.type")
    );
    let named = rig.post(&one, json!({ "display_name": "n", "metadata": { "a": "b" } })).await.ok();
    assert_eq!((&named["display_name"], &named["auth"]), (&json!("n"), &changed["auth"]));
    assert_eq!(
        rig.post(&one, json!({ "display_name": null })).await.ok()["display_name"],
        Value::Null
    );

    let made = rig.post(&path, oauth("https://mcp.example.com/")).await.ok();
    let one = format!("{path}/{}", id(&made));
    let refresh = |refresh: Value| json!({ "auth": { "type": "mcp_oauth", "access_token": hush("2"), "refresh": refresh } });
    let changed = rig.post(&one, refresh(json!({ "scope": "", "refresh_token": hush("3"), "token_endpoint_auth": { "type": "client_secret_post", "client_secret": hush("4") } }))).await.ok();
    assert_eq!(changed["auth"]["refresh"]["scope"], Value::Null);
    assert_eq!(
        changed["auth"]["refresh"]["token_endpoint_auth"],
        json!({ "type": "client_secret_basic" }),
        "it keeps its kind"
    );
    assert_eq!(changed["auth"]["expires_at"], made["auth"]["expires_at"], "the old expiry stays");
    assert!(
        rig.post(&one, refresh(json!({ "client_id": "you" })))
            .await
            .invalid()
            .contains("cannot be changed")
    );
    let validated = rig.post(&format!("{one}/mcp_oauth_validate"), json!({})).await.ok();
    insta::assert_json_snapshot!("validation", validated);
}

#[tokio::test]
async fn keys_are_unique_among_what_is_active() {
    let rig = Rig::new().await;
    let path = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    let first = rig.post(&path, oauth("https://MCP.example.com:443/a/")).await.ok();
    let bearer = json!({ "auth": { "type": "static_bearer", "mcp_server_url": "https://mcp.example.com/a", "token": "t" } });
    assert_eq!(
        rig.post(&path, bearer.clone()).await.refusal().0,
        409,
        "the same server in another spelling"
    );
    let elsewhere = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    rig.post(&elsewhere, bearer.clone()).await.ok();
    let archived = rig.post(&format!("{path}/{}/archive", id(&first)), json!({})).await.ok();
    assert!(archived["archived_at"].is_string());
    assert!(
        rig.post(&format!("{path}/{}", id(&first)), json!({ "display_name": "x" }))
            .await
            .invalid()
            .contains("archived")
    );
    rig.post(&path, bearer).await.ok();
    for number in 1..20 {
        rig.post(&path, variable(&format!("V{number}"))).await.ok();
    }
    assert!(rig.post(&path, variable("V20")).await.invalid().contains("at most 20"));
    let page = rig.get(&format!("{path}?limit=15")).await.ok();
    let next = page["next_page"].as_str().expect("another page").to_owned();
    let rest = rig.get(&format!("{path}?limit=15&page={next}")).await.ok();
    assert_eq!(rest["data"].as_array().map(Vec::len), Some(5));
    let all = rig.get(&format!("{path}?include_archived=true&limit=100")).await.ok();
    assert_eq!(all["data"].as_array().map(Vec::len), Some(21));
    let gone = rig.delete(&format!("{path}/{}", id(&first))).await.ok();
    assert_eq!(gone, json!({ "id": first["id"], "type": "vault_credential_deleted" }));
}

#[tokio::test]
async fn the_end_of_a_vault_is_the_end_of_its_secrets() {
    let rig = Rig::new().await;
    let vault = vault(&rig).await;
    let path = format!("/v1/vaults/{vault}/credentials");
    let credential = id(&rig.post(&path, variable("A")).await.ok());
    assert!(rig.secret(&credential).await, "sealed and kept");
    rig.post(&format!("/v1/vaults/{vault}/archive"), json!({})).await.ok();
    assert!(!rig.secret(&credential).await, "purged");
    let kept = rig.get(&format!("{path}/{credential}")).await.ok();
    assert!(kept["archived_at"].is_string(), "its record stays");
    rig.delete(&format!("/v1/vaults/{vault}")).await.ok();
    assert_eq!(rig.get(&format!("{path}/{credential}")).await.status, 404);
}

#[tokio::test]
async fn two_that_come_at_once_are_both_counted() {
    let rig = Rig::new().await;
    let path = format!("/v1/vaults/{}/credentials", vault(&rig).await);
    let made = futures::future::join_all(
        (0..24).map(|number| rig.post(&path, variable(&format!("V{number}")))),
    )
    .await;
    let made = made.into_iter().filter(|answer| answer.status == 200).count();
    assert_eq!(made, 20);
}
