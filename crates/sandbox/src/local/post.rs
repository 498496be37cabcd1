//! The server's end of the launcher's socket: questions out, answers and descriptors in.
//! It starts nothing; whether there is a launcher to talk to is for `found` to see to.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::SandboxError;
use crate::launcher::SOCKET;
use crate::launcher::wire::{self, Answer, Ask, Question, Reply};

type Waiting = HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>;

/// A connection to a launcher.
#[derive(Debug)]
pub(crate) struct Post {
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Mutex<Option<Waiting>>>,
    next: AtomicU64,
    closed: CancellationToken,
}

/// Connects to the launcher of a directory; an error of kind `NotFound` or `ConnectionRefused` means
/// that there is none.
pub(crate) fn dial(dir: &Path) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the launcher is another user's",
        ));
    }
    Ok(socket)
}

impl Post {
    pub(crate) fn open(socket: OwnedFd, tasks: &TaskTracker) -> Result<Self, SandboxError> {
        #[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays the same one")]
        // SAFETY: an `OwnedFd` names one open descriptor, and keeps it, until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }
            .map_err(|e| SandboxError::io("cannot use the launcher's socket", e))?;
        let post = Self {
            socket: Arc::new(socket),
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
            next: AtomicU64::new(1),
            closed: CancellationToken::new(),
        };
        let reader = read(Arc::clone(&post.socket), Arc::clone(&post.waiting), post.closed.clone());
        tasks.spawn(reader);
        Ok(post)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.closed.is_cancelled()
    }

    /// Resolves when the launcher is gone or the connection closed.
    pub(crate) async fn ended(&self) {
        self.closed.cancelled().await;
    }

    /// Hangs up, for the launcher to see at once however long this value lives.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        // A launcher that is gone already has hung up itself.
        rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both).ok();
    }

    /// Asks, and waits at most `timeout` for the answer.
    pub(crate) async fn ask(
        &self,
        ask: Ask,
        timeout: Duration,
    ) -> Result<(Answer, Vec<OwnedFd>), SandboxError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => waiting.insert(id, answer),
            None => return Err(SandboxError::gone("the launcher has ended")),
        };
        let exchange = async {
            self.send(&Question { id, ask }).await?;
            answered.await.map_err(|_| SandboxError::gone("the launcher has ended"))
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            if let Some(waiting) = lock(&self.waiting).as_mut() {
                waiting.remove(&id);
            }
            Err(SandboxError::unavailable(
                format!("the launcher did not answer within {} s", timeout.as_secs()),
                "see launcher/launcher.log in the data directory, or end the launcher process",
            ))
        })
    }

    async fn send(&self, question: &Question) -> Result<(), SandboxError> {
        loop {
            let mut ready = self
                .socket
                .writable()
                .await
                .map_err(|e| SandboxError::io("cannot write to the launcher", e))?;
            match ready.try_io(|socket| wire::send(socket.get_ref(), question, &[])) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => {
                    let what = "the sandbox's variables are too large".to_owned();
                    return Err(SandboxError::Invalid(what));
                }
                Ok(Err(_)) => {
                    self.closed.cancel();
                    return Err(SandboxError::gone("the launcher has ended"));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(waiting: &Mutex<Option<Waiting>>) -> std::sync::MutexGuard<'_, Option<Waiting>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Mutex<Option<Waiting>>>,
    closed: CancellationToken,
) {
    let reading = async {
        let mut buffer = Vec::new();
        loop {
            let Ok(mut ready) = socket.readable().await else { return };
            match ready.try_io(|socket| wire::receive::<Reply>(socket.get_ref(), &mut buffer)) {
                Ok(Ok(Some((reply, descriptors)))) => {
                    let asked = lock(&waiting).as_mut().and_then(|w| w.remove(&reply.id));
                    if let Some(asked) = asked {
                        // Whoever gave up waiting lets the descriptors close.
                        drop(asked.send((reply.answer, descriptors)));
                    }
                }
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the launcher's connection broke");
                    return;
                }
                Err(_would_block) => {}
            }
        }
    };
    closed.run_until_cancelled(reading).await;
    closed.cancel();
    // Dropping the senders tells everyone who waits.
    lock(&waiting).take();
}
