//! The standard streams of a program elsewhere: what it says arrives as pieces, what it is told is sent in pieces, one after the other.

use std::fmt;
use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_util::io::StreamReader;
use tokio_util::task::TaskTracker;

/// What is sent at once.
const PIECE: usize = 256 << 10;

/// The standard streams of a program.
pub struct Pipe {
    /// What it writes to its standard output, until it ends.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard input.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
}

/// Takes what a program is told.
#[async_trait]
pub trait Input: Send + 'static {
    /// Sends a piece; the next one comes when it has arrived.
    async fn send(&mut self, piece: Bytes) -> io::Result<()>;
}

impl Pipe {
    /// Of a program whose output comes as a stream.
    pub fn of(
        output: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        mut input: impl Input,
    ) -> Self {
        let (write, mut told) = tokio::io::duplex(PIECE);
        // It ends with what it reads from.
        drop(TaskTracker::new().spawn(async move {
            let mut piece = vec![0; PIECE];
            while let Ok(count @ 1..) = told.read(&mut piece).await {
                if let Err(error) = input.send(Bytes::copy_from_slice(&piece[..count])).await {
                    tracing::debug!(%error, "a program's input is lost");
                    return;
                }
            }
        }));
        Self { read: Box::new(StreamReader::new(Box::pin(output))), write: Box::new(write) }
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}
