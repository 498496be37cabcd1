//! What an environment installs: from an index, through the egress, once for all sessions; and what happens when it cannot.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use vaquero_testkit::{Model, Server, of_type, text_of};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");
const WHEEL: &str = "greeter-1.0-py3-none-any.whl";

/// An index of Python packages with one package, and what it was asked for.
struct Index {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn index() -> anyhow::Result<Index> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let remember = Arc::clone(&asked);
    tokio_util::task::TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, kind, body) = match path.as_str() {
                "/simple/greeter/" => {
                    let page = format!("<html><body><a href=\"/files/{WHEEL}\">{WHEEL}</a></body></html>");
                    ("200 OK", "text/html", page.into_bytes())
                }
                path if path.ends_with(WHEEL) => ("200 OK", "application/zip", wheel()),
                _ => ("404 Not Found", "text/plain", Vec::new()),
            };
            remember.lock().unwrap_or_else(PoisonError::into_inner).push(path);
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            drop(stream.write_all(&[head.into_bytes(), body].concat()).await);
        }
    });
    Ok(Index { port, asked })
}

/// A package that greets.
fn wheel() -> Vec<u8> {
    let meta = "Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n";
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let record = "greeter.py,,\ngreeter-1.0.dist-info/METADATA,,\ngreeter-1.0.dist-info/WHEEL,,\ngreeter-1.0.dist-info/RECORD,,\n";
    archive(&[
        ("greeter.py", "TEXT = 'hello from the package'\n"),
        ("greeter-1.0.dist-info/METADATA", meta),
        ("greeter-1.0.dist-info/WHEEL", tags),
        ("greeter-1.0.dist-info/RECORD", record),
    ])
}

/// A zip file whose entries are stored as they are.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut all, mut directory) = (Vec::new(), Vec::new());
    let two = |number: usize| u16::try_from(number).unwrap_or_default().to_le_bytes();
    let four = |number: usize| u32::try_from(number).unwrap_or_default().to_le_bytes();
    for (name, text) in files {
        let offset = all.len();
        // Version, flags, method, time, date.
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x58],
            &checksum(text.as_bytes()).to_le_bytes()[..],
            &four(text.len()),
            &four(text.len()),
            &two(name.len()),
            &[0, 0],
        ]
        .concat();
        all.extend([b"PK\x03\x04", &common[..], name.as_bytes(), text.as_bytes()].concat());
        directory.extend(
            [b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &four(offset), name.as_bytes()].concat(),
        );
    }
    let at = all.len();
    all.extend(&directory);
    let count = two(files.len());
    all.extend(
        [
            b"PK\x05\x06\x00\x00\x00\x00",
            &count[..],
            &count,
            &four(directory.len()),
            &four(at),
            &[0, 0],
        ]
        .concat(),
    );
    all
}

fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

struct Rig {
    server: Server,
    index: Index,
    _model: Model,
}

async fn rig() -> anyhow::Result<Rig> {
    let (model, index) = (Model::start().await?, index().await?);
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_TEST_HOSTS", "packages.test=127.0.0.1");
    server.set("VAQUERO_EGRESS_ALLOW_PRIVATE", "127.0.0.1");
    server.set("VAQUERO_PACKAGE_REGISTRIES", "packages.test");
    server.start().await?;
    Ok(Rig { server, index, _model: model })
}

impl Rig {
    /// An environment that reaches nothing but the index.
    fn config(&self, packages: &[&str], setup: &[&str]) -> Value {
        let url = format!("http://packages.test:{}/simple", self.index.port);
        json!({
            "type": "cloud",
            "networking": { "type": "limited", "allow_package_managers": true },
            "packages": { "pip": packages },
            "setup": setup,
            "env": { "PIP_INDEX_URL": url, "PIP_TRUSTED_HOST": "packages.test", "PIP_RETRIES": "0", "COLOUR": "red" },
        })
    }
}

/// Whether this machine's Python can install packages; `cargo xtask test` says so if it cannot.
fn has_pip() -> bool {
    Path::new("/usr/bin/pip3").exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_are_there_before_the_first_command_and_are_fetched_once() -> anyhow::Result<()> {
    if !has_pip() {
        return Ok(());
    }
    let rig = rig().await?;
    let client = rig.server.client();
    let setup = [
        "python3 -c 'import greeter; print(greeter.TEXT.upper())' >/etc/greeting",
        "echo $COLOUR >~/colour",
    ];
    let config = rig.config(&["greeter==1.0"], &setup);
    let command = "python3 -c \"import greeter; print(greeter.TEXT)\"; cat /etc/greeting ~/colour; echo $COLOUR; ls -A";
    for _ in 0..2 {
        let session = client.session_in(config.clone()).await?;
        let said = client.sh(&session, command).await?;
        assert_eq!(said, "hello from the package\nHELLO FROM THE PACKAGE\nred\nred\n");
    }
    let asked = rig.index.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(asked.iter().filter(|path| path.ends_with(WHEEL)).count(), 1, "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_cannot_be_had_ends_the_turn_with_an_error() -> anyhow::Result<()> {
    if !has_pip() {
        return Ok(());
    }
    let rig = rig().await?;
    let client = rig.server.client();
    let session = client.session_in(rig.config(&["nowhere-to-be-found"], &[])).await?;
    client.say(&session, "!bash echo hello\n!bash echo twice\n!say not reached").await?;
    let events = client.idle(&session).await?;
    let errors = of_type(&events, "session.error");
    let [error] = errors.as_slice() else { panic!("one error: {events:#?}") };
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(error["error"]["type"], "unknown_error");
    assert_eq!(error["error"]["retry_status"]["type"], "exhausted");
    assert!(message.starts_with("the environment could not be set up: pip: "), "{message}");
    assert!(message.contains("nowhere-to-be-found"), "{message}");
    let results = of_type(&events, "agent.tool_result");
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!((text_of(result).as_str(), &result["is_error"]), (message, &json!(true)));
    }
    let idle = of_type(&events, "session.status_idle");
    let last = idle.last().map(|event| event["stop_reason"]["type"].clone());
    assert_eq!(last, Some(json!("retries_exhausted")));
    // The next turn tries again, and fails again.
    client.say(&session, "!bash echo hello").await?;
    let events = client.idle(&session).await?;
    assert_eq!(of_type(&events, "session.error").len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_does_not_wait_for_an_installation() -> anyhow::Result<()> {
    let rig = rig().await?;
    let client = rig.server.client();
    let session = client.session_in(rig.config(&[], &["sleep 600"])).await?;
    client.say(&session, "!bash echo hello").await?;
    let path = format!("/v1/sessions/{session}/events");
    vaquero_testkit::eventually("a call", || async {
        let events = client.events(&session).await.ok()?;
        (!of_type(&events, "agent.tool_use").is_empty()).then_some(())
    })
    .await?;
    client.post(&path, json!({ "events": [{ "type": "user.interrupt" }] })).await?;
    let events = client.idle(&session).await?;
    assert!(of_type(&events, "session.error").is_empty(), "{events:#?}");
    assert_eq!(of_type(&events, "agent.tool_result").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sandbox_packages_limits_and_vaults_are_refused_by_name() -> anyhow::Result<()> {
    let model = Model::start().await?;
    let mut server = Server::new(EXE, &model.base)?;
    server.set("VAQUERO_SANDBOX", "unsafe-host");
    server.start().await?;
    let client = server.client();
    for (config, word) in [
        (json!({ "type": "cloud", "packages": { "pip": ["greeter"] } }), "host_packages_ok"),
        (json!({ "type": "cloud", "setup": ["true"] }), "host_packages_ok"),
        (json!({ "type": "cloud", "networking": { "type": "limited" } }), "limits networking"),
    ] {
        let Err(refused) = client.session_in(config).await else { panic!("{word}: not refused") };
        let said = refused.to_string();
        assert!(
            said.starts_with("400") && said.contains("sandbox required") && said.contains(word),
            "{said}"
        );
    }
    server.kill().await?;
    server.set("VAQUERO_HOST_PACKAGES_OK", "true");
    server.start().await?;
    let mark = server.data().join("mark");
    let command = format!("echo once >>{}", mark.display());
    let config = json!({ "type": "cloud", "setup": [command] });
    for _ in 0..2 {
        let session = server.client().session_in(config.clone()).await?;
        assert_eq!(server.client().sh(&session, "echo here").await?, "here\n");
    }
    assert_eq!(std::fs::read_to_string(mark)?, "once\n");
    Ok(())
}
