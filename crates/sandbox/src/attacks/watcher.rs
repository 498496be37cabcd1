//! What attacks find at the end of a way out: something that lets nothing pass and tells each connection where it wanted to go.

use std::io;
use std::net;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::seam::{Arrivals, Meter, Outbound, SandboxKey, Sockets, Traffic, Trust, Uplink};

/// Serves the sockets of sandboxes under attack.
#[derive(Debug, Default)]
pub struct Watcher {
    tasks: TaskTracker,
}

impl Uplink for Watcher {
    fn authority(&self) -> io::Result<Trust> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn serve(
        &self,
        _key: &SandboxKey,
        _outbound: &Outbound,
        _kept: Option<&str>,
        arrivals: Arrivals,
        over: CancellationToken,
    ) -> io::Result<Arc<dyn Meter>> {
        let Sockets { proxy, catch_all, names } = match arrivals {
            Arrivals::Sockets(sockets) => sockets,
            Arrivals::Streams(mut streams) => {
                self.tasks.spawn(over.run_until_cancelled_owned(async move {
                    while let Some(mut stream) = streams.recv().await {
                        stream.write_all(b"caught the proxy\n").await.ok();
                    }
                }));
                return Ok(Arc::new(Traffic::default()));
            }
        };
        for listener in [proxy, catch_all] {
            let (listener, over) = (adopt(listener)?, over.clone());
            self.tasks.spawn(async move { over.run_until_cancelled(tell(listener)).await });
        }
        names.set_nonblocking(true)?;
        let names = UdpSocket::from_std(names)?;
        self.tasks.spawn(async move { over.run_until_cancelled(answer(names)).await });
        Ok(Arc::new(Traffic::default()))
    }
}

fn adopt(listener: net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn tell(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let wanted = rustix::net::sockopt::ip_original_dst(&stream);
        let wanted = wanted.map_or_else(|_| "the proxy".to_owned(), |to| to.to_string());
        // Whoever has gone does not hear it.
        stream.write_all(format!("caught {wanted}\n").as_bytes()).await.ok();
    }
}

async fn answer(socket: UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
        socket.send_to(b"caught", from).await.ok();
    }
}
