//! A hand as the first process of a container that somebody else has made: it opens the way out, puts up the same walls as the local launcher's child, dials its server, and only
//! then serves. It dials again when the server is gone, and ends when none answers for long.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use vaquero_hand::HandArgs;

use crate::launcher::mounts::{Step, at};
use crate::launcher::{lockdown, network, now, seccomp, sys, wire};
use crate::seam::Limits;

/// The first byte a hand says: it is ready, and its sockets come along.
pub(crate) const READY: u8 = b'r';
/// Or why it cannot start.
pub(crate) const FAILED: u8 = b'f';
/// Between two attempts to dial.
const PAUSE: Duration = Duration::from_millis(50);
/// Where connections to the proxy are carried, beside the socket that is dialled.
pub(crate) const PROXY_SOCKET: &str = "proxy.sock";

/// How what programs send leaves a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WayOut {
    /// Not at all.
    None,
    /// All of it ends at sockets that are handed to the server.
    Sockets,
    /// Connections to the proxy are carried to a socket beside the one that is dialled, where the container's network cannot leave its kernel.
    Forwarded,
}

/// How a hand in a container is started.
pub(crate) struct Inside {
    pub(crate) dial: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) way_out: WayOut,
    /// Whether all of the root may be written.
    pub(crate) writable: bool,
    /// How long it lives on without a server.
    pub(crate) linger: Duration,
}

/// Becomes the hand of a container; the process's exit code.
pub(crate) fn contained_main(inside: Inside, args: impl FnOnce(i32) -> HandArgs) -> i32 {
    match wall_in(&inside) {
        Ok((control, sockets, to_hand)) => {
            let (dial, linger) = (inside.dial, inside.linger);
            std::thread::spawn(move || keep_dialling(&dial, &sockets, &to_hand, linger));
            vaquero_hand::main(args(control.into_raw_fd()))
        }
        Err((step, error)) => {
            if let Ok(mut stream) = UnixStream::connect(&inside.dial) {
                // If nobody hears it, the server waits in vain and says so.
                let said = format!("{}cannot {step}: {error}", char::from(FAILED));
                drop(stream.write_all(said.as_bytes()));
            }
            97
        }
    }
}

/// Everything from here on is for good; the process has one thread.
fn wall_in(inside: &Inside) -> Result<(OwnedFd, Vec<OwnedFd>, OwnedFd), Step> {
    let (mut sockets, mut proxy) = (Vec::new(), None);
    match inside.way_out {
        WayOut::None => {}
        WayOut::Sockets => {
            at("bring loopback up", sys::loopback_up())?;
            sockets = network::open()?.into();
        }
        WayOut::Forwarded => {
            let here = (Ipv4Addr::LOCALHOST, network::PROXY_PORT);
            proxy = Some(at("listen as a proxy", TcpListener::bind(here))?);
        }
    }
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (control, to_hand) = at("make a socket", pair)?;
    // Whoever started it may end its own programs; a first process leads already, and is told so.
    rustix::process::setsid().ok();
    // The engine's own filter may forbid keyrings altogether: then there is none to leave.
    drop(sys::fresh_keyring());
    at("lower rlimits", lockdown::limit_resources(&inside.limits, false))?;
    at("set no_new_privs", rustix::thread::set_no_new_privs(true))?;
    at("apply Landlock", lockdown::landlock(inside.writable))?;
    let capabilities = match (lockdown::drop_capabilities(), inside.way_out) {
        // Whoever forwards needed no more than it keeps, and runs on a kernel that may not know how to give up.
        (Err(_), WayOut::Forwarded) => lockdown::hold_only_kept(),
        (dropped, _) => dropped,
    };
    at("drop capabilities", capabilities)?;
    at("install seccomp", sys::seccomp(&seccomp::program()))?;
    if let Some(proxy) = proxy {
        let to = inside.dial.with_file_name(PROXY_SOCKET);
        std::thread::spawn(move || forward(proxy, &to));
    }
    Ok((control, sockets, to_hand))
}

fn keep_dialling(dial: &PathBuf, sockets: &[OwnedFd], to_hand: &OwnedFd, linger: Duration) {
    let mut alone = now();
    while now() < alone + linger {
        if let Ok(stream) = UnixStream::connect(dial)
            && introduce(stream, sockets, to_hand).is_ok()
        {
            alone = now();
        }
        std::thread::sleep(PAUSE);
    }
    sys::exit_now(0)
}

/// Carries connections to the server's socket. One thread, since a sandbox has few.
fn forward(proxy: TcpListener, to: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        proxy.set_nonblocking(true)?;
        let proxy = tokio::net::TcpListener::from_std(proxy)?;
        let mut carried = JoinSet::new();
        loop {
            tokio::select! {
                accepted = proxy.accept() => {
                    let Ok((mut client, _)) = accepted else { continue };
                    let to = to.to_owned();
                    carried.spawn(async move {
                        // Without a server there is no way out, and the client is hung up on.
                        let mut server = tokio::net::UnixStream::connect(to).await?;
                        tokio::io::copy_bidirectional(&mut client, &mut server).await
                    });
                }
                Some(_) = carried.join_next() => {}
            }
        }
    })
}

/// Hands the sockets to the server and the stream to the hand, and waits until the hand has done with it.
fn introduce(stream: UnixStream, sockets: &[OwnedFd], to_hand: &OwnedFd) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    wire::send_bytes(&stream, &[READY], &sockets)?;
    // The hand keeps the other end for as long as the stream; not every kernel says when a stream has ended to one who does not read it.
    let (over, kept) = pipe_with(PipeFlags::CLOEXEC)?;
    wire::send_bytes(to_hand, b"c", &[kept.as_fd(), stream.as_fd()])?;
    drop((kept, stream));
    File::from(over).read(&mut [0]).map(drop)
}
