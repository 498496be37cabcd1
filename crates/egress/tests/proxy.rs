//! The proxy from outside: raw bytes in, what a host on the other side reads, what comes back.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

mod fuzz;

use std::{
    collections::BTreeMap,
    io,
    net::{self, IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use vaquero_egress::{Addresses, Dialer, HostRule, Outlet, Plan, Policy, Sockets};
use vaquero_types::sandbox::Traffic;

const PATIENCE: Duration = Duration::from_secs(20);

/// A host that tells what it reads and answers every connection with the same bytes.
struct Place {
    port: u16,
    heard: mpsc::UnboundedReceiver<Vec<u8>>,
}

async fn host(answer: &'static [u8]) -> io::Result<Place> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (tell, heard) = mpsc::unbounded_channel();
    tokio_util::task::TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read) = stream.read(&mut buffer).await {
                if read == 0 || tell.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
                if stream.write_all(answer).await.is_err() {
                    break;
                }
            }
        }
    });
    Ok(Place { port, heard })
}

impl Place {
    async fn hears(&mut self) -> String {
        let bytes = timeout(PATIENCE, self.heard.recv()).await.ok().flatten();
        String::from_utf8_lossy(&bytes.expect("the host hears something")).into_owned()
    }

    fn heard_nothing(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }
}

struct Rig {
    outlet: Arc<Outlet>,
    proxy: SocketAddr,
    names: SocketAddr,
    _until: tokio_util::sync::DropGuard,
}

/// An outlet on this machine's loopback; `allowed.test` and `other.test` are 127.0.0.1.
fn rig(rules: Option<&[&str]>, operator: &[&str]) -> io::Result<Rig> {
    let (proxy, catch_all) =
        (net::TcpListener::bind("127.0.0.1:0")?, net::TcpListener::bind("127.0.0.1:0")?);
    let names = net::UdpSocket::bind("127.0.0.1:0")?;
    let (proxy_at, names_at) = (proxy.local_addr()?, names.local_addr()?);
    let policy = match rules {
        None => Policy::Unrestricted,
        Some(rules) => {
            Policy::Limited(rules.iter().filter_map(|rule| HostRule::parse(rule)).collect())
        }
    };
    let here = IpAddr::from([127, 0, 0, 1]);
    let known: BTreeMap<String, Vec<IpAddr>> = ["allowed.test", "other.test", "sub.allowed.test"]
        .map(|name| (name.to_owned(), vec![here]))
        .into();
    let allowed = operator.iter().filter_map(|range| range.parse().ok()).collect();
    let dialer = Arc::new(Dialer { addresses: Addresses { allowed }, known });
    let until = CancellationToken::new();
    let plan = Plan { label: "test".to_owned(), policy, dialer, seed: 0, injector: None };
    let outlet = Outlet::new(plan, until.clone());
    outlet.serve(Sockets { proxy, catch_all, names })?;
    Ok(Rig { outlet, proxy: proxy_at, names: names_at, _until: until.drop_guard() })
}

/// Loopback, as the operator may allow it.
const HERE: &[&str] = &["127.0.0.1/32"];

impl Rig {
    async fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.proxy).await
    }

    /// Sends bytes, ends, and reads to the end.
    async fn ask(&self, bytes: impl AsRef<[u8]>) -> io::Result<String> {
        let mut stream = self.connect().await?;
        stream.write_all(bytes.as_ref()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// A tunnel that was made.
    async fn tunnel(&self, to: &str) -> io::Result<TcpStream> {
        let mut stream = self.connect().await?;
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n").as_bytes()).await?;
        let mut answer = [0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut answer)).await??;
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(stream)
    }

    fn counts(&self) -> Traffic {
        self.outlet.traffic()
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-from: host\r\n\r\nok";

#[tokio::test]
async fn allowed_hosts_are_asked_in_their_own_words() -> io::Result<()> {
    let mut place = host(OK).await?;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let port = place.port;
    let request = format!(
        "POST http://Allowed.Test:{port}/a?b=c HTTP/1.1\r\nHost: allowed.test:{port}\r\nX-Mine: 1\r\nProxy-Connection: keep-alive\r\nConnection: close, x-secret\r\nX-Secret: 2\r\nContent-Length: 4\r\n\r\nbody"
    );
    let answer = rig.ask(request).await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let heard = place.hears().await;
    assert!(heard.starts_with("POST /a?b=c HTTP/1.1\r\n") && heard.ends_with("body"), "{heard}");
    assert!(heard.contains("X-Mine: 1") && heard.contains("Content-Length: 4"), "{heard}");
    let low = heard.to_lowercase();
    assert!(!low.contains("proxy-connection") && !low.contains("x-secret"), "{heard}");
    let counts = rig.counts();
    assert_eq!((counts.connections, counts.refusals), (1, 0));
    assert_eq!((counts.sent_bytes, counts.received_bytes), (heard.len() as u64, OK.len() as u64));
    Ok(())
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_in_words() -> io::Result<()> {
    let mut place = host(OK).await?;
    let port = place.port;
    let rig = rig(Some(&["allowed.test", "*.allowed.test"]), HERE)?;
    for (target, said) in [
        (format!("other.test:{port}"), "`other.test` is not among the allowed_hosts"),
        (format!("127.0.0.1:{port}"), "`127.0.0.1` is not among"),
        (format!("2130706433:{port}"), "`127.0.0.1` is not among"),
        (format!("0x7f.1:{port}"), "`127.0.0.1` is not among"),
        (format!("[::ffff:127.0.0.1]:{port}"), "`127.0.0.1` is not among"),
        (format!("evilallowed.test:{port}"), "is not among"),
        (format!("allowed.test.evil:{port}"), "is not among"),
    ] {
        let answer =
            rig.ask(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")).await?;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(said), "{target}: {answer}");
        let answer =
            rig.ask(format!("GET http://{target}/ HTTP/1.1\r\nhost: {target}\r\n\r\n")).await?;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(said), "{target}: {answer}");
    }
    for nonsense in [
        "CONNECT allowed.test HTTP/1.1\r\nhost: allowed.test\r\n\r\n".to_owned(),
        format!("CONNECT user@allowed.test:{port} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!(
            "GET http://user:word@other.test@allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test\r\n\r\n"
        ),
        format!("GET https://allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test\r\n\r\n"),
        "GET / HTTP/1.1\r\nhost: allowed.test\r\n\r\n".to_owned(),
        format!(
            "GET http://allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test\r\nhost: other.test\r\n\r\n"
        ),
        "nonsense\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let answer = rig.ask(&nonsense).await?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{nonsense}: {answer}");
    }
    let mismatch = format!("GET http://allowed.test:{port}/ HTTP/1.1\r\nhost: other.test\r\n\r\n");
    assert!(rig.ask(mismatch).await?.contains("is for `other.test`"));
    assert!(place.heard_nothing(), "no host has heard of any of it");
    assert!(rig.counts().refusals >= 14 && rig.counts().connections == 0, "{:?}", rig.counts());
    Ok(())
}

#[tokio::test]
async fn private_addresses_need_the_operator() -> io::Result<()> {
    let place = host(OK).await?;
    let port = place.port;
    let closed = rig(None, &[])?;
    for target in ["allowed.test", "127.0.0.1", "[::1]", "10.0.0.1"] {
        let answer =
            closed.ask(format!("CONNECT {target}:{port} HTTP/1.1\r\nhost: x\r\n\r\n")).await?;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("--egress-allow-private"),
            "{answer}"
        );
    }
    let open = rig(None, &["127.0.0.1/32", "169.254.0.0/16", "fd00::/8"])?;
    for target in ["169.254.169.254", "[fd00:ec2::254]"] {
        let answer = open.ask(format!("CONNECT {target}:80 HTTP/1.1\r\nhost: x\r\n\r\n")).await?;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("metadata"), "{answer}");
    }
    drop(open.tunnel(&format!("127.0.0.1:{port}")).await?);
    let answer = open.ask("CONNECT nowhere.invalid:80 HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("has no address"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn smuggled_requests_are_not_passed_on() -> io::Result<()> {
    let mut place = host(OK).await?;
    let port = place.port;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let smuggled = "GET http://other.test/ HTTP/1.1\r\nhost: other.test\r\n\r\n";
    for framing in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", smuggled.len() + 5),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".to_owned(),
        "Transfer-Encoding : chunked\r\n".to_owned(),
        "Content-Length: 0\r\nContent-Length: 5\r\n".to_owned(),
        "X: y\r\n Transfer-Encoding: chunked\r\n".to_owned(),
    ] {
        let request = format!(
            "POST http://allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test:{port}\r\n{framing}\r\n0\r\n\r\n{smuggled}"
        );
        let answer = rig.ask(request).await?;
        assert!(!answer.is_empty(), "{framing}");
    }
    while let Ok(heard) = place.heard.try_recv() {
        let heard = String::from_utf8_lossy(&heard).to_lowercase();
        assert!(!heard.contains("other.test"), "{heard}");
    }
    Ok(())
}

#[tokio::test]
async fn every_request_in_a_tunnel_names_its_host() -> io::Result<()> {
    let mut place = host(OK).await?;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let mut tunnel = rig.tunnel(&format!("allowed.test:{}", place.port)).await?;
    tunnel.write_all(b"GET /one HTTP/1.1\r\nhost: allowed.test\r\n\r\n").await?;
    assert!(place.hears().await.starts_with("GET /one"));
    let mut answer = vec![0; 4096];
    let read = timeout(PATIENCE, tunnel.read(&mut answer)).await??;
    assert!(String::from_utf8_lossy(&answer[..read]).ends_with("ok"));
    tunnel.write_all(b"GET /two HTTP/1.1\r\nhost: other.test\r\n\r\n").await?;
    let read = timeout(PATIENCE, tunnel.read(&mut answer)).await??;
    let said = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("is for `other.test`"), "{said}");
    assert!(place.heard_nothing());
    Ok(())
}

/// The first flight of a TLS client.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

#[tokio::test]
async fn tls_is_for_the_host_it_goes_to() -> io::Result<()> {
    let mut place = host(b"server hello").await?;
    let rig = rig(Some(&["allowed.test", "other.test"]), HERE)?;
    let target = format!("allowed.test:{}", place.port);
    let mut tunnel = rig.tunnel(&target).await?;
    let right = hello("allowed.test");
    tunnel.write_all(&right).await?;
    let heard = timeout(PATIENCE, place.heard.recv()).await?;
    assert_eq!(heard.as_deref(), Some(right.as_slice()), "passed on as it is");
    for wrong in [hello("other.test"), hello("127.0.0.1"), b"\x16\x03\x01nonsense".to_vec()] {
        let mut tunnel = rig.tunnel(&target).await?;
        tunnel.write_all(&wrong).await?;
        tunnel.shutdown().await?;
        let mut answer = Vec::new();
        timeout(PATIENCE, tunnel.read_to_end(&mut answer)).await??;
        assert!(answer.is_empty() || answer.starts_with(&[21, 3, 1]), "an alert: {answer:?}");
    }
    assert!(place.heard_nothing());
    assert_eq!(rig.counts().refusals, 3);
    Ok(())
}

#[tokio::test]
async fn protocols_in_which_the_host_speaks_first_pass() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let target = format!("allowed.test:{}", listener.local_addr()?.port());
    let (tunnel, accepted) = tokio::join!(rig.tunnel(&target), listener.accept());
    let (mut tunnel, (mut server, _)) = (tunnel?, accepted?);
    server.write_all(b"220 welcome\r\n").await?;
    let mut read = [0; 13];
    timeout(PATIENCE, tunnel.read_exact(&mut read)).await??;
    tunnel.write_all(b"EHLO me\r\n").await?;
    let mut heard = [0; 9];
    timeout(PATIENCE, server.read_exact(&mut heard)).await??;
    assert_eq!((&read, &heard), (b"220 welcome\r\n", b"EHLO me\r\n"));
    Ok(())
}

#[tokio::test]
async fn web_sockets_pass() -> io::Result<()> {
    let mut place = host(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await?;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let mut stream = rig.connect().await?;
    let port = place.port;
    let request = format!(
        "GET http://allowed.test:{port}/ws HTTP/1.1\r\nhost: allowed.test:{port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    assert!(place.hears().await.to_lowercase().contains("upgrade: websocket"));
    let mut answer = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await??;
    let said = String::from_utf8_lossy(&answer[..read]).to_lowercase();
    assert!(said.starts_with("http/1.1 101") && said.contains("upgrade: websocket"), "{said}");
    stream.write_all(b"\x81\x05frame").await?;
    assert_eq!(place.hears().await, "\u{fffd}\u{5}frame");
    Ok(())
}

#[tokio::test]
async fn a_sandbox_has_a_number_of_connections() -> io::Result<()> {
    let rig = rig(None, HERE)?;
    let mut open = Vec::new();
    for _ in 0..344 {
        open.push(rig.connect().await?);
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    while rig.counts().refusals < 88 {
        assert!(tokio::time::Instant::now() < until, "{:?}", rig.counts());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(open);
    let place = host(OK).await?;
    let target = format!("http://allowed.test:{}/", place.port);
    loop {
        assert!(tokio::time::Instant::now() < until, "places become free again");
        let answer = rig.ask(format!("GET {target} HTTP/1.1\r\nhost: allowed.test\r\n\r\n")).await;
        if answer.is_ok_and(|answer| answer.contains("200 OK")) {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_tunnel_keeps_its_place_for_as_long_as_it_lives() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let rig = rig(None, HERE)?;
    let target = format!("allowed.test:{}", listener.local_addr()?.port());
    let mut tunnels = Vec::new();
    for _ in 0..256 {
        let (tunnel, accepted) = tokio::join!(rig.tunnel(&target), listener.accept());
        tunnels.push((tunnel?, accepted?));
    }
    let mut more = rig.connect().await?;
    let mut said = Vec::new();
    drop(timeout(PATIENCE, more.read_to_end(&mut said)).await?);
    assert!(said.is_empty() && rig.counts().refusals == 1, "{:?}", rig.counts());
    Ok(())
}

#[tokio::test]
async fn only_web_sockets_are_an_upgrade() -> io::Result<()> {
    let mut place = host(OK).await?;
    let rig = rig(Some(&["allowed.test"]), HERE)?;
    let port = place.port;
    let request = format!(
        "GET http://allowed.test:{port}/ HTTP/1.1\r\nhost: allowed.test\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n"
    );
    assert!(rig.ask(request).await?.starts_with("HTTP/1.1 200"));
    assert!(!place.hears().await.to_lowercase().contains("h2c"));
    Ok(())
}

#[tokio::test]
async fn the_name_server_answers_over_its_socket() -> io::Result<()> {
    let rig = rig(Some(&["allowed.test"]), &[])?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07allowed\x04test\x00\x00\x01\x00\x01";
    socket.send_to(question, rig.names).await?;
    let mut answer = [0; 512];
    let (read, _) = timeout(PATIENCE, socket.recv_from(&mut answer)).await??;
    assert_eq!(&answer[..2], b"\x12\x34");
    assert_eq!(&answer[read - 4..read - 2], &[198, 18], "an invented address");
    Ok(())
}
