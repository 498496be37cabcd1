//! What a connection says of itself with its first bytes.

use crate::{Host, Refusal};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes until a connection has said what it is.
const OPENING: usize = 64 << 10;
/// The first byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 22;
/// A fatal alert, "access denied": programs show it in their error.
const DENIED: [u8; 7] = [21, 3, 1, 0, 2, 2, 49];

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TLS, to the host of that name.
    Tls(Option<Host>),
    /// HTTP, or something that begins like it.
    Http,
    /// Something else.
    Other,
}

/// The beginning of a connection.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) kind: Kind,
    /// What was read of it.
    pub(crate) bytes: Vec<u8>,
}

/// Reads on until it is clear what a connection is that began with these bytes.
pub(crate) async fn open(
    from: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
) -> Result<Opening, Refusal> {
    const NOT_TLS: Refusal = Refusal::Malformed("the connection begins like TLS and is not");
    let mut acceptor = Acceptor::default();
    let mut taken = 0;
    loop {
        let ended = taken == bytes.len() && from.read_buf(&mut bytes).await.unwrap_or(0) == 0;
        let Some(first) = bytes.first() else { return Ok(Opening { kind: Kind::Other, bytes }) };
        if *first != HANDSHAKE {
            taken = bytes.len();
            if !ended && undecided(&bytes) {
                continue;
            }
            let kind = if like_http(&bytes) { Kind::Http } else { Kind::Other };
            return Ok(Opening { kind, bytes });
        }
        let mut fresh = &bytes[taken..];
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh).map_err(|_| NOT_TLS)?;
        }
        taken = bytes.len();
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().and_then(Host::parse);
                return Ok(Opening { kind: Kind::Tls(name), bytes });
            }
            Ok(None) if !ended && bytes.len() < OPENING => {}
            Ok(None) | Err(_) => return Err(NOT_TLS),
        }
    }
}

/// Whether it may still turn out to be SSH, which begins with letters as HTTP does.
fn undecided(bytes: &[u8]) -> bool {
    bytes.len() < 4 && b"SSH-".starts_with(bytes)
}

/// Whether a server could take it for HTTP: white space, or what the name of a method may consist of.
fn like_http(bytes: &[u8]) -> bool {
    !bytes.starts_with(b"SSH-")
        && bytes.first().is_some_and(|first| {
            first.is_ascii_alphanumeric() || b"\r\n\t !#$%&'*+-.^_`|~".contains(first)
        })
}

/// Tells a client why it is not connected, in the protocol it speaks.
pub(crate) async fn refuse(to: &mut (impl AsyncWrite + Unpin), kind: &Kind, refusal: &Refusal) {
    let answer = match kind {
        Kind::Tls(_) => DENIED.to_vec(),
        Kind::Http => {
            let status = refusal.status();
            let text = format!("egress: {refusal}\n");
            format!(
                "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                status.as_u16(),
                status.canonical_reason().unwrap_or("Refused"),
                text.len()
            )
            .into_bytes()
        }
        Kind::Other => return,
    };
    // A client that has gone does not hear it.
    drop(to.write_all(&answer).await);
    drop(to.shutdown().await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(name: &str) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    async fn kind(bytes: &[u8]) -> Result<Kind, Refusal> {
        open(&mut &*bytes, Vec::new()).await.map(|opening| {
            assert_eq!(opening.bytes, bytes);
            opening.kind
        })
    }

    #[tokio::test]
    async fn connections_say_what_they_are() {
        let named = kind(&hello("Allowed.Example")).await;
        assert_eq!(named, Ok(Kind::Tls(Host::parse("allowed.example"))));
        assert_eq!(kind(&hello("192.0.2.1")).await, Ok(Kind::Tls(None)), "an address is no name");
        for http in ["GET / HTTP/1.1\r\n", "\r\nGET /", " GET", "PRI * HTTP/2.0", "S", "SS", "$x"] {
            assert_eq!(kind(http.as_bytes()).await, Ok(Kind::Http), "{http}");
        }
        for other in [&b"SSH-2.0-x\r\n"[..], b"\x00\x00\x00\x08", b"\x80\x2e", b""] {
            assert_eq!(kind(other).await, Ok(Kind::Other), "{other:?}");
        }
        for broken in [&b"\x16"[..], b"\x16\x03\x01\x00", b"\x16GET / HTTP/1.1\r\n\r\n"] {
            assert!(matches!(kind(broken).await, Err(Refusal::Malformed(_))), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn a_hello_in_small_pieces_is_read_whole() {
        let bytes = hello("allowed.example");
        let (mut ours, mut theirs) = tokio::io::duplex(3);
        let written = bytes.clone();
        let writer = async move { ours.write_all(&written).await };
        let (opened, _) = tokio::join!(open(&mut theirs, Vec::new()), writer);
        let opened = opened.expect("a hello");
        assert_eq!((opened.kind, opened.bytes), (Kind::Tls(Host::parse("allowed.example")), bytes));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..200), tls in any::<bool>()) {
            let bytes = if tls { [&[HANDSHAKE, 3, 1], &bytes[..]].concat() } else { bytes };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            drop(runtime.block_on(open(&mut &bytes[..], Vec::new())));
        }
    }
}
