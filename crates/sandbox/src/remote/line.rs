//! The server's end of a relay: the line to the hand, and what arrives from the proxy's clients.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::mux::{self, CLIENT, HAND, PULSE, Stream};
use super::relay::SILENCE;
use super::{Pipe, text};
use crate::container::{CARRIED, FAILED, READY, SAID};
use crate::engine::Line;
use crate::error::SandboxError;
use crate::seam::{self, Arrivals};

/// How often the server says that it is there.
const BEAT: Duration = Duration::from_secs(15);

/// Waits until the hand has dialled, at the other end of a relay that has just been started. What runs `beside` the line ends with it.
pub(super) async fn line(
    pipe: Pipe,
    as_text: bool,
    kept: Option<String>,
    patience: Duration,
    beside: impl Future<Output = ()> + Send + 'static,
) -> Result<Line, SandboxError> {
    let over = CancellationToken::new();
    let (hands, mut dialled) = mpsc::channel(1);
    let (clients, arriving) = mpsc::channel(CARRIED);
    // They end with the line, and nothing has to wait for them.
    let tasks = TaskTracker::new();
    tasks.spawn(over.clone().run_until_cancelled_owned(beside));
    let ending = over.clone();
    tasks.spawn(over.clone().run_until_cancelled_owned(async move {
        let streams = TaskTracker::new();
        let arrived = |stream| {
            let sorted = sort(stream, hands.clone(), clients.clone(), ending.clone());
            streams.spawn(ending.clone().run_until_cancelled_owned(sorted));
        };
        let Pipe { read, write } = pipe;
        if as_text {
            let (stream, translated) = text::over(read, write);
            tokio::select! {
                () = translated => {}
                () = mux::drive_server(stream.compat(), arrived) => {}
            }
        } else {
            mux::drive_server(tokio::io::join(read, write).compat(), arrived).await;
        }
        ending.cancel();
    }));
    let guard = over.clone().drop_guard();
    let dialled = tokio::select! {
        dialled = tokio::time::timeout(patience, dialled.recv()) => dialled,
        () = over.cancelled() => return Err(SandboxError::gone("its relay has ended")),
    };
    let hand = dialled.ok().flatten();
    let mut hand = hand.ok_or_else(|| SandboxError::gone("its hand does not call"))?;
    let failed = |error| SandboxError::io("cannot hear from the sandbox's hand", error);
    match hand.read_u8().await.map_err(failed)? {
        READY => {}
        FAILED => {
            let mut said = Vec::new();
            let limit = u64::try_from(SAID).unwrap_or(u64::MAX);
            hand.take(limit).read_to_end(&mut said).await.map_err(failed)?;
            let said = String::from_utf8_lossy(&said).into_owned();
            return Err(SandboxError::unavailable(
                format!("the walls in the machine cannot be put up: {said}"),
                "the hand has to be started as root; use another image",
            ));
        }
        _ => return Err(SandboxError::Protocol("its hand begins with nonsense".to_owned())),
    }
    let (read, write) = tokio::io::split(hand);
    let read = Guarded { read: Box::pin(read), _guard: guard };
    Ok(Line {
        read: Box::new(read),
        write: Box::new(write),
        arrivals: Some(Arrivals::Streams(arriving)),
        kept,
    })
}

async fn sort(
    mut stream: Stream,
    hands: mpsc::Sender<Stream>,
    clients: mpsc::Sender<Box<dyn seam::Stream>>,
    over: CancellationToken,
) {
    match stream.read_u8().await {
        // One that nobody takes is hung up on, and a hand dials again.
        Ok(HAND) => drop(hands.try_send(stream)),
        Ok(CLIENT) => drop(clients.send(Box::new(stream)).await),
        Ok(PULSE) => {
            while beat(&mut stream).await.is_ok() {
                tokio::time::sleep(BEAT).await;
            }
            over.cancel();
        }
        _ => {}
    }
}

async fn beat(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(b".").await?;
    let answered = tokio::time::timeout(SILENCE, stream.read_u8()).await;
    answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(drop)
}

/// What is read until the line is let go of, which ends all else that goes over it.
struct Guarded<R> {
    read: Pin<Box<R>>,
    _guard: DropGuard,
}

impl<R: AsyncRead> AsyncRead for Guarded<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.read.as_mut().poll_read(cx, buf)
    }
}
