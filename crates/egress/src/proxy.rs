//! The HTTP proxy: `CONNECT` for what is encrypted, whole URLs for what is not. Also what carries plain HTTP that came through the catch-all: every request of a connection
//! is looked at, not only the first, and is written anew, so that what a host reads is what was read here.

use crate::{
    Host, Refusal,
    host::Destination,
    inject::{Body, ForHost},
    outlet::{HTTP_2, Outlet, Place},
    replace::Replacer,
    tunnel,
    upstream::{HEAD_BYTES, Sender, Tasks, unreachable},
    websocket,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, copy_bidirectional, split},
    net::TcpStream,
    sync::Mutex,
};
use tokio_rustls::server::TlsStream;

/// Where an answer says what the egress knows about it.
const EXPLANATION: &str = "vaquero-egress";
const SIGNED: &str = "the request is signed; if a placeholder took part in its signature, no host can check it: the secret is put in after signing";
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(60);
/// Requests of one client at once, over HTTP/2.
const AT_ONCE: u32 = 64;
/// Headers that are between two neighbours and go no further.
const HOP_BY_HOP: [HeaderName; 4] = [
    header::CONNECTION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TRANSFER_ENCODING,
];

/// Requests of one client.
struct Relay {
    outlet: Arc<Outlet>,
    /// Where all of them go, if that is decided already.
    fixed: Option<Destination>,
    /// The host is to be spoken to in TLS.
    tls: bool,
    place: Place,
    /// A connection to the host over which nothing has been said yet.
    dialled: Mutex<Option<TcpStream>>,
    /// The last host's connection, for the next request to it.
    open: Mutex<Option<(Destination, Sender)>>,
}

/// Serves a client that knows it speaks to a proxy.
pub(crate) async fn serve<C>(outlet: &Arc<Outlet>, stream: C, place: Place)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Relay::new(outlet, place).serve_http1(stream).await;
}

/// Serves a client that believes it speaks to a host in plain.
pub(crate) async fn serve_plain<C>(
    outlet: &Arc<Outlet>,
    client: C,
    to: Destination,
    upstream: TcpStream,
    place: Place,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (fixed, dialled) = (Some(to), Mutex::new(Some(upstream)));
    let relay = Relay { fixed, dialled, ..Relay::new(outlet, place) };
    relay.serve_http1(client).await;
}

/// Serves a client that believes it speaks to a host in TLS, which has been opened.
pub(crate) async fn serve_opened<C>(
    outlet: &Arc<Outlet>,
    client: TlsStream<C>,
    to: Destination,
    upstream: TcpStream,
    place: Place,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (fixed, dialled) = (Some(to), Mutex::new(Some(upstream)));
    let relay = Relay { fixed, tls: true, dialled, ..Relay::new(outlet, place) };
    if client.get_ref().1.alpn_protocol() == Some(HTTP_2) {
        relay.serve_http2(client).await;
    } else {
        relay.serve_http1(client).await;
    }
}

impl Relay {
    fn new(outlet: &Arc<Outlet>, place: Place) -> Self {
        let (outlet, dialled, open) = (Arc::clone(outlet), Mutex::new(None), Mutex::new(None));
        Self { outlet, fixed: None, tls: false, place, dialled, open }
    }

    async fn serve_http1(self, client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let relay = Arc::new(self);
        let service = service_fn(move |request| {
            let relay = Arc::clone(&relay);
            async move { Ok::<_, Infallible>(relay.answer(request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .half_close(true)
            .max_buf_size(HEAD_BYTES as usize)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(client), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection of a sandbox ended");
        }
    }

    async fn serve_http2(self, client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let tasks = Tasks(Arc::clone(&self.outlet));
        let relay = Arc::new(self);
        let service = service_fn(move |request| {
            let relay = Arc::clone(&relay);
            async move { Ok::<_, Infallible>(relay.answer(request).await) }
        });
        let served = http2::Builder::new(tasks)
            .timer(TokioTimer::new())
            .max_concurrent_streams(AT_ONCE)
            .max_header_list_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(client), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection of a sandbox ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let wanted = self.destination(&request);
        let outcome = match &wanted {
            Ok(to) if request.method() == Method::CONNECT => self.connect(request, to).await,
            Ok(to) => self.forward(request, to).await,
            Err((_, refusal)) => Err(refusal.clone()),
        };
        outcome.unwrap_or_else(|refusal| {
            let (host, port) = match wanted {
                Ok(to) => (to.host, to.port),
                Err((host, _)) => (host, 0),
            };
            self.outlet.refused(&host, port, &refusal);
            refused(&refusal)
        })
    }

    /// Where a request is to go. All that names a host in it must agree.
    fn destination(&self, request: &Request<Incoming>) -> Result<Destination, (Host, Refusal)> {
        let nowhere = || Host::Name(String::new());
        let malformed = |what: &'static str| Err((nowhere(), Refusal::Malformed(what)));
        let connect = request.method() == Method::CONNECT;
        let uri = request.uri();
        let default_port = (!connect).then_some(80);
        let parse = |text: &str| Host::parse_authority(text, default_port);
        let expected = if self.tls { Scheme::HTTPS } else { Scheme::HTTP };
        if uri.scheme().is_some_and(|scheme| *scheme != expected) {
            return malformed("only http:// URLs can be asked for; for others, use CONNECT");
        }
        let named = match (uri.authority(), &self.fixed) {
            (Some(_), Some(_)) if connect => return malformed("this is no proxy"),
            (Some(authority), _) => Some(authority.as_str()),
            (None, Some(_)) => None,
            (None, None) => {
                return malformed("this is a proxy: it wants whole URLs, or CONNECT host:port");
            }
        };
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (header, more) = (hosts.next(), hosts.next());
        if more.is_some() {
            return malformed("a request names one host");
        }
        let header = match header.map(HeaderValue::to_str) {
            Some(Ok(text)) => Some(text),
            Some(Err(_)) => return malformed("the host is no host"),
            None => None,
        };
        let mut to = self.fixed.clone();
        // The port in `Host` is what the client believes, and harmless.
        for text in [named, header.filter(|_| !connect)].into_iter().flatten() {
            let Some((host, port)) = parse(text) else { return malformed("the host is no host") };
            match &to {
                None => to = Some(Destination { host, port }),
                Some(to) if to.host == host => {}
                Some(to) => {
                    let refusal =
                        Refusal::Mismatch { wanted: to.host.clone(), said: format!("`{host}`") };
                    return Err((to.host.clone(), refusal));
                }
            }
        }
        match to {
            Some(_) if self.fixed.is_some() && header.is_none() && named.is_none() => {
                malformed("a request names its host")
            }
            Some(to) => Ok(to),
            None => malformed("a request names its host"),
        }
    }

    async fn connect(
        &self,
        request: Request<Incoming>,
        to: &Destination,
    ) -> Result<Response<Body>, Refusal> {
        let upstream = self.outlet.dial(&to.host, to.port).await?;
        let (outlet, to, place) = (Arc::clone(&self.outlet), to.clone(), Arc::clone(&self.place));
        self.outlet.spawn(async move {
            if let Ok(client) = hyper::upgrade::on(request).await {
                tunnel::run(outlet, TokioIo::new(client), to, upstream, place).await;
            }
        });
        Ok(Response::new(text(String::new())))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        to: &Destination,
    ) -> Result<Response<Body>, Refusal> {
        let secrets = self.outlet.secrets(&to.host).await;
        if let Some(secrets) = &secrets {
            secrets.check(&to.host)?;
        }
        let at_once = request.version() == Version::HTTP_2;
        // To any other protocol, such as HTTP/2, nobody here could say what host it names.
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let upgrade =
            upgrade.filter(|to| !at_once && to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = outgoing(request, to, upgrade.as_ref())?.into_parts();
        let mut signed = false;
        let body = match &secrets {
            Some(secrets) => {
                if secrets.signed_with_placeholder(&head) {
                    return Err(Refusal::Signed(to.host.clone()));
                }
                signed = secrets.doubts_signature(&head);
                let body = secrets.body(&head.headers, body, &self.outlet.held).await;
                secrets.headers(&mut head.headers, self.tls);
                body.map_err(|_| Refusal::Malformed("the body of the request broke off"))?
            }
            None => body.boxed_unsync(),
        };
        let mut answer = self.send(Request::from_parts(head, body), to, at_once).await?;
        if secrets.is_some() {
            readable(answer.headers())?;
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let switched = answer.headers().get(header::UPGRADE).cloned();
            let upstream = hyper::upgrade::on(&mut answer);
            let Some(client) = client else {
                return Err(Refusal::Malformed("the host changed the protocol unasked"));
            };
            let (place, scrubber) =
                (Arc::clone(&self.place), secrets.as_ref().map(ForHost::scrubber));
            self.outlet.spawn(async move {
                let _place = place;
                if let (Ok(client), Ok(upstream)) = (client.await, upstream.await) {
                    let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                    switched_over(client, upstream, scrubber.flatten()).await;
                }
            });
            strip(answer.headers_mut());
            if let Some(switched) = switched {
                switch(answer.headers_mut(), switched);
            }
        } else {
            strip(answer.headers_mut());
        }
        let Some(secrets) = secrets else { return Ok(answer.map(BodyExt::boxed_unsync)) };
        secrets.scrub_headers(answer.headers_mut());
        if signed && matches!(answer.status().as_u16(), 400 | 401 | 403) {
            let value = HeaderValue::from_static(SIGNED);
            answer.headers_mut().insert(EXPLANATION, value);
        }
        Ok(answer.map(|body| secrets.scrub_body(body)))
    }

    /// Sends a request over the connection that is open to its host, or a new one.
    async fn send(
        &self,
        mut request: Request<Body>,
        to: &Destination,
        at_once: bool,
    ) -> Result<Response<Incoming>, Refusal> {
        if let Some(mut sender) = self.opened(to).await
            // Of a client that asks one thing after the other, the last answer has passed.
            && sender.is_free(!at_once).await
        {
            match sender.send(request, self.tls).await {
                Ok(answer) => {
                    self.keep(to, sender).await;
                    return Ok(answer);
                }
                Err(mut error) => match error.take_message() {
                    // The host had hung up, and has seen nothing of it.
                    Some(unsent) => request = unsent,
                    None => return Err(unreachable(to, error.error())),
                },
            }
        }
        let mut sender = self.connect_to(to, at_once).await?;
        if let Some(another) = sender.another() {
            self.keep(to, another).await;
        }
        let sent = sender.send(request, self.tls).await;
        let answer = sent.map_err(|error| unreachable(to, error.error()))?;
        self.keep(to, sender).await;
        Ok(answer)
    }

    /// The connection that is open to a host: for this request alone, if it cannot carry several.
    async fn opened(&self, to: &Destination) -> Option<Sender> {
        let mut open = self.open.lock().await;
        let (place, sender) = open.take()?;
        if place != *to {
            return None;
        }
        *open = sender.another().map(|another| (place, another));
        Some(sender)
    }

    async fn keep(&self, to: &Destination, sender: Sender) {
        *self.open.lock().await = Some((to.clone(), sender));
    }

    async fn connect_to(&self, to: &Destination, at_once: bool) -> Result<Sender, Refusal> {
        let dialled = self.dialled.lock().await.take();
        let place = match &dialled {
            None if at_once => self.outlet.place().ok_or(Refusal::TooMany)?,
            _ => Arc::clone(&self.place),
        };
        let stream = match dialled {
            Some(stream) => stream,
            None => self.outlet.dial(&to.host, to.port).await?,
        };
        let begun = if self.tls {
            let (stream, http2) = self.outlet.in_tls(stream, &to.host, at_once).await?;
            Sender::begin(&self.outlet, stream, http2, place).await
        } else {
            Sender::begin(&self.outlet, self.outlet.counted(stream), false, place).await
        };
        begun.map_err(|error| unreachable(to, &error))
    }
}

/// Whether what a host answers can be looked through for secrets: it was asked for that.
fn readable(headers: &HeaderMap) -> Result<(), Refusal> {
    let says = |name: HeaderName, plain: &str| {
        headers
            .get_all(name)
            .iter()
            .any(|value| !value.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    };
    let packed = says(header::CONTENT_ENCODING, "identity")
        || says(header::TRANSFER_ENCODING, "chunked")
        || says(HeaderName::from_static("grpc-encoding"), "identity")
        || says(header::SEC_WEBSOCKET_EXTENSIONS, "");
    if packed {
        return Err(Refusal::Malformed(
            "the host compresses what it was asked not to; it cannot be looked through for secrets",
        ));
    }
    Ok(())
}

/// Passes on what is said over a WebSocket.
async fn switched_over(
    mut client: TokioIo<Upgraded>,
    mut upstream: TokioIo<Upgraded>,
    scrubber: Option<Replacer>,
) {
    // Either end may hang up at any moment; that is how most connections end.
    let Some(scrubber) = scrubber else {
        drop(copy_bidirectional(&mut client, &mut upstream).await);
        return;
    };
    let ((mut from, back), (host, mut to)) = (split(client), split(upstream));
    let asks = async {
        drop(copy(&mut from, &mut to).await);
        drop(to.shutdown().await);
    };
    tokio::join!(asks, websocket::scrubbed(host, back, scrubber));
}

/// The request as the host is to read it.
fn outgoing(
    mut request: Request<Incoming>,
    to: &Destination,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<Incoming>, Refusal> {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    // The body's length follows from the body.
    headers.remove(header::CONTENT_LENGTH);
    if !headers.contains_key(header::HOST) {
        let host = host.unwrap_or_else(|| to.host.to_string());
        let value = HeaderValue::try_from(host);
        headers.insert(header::HOST, value.map_err(|_| Refusal::Malformed("the host is no host"))?);
    }
    if let Some(upgrade) = upgrade {
        switch(headers, upgrade.clone());
    }
    Ok(request)
}

/// Removes what is not for the next neighbour.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::HOST)
        .collect();
    let others = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.iter().chain(&HOP_BY_HOP).chain(&others).chain([&header::UPGRADE]) {
        headers.remove(name);
    }
    // Trailers pass; gRPC asks for them.
    if headers.get(header::TE).is_some_and(|value| value != "trailers") {
        headers.remove(header::TE);
    }
}

fn switch(headers: &mut HeaderMap, to: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, to);
}

fn text(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(text(format!("egress: {refusal}\n")));
    *response.status_mut() = refusal.status();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
