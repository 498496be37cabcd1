//! Passing bytes between a sandbox and a host, once it is decided that they may pass.

use crate::{
    Refusal,
    host::Destination,
    inspect::{self, Kind},
    outlet::{Outlet, Place},
    proxy,
};
use futures::future::BoxFuture;
use std::{io::Cursor, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional, join, split},
    net::TcpStream,
};

/// Connects a client with a host it may reach, and sees to it that what is said to the host is meant for it.
pub(crate) fn run<C>(
    outlet: Arc<Outlet>,
    client: C,
    to: Destination,
    upstream: TcpStream,
    place: Place,
) -> BoxFuture<'static, ()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Boxed: what is in a tunnel may be HTTP, and that may ask for a tunnel.
    Box::pin(async move { inspected(&outlet, client, &to, upstream, place).await })
}

async fn inspected<C>(
    outlet: &Arc<Outlet>,
    client: C,
    to: &Destination,
    upstream: TcpStream,
    place: Place,
) where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let secrets = outlet.secrets(&to.host).await.is_some();
    let inspects = outlet.policy.inspects();
    if !inspects && !secrets {
        return copy(client, outlet.counted(upstream)).await;
    }
    let (mut from, mut back) = split(client);
    let (mut bytes, mut greeting) = (Vec::new(), [0]);
    let client_first = tokio::select! {
        biased;
        _ = from.read_buf(&mut bytes) => true,
        // The host speaks first: its protocol has no place for another name.
        _ = upstream.peek(&mut greeting) => false,
    };
    let opened = if client_first {
        inspect::open(&mut from, bytes).await
    } else {
        Ok(inspect::Opening { kind: Kind::Other, bytes })
    };
    let verdict = match opened {
        Ok(opening) => match &opening.kind {
            Kind::Http => {
                let client = join(Cursor::new(opening.bytes).chain(from), back);
                return proxy::serve_plain(outlet, client, to.clone(), upstream, place).await;
            }
            Kind::Tls(Some(name)) if *name == to.host && secrets => {
                let client = join(Cursor::new(opening.bytes).chain(from), back);
                if let Some(client) = outlet.open_tls(client).await {
                    proxy::serve_opened(outlet, client, to.clone(), upstream, place).await;
                }
                return;
            }
            Kind::Tls(Some(name)) if *name == to.host => Ok(opening),
            Kind::Tls(_) if !inspects && !secrets => Ok(opening),
            Kind::Tls(name) => {
                let said = name
                    .as_ref()
                    .map_or_else(|| "no host by name".to_owned(), |name| format!("`{name}`"));
                Err((Kind::Tls(None), Refusal::Mismatch { wanted: to.host.clone(), said }))
            }
            Kind::Other => Ok(opening),
        },
        Err(refusal) => Err((Kind::Other, refusal)),
    };
    match verdict {
        Ok(opening) => {
            let mut upstream = outlet.counted(upstream);
            if upstream.write_all(&opening.bytes).await.is_ok() {
                copy(join(from, back), upstream).await;
            }
        }
        Err((kind, refusal)) => {
            outlet.refused(&to.host, to.port, &refusal);
            inspect::refuse(&mut back, &kind, &refusal).await;
        }
    }
}

async fn copy(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
) {
    // Either end may hang up at any moment; that is how most connections end.
    drop(copy_bidirectional(&mut client, &mut upstream).await);
}
