//! Connections: accepted, served, and let go when the server stops. A client that sends nothing does not hold one for ever.

mod wire;

use axum::{Router, body::Body};
use futures::{FutureExt, future::BoxFuture};
use hyper::{Method, Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioTimer;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use vaquero_api::App;
use wire::Wire;

/// How long a client may take to send a request's head.
const HEAD: Duration = Duration::from_secs(60);

/// Serves until `stop`, then waits for requests under way (at most `grace`).
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    app: App,
    stop: CancellationToken,
    grace: Duration,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection without TCP_NODELAY");
        }
        let (router, stop, changes) = (router.clone(), stop.clone(), connections.clone());
        let wire = Wire::new(stream, app.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| handle(&router, request, &changes));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(wire, service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
}

/// A read is dropped when its client goes away. A change that has begun is finished, so it runs on its own.
fn handle(
    router: &Router,
    request: Request<Incoming>,
    changes: &TaskTracker,
) -> BoxFuture<'static, std::io::Result<Response<Body>>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let handled = router.clone().oneshot(request).map(|Ok(response)| response);
    if reads {
        handled.map(Ok).boxed()
    } else {
        changes.spawn(handled).map(|done| done.map_err(std::io::Error::other)).boxed()
    }
}
