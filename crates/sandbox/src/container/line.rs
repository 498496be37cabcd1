//! The line between a server and a container on the same machine: a socket in a directory that is mounted there, which the hand dials again and again. So the container needs no
//! writable place of the host, and the hand of a container that outlived its server finds the next one.

use std::fs;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::inside::{FAILED, PROXY_SOCKET, READY, WayOut};
use crate::engine::Line;
use crate::error::SandboxError;
use crate::launcher::network::SOCKETS;
use crate::seam::{Arrivals, Sockets, Stream};

/// The socket's name in its directory.
pub(crate) const SOCKET: &str = "server.sock";
/// Where the directory is mounted.
const PLACE: &str = "/run/vaquero";
/// The most a hand says of why it could not start.
pub(crate) const SAID: usize = 512;
/// Connections that wait to be served.
pub(crate) const CARRIED: usize = 16;

/// Where a hand dials in.
#[derive(Debug)]
pub struct Port {
    listener: UnixListener,
    /// Where connections to the proxy arrive, if the hand carries them.
    proxy: Option<UnixListener>,
}

impl Port {
    /// Where its directory has to be mounted, read-only.
    pub const PLACE: &'static str = PLACE;

    /// What the hand is told to dial.
    pub fn address() -> PathBuf {
        Path::new(PLACE).join(SOCKET)
    }

    /// Opens one in a directory, which must lie where nobody else may look.
    pub fn open(dir: &Path, way_out: WayOut) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // In the container others than this user look.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        let held = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let proxy = match way_out {
            WayOut::Forwarded => Some(listen(&held, PROXY_SOCKET)?),
            WayOut::None | WayOut::Sockets => None,
        };
        Ok(Self { listener: listen(&held, SOCKET)?, proxy })
    }

    /// Waits until the hand has dialled. Who dials is checked by process id, where that is known.
    pub async fn line(
        self,
        hand: Option<i32>,
        kept: Option<String>,
        patience: Duration,
    ) -> Result<Line, SandboxError> {
        let dialled = tokio::time::timeout(patience, dialled(&self.listener, hand)).await;
        let dialled = dialled.map_err(|_| SandboxError::gone("its hand does not call"))?;
        let failed = |error| SandboxError::io("cannot hear from the sandbox's hand", error);
        let (stream, said, descriptors) = dialled.map_err(failed)?;
        match said.first() {
            Some(&READY) => {}
            Some(&FAILED) => {
                return Err(SandboxError::unavailable(
                    format!(
                        "the container's walls cannot be put up: {}",
                        String::from_utf8_lossy(&said[1..])
                    ),
                    "see that the engine gives containers the kernel's nf_tables, seccomp and CAP_NET_ADMIN",
                ));
            }
            _ => return Err(SandboxError::Protocol("its hand begins with nonsense".to_owned())),
        }
        let arrivals = match (<[OwnedFd; SOCKETS]>::try_from(descriptors), self.proxy) {
            (Ok(sockets), None) => Some(Arrivals::Sockets(Sockets::from(sockets))),
            (_, Some(proxy)) => Some(Arrivals::Streams(carried(proxy))),
            (Err(_), None) => None,
        };
        let stream = stream.into_std().map_err(failed)?;
        Line::over(stream, arrivals, kept).map_err(failed)
    }
}

/// Listens in a directory whose path may be longer than a socket's address.
fn listen(dir: &OwnedFd, name: &str) -> io::Result<UnixListener> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn dialled(
    listener: &UnixListener,
    hand: Option<i32>,
) -> io::Result<(UnixStream, Vec<u8>, Vec<OwnedFd>)> {
    loop {
        let (stream, _) = listener.accept().await?;
        let who = stream.peer_cred()?.pid();
        // A server that is in a container itself sees no process ids of others.
        let another = who.zip(hand).is_some_and(|(who, hand)| who != 0 && who != hand);
        if another {
            continue;
        }
        let first = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        return Ok((stream, first.0, first.1));
    }
}

/// The connections that a hand carries, until nobody takes them any more.
fn carried(proxy: UnixListener) -> mpsc::Receiver<Box<dyn Stream>> {
    let (clients, arriving) = mpsc::channel::<Box<dyn Stream>>(CARRIED);
    // It ends by itself, and nothing has to wait for it.
    drop(TaskTracker::new().spawn(async move {
        loop {
            tokio::select! {
                () = clients.closed() => return,
                accepted = proxy.accept() => {
                    let Ok((client, _)) = accepted else {
                        // Out of descriptors, perhaps: the next moment may be better.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    if clients.send(Box::new(client)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }));
    arriving
}

/// The first message, with the descriptors that come with it. What follows is frames, which the hand sends only when asked.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = [0; SAID];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((bytes[..got.bytes].to_vec(), descriptors))
}
