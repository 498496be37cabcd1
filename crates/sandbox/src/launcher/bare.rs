//! The bare cost of a sandbox's namespaces: clone, exec of `true`, wait. The measure that the real
//! thing is held against, so it must do nothing but that.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions};

use super::sys::{self, Cloned};
use super::{Trouble, now, probe, start};

/// Microseconds each of `count` bare sandboxes took from clone to the end of `true`.
pub(crate) fn measure(count: usize) -> Result<Vec<u64>, Trouble> {
    let _reserved = start::settle().map_err(|e| probe::explain("set the process up", &e))?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let exe = rustix::fs::open("/bin/true", flags, Mode::empty())
        .map_err(|e| probe::explain("open /bin/true", &e.into()))?;
    (0..count).map(|_| once(&exe)).collect()
}

fn once(exe: &OwnedFd) -> Result<u64, Trouble> {
    let started = now();
    let (go, go_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| probe::explain("make a pipe", &e.into()))?;
    let (pid, pidfd) = match sys::clone_process(sys::NAMESPACES, None)
        .map_err(|e| probe::explain("create namespaces", &e))?
    {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop(go_write);
            if fs::File::from(go).read_exact(&mut [0]).is_ok() {
                sys::exec_fd(exe.as_fd(), &[c"true"], &[]);
            }
            sys::exit_now(1)
        }
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    fs::write(format!("/proc/{pid}/setgroups"), "deny")
        .and_then(|()| fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1")))
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1")))
        .and_then(|()| fs::File::from(go_write).write_all(b"m"))
        .map_err(|e| probe::explain("map user ids", &e))?;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(|e| probe::explain("wait for the child", &e.into()))?;
    if status.and_then(|s| s.exit_status()) != Some(0) {
        return Err(Trouble::new("a bare sandbox failed", "run `vaquero doctor`"));
    }
    Ok(u64::try_from(now().saturating_sub(started).as_micros()).unwrap_or(u64::MAX))
}
