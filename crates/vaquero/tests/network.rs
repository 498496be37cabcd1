//! What sandboxes reach, as commands in them see it: with proxy variables and without, where it is allowed and where it is not.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use vaquero_testkit::{Model, Server, eventually};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");

/// A host that answers every request with one page, and counts them.
struct Page {
    port: u16,
    asked: Arc<AtomicUsize>,
}

async fn page() -> anyhow::Result<Page> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio_util::task::TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                count.fetch_add(1, Ordering::SeqCst);
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                drop(stream.write_all(answer).await);
            }
        }
    });
    Ok(Page { port, asked })
}

struct Rig {
    server: Server,
    page: Page,
    _model: Model,
}

/// A server for which `allowed.test`, `sub.allowed.test` and `other.test` are a host on this machine's loopback, which the operator allows or not.
async fn rig(operator_allows: bool) -> anyhow::Result<Rig> {
    let (model, page) = (Model::start().await?, page().await?);
    let mut server = Server::new(EXE, &model.base)?;
    server.set(
        "VAQUERO_TEST_HOSTS",
        "allowed.test=127.0.0.1,sub.allowed.test=127.0.0.1,other.test=127.0.0.1",
    );
    if operator_allows {
        server.set("VAQUERO_EGRESS_ALLOW_PRIVATE", "127.0.0.1");
    }
    server.start().await?;
    Ok(Rig { server, page, _model: model })
}

impl Rig {
    async fn session(&self, networking: Value) -> anyhow::Result<String> {
        let config = json!({ "type": "cloud", "networking": networking });
        self.server.client().session_in(config).await
    }

    async fn sh(&self, session: &str, command: &str) -> anyhow::Result<String> {
        self.server.client().sh(session, command).await
    }

    fn asked(&self) -> usize {
        self.page.asked.load(Ordering::SeqCst)
    }
}

/// Connects without any proxy, sends a request, prints what comes: `raw HOST PORT NAME`.
fn raw(host: &str, port: u16, name: &str) -> String {
    format!(
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(PeerAddr => \"{host}\", PeerPort => {port}, Timeout => 10) or die \"no connection: $@\"; print $s \"GET / HTTP/1.0\\r\\nhost: {name}\\r\\n\\r\\n\"; print while <$s>' 2>&1"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_hosts_are_reached_with_a_proxy_and_without() -> anyhow::Result<()> {
    let rig = rig(true).await?;
    let limited = json!({ "type": "limited", "allowed_hosts": ["allowed.test", "*.allowed.test"] });
    let session = rig.session(limited).await?;
    let port = rig.page.port;
    let proxy = format!(
        "perl -MIO::Socket::INET -e '$ENV{{http_proxy}} =~ m{{//(.*)}}; $s = IO::Socket::INET->new(PeerAddr => $1); print $s \"GET http://allowed.test:{port}/ HTTP/1.0\\r\\nhost: allowed.test:{port}\\r\\n\\r\\n\"; print while <$s>'"
    );
    for command in [
        proxy,
        raw("allowed.test", port, "allowed.test"),
        raw("sub.allowed.test", port, "sub.allowed.test"),
    ] {
        let said = rig.sh(&session, &command).await?;
        assert!(said.contains("200 OK") && said.ends_with("hello"), "{command}\n{said}");
    }
    assert_eq!(rig.asked(), 3);
    let said = rig.sh(&session, &raw("allowed.test", port, "other.test")).await?;
    assert!(said.contains("403") && said.contains("is for `other.test`"), "{said}");
    let said = rig.sh(&session, &raw("other.test", port, "other.test")).await?;
    assert!(said.contains("no connection"), "the name is not known: {said}");
    for address in ["127.0.0.2", "10.0.0.1", "169.254.169.254", "1.1.1.1"] {
        let said = rig.sh(&session, &raw(address, port, "allowed.test")).await?;
        let refused =
            said.contains("is not among the allowed_hosts") || said.contains("no connection");
        assert!(refused && !said.contains("hello"), "{address}: {said}");
    }
    assert_eq!(rig.asked(), 3, "nothing else has arrived");
    let metrics =
        rig.server.client().request(reqwest::Method::GET, "/metrics").send().await?.text().await?;
    assert!(metrics.contains("vaquero_egress_connections_total 4"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unrestricted_environment_reaches_no_private_address_unasked() -> anyhow::Result<()> {
    let rig = rig(false).await?;
    let session = rig.session(json!({ "type": "unrestricted" })).await?;
    let port = rig.page.port;
    for host in ["allowed.test", "10.0.0.1", "192.168.0.1"] {
        let said = rig.sh(&session, &raw(host, port, host)).await?;
        assert!(
            said.contains("--egress-allow-private") && !said.contains("hello"),
            "{host}: {said}"
        );
    }
    let own = rig.sh(&session, &raw("127.0.0.1", port, "x")).await?;
    assert!(own.contains("no connection"), "its loopback is its own: {own}");
    let gone = rig.sh(&session, &raw("nowhere.invalid", port, "x")).await?;
    assert!(gone.contains("no connection"), "{gone}");
    assert_eq!(rig.asked(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_keeps_its_network_when_its_server_changes() -> anyhow::Result<()> {
    let mut rig = rig(true).await?;
    let session = rig.session(json!({ "type": "unrestricted" })).await?;
    let command = raw("allowed.test", rig.page.port, "allowed.test");
    assert!(rig.sh(&session, &command).await?.ends_with("hello"));
    rig.sh(&session, "sleep 1000 & echo $! > /tmp/kept").await?;
    rig.server.kill().await?;
    rig.server.start().await?;
    assert!(rig.sh(&session, &command).await?.ends_with("hello"));
    let kept = rig.sh(&session, "kill -0 $(cat /tmp/kept) && echo the same sandbox").await?;
    assert!(kept.contains("the same sandbox"), "{kept}");
    Ok(())
}

/// Looks a name up, connects, asks and prints.
const STATIC: &str = r#"int main(int c, char **v) {
    struct addrinfo h = { .ai_socktype = SOCK_STREAM }, *a;
    if (getaddrinfo(v[1], v[2], &h, &a)) return 2;
    int s = socket(a->ai_family, a->ai_socktype, 0);
    if (connect(s, a->ai_addr, a->ai_addrlen)) return 3;
    dprintf(s, "GET / HTTP/1.0%c%cHost: %s%c%c%c%c", 13, 10, v[1], 13, 10, 13, 10);
    char b[4096]; int n;
    while ((n = read(s, b, sizeof b)) > 0) write(1, b, n);
    return 0;
}"#;

/// A program that brings its own C library knows of no proxy, and of no name server but the one in `/etc/resolv.conf`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_program_reaches_what_is_allowed() -> anyhow::Result<()> {
    let rig = rig(true).await?;
    let networking = json!({ "type": "limited", "allowed_hosts": ["allowed.test"] });
    let session = rig.session(networking).await?;
    if !rig.sh(&session, "command -v cc").await?.contains("/cc") {
        println!("left out: there is no C compiler in these sandboxes");
        return Ok(());
    }
    let made = format!(
        "echo '{}' > ask.c; cc -static -include netdb.h -include stdio.h -include unistd.h -o ask ask.c 2>&1 | grep error; ldd ask",
        STATIC.replace('\n', " ")
    );
    let made = rig.sh(&session, &made).await?;
    let port = rig.page.port;
    let said = rig.sh(&session, &format!("./ask allowed.test {port}; echo \"exit $?\"")).await?;
    assert!(said.contains("hello") && said.contains("exit 0"), "{made}{said}");
    let said = rig.sh(&session, &format!("./ask other.test {port}; echo \"exit $?\"")).await?;
    assert!(!said.contains("hello") && said.contains("exit 2"), "its name is nobody's: {said}");
    assert_eq!(rig.asked(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_what_its_sandbox_did_and_an_operator_ends_it() -> anyhow::Result<()> {
    let mut rig = rig(true).await?;
    let client = rig.server.client();
    let networking = json!({ "type": "limited", "allowed_hosts": ["allowed.test"] });
    let session = rig.session(networking).await?;
    let path = format!("/v1/sessions/{session}/sandbox");
    let none = client.get(&path).await?;
    assert_eq!(
        (&none["type"], &none["data"]),
        (&json!("session_sandboxes"), &json!([])),
        "none was needed yet"
    );
    let port = rig.page.port;
    let tried = format!(
        "curl -s http://allowed.test:{port}/; curl -s http://other.test:{port}/; curl -s http://other.test:{port}/"
    );
    rig.sh(&session, &tried).await?;
    let shown = eventually("its use is on record", async || {
        let shown = client.get(&path).await.ok()?;
        (shown["data"][0]["network"]["refusals"] == 2).then_some(shown)
    })
    .await?;
    let one = &shown["data"][0];
    assert_eq!((&one["type"], &one["name"]), (&json!("sandbox"), &json!("default")));
    assert_eq!((&one["state"], &one["generation"]), (&json!("running"), &json!(1)));
    assert_eq!(
        (&one["provider"], &one["ended_at"]),
        (&json!(vaquero_testkit::sandbox()), &Value::Null)
    );
    assert_eq!(one["network"]["connections"], 1);
    assert!(one["network"]["received_bytes"].as_u64() > Some(5), "{one}");
    let other = client.get("/v1/sessions/sesn_none/sandbox").await;
    assert!(other.is_err(), "no such session");

    // Another server goes on with it, and counts on.
    rig.server.kill().await?;
    rig.server.start().await?;
    let client = rig.server.client();
    rig.sh(&session, &tried).await?;
    eventually("both servers' counts are added", async || {
        let shown = client.get(&path).await.ok()?;
        let one = &shown["data"][0];
        let counted = one["network"]["refusals"] == 4 && one["generation"] == 1;
        counted.then_some(())
    })
    .await?;

    let vaquero = |arguments: &[&str]| {
        let mut command = std::process::Command::new(EXE);
        command.args(arguments).arg("--data-dir").arg(rig.server.data().join("data"));
        let output = command.current_dir(std::env::temp_dir()).output().expect("it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let listed = vaquero(&["sandbox", "ls"]);
    assert!(listed.contains(&session) && listed.contains("4 refused"), "{listed}");
    assert_eq!(vaquero(&["sandbox", "stop", &session]), "");
    assert!(vaquero(&["sandbox", "stop", &session]).contains("no such sandbox runs"), "twice");
    let ended = client.get(&path).await?;
    assert_eq!(ended["data"][0]["state"], "ended", "{ended}");
    assert!(!vaquero(&["sandbox", "ls"]).contains(&session));
    assert!(vaquero(&["sandbox", "ls", "--all"]).contains(&session));
    assert_eq!(rig.sh(&session, "echo again").await?.trim(), "again");
    eventually("the next one is on record", async || {
        let shown = client.get(&path).await.ok()?;
        let one = &shown["data"][0];
        (one["generation"] == 2 && one["state"] == "running").then_some(())
    })
    .await?;
    client.delete(&format!("/v1/sessions/{session}")).await?;
    eventually("nothing is left on record", async || {
        (!vaquero(&["sandbox", "ls", "--all"]).contains(&session)).then_some(())
    })
    .await?;
    Ok(())
}
