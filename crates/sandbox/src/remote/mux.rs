//! Many streams over one: the hand's and those of the proxy's clients, between a machine and its server.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use futures::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

/// What a stream is, as its first byte says.
pub(super) const HAND: u8 = b'h';
pub(super) const CLIENT: u8 = b'p';
pub(super) const PULSE: u8 = b'k';
/// Connections of one kind that a relay carries at once. One more is hung up on.
pub(super) const CARRIED_AT_ONCE: usize = 64;
/// Streams at once: a machine's connections and as many again that the other end has not seen the end of. More end the whole line, and what the server can be made to hold is that many
/// windows.
const STREAMS: usize = 256;
/// The window that every stream begins with.
const WINDOW: usize = 256 << 10;

/// One of many streams.
pub(super) type Stream = tokio_util::compat::Compat<yamux::Stream>;
/// Asks for a new one.
pub(super) type Opener = mpsc::Sender<oneshot::Sender<Stream>>;

/// Opens one.
pub(super) async fn open(opener: &Opener) -> io::Result<Stream> {
    let (ask, answer) = oneshot::channel();
    let over = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
    opener.send(ask).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
    answer.await.map_err(over)
}

/// Drives the machine's end, which opens streams, until it is over.
pub(super) async fn drive_machine(
    over: impl AsyncRead + AsyncWrite + Unpin,
    mut asked: mpsc::Receiver<oneshot::Sender<Stream>>,
) {
    let mut connection = Connection::new(over, config(), Mode::Client);
    let mut next: Option<oneshot::Sender<Stream>> = None;
    poll_fn(|cx| {
        loop {
            match connection.poll_next_inbound(cx) {
                // The server opens none.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if next.is_none()
                && let Poll::Ready(Some(ask)) = asked.poll_recv(cx)
            {
                next = Some(ask);
            }
            if next.is_none() {
                return Poll::Pending;
            }
            match connection.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    if let Some(ask) = next.take() {
                        // Who asked may have gone.
                        drop(ask.send(stream.compat()));
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Drives the server's end, which is sent streams, until it is over.
pub(super) async fn drive_server(
    over: impl AsyncRead + AsyncWrite + Unpin,
    arrived: impl Fn(Stream),
) {
    let mut connection = Connection::new(over, config(), Mode::Server);
    while let Some(Ok(stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        arrived(stream.compat());
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(STREAMS);
    config.set_max_connection_receive_window(Some(STREAMS * WINDOW));
    config
}
