//! Secrets on their way: what a host reads in a placeholder's place, and what a sandbox reads of what the host repeats.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Collected, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    convert::Infallible,
    net,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use vaquero_egress::{
    Addresses, Authority, By, Dialer, HostRule, Injection, Injections, Injector, Outlet, Plan,
    Policy, Sockets, trust,
};
use vaquero_types::SystemClock;

const PATIENCE: Duration = Duration::from_secs(20);
const PLACEHOLDER: &str = "PLACEHOLDER-1";
const SECRET: &str = "top-s3cret-value";

#[derive(Debug)]
struct Changing(Mutex<Arc<[Injection]>>);

#[async_trait]
impl Injections for Changing {
    async fn now(&self) -> Arc<[Injection]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Changing {
    fn set(&self, injections: Vec<Injection>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = injections.into();
    }
}

fn injection(hosts: &[&str]) -> Injection {
    Injection {
        secret: SECRET.to_owned(),
        hosts: Some(hosts.iter().filter_map(|host| HostRule::parse(host)).collect()),
        by: placeholder(true, true),
    }
}

fn placeholder(header: bool, body: bool) -> By {
    By::Placeholder { placeholder: PLACEHOLDER.to_owned(), header, body }
}

/// Answers each request with all that was read of it.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            return;
        }
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
        });
        let whole = if head.to_lowercase().contains("transfer-encoding: chunked") {
            body.ends_with("\r\n0\r\n\r\n")
        } else {
            body.len() >= length.unwrap_or(0)
        };
        if whole {
            if head.starts_with("GET /socket") {
                return socket(stream, head).await;
            }
            let echoed = text.replace("\r\n", "\n");
            let seen = head.lines().find(|line| line.to_lowercase().starts_with("x-key"));
            let packed =
                if head.starts_with("POST /packed") { "content-encoding: gzip\r\n" } else { "" };
            let status = if head.contains(" /denied") { "403 Forbidden" } else { "200 OK" };
            let answer = format!(
                "HTTP/1.1 {status}\r\n{packed}content-length: {}\r\nx-seen: {}\r\n\r\n{echoed}",
                echoed.len(),
                seen.unwrap_or("none")
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            request.clear();
        }
    }
}

/// Agrees to speak WebSocket and says what key came, in one frame and in two.
async fn socket(mut stream: impl AsyncWrite + Unpin, head: &str) {
    let extended = head.to_lowercase().contains("sec-websocket-extensions");
    let key = head.lines().find_map(|line| line.strip_prefix("x-key: ")).unwrap_or("none");
    let (first, second) = key.split_at(key.len() / 2);
    let mut answer =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
            .to_vec();
    for (opcode, text) in [(0x81, key), (0x01, first), (0x80, second)] {
        answer.extend([opcode, u8::try_from(text.len()).unwrap_or(0)]);
        answer.extend(text.as_bytes());
    }
    answer.extend([0x81, 1, if extended { b'!' } else { b'.' }]);
    // A client that hangs up ends it.
    drop(stream.write_all(&answer).await);
    drop(stream.shutdown().await);
}

/// Answers each request over HTTP/2 with what was read of it, in a body of two pieces and in trailers.
async fn echo_http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let key = request.headers().get("x-key").cloned();
        let key = key.unwrap_or_else(|| HeaderValue::from_static("none"));
        let path = request.uri().path().to_owned();
        let host = request.uri().host().unwrap_or("nobody").to_owned();
        if path == "/wait" {
            // For the next request, which comes over the same connection.
            GATE.0.notified().await;
        } else if path == "/go" {
            GATE.0.notify_one();
        }
        let read = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-last", key.clone());
        let frames = vec![
            Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{host} read ")))),
            Ok(Frame::data(read)),
            Ok(Frame::trailers(trailers)),
        ];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
        response.headers_mut().insert("x-seen", key);
        Ok::<_, Infallible>(response)
    });
    // A client that hangs up ends it.
    drop(
        http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

struct Gate(tokio::sync::Notify);
static GATE: Gate = Gate(tokio::sync::Notify::const_new());

/// Two hosts on this machine, in plain, in TLS, and in TLS with HTTP/2, and a sandbox's way out to them.
struct Rig {
    plain: u16,
    tls: u16,
    http2: u16,
    proxy: net::SocketAddr,
    source: Arc<Changing>,
    authority: Arc<Authority>,
    _until: DropGuard,
    _hosts: TaskTracker,
}

async fn rig(policy: Policy) -> anyhow::Result<Rig> {
    let (root_key, leaf_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut root = CertificateParams::new(vec!["root".to_owned()])?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);
    let names = ["api.test", "other.test"].map(str::to_owned).to_vec();
    let leaf = CertificateParams::new(names)?.signed_by(&leaf_key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    let mut both = config.clone();
    both.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let both = TlsAcceptor::from(Arc::new(both));
    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let tls = TcpListener::bind("127.0.0.1:0").await?;
    let http2 = TcpListener::bind("127.0.0.1:0").await?;
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    let ports = [port(&plain)?, port(&tls)?, port(&http2)?];
    let hosts = TaskTracker::new();
    let more = hosts.clone();
    hosts.spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            more.spawn(echo(stream));
        }
    });
    let more = hosts.clone();
    hosts.spawn(async move {
        while let Ok((stream, _)) = tls.accept().await {
            let acceptor = acceptor.clone();
            more.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    echo(stream).await;
                }
            });
        }
    });
    let more = hosts.clone();
    hosts.spawn(async move {
        while let Ok((stream, _)) = http2.accept().await {
            let acceptor = both.clone();
            more.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    echo_http2(stream).await;
                } else {
                    echo(stream).await;
                }
            });
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(root_certificate.der().clone())?;
    let authority = Arc::new(Authority::new(Arc::new(SystemClock))?);
    let source = Arc::new(Changing(Mutex::new(Arc::from([injection(&["api.test"])]))));
    let injector = Injector::new(&authority, Arc::clone(&source) as _, trust(roots)?)?;
    let here = vec![[127, 0, 0, 1].into()];
    let known = ["api.test", "other.test"].map(|name| (name.to_owned(), here.clone())).into();
    let addresses = Addresses { allowed: vec!["127.0.0.1/32".parse()?] };
    let plan = Plan {
        label: "test".to_owned(),
        policy,
        dialer: Arc::new(Dialer { addresses, known }),
        seed: 0,
        injector: Some(injector),
    };
    let until = CancellationToken::new();
    let outlet = Outlet::new(plan, until.clone());
    let bind = || net::TcpListener::bind("127.0.0.1:0");
    let (proxy, catch_all, names) = (bind()?, bind()?, net::UdpSocket::bind("127.0.0.1:0")?);
    let at = proxy.local_addr()?;
    outlet.serve(Sockets { proxy, catch_all, names })?;
    let [plain, tls, http2] = ports;
    Ok(Rig {
        plain,
        tls,
        http2,
        proxy: at,
        source,
        authority,
        _until: until.drop_guard(),
        _hosts: hosts,
    })
}

impl Rig {
    /// A client as in the sandbox: through the proxy, trusting the sandbox's authority alone.
    fn client(&self) -> anyhow::Result<reqwest::Client> {
        self.client_of(&[])
    }

    fn client_http2(&self) -> anyhow::Result<reqwest::Client> {
        self.client_of(&[b"h2"])
    }

    fn client_of(&self, protocols: &[&[u8]]) -> anyhow::Result<reqwest::Client> {
        let mut tls = self.client_tls()?;
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .proxy(reqwest::Proxy::all(format!("http://{}", self.proxy))?)
            .timeout(PATIENCE)
            .build()?)
    }

    fn client_tls(&self) -> anyhow::Result<rustls::ClientConfig> {
        let mut roots = RootCertStore::empty();
        let pem = self.authority.certificate();
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body)?;
        roots.add(CertificateDer::from(der))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }

    /// What the host says it read of a POST with the placeholder in a header and in the body, and what it saw in the header.
    async fn post(&self, url: &str, body: String) -> anyhow::Result<(String, String)> {
        let request = self.client()?.post(url).header("x-key", format!("key {PLACEHOLDER}"));
        let response = request.body(body).send().await?;
        let seen = response.headers().get("x-seen").context("seen")?.to_str()?.to_owned();
        let text = response.text().await?;
        Ok((seen, text))
    }
}

/// Where the host had the secret, there are stars now.
const STARS: &str = "****************";

#[tokio::test]
async fn a_host_gets_the_secret_and_cannot_hand_it_back() -> anyhow::Result<()> {
    for policy in
        [Policy::Unrestricted, Policy::Limited(vec![HostRule::parse("*.test").context("a rule")?])]
    {
        let rig = rig(policy).await?;
        for url in
            [format!("http://api.test:{}/", rig.plain), format!("https://api.test:{}/", rig.tls)]
        {
            let (seen, read) = rig.post(&url, format!("{{\"token\":\"{PLACEHOLDER}\"}}")).await?;
            assert!(seen.ends_with(&format!("key {STARS}")), "{url}: {seen}");
            assert!(read.contains(&format!("{{\"token\":\"{STARS}\"}}")), "{url}: {read}");
            assert!(!read.contains(SECRET) && !read.contains(PLACEHOLDER), "{url}: {read}");
            let long = read.lines().find(|line| line.to_lowercase().starts_with("content-length"));
            let expected = format!("{{\"token\":\"{SECRET}\"}}").len();
            assert!(long.is_some_and(|line| line.ends_with(&format!(": {expected}"))), "{read}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn other_hosts_get_the_placeholder_and_their_tls_is_not_opened() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let (seen, read) =
        rig.post(&format!("http://other.test:{}/", rig.plain), PLACEHOLDER.to_owned()).await?;
    assert!(seen.contains(PLACEHOLDER) && read.ends_with(PLACEHOLDER), "{seen} {read}");
    let unopened = rig.client()?.get(format!("https://other.test:{}/", rig.tls)).send().await;
    assert!(unopened.is_err(), "its own certificate, which this client does not trust");
    // Naming one host and going to another gains nothing.
    let mut tunnel = TcpStream::connect(rig.proxy).await?;
    let to = format!("other.test:{}", rig.tls);
    tunnel.write_all(format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n").as_bytes()).await?;
    let mut answer = [0; 1024];
    let read = timeout(PATIENCE, tunnel.read(&mut answer)).await??;
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    let connector = TlsConnector::from(Arc::new(rig.client_tls()?));
    let name = rustls::pki_types::ServerName::try_from("api.test")?;
    assert!(connector.connect(name, tunnel).await.is_err(), "not opened for another host's name");
    Ok(())
}

#[tokio::test]
async fn a_secret_goes_only_where_it_is_to_go_in_a_request() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let url = format!("https://api.test:{}/", rig.tls);
    rig.source.set(vec![Injection { by: placeholder(true, false), ..injection(&["api.test"]) }]);
    let (seen, read) = rig.post(&url, PLACEHOLDER.to_owned()).await?;
    assert!(seen.ends_with(STARS) && read.ends_with(PLACEHOLDER), "{seen} {read}");
    rig.source.set(vec![Injection { by: placeholder(false, true), ..injection(&["api.test"]) }]);
    let (seen, read) = rig.post(&url, PLACEHOLDER.to_owned()).await?;
    assert!(seen.ends_with(PLACEHOLDER) && read.ends_with(STARS), "{seen} {read}");
    // A new secret is used from the next request on, and none once it is archived.
    rig.source.set(vec![Injection { secret: "another".to_owned(), ..injection(&["api.test"]) }]);
    let (seen, _) = rig.post(&url, String::new()).await?;
    assert!(seen.ends_with("key *******"), "{seen}");
    rig.source.set(Vec::new());
    let (seen, _) = rig.post(&format!("http://api.test:{}/", rig.plain), String::new()).await?;
    assert!(seen.ends_with(PLACEHOLDER), "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_secret_cannot_be_asked_for_in_parts_or_packed() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let url = format!("https://api.test:{}", rig.tls);
    let ask = |path: &str| rig.client().map(|client| client.post(format!("{url}{path}")).body(""));
    let request = ask("/parts")?.header("range", "bytes=3-5").header("accept-encoding", "br");
    let read = request.send().await?.text().await?.to_lowercase();
    assert!(!read.contains("bytes=") && read.contains("accept-encoding: identity"), "{read}");
    let packed = ask("/packed")?.header("x-key", PLACEHOLDER).send().await?;
    assert_eq!(packed.status(), 400);
    let said = packed.text().await?;
    assert!(said.contains("compresses what it was asked not to"), "{said}");
    Ok(())
}

#[tokio::test]
async fn large_bodies_pass_in_pieces() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let filler = "x".repeat(1 << 20);
    let body = format!("{filler}{PLACEHOLDER}{filler}");
    let client = rig.client()?;
    let url = format!("https://api.test:{}/", rig.tls);
    let answer = client.post(&url).header("x-key", "none").body(body).send().await?.text().await?;
    let sent = answer.bytes().filter(|byte| *byte == b'x').count();
    assert!(sent >= 2 << 20 && answer.contains(STARS), "{} bytes came", answer.len());
    assert!(!answer.contains(SECRET) && !answer.contains(PLACEHOLDER));
    Ok(())
}

#[tokio::test]
async fn http2_passes_with_its_secrets_taken_out() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    // To a host that speaks it as well, and to one that does not.
    for port in [rig.http2, rig.tls] {
        let url = format!("https://api.test:{port}/");
        let request = rig.client_http2()?.post(&url).header("x-key", PLACEHOLDER);
        let answer = request.body(format!("a {PLACEHOLDER}")).send().await?;
        assert_eq!(answer.version(), http::Version::HTTP_2);
        assert!(answer.headers()["x-seen"].to_str()?.ends_with(STARS), "{answer:?}");
        let answer: Response<reqwest::Body> = answer.into();
        let read = answer.into_body().collect().await?;
        let trailers = read.trailers().cloned();
        let text = String::from_utf8(read.to_bytes().to_vec())?;
        assert!(text.ends_with(&format!("a {STARS}")) && text.contains("api.test"), "{text}");
        if port == rig.http2 {
            assert_eq!(trailers.context("trailers")?["x-last"], STARS);
        }
    }
    // And from a client that does not.
    let (seen, _) = rig.post(&format!("https://api.test:{}/", rig.http2), String::new()).await?;
    assert!(seen.ends_with(STARS), "{seen}");
    Ok(())
}

#[tokio::test]
async fn requests_over_http2_do_not_wait_for_each_other() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let client = rig.client_http2()?;
    let ask = |path: &str| client.get(format!("https://api.test:{}{path}", rig.http2)).send();
    // The connection is made, then both go over it.
    ask("/").await?.text().await?;
    let (waited, went) = tokio::join!(ask("/wait"), ask("/go"));
    assert_eq!((waited?.status(), went?.status()), (http::StatusCode::OK, http::StatusCode::OK));
    Ok(())
}

#[tokio::test]
async fn http2_names_the_host_it_goes_to() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let mut request = reqwest::Request::new(
        reqwest::Method::GET,
        format!("https://api.test:{}/", rig.http2).parse()?,
    );
    request.headers_mut().insert("host", HeaderValue::from_static("other.test"));
    let answer = rig.client_http2()?.execute(request).await?;
    assert_eq!(answer.status(), 403);
    let said = answer.text().await?;
    assert!(said.contains("must name the host it goes to"), "{said}");
    Ok(())
}

#[tokio::test]
async fn web_sockets_do_not_hand_secrets_back() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let mut stream = TcpStream::connect(rig.proxy).await?;
    let request = format!(
        "GET http://api.test:{}/socket HTTP/1.1\r\nhost: api.test\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-extensions: permessage-deflate\r\nx-key: {PLACEHOLDER}\r\n\r\n",
        rig.plain
    );
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read)).await??;
    let text = String::from_utf8_lossy(&read).into_owned();
    let (head, frames) = text.split_once("\r\n\r\n").context("an answer")?;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(!text.contains("top-s3c") && !text.contains("et-value"), "{text}");
    assert_eq!(frames.matches('*').count(), 2 * SECRET.len(), "{frames:?}");
    assert!(frames.ends_with('.'), "nothing is compressed: {frames:?}");
    Ok(())
}

#[tokio::test]
async fn headers_are_added_or_nothing_is_sent() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let mut value = HeaderValue::from_str(&format!("Bearer {SECRET}"))?;
    value.set_sensitive(true);
    let headers = vec![("x-key".parse()?, value)];
    let by = By::Headers { headers, tls: Some(true) };
    rig.source.set(vec![Injection { by, ..injection(&["api.test"]) }]);
    let get = |url: String| rig.client().map(|client| client.get(url).header("x-key", "mine"));
    let answer = get(format!("https://api.test:{}/", rig.tls))?.send().await?;
    assert_eq!(answer.headers()["x-seen"], format!("x-key: Bearer {STARS}"));
    let answer = get(format!("http://api.test:{}/", rig.plain))?.send().await?;
    assert_eq!(answer.headers()["x-seen"], "x-key: mine", "not in plain");
    rig.source.set(vec![Injection { by: By::Refusal, ..injection(&["api.test"]) }]);
    let answer = get(format!("https://api.test:{}/", rig.tls))?.send().await?;
    assert_eq!(answer.status(), 502);
    let said = answer.text().await?;
    assert!(said.contains("nothing is sent there without it"), "{said}");
    Ok(())
}

#[tokio::test]
async fn signed_requests_fail_with_an_explanation() -> anyhow::Result<()> {
    let rig = rig(Policy::Unrestricted).await?;
    let get = |path: &str, key: &str| {
        let signed = format!("AWS4-HMAC-SHA256 Credential={key}/20300101/r/s/aws4_request");
        let url = format!("https://api.test:{}{path}", rig.tls);
        rig.client().map(|client| client.get(url).header("authorization", signed))
    };
    let answer = get("/", PLACEHOLDER)?.send().await?;
    assert_eq!(answer.status(), 403);
    let said = answer.text().await?;
    assert!(said.contains("is signed with a placeholder"), "{said}");
    // Whether the placeholder was the key, nobody can see; that the host refuses it, anybody.
    let answer = get("/denied", "AKIA")?.send().await?;
    assert!(answer.headers()["vaquero-egress"].to_str()?.contains("put in after signing"));
    let answer = get("/", "AKIA")?.send().await?;
    assert!(!answer.headers().contains_key("vaquero-egress"));
    Ok(())
}
