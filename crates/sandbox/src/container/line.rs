//! The line between a server and a container on the same machine: a socket in a directory that is mounted there, which the hand dials again and again. So the container needs no
//! writable place of the host, and the hand of a container that outlived its server finds the next one.

use std::fs;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::inside::{FAILED, READY};
use crate::engine::Line;
use crate::error::SandboxError;
use crate::launcher::network::SOCKETS;
use crate::seam::Sockets;

/// The socket's name in its directory.
const SOCKET: &str = "server.sock";
/// Where the directory is mounted.
const PLACE: &str = "/run/vaquero";
/// The most a hand says of why it could not start.
const SAID: usize = 512;

/// Where a hand dials in.
#[derive(Debug)]
pub struct Port {
    listener: UnixListener,
}

impl Port {
    /// Where its directory has to be mounted, read-only.
    pub const PLACE: &'static str = PLACE;

    /// What the hand is told to dial.
    pub fn address() -> PathBuf {
        Path::new(PLACE).join(SOCKET)
    }

    /// Opens one in a directory, which must lie where nobody else may look.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // In the container others than this user look.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        let held = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match rustix::fs::unlinkat(&held, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // Its path may be longer than a socket's address.
        let path = format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd());
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener })
    }

    /// Waits until the hand has dialled. Who dials is checked by process id, where that is known.
    pub async fn line(
        self,
        hand: Option<i32>,
        kept: Option<String>,
        patience: Duration,
    ) -> Result<Line, SandboxError> {
        let dialled = tokio::time::timeout(patience, self.dialled(hand)).await;
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
        let sockets = match <[OwnedFd; SOCKETS]>::try_from(descriptors) {
            Ok([proxy, catch_all, names]) => Some(Sockets {
                proxy: TcpListener::from(proxy),
                catch_all: TcpListener::from(catch_all),
                names: UdpSocket::from(names),
            }),
            Err(_) => None,
        };
        let stream = stream.into_std().map_err(failed)?;
        Line::over(stream, sockets, kept).map_err(failed)
    }

    async fn dialled(&self, hand: Option<i32>) -> io::Result<(UnixStream, Vec<u8>, Vec<OwnedFd>)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
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
