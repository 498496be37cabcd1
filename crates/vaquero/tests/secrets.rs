//! A secret's whole way: given to a vault, unknown in the sandbox, known to the host it is for, and gone from what the host says back.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use vaquero_testkit::{Model, Server, eventually, of_type};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");
const HUSH: &str = "hush-0c77b1";

/// A host that speaks TLS, remembers what it reads and repeats it.
struct Host {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    root: String,
}

async fn host() -> anyhow::Result<Host> {
    let (root_key, leaf_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = root.self_signed(&root_key)?.pem();
    let names = ["allowed.test", "other.test"].map(str::to_owned).to_vec();
    let leaf = CertificateParams::new(names)?.signed_by(&leaf_key, &Issuer::new(root, root_key))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let (tasks, remember) = (TaskTracker::new(), Arc::clone(&heard));
    tasks.clone().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, remember) = (acceptor.clone(), Arc::clone(&remember));
            tasks.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = Vec::new();
                while !request.ends_with(b"END") {
                    let mut buffer = [0; 4096];
                    match stream.read(&mut buffer).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                        _ => return,
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                remember.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    Ok(Host { port, heard, root: pem })
}

struct Rig {
    server: Server,
    host: Host,
    vault: String,
    credential: String,
    session: String,
    _model: Model,
}

async fn id(server: &Server, path: &str, body: Value) -> anyhow::Result<String> {
    let made = server.client().post(path, body).await?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

/// A session whose vault has `TOKEN`, for `allowed.test`.
async fn rig() -> anyhow::Result<Rig> {
    let (model, host) = (Model::start().await?, host().await?);
    let mut server = Server::new(EXE, &model.base)?;
    let root = server.data().join("root.pem");
    fs::write(&root, &host.root)?;
    server.set("SSL_CERT_FILE", &root.display().to_string());
    server.set("VAQUERO_TEST_HOSTS", "allowed.test=127.0.0.1,other.test=127.0.0.1");
    server.set("VAQUERO_EGRESS_ALLOW_PRIVATE", "127.0.0.1");
    server.set("VAQUERO_VAULT_KEY", "dmFxdWVybyB0ZXN0cyBuZWVkIGEga2V5IGFzIHdlbGw=");
    server.start().await?;
    let vault = id(&server, "/v1/vaults", json!({ "display_name": "v" })).await?;
    let auth = json!({
        "type": "environment_variable", "secret_name": "TOKEN", "secret_value": format!("{HUSH}-first"),
        "networking": { "type": "limited", "allowed_hosts": ["allowed.test"] },
    });
    let credential =
        id(&server, &format!("/v1/vaults/{vault}/credentials"), json!({ "auth": auth })).await?;
    let tools = json!([{ "type": "agent_toolset_20260401" }]);
    let agent =
        id(&server, "/v1/agents", json!({ "name": "a", "model": "scripted", "tools": tools }))
            .await?;
    let environment = id(&server, "/v1/environments", json!({ "name": "e" })).await?;
    let body = json!({ "agent": agent, "environment_id": environment, "vault_ids": [vault] });
    let session = id(&server, "/v1/sessions", body).await?;
    Ok(Rig { server, host, vault, credential, session, _model: model })
}

impl Rig {
    /// What a command prints in the sandbox.
    async fn sh(&self, command: &str) -> anyhow::Result<String> {
        self.server.client().sh(&self.session, command).await
    }

    /// Sends the variable to a host, in a header and in the body; what the sandbox reads back.
    async fn send(&self, name: &str, how: &str) -> anyhow::Result<String> {
        let program = format!(
            "import os, urllib.request as u; t = os.environ[\"TOKEN\"]; print(u.urlopen(u.Request(\"https://{name}:{}/\", headers={{\"X-Key\": t}}, data=(t + \" END\").encode())).read().decode())",
            self.host.port
        );
        self.sh(&format!("{how} python3 -c '{program}' 2>&1")).await
    }

    /// What the host has read last.
    fn heard(&self) -> String {
        self.host
            .heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .cloned()
            .unwrap_or_default()
    }
}

/// Without the variables that name the proxy.
const BARE: &str = "env -u HTTP_PROXY -u HTTPS_PROXY -u http_proxy -u https_proxy";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_reaches_its_host_and_never_the_sandbox() -> anyhow::Result<()> {
    let mut rig = rig().await?;
    let shown = rig.server.client().get(&format!("/v1/sessions/{}", rig.session)).await?;
    assert_eq!(shown["vault_ids"], json!([rig.vault]));
    let stand_in = rig.sh("echo $TOKEN").await?;
    assert!(stand_in.starts_with("vaquero_placeholder_"), "{stand_in}");
    for how in ["", BARE] {
        let back = rig.send("allowed.test", how).await?;
        let heard = rig.heard();
        assert_eq!(
            heard.matches(&format!("{HUSH}-first")).count(),
            2,
            "header and body: {back}\n{heard}"
        );
        assert!(back.contains("****") && !back.contains(HUSH), "{how}: {back}");
    }
    let hunted = rig.sh(&format!("grep -rIl {HUSH} /etc /root /workspace /tmp /run /mnt /proc/1/environ /proc/self/environ 2>/dev/null; env | grep -c {HUSH}; echo looked")).await?;
    assert_eq!(hunted.trim(), "0\nlooked");
    let other = rig.send("other.test", "").await?;
    assert!(other.contains("CERTIFICATE_VERIFY_FAILED"), "not opened, and not trusted: {other}");

    // Another server goes on with the same sandbox and the same authority.
    rig.server.kill().await?;
    rig.server.start().await?;
    let back = rig.send("allowed.test", "").await?;
    assert!(back.contains("****"), "{back}");

    // A new secret is used soon, and an archived one no more.
    let path = format!("/v1/vaults/{}/credentials/{}", rig.vault, rig.credential);
    let auth = json!({ "type": "environment_variable", "secret_value": format!("{HUSH}-second") });
    rig.server.client().post(&path, json!({ "auth": auth })).await?;
    eventually("the new secret is used", async || {
        rig.send("allowed.test", "").await.ok()?;
        rig.heard().contains(&format!("{HUSH}-second")).then_some(())
    })
    .await?;
    rig.server.client().post(&format!("{path}/archive"), json!({})).await?;
    eventually("its host is not opened any more", async || {
        let said = rig.send("allowed.test", "").await.ok()?;
        said.contains("CERTIFICATE_VERIFY_FAILED").then_some(())
    })
    .await?;
    let events = rig.server.client().events(&rig.session).await?;
    // The search above names its beginning.
    let events = json!(events).to_string();
    let whole = ["first", "second"].map(|which| format!("{HUSH}-{which}"));
    assert!(whole.iter().all(|secret| !events.contains(secret)), "no event has it");
    Ok(())
}

/// Asks for what its argument names, and prints the answer.
const ASK: &str = r#"
import java.net.URI;
import java.net.http.*;

class Ask {
    public static void main(String[] args) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString(System.getenv("TOKEN") + " END");
        var request = HttpRequest.newBuilder(URI.create(args[0])).POST(body);
        var answer = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()
            .send(request.build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.body());
    }
}
"#;

/// Java has its own store of certificates and honours no proxy variables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_of_a_warm_pool_is_given_the_secrets_of_its_session() -> anyhow::Result<()> {
    let mut rig = rig().await?;
    let client = rig.server.client().clone();
    let config = json!({ "type": "cloud", "warm_pool": {} });
    let body = json!({ "name": "warm", "config": config });
    let environment = id(&rig.server, "/v1/environments", body).await?;
    let pool = format!("pool=\"{environment}\"");
    let full = async || {
        eventually("a sandbox is ready", async || {
            let ready = client.metric("vaquero_sandbox_pool_ready", &[&pool]).await;
            (ready.as_deref() == Some("1")).then_some(())
        })
        .await
    };
    let tools = json!([{ "type": "agent_toolset_20260401" }]);
    let agent = json!({ "name": "b", "model": "scripted", "tools": tools });
    let agent = id(&rig.server, "/v1/agents", agent).await?;
    for vaults in [json!([rig.vault]), json!([])] {
        full().await?;
        let secret = vaults != json!([]);
        let body = json!({ "agent": agent, "environment_id": environment, "vault_ids": vaults });
        rig.session = id(&rig.server, "/v1/sessions", body).await?;
        let said = rig.sh("echo \"token: $TOKEN\"; ls -A").await?;
        assert_eq!(said.starts_with("token: \n"), !secret, "{said}");
        assert!(!said.contains(HUSH), "{said}");
        if secret {
            let back = rig.send("allowed.test", "").await?;
            assert!(rig.heard().contains(&format!("{HUSH}-first END")), "{back}: {}", rig.heard());
            assert!(!back.contains(HUSH), "{back}");
        }
    }
    let given = ["from=\"pool\"", pool.as_str()];
    let given = client.metric("vaquero_sandbox_claim_seconds_count", &given).await;
    assert_eq!(given.as_deref(), Some("2"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_trusts_what_opens_its_connections() -> anyhow::Result<()> {
    let rig = rig().await?;
    if !rig.sh("command -v javac").await?.contains("/javac") {
        println!("left out: there is no JDK in these sandboxes");
        return Ok(());
    }
    let said = rig
        .sh(&format!(
            "echo '{}' > Ask.java; java Ask.java https://allowed.test:{}/ 2>&1",
            ASK.replace('\n', " "),
            rig.host.port
        ))
        .await?;
    assert!(said.contains("****") && !said.contains(HUSH), "{said}");
    assert!(rig.heard().contains(&format!("{HUSH}-first END")), "{said}");
    let other =
        rig.sh(&format!("java Ask.java https://other.test:{}/ 2>&1", rig.host.port)).await?;
    assert!(other.contains("unable to find valid certification path"), "{other}");
    Ok(())
}

/// A vault in the shape that Sandbox0's users know: its metadata says where the credential goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_can_say_into_which_headers_its_credential_goes() -> anyhow::Result<()> {
    let mut rig = rig().await?;
    let client = rig.server.client();
    let metadata = json!({
        "sandbox0.managed_agents.role": "credential",
        "sandbox0.managed_agents.kind": "http_headers",
        "sandbox0.managed_agents.target_domains": "https://other.test/api",
        "sandbox0.managed_agents.headers_json": r#"{"authorization":"{{ .authorization }}","x-key":"k={{ .token }}"}"#,
    });
    let body = json!({ "display_name": "headers", "metadata": metadata });
    let vault = id(&rig.server, "/v1/vaults", body).await?;
    let auth = json!({ "type": "static_bearer", "token": format!("{HUSH}-header") });
    let credentials = format!("/v1/vaults/{vault}/credentials");
    let credential = id(&rig.server, &credentials, json!({ "auth": auth })).await?;
    // The host need not be among those of the environment.
    let networking = json!({ "type": "limited" });
    let config = json!({ "type": "cloud", "networking": networking });
    let environment =
        id(&rig.server, "/v1/environments", json!({ "name": "narrow", "config": config })).await?;
    let session = client.get(&format!("/v1/sessions/{}", rig.session)).await?;
    let body = json!({ "agent": session["agent"]["id"], "environment_id": environment, "vault_ids": [rig.vault, vault] });
    rig.session = id(&rig.server, "/v1/sessions", body).await?;
    let back = rig.send("other.test", "").await?;
    let heard = rig.heard().to_lowercase();
    assert!(heard.contains(&format!("authorization: bearer {HUSH}-header")), "{heard}\n{back}");
    assert!(heard.contains(&format!("x-key: k={HUSH}-header")), "{heard}");
    assert!(back.contains("****") && !back.contains(HUSH), "{back}");
    assert!(back.contains("vaquero_placeholder_"), "the other secret is not for this host: {back}");
    assert!(rig.send("allowed.test", "").await?.contains("403"));
    // Without its credential, nothing is sent.
    client.post(&format!("{credentials}/{credential}/archive"), json!({})).await?;
    eventually("requests are refused", async || {
        let said = rig.send("other.test", "").await.ok()?;
        said.contains("502").then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_for_a_host_that_is_not_allowed_is_named() -> anyhow::Result<()> {
    let mut rig = rig().await?;
    let networking = json!({ "type": "limited", "allowed_hosts": ["other.test"] });
    let config = json!({ "type": "cloud", "networking": networking });
    let environment =
        id(&rig.server, "/v1/environments", json!({ "name": "narrow", "config": config })).await?;
    let session = rig.server.client().get(&format!("/v1/sessions/{}", rig.session)).await?;
    let body = json!({ "agent": session["agent"]["id"], "environment_id": environment, "vault_ids": [rig.vault] });
    rig.session = id(&rig.server, "/v1/sessions", body).await?;
    rig.sh("true").await?;
    rig.sh("true").await?;
    let events = rig.server.client().events(&rig.session).await?;
    let errors = of_type(&events, "session.error");
    assert_eq!(errors.len(), 1, "said once");
    let error = &errors[0]["error"];
    assert_eq!(error["type"], "credential_host_unreachable_error");
    assert_eq!(
        (&error["vault_id"], &error["credential_id"]),
        (&json!(rig.vault), &json!(rig.credential))
    );
    assert!(error["message"].as_str().is_some_and(|text| text.contains("allowed.test")), "{error}");
    assert!(rig.send("allowed.test", "").await?.contains("403"), "and it is not reached");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vaults_of_sessions_are_checked() -> anyhow::Result<()> {
    let rig = rig().await?;
    let client = rig.server.client();
    let session = client.get(&format!("/v1/sessions/{}", rig.session)).await?;
    let body = |vaults: Value| json!({ "agent": session["agent"]["id"], "environment_id": session["environment_id"], "vault_ids": vaults });
    let refused = async |vaults: Value| -> anyhow::Result<String> {
        let answer = client.post("/v1/sessions", body(vaults)).await;
        Ok(answer.err().context("it must be refused")?.to_string())
    };
    assert!(refused(json!(["vlt_none"])).await?.contains("vault `vlt_none` not found"));
    assert!(refused(json!([1])).await?.contains("vault_ids.0"));
    assert!(refused(json!(vec![rig.vault.clone(); 51])).await?.contains("vault_ids"));
    let update =
        client.post(&format!("/v1/sessions/{}", rig.session), json!({ "vault_ids": [] })).await;
    assert!(update.is_err_and(|error| error.to_string().contains("vault_ids")));
    client.post(&format!("/v1/vaults/{}/archive", rig.vault), json!({})).await?;
    assert!(refused(json!([rig.vault])).await?.contains("archived"));
    Ok(())
}
