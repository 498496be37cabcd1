//! The HTTP proxy: `CONNECT` for what is encrypted, whole URLs for what is not. Also what carries plain HTTP that came through the catch-all: every request of a connection
//! is looked at, not only the first, and is written anew, so that what a host reads is what was read here.

use crate::{
    Host, Refusal,
    inject::Body,
    outlet::{Outlet, Place, Upstream},
    tunnel::{self, Destination},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self as client, SendRequest},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
    sync::Mutex,
};

/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(60);
/// Largest head of a request or an answer.
const HEAD_BYTES: usize = 64 << 10;
/// Headers that are between two neighbours and go no further.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
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
    /// The last host's connection, for the next request to it.
    open: Mutex<Option<(Destination, SendRequest<Body>)>>,
}

/// Serves a client that knows it speaks to a proxy.
pub(crate) async fn serve(outlet: &Arc<Outlet>, stream: TcpStream, place: Place) {
    let (outlet, open) = (Arc::clone(outlet), Mutex::new(None));
    let relay = Relay { outlet, fixed: None, tls: false, place, open };
    relay.serve(stream).await;
}

/// Serves a client that believes it speaks to a host: over a plain connection to it, or in TLS over a new one.
pub(crate) async fn serve_one<C>(
    outlet: &Arc<Outlet>,
    client: C,
    to: Destination,
    plain: Option<TcpStream>,
    place: Place,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = plain.is_none();
    let open = match plain {
        Some(upstream) => {
            let upstream = outlet.counted(upstream);
            let Ok(sender) = shake_hands(outlet, upstream).await else { return };
            Some((to.clone(), sender))
        }
        None => None,
    };
    let (outlet, open) = (Arc::clone(outlet), Mutex::new(open));
    let relay = Relay { outlet, fixed: Some(to), tls, place, open };
    relay.serve(client).await;
}

async fn shake_hands(
    outlet: &Arc<Outlet>,
    upstream: impl Upstream + 'static,
) -> hyper::Result<SendRequest<Body>> {
    let (sender, connection) = client::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .preserve_header_case(true)
        .handshake(TokioIo::new(upstream))
        .await?;
    outlet.spawn(async move {
        // Whoever waits for an answer hears of it.
        drop(connection.with_upgrades().await);
    });
    Ok(sender)
}

impl Relay {
    async fn serve(self, client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let relay = Arc::new(self);
        let service = service_fn(move |request| {
            let relay = Arc::clone(&relay);
            async move { Ok::<_, Infallible>(relay.answer(request).await) }
        });
        let served = server::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .half_close(true)
            .max_buf_size(HEAD_BYTES)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(client), service)
            .with_upgrades()
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
        if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
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
            Some(_) if self.fixed.is_some() && header.is_none() => {
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
        // To any other protocol, such as HTTP/2, nobody here could say what host it names.
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let upgrade = upgrade.filter(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = outgoing(request, to, upgrade.as_ref())?.into_parts();
        let body = match &secrets {
            Some(secrets) => {
                secrets.headers(&mut head.headers);
                let body = secrets.body(body, &self.outlet.held).await;
                body.map_err(|_| Refusal::Malformed("the body of the request broke off"))?
            }
            None => body.boxed_unsync(),
        };
        let mut answer = self.send(Request::from_parts(head, body), to).await?;
        let says = |name: HeaderName, plain: &str| {
            answer.headers().get_all(name).iter().any(|value| value != plain)
        };
        let compressed = says(header::CONTENT_ENCODING, "identity")
            || says(header::TRANSFER_ENCODING, "chunked");
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let switched = answer.headers().get(header::UPGRADE).cloned();
            let upstream = hyper::upgrade::on(&mut answer);
            let Some(client) = client else {
                return Err(Refusal::Malformed("the host changed the protocol unasked"));
            };
            let place = Arc::clone(&self.place);
            self.outlet.spawn(async move {
                let _place = place;
                if let (Ok(client), Ok(upstream)) = (client.await, upstream.await) {
                    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                    drop(copy_bidirectional(&mut client, &mut upstream).await);
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
        if compressed {
            return Err(Refusal::Malformed(
                "the host compresses what it was asked not to; it cannot be looked through for secrets",
            ));
        }
        secrets.scrub_headers(answer.headers_mut());
        Ok(answer.map(|body| secrets.scrub_body(body)))
    }

    /// Sends a request over the connection that is open to its host, or a new one.
    async fn send(
        &self,
        mut request: Request<Body>,
        to: &Destination,
    ) -> Result<Response<Incoming>, Refusal> {
        let mut open = self.open.lock().await;
        if let Some((place, mut sender)) = open.take()
            && place == *to
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    *open = Some((place, sender));
                    return Ok(answer);
                }
                Err(mut error) => match error.take_message() {
                    // The host had hung up, and has seen nothing of it.
                    Some(unsent) => request = unsent,
                    None => return Err(unreachable(to, error.error())),
                },
            }
        }
        let upstream = self.outlet.reach(&to.host, to.port, self.tls).await?;
        let sender = shake_hands(&self.outlet, upstream).await;
        let mut sender = sender.map_err(|error| unreachable(to, &error))?;
        let answer = sender.send_request(request).await.map_err(|error| unreachable(to, &error))?;
        *open = Some((to.clone(), sender));
        Ok(answer)
    }
}

fn unreachable(to: &Destination, error: &hyper::Error) -> Refusal {
    Refusal::Unreachable(to.host.clone(), error.to_string())
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
    *request.version_mut() = http::Version::HTTP_11;
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
