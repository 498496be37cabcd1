//! A host's end of a conversation: one request at a time over HTTP/1.1, many at once over HTTP/2.

use crate::{
    Refusal,
    host::Destination,
    inject::Body,
    outlet::{Outlet, Place, Upstream},
};
use http::{Request, Response, Uri, header, uri::Scheme};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{future::Future, sync::Arc};

/// Largest head of a request or an answer.
pub(crate) const HEAD_BYTES: u32 = 64 << 10;

/// Runs what a connection needs for as long as the sandbox has its way out.
#[derive(Clone)]
pub(crate) struct Tasks(pub(crate) Arc<Outlet>);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// Sends requests to one host.
pub(crate) enum Sender {
    /// The next one when the answer to the last has been read.
    InTurn(http1::SendRequest<Body>),
    /// At any time.
    AtOnce(http2::SendRequest<Body>),
}

impl Sender {
    /// Begins to speak HTTP over a connection, which keeps its place for as long as it lives.
    pub(crate) async fn begin(
        outlet: &Arc<Outlet>,
        upstream: impl Upstream + 'static,
        http2: bool,
        place: Place,
    ) -> hyper::Result<Self> {
        let upstream = TokioIo::new(upstream);
        // How a connection ends, whoever waits for an answer hears.
        if http2 {
            let (sender, connection) = http2::Builder::new(Tasks(Arc::clone(outlet)))
                .timer(TokioTimer::new())
                .max_header_list_size(HEAD_BYTES)
                .handshake(upstream)
                .await?;
            outlet.spawn(async move {
                drop((connection.await, place));
            });
            return Ok(Self::AtOnce(sender));
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES as usize)
            .preserve_header_case(true)
            .handshake(upstream)
            .await?;
        outlet.spawn(async move {
            drop((connection.with_upgrades().await, place));
        });
        Ok(Self::InTurn(sender))
    }

    /// Another one for the same connection, if it can carry several requests.
    pub(crate) fn another(&self) -> Option<Self> {
        match self {
            Self::InTurn(_) => None,
            Self::AtOnce(sender) => Some(Self::AtOnce(sender.clone())),
        }
    }

    /// Whether the next request can be sent. With `wait`, the answer to the last one is nearly read, and is waited for.
    pub(crate) async fn is_free(&mut self, wait: bool) -> bool {
        match self {
            Self::InTurn(sender) if wait => sender.ready().await.is_ok(),
            Self::InTurn(sender) => sender.is_ready(),
            Self::AtOnce(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request, written as HTTP/1.1 has it; what could not be sent comes back.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
        tls: bool,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        match self {
            Self::InTurn(sender) => sender.try_send_request(request).await,
            Self::AtOnce(sender) => sender.try_send_request(absolute(request, tls)).await,
        }
    }
}

/// The request with its host in its address, as HTTP/2 has it.
fn absolute(mut request: Request<Body>, tls: bool) -> Request<Body> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let whole =
        Uri::builder().scheme(scheme).authority(host.unwrap_or_default()).path_and_query(path);
    if let Ok(uri) = whole.build() {
        *request.uri_mut() = uri;
        request.headers_mut().remove(header::HOST);
    }
    *request.version_mut() = http::Version::HTTP_2;
    request
}

pub(crate) fn unreachable(to: &Destination, error: &hyper::Error) -> Refusal {
    // What hyper says of itself is less than what the host said to it.
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Refusal::Unreachable(to.host.clone(), format!("{error}{}", cause.unwrap_or_default()))
}
