//! A hand as the first process of a container that somebody else has made: it opens the way out, puts up the same walls as the local launcher's child, dials its server, and only
//! then serves. It dials again when the server is gone, and ends when none answers for long.

use std::io::{self, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vaquero_hand::HandArgs;

use crate::launcher::mounts::{Step, at};
use crate::launcher::{lockdown, network, seccomp, sys, wire};
use crate::seam::Limits;

/// The first byte a hand says: it is ready, and its sockets come along.
pub(super) const READY: u8 = b'r';
/// Or why it cannot start.
pub(super) const FAILED: u8 = b'f';
/// Between two attempts to dial.
const PAUSE: Duration = Duration::from_millis(50);

/// How a hand in a container is started.
pub(crate) struct Inside {
    pub(crate) dial: PathBuf,
    pub(crate) limits: Limits,
    /// Whether everything goes to sockets that the server serves.
    pub(crate) network: bool,
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
                drop(write!(stream, "{}cannot {step}: {error}", char::from(FAILED)));
            }
            97
        }
    }
}

/// Everything from here on is for good; the process has one thread.
fn wall_in(inside: &Inside) -> Result<(OwnedFd, Vec<OwnedFd>, OwnedFd), Step> {
    let mut sockets = Vec::new();
    if inside.network {
        at("bring loopback up", sys::loopback_up())?;
        sockets = network::open()?.into();
    }
    let pair =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (control, to_hand) = at("make a socket", pair)?;
    // The engine's own filter may forbid keyrings altogether: then there is none to leave.
    drop(sys::fresh_keyring());
    at("lower rlimits", lockdown::limit_resources(&inside.limits, false))?;
    at("set no_new_privs", rustix::thread::set_no_new_privs(true))?;
    at("apply Landlock", lockdown::landlock(inside.writable))?;
    at("drop capabilities", lockdown::drop_capabilities())?;
    at("install seccomp", sys::seccomp(&seccomp::program()))?;
    Ok((control, sockets, to_hand))
}

fn keep_dialling(dial: &PathBuf, sockets: &[OwnedFd], to_hand: &OwnedFd, linger: Duration) {
    let mut alone = Instant::now();
    while alone.elapsed() < linger {
        if let Ok(stream) = UnixStream::connect(dial)
            && introduce(&stream, sockets, to_hand).is_ok()
        {
            // A hand reads what it is told; here only the end is waited for.
            poll(&mut [PollFd::new(&stream, PollFlags::RDHUP)], None).ok();
            alone = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
    sys::exit_now(0)
}

/// Hands the sockets to the server, and the stream to the hand.
fn introduce(stream: &UnixStream, sockets: &[OwnedFd], to_hand: &OwnedFd) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    wire::send_bytes(stream, &[READY], &sockets)?;
    wire::send_bytes(to_hand, b"c", &[stream.as_fd()])
}
