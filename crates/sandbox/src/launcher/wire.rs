//! What server and launcher say to each other: one JSON message per SEQPACKET datagram, with a few
//! descriptors beside it. `Hello` and `Quit` never change, so that any version can drain any other.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::Layer;
use crate::seam::{Limits, LimitsBy, SandboxKey, Trust};

/// Raised whenever a message other than `Hello` and `Quit` changes its meaning.
pub(crate) const VERSION: u32 = 6;

/// No message is larger; the kernel's default socket buffers take it in one piece.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// No message carries more descriptors.
const MAX_DESCRIPTORS: usize = 4;

/// How many sandboxes one `List` answers at most.
pub(crate) const PAGE: usize = 128;

/// One question, with the number its answer will carry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) id: u64,
    pub(crate) ask: Ask,
}

/// What a server may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Who are you? The launcher lives for as long as someone who asked this is connected, and
    /// `linger_ms` longer.
    Hello { version: u32, linger_ms: u64 },
    /// End every sandbox, then yourself.
    Quit {},
    /// Make this sandbox, or connect to it if this generation already lives.
    Create {
        key: SandboxKey,
        generation: u64,
        limits: Limits,
        env: BTreeMap<String, String>,
        /// Whether it has a way out.
        network: bool,
        /// The authority it is to trust.
        trust: Option<Trust>,
        /// What lies over its root.
        layer: Option<Layer>,
    },
    /// From now on the one sandbox is the other, whose session has nothing yet; its files go along.
    Give { spare: SandboxKey, to: SandboxKey },
    /// Connect to it if this generation lives.
    Attach { key: SandboxKey, generation: u64 },
    /// End one sandbox; answered when it is gone.
    Stop { key: SandboxKey },
    /// End every sandbox of a session; answered when they are gone.
    StopSession { session: String },
    /// The sandboxes after that key, in order.
    List { after: Option<SandboxKey> },
}

/// One answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To `Hello`.
    Hello {
        version: u32,
        pid: u32,
        #[serde(default)]
        isolated: bool,
        #[serde(default)]
        limits: Option<LimitsBy>,
        /// Sessions have disks of their own.
        #[serde(default)]
        disks: bool,
        /// What sandboxes see instead of the host's `/usr`.
        #[serde(default)]
        root: Option<PathBuf>,
    },
    /// A stream to the sandbox's PID 1 comes with this message, and the sockets of its way out if it has one.
    Stream {
        generation: u64,
        /// Of the authority it trusts.
        kept: Option<String>,
    },
    /// No such sandbox, or another generation of it.
    Absent { alive: Option<u64> },
    /// Done.
    Done {},
    /// To `List`.
    Listing { sandboxes: Vec<Listed>, more: bool },
    /// It could not be done; `fix` says what the operator can change.
    Failed { what: String, fix: String },
}

/// One living sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) key: SandboxKey,
    pub(crate) generation: u64,
}

/// The one line a launcher writes to its standard output when it has started or failed to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "started", rename_all = "snake_case")]
pub(crate) enum Started {
    /// It listens.
    Ready {},
    /// It will exit.
    Failed { what: String, fix: String },
}

/// Sends one message whole or not at all.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    send_bytes(socket, &bytes, descriptors)
}

/// Sends one datagram with its descriptors.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::WriteZero, "message was cut short"))
    }
}

/// Receives one message; `None` at the end of the connection, `WouldBlock` if there is none yet.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (length, descriptors) = receive_bytes(socket, buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length])?;
    Ok(Some((message, descriptors)))
}

/// Receives one datagram and its descriptors; its length.
pub(crate) fn receive_bytes(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    buffer.resize(MAX_MESSAGE, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok((got.bytes, descriptors))
}
