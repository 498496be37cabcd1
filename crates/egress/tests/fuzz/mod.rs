//! Requests that a hostile program might send, thousands of them: what is allowed hears only what is for it, what is not hears nothing, and the proxy goes on.

use super::{HERE, OK, PATIENCE, Rig, host, rig};
use proptest::{
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// How long to go on: seconds of `VAQUERO_TEST_FUZZ_SECONDS`, else a few.
fn time() -> Duration {
    let named = std::env::var("VAQUERO_TEST_FUZZ_SECONDS").ok();
    Duration::from_secs(named.and_then(|text| text.parse().ok()).unwrap_or(5))
}

/// `GOOD` and `BAD` become the ports of a host that may be reached, and of one that may not.
const CORPUS: &[&str] = &[
    "GET http://allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test:GOOD\r\n\r\n",
    "GET http://other.test:BAD/ HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "GET http://allowed.test:GOOD/ HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "GET http://allowed.test:GOOD@other.test:BAD/ HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "GET http://other.test:BAD#allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test\r\n\r\n",
    "GET http://127.0.0.1:BAD/ HTTP/1.1\r\nhost: allowed.test\r\n\r\n",
    "GET http://2130706433:BAD/ HTTP/1.1\r\nhost: 2130706433:BAD\r\n\r\n",
    "GET http://[::ffff:127.0.0.1]:BAD/ HTTP/1.1\r\nhost: [::ffff:127.0.0.1]:BAD\r\n\r\n",
    "POST http://allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test:GOOD\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET http://other.test:BAD/ HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "POST http://allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test:GOOD\r\ntransfer-encoding: chunked\r\n\r\n4;x=y\r\nbody\r\n0\r\nt: r\r\n\r\n",
    "POST http://allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test:GOOD\r\ncontent-length: 60\r\n\r\nGET / HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "CONNECT allowed.test:GOOD HTTP/1.1\r\nhost: allowed.test:GOOD\r\n\r\nGET / HTTP/1.1\r\nhost: allowed.test:GOOD\r\n\r\n",
    "CONNECT allowed.test:GOOD HTTP/1.1\r\nhost: allowed.test:GOOD\r\n\r\nGET / HTTP/1.1\r\nhost: other.test:BAD\r\n\r\n",
    "CONNECT other.test:BAD HTTP/1.1\r\nhost: allowed.test:GOOD\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "CONNECT allowed.test:GOOD HTTP/1.1\r\n\r\n\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
    "GET http://allowed.test:GOOD/ HTTP/1.1\r\nhost: allowed.test:GOOD\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];
/// What is put in somewhere.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\0",
    " ",
    "\t",
    ":",
    "@",
    "#",
    "/",
    "\\",
    "%00",
    "%0d%0a",
    "..",
    "*",
    "other.test:BAD",
    "allowed.test:GOOD",
    "host: other.test:BAD\r\n",
    "transfer-encoding: chunked\r\n",
    "content-length: 0\r\n",
    "HTTP/1.0",
    "\u{fffd}",
];

/// A request with a few things changed in it.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let edits =
        proptest::collection::vec((any::<Index>(), any::<u8>(), select(WORDS), 0..4_u8), 0..6);
    (select(CORPUS), edits).prop_map(|(request, edits)| {
        let mut bytes = request.as_bytes().to_vec();
        for (at, byte, word, how) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match how {
                0 => drop(bytes.splice(at..at, word.bytes())),
                1 if at < bytes.len() => bytes[at] = byte,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

fn with_ports(bytes: &[u8], good: u16, bad: u16) -> Vec<u8> {
    // Ports are as long as their words, so that what was changed stays where it was.
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let text = text.replace("GOOD", &good.to_string()).replace("BAD", &bad.to_string());
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

async fn send(rig: &Rig, bytes: &[u8]) -> io::Result<()> {
    let mut stream = rig.connect().await?;
    // It may hang up before all is said.
    drop(stream.write_all(bytes).await);
    drop(stream.shutdown().await);
    let mut answer = Vec::new();
    drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await?);
    Ok(())
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it goes on for as long as it is told")]
async fn no_request_leads_where_it_must_not() -> io::Result<()> {
    let (mut good, mut bad) = (host(OK).await?, host(OK).await?);
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let (strategy, mut runner) = (requests(), TestRunner::default());
    let until = Instant::now() + time();
    let mut sent = 0;
    while Instant::now() < until {
        let request = strategy.new_tree(&mut runner).expect("a request").current();
        let request = with_ports(&request, good.port, bad.port);
        send(&rig, &request).await?;
        sent += 1;
        let shown = String::from_utf8_lossy(&request).into_owned();
        assert!(bad.heard_nothing(), "after {sent}: {shown:?}");
        while let Ok(heard) = good.heard.try_recv() {
            // In a tunnel, what no server takes for HTTP is between the two ends of it.
            if !heard.first().is_some_and(u8::is_ascii_alphanumeric) {
                continue;
            }
            let heard = String::from_utf8_lossy(&heard).to_lowercase();
            let hosts: Vec<&str> = heard
                .split("\r\n\r\n")
                .next()
                .into_iter()
                .flat_map(|head| head.lines())
                .filter_map(|line| line.strip_prefix("host:"))
                .collect();
            let named = hosts.iter().all(|host| host.trim().starts_with("allowed.test"));
            assert!(hosts.len() < 2 && named, "after {sent}: {shown:?} arrives as {heard:?}");
        }
    }
    assert!(sent > 100, "only {sent} requests");
    let port = good.port;
    let plain =
        format!("GET http://allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test:{port}\r\n\r\n");
    assert!(rig.ask(plain).await?.starts_with("HTTP/1.1 200"), "it goes on");
    Ok(())
}
