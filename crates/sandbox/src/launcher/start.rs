//! How a launcher makes itself ready: descriptors, executable, skeleton, socket.
//! It must leave nothing behind that a second start could trip over.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::cgroup::Cgroups;
use super::child::CONTROL_FD;
use super::disk::Disks;
use super::seccomp::Program;
use super::skeleton::Skeleton;
use super::sys;
use super::{LeftOut, SOCKET};
use crate::remove::remove_tree;

/// What a launcher holds for as long as it lives.
pub(crate) struct Ready {
    /// Holds the number of the control socket.
    pub(crate) reserved: OwnedFd,
    pub(crate) lock: File,
    pub(crate) exe: OwnedFd,
    pub(crate) filter: Program,
    pub(crate) cgroups: Option<Cgroups>,
    pub(crate) skeleton: Skeleton,
    /// Where sessions can have disks of their own.
    pub(crate) disks: Option<Disks>,
    pub(crate) listener: OwnedFd,
    pub(crate) left_out: LeftOut,
}

/// Leaves the server's session and directory, and takes the control socket's number out of circulation.
///
/// What it returns must stay open, so that no later descriptor is overwritten in a child.
pub(crate) fn settle() -> io::Result<OwnedFd> {
    // Already a session leader when started from a shell: then there is nothing to leave.
    rustix::process::setsid().ok();
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Every sandbox takes a few descriptors here; how many one may have inside is another matter.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    sys::close_from(CONTROL_FD);
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if null.as_raw_fd() != CONTROL_FD {
        return Err(io::Error::other("standard input, output and error must be open"));
    }
    Ok(null)
}

/// A copy of this executable that nobody can write to, not even through `/proc/1/exe`.
pub(crate) fn sealed_exe() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 know no EXEC flag and make every memfd executable.
    let memfd = rustix::fs::memfd_create("hand", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("hand", flags))?;
    let mut copy = File::from(memfd);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    // Executable but unreadable: the kernel makes a process that runs it undumpable from its first instruction.
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o111))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// The root skeleton, made anew: the host's libraries and certificates may have changed.
pub(crate) fn fresh_skeleton(dir: &Path, chosen: Option<&Path>) -> io::Result<Skeleton> {
    let root = dir.join("root");
    if root.exists() {
        remove_tree(&root)?;
    }
    Skeleton::build(&root, chosen)
}

/// The listening socket. Addressed through its directory's descriptor: a data directory's path may
/// be longer than a socket address.
pub(crate) fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::unlinkat(&dir, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_fd().as_raw_fd());
    rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}
