//! The few system calls no crate wraps, each in one small function.
//! It must hold no policy: what is mounted, mapped or limited is decided by its callers.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which namespaces a new process gets.
pub(crate) const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC) as u64;

/// Where `clone_process` returned.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the old one: the child's pid as seen from here, and a descriptor for it.
    Parent {
        /// Its pid in the caller's pid namespace.
        pid: libc::pid_t,
        /// Becomes readable when it has exited.
        pidfd: OwnedFd,
    },
}

fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Copies this process into new namespaces. The caller must be single-threaded: the child goes on
/// with ordinary code, allocation included.
///
/// `into` is the directory of the v2 cgroup the child is to be born in.
pub(crate) fn clone_process(flags: u64, into: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: libc::c_int = -1;
    #[expect(unsafe_code, reason = "an all-zero clone_args is its documented default")]
    // SAFETY: `clone_args` is plain integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = into {
        args.flags |= INTO_CGROUP;
        args.cgroup = u64::try_from(group.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    #[expect(unsafe_code, reason = "clone3 with namespace flags has no wrapper")]
    // SAFETY: `args` lives across the call, no stack or TLS is replaced, so the child runs on a
    // copy of this stack exactly as after fork; the process has a single thread.
    let ret =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(ret)? {
        0 => Ok(Cloned::Child),
        pid => {
            #[expect(unsafe_code, reason = "the kernel stored a new descriptor")]
            // SAFETY: CLONE_PIDFD made the kernel store a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?;
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Attributes to set on a whole mount tree.
pub(crate) fn mount_setattr(
    tree: BorrowedFd<'_>,
    path: &CStr,
    set: u64,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    set_attr(tree, path, &attr, recursive)
}

/// Has a detached mount show the ids that `users` maps its own to.
pub(crate) fn map_mount(tree: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let userns_fd = u64::try_from(users.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    set_attr(tree, c"", &MountAttr { set: IDMAP, clear: 0, propagation: 0, userns_fd }, false)
}

fn set_attr(
    tree: BorrowedFd<'_>,
    path: &CStr,
    attr: &MountAttr,
    recursive: bool,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    #[expect(unsafe_code, reason = "mount_setattr has no wrapper")]
    // SAFETY: the path is NUL-terminated and `attr` has the layout of the kernel's `mount_attr`.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(ret).map(drop)
}

/// `MOUNT_ATTR_*` of `linux/mount.h`.
pub(crate) const ATTR_RDONLY: u64 = 0x1;
pub(crate) const ATTR_NOSUID: u64 = 0x2;
pub(crate) const ATTR_NODEV: u64 = 0x4;

/// The file behind a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoopFile {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// `loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Puts a file behind a free loop device, which lets go of it when nothing uses the device any more.
pub(crate) fn attach_loop(file: &std::fs::File) -> io::Result<(u32, OwnedFd)> {
    const GET_FREE: libc::Ioctl = 0x4c82;
    const CONFIGURE: libc::Ioctl = 0x4c0a;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    let control = std::fs::File::open("/dev/loop-control")?;
    let backing = u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Somebody else may take the free one first.
    for attempt in 0..64 {
        #[expect(unsafe_code, reason = "LOOP_CTL_GET_FREE has no wrapper")]
        // SAFETY: it takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        let number =
            u32::try_from(check(number.into())?).map_err(|_| io::ErrorKind::InvalidData)?;
        let device = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/loop{number}"))?;
        // Without the host's cache beside the sandbox's own, where the file system can do that.
        for flags in [AUTOCLEAR | DIRECT_IO, AUTOCLEAR] {
            #[expect(unsafe_code, reason = "an all-zero loop_config is its documented default")]
            // SAFETY: `LoopConfig` is integers and arrays of them, for which zero is a valid value.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.file = backing;
            config.block_size = 4096;
            config.info.flags = flags;
            #[expect(unsafe_code, reason = "LOOP_CONFIGURE has no wrapper")]
            // SAFETY: `config` has the layout of the kernel's structure and lives across the call.
            let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
            match check(done.into()) {
                Ok(_) => return Ok((number, device.into())),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => break,
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && flags != AUTOCLEAR => {}
                Err(e) => return Err(e),
            }
        }
        if attempt > 32 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    Err(rustix::io::Errno::BUSY.into())
}

/// The file behind a loop device, if there is one.
pub(crate) fn loop_file(device: &std::fs::File) -> Option<LoopFile> {
    const GET_STATUS: libc::Ioctl = 0x4c05;
    #[expect(unsafe_code, reason = "an all-zero loop_info64 is there to be filled")]
    // SAFETY: `LoopInfo` is integers and arrays of them, for which zero is a valid value.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    #[expect(unsafe_code, reason = "LOOP_GET_STATUS64 has no wrapper")]
    // SAFETY: `info` has the layout of the kernel's structure and lives across the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, &raw mut info) };
    (done == 0).then_some(LoopFile { device: info.device, inode: info.inode })
}

/// The loop devices that have a file.
pub(crate) fn loops() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let used = entries.flatten().filter(|entry| entry.path().join("loop").exists());
    used.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .collect()
}

/// Gives this process mounts of its own.
pub(crate) fn own_mounts() -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix keeps unshare unsafe for the sake of CLONE_FILES")]
    // SAFETY: only the mount namespace changes; no descriptor table or memory is unshared.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    Ok(unshared?)
}

/// Gives the top of a detached mount to a user.
pub(crate) fn own_tree(tree: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    use rustix::fs::{AtFlags, Gid, Uid, chownat};
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(chownat(tree, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Marks every descriptor from `first` on to be closed by the next exec.
pub(crate) fn cloexec_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    #[expect(unsafe_code, reason = "close_range has no wrapper")]
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed, so no owner is surprised.
    let ret = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    check(ret).map(drop)
}

/// Leaves something open across exec, as if nothing closed it: only a test wants that.
#[cfg(feature = "attacks")]
pub(crate) fn leave_open(number: RawFd) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    dup_to(std::os::fd::AsFd::as_fd(&root), number)
}

/// Puts a copy of `fd` at exactly `target`, open across exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        #[expect(unsafe_code, reason = "clearing the close-on-exec flag of a number")]
        // SAFETY: plain integers.
        let ret = unsafe { libc::fcntl(target, libc::F_SETFD, 0) };
        return check(ret.into()).map(drop);
    }
    #[expect(unsafe_code, reason = "the target is a number, not an owned descriptor")]
    // SAFETY: called only right before exec, where whatever owned `target` is never used again.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    check(ret.into()).map(drop)
}

/// Gives this process a session keyring of its own, so that it shares none with the host.
pub(crate) fn fresh_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    #[expect(unsafe_code, reason = "keyctl has no wrapper")]
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let ret = unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    check(ret).map(drop)
}

/// Installs a seccomp filter on this thread. `no_new_privs` must be set.
pub(crate) fn seccomp(filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    #[expect(unsafe_code, reason = "seccomp has no wrapper that takes a program")]
    // SAFETY: `program` points at `len` instructions that the kernel copies and checks.
    let ret = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    check(ret).map(drop)
}

/// Replaces this process by the program in `exe`.
pub(crate) fn exec_fd(exe: BorrowedFd<'_>, argv: &[&CStr], envp: &[&CStr]) -> io::Error {
    exec(exe.as_raw_fd(), c"", argv, envp, libc::AT_EMPTY_PATH)
}

/// Replaces this process by the program at `path`.
pub(crate) fn exec_path(path: &CStr, argv: &[&CStr], envp: &[&CStr]) -> io::Error {
    exec(libc::AT_FDCWD, path, argv, envp, 0)
}

fn exec(dir: RawFd, path: &CStr, argv: &[&CStr], envp: &[&CStr], flags: libc::c_int) -> io::Error {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    #[expect(unsafe_code, reason = "execveat has no wrapper")]
    // SAFETY: both arrays are NULL-terminated lists of NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(libc::SYS_execveat, dir, path.as_ptr(), argv.as_ptr(), envp.as_ptr(), flags)
    };
    io::Error::last_os_error()
}

/// Ends this process at once, without running destructors or exit handlers.
pub(crate) fn exit_now(code: libc::c_int) -> ! {
    #[expect(unsafe_code, reason = "_exit has no wrapper")]
    // SAFETY: always sound; it does not return.
    unsafe {
        libc::_exit(code)
    }
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let sock = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    #[expect(unsafe_code, reason = "an all-zero ifreq is what its ioctls expect to be filled")]
    // SAFETY: `ifreq` is integers and byte arrays, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    #[expect(unsafe_code, reason = "SIOCSIFFLAGS has no wrapper")]
    // SAFETY: `request` is a whole ifreq and lives across the call.
    let ret = unsafe { libc::ioctl(sock.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(ret.into()).map(drop)
}

/// Closes every descriptor from `first` on. Only for a process that has opened nothing yet.
pub(crate) fn close_from(first: RawFd) {
    let first = libc::c_uint::try_from(first).unwrap_or(libc::c_uint::MAX);
    #[expect(unsafe_code, reason = "close_range has no wrapper")]
    // SAFETY: the caller owns no descriptor from `first` on; what is there was inherited by accident.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
    }
}

/// The Landlock version of this kernel, if it has any.
pub(crate) fn landlock_abi() -> Option<i32> {
    const ASK_VERSION: libc::c_uint = 1;
    #[expect(unsafe_code, reason = "the landlock crate keeps the kernel's version to itself")]
    // SAFETY: with this flag the kernel reads no attribute and makes no descriptor.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            ASK_VERSION,
        )
    };
    i32::try_from(version).ok().filter(|v| *v > 0)
}
