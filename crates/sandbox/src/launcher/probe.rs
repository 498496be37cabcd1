//! What this machine can do: each wall tried on its own, and what a failure means for the operator.
//! It must change nothing: whatever it makes is gone when it returns.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{WaitId, WaitIdOptions};

use super::cgroup::Cgroups;
use super::disk::Disks;
use super::mounts::Step;
use super::sys::{self, Cloned};
use super::uids::IdMapping;
use super::{Trouble, network};
use crate::report::{Report, Wall, WallState};
use crate::seam::LimitsBy;

const SYSCTL_MAX: &str = "/proc/sys/user/max_user_namespaces";
const SYSCTL_DEBIAN: &str = "/proc/sys/kernel/unprivileged_userns_clone";
const SYSCTL_APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// A step's failure, and what to do about it.
pub(crate) fn explain(step: &str, error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(errno) => explain_step(&format!("{step}: {error}"), errno),
        None => Trouble::new(format!("cannot {step}: {error}"), general_fix()),
    }
}

/// The same, from a step and an error number.
pub(crate) fn explain_step(step: &str, errno: i32) -> Trouble {
    let what = format!("cannot {step}");
    let fix = match errno {
        libc::ENOSPC if step.starts_with("create namespaces") => {
            let now = fs::read_to_string(SYSCTL_MAX).unwrap_or_default();
            return Trouble::new(
                format!("{what} (user.max_user_namespaces={})", now.trim()),
                "sysctl user.max_user_namespaces=15000, or run as root",
            );
        }
        libc::EPERM if step.starts_with("create namespaces") => namespace_fix(),
        _ if step.starts_with("redirect connections") => {
            "load the kernel's nf_tables with redirection (modprobe nft_redir), or use a kernel with CONFIG_NF_TABLES and CONFIG_NFT_REDIR"
        }
        libc::ENOSPC => "free disk space or inodes in the data directory",
        libc::EPERM | libc::EACCES if step.starts_with("mount /proc") => {
            "an outer container hides parts of /proc: start it with an unmasked /proc \
             (Docker: --security-opt systempaths=unconfined), or run on the host"
        }
        libc::EPERM | libc::EACCES if switched_on(SYSCTL_APPARMOR) => APPARMOR_FIX,
        libc::EPERM | libc::EACCES if step.starts_with("map user ids") => {
            "run as root with the whole range of user ids, or as an ordinary user of the host"
        }
        libc::ENOSYS => "use Linux 5.12 or later, outside of a container that blocks system calls",
        libc::EMFILE | libc::ENFILE => "raise the limit of open files (ulimit -n)",
        libc::ENOMEM => "free memory, or raise the memory limit of the server's own cgroup",
        libc::EAGAIN => {
            "raise the limit of processes (ulimit -u, or pids.max of the server's cgroup)"
        }
        _ => general_fix(),
    };
    Trouble::new(what, fix)
}

fn general_fix() -> &'static str {
    "run `vaquero doctor` for each wall on its own"
}

const APPARMOR_FIX: &str = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root";

fn switched_on(sysctl: &str) -> bool {
    fs::read_to_string(sysctl).is_ok_and(|v| v.trim() == "1")
}

fn namespace_fix() -> &'static str {
    if fs::read_to_string(SYSCTL_DEBIAN).is_ok_and(|v| v.trim() == "0") {
        "sysctl kernel.unprivileged_userns_clone=1, or run as root"
    } else {
        "run on the host or as root: an outer container's seccomp profile forbids namespaces \
         (Docker: --security-opt seccomp=unconfined)"
    }
}

/// Tries every wall.
pub(crate) fn examine() -> Report {
    let first = [namespaces(), network(), user_ids(), limits()];
    let last = [seccomp(), landlock(), executable()];
    // Last of all, for it takes mounts of its own.
    let disks = disks();
    Report { walls: first.into_iter().chain([disks]).chain(last).collect() }
}

fn wall(name: &'static str, state: WallState, detail: impl Into<String>, fix: &str) -> Wall {
    Wall { name: name.to_owned(), state, detail: detail.into(), fix: fix.to_owned() }
}

fn namespaces() -> Wall {
    match try_in_namespaces(mount_proc) {
        Ok(()) => wall("namespaces", WallState::Ok, "user, mount, pid, net, uts and ipc", ""),
        Err(Trouble { what, fix }) => wall("namespaces", WallState::Missing, what, &fix),
    }
}

fn network() -> Wall {
    match try_in_namespaces(|| network::open().map(drop)) {
        Ok(()) => wall("network", WallState::Ok, "all connections end at the server's egress", ""),
        Err(Trouble { what, fix }) => wall("network", WallState::Missing, what, &fix),
    }
}

/// Something tried by a child in all namespaces, with loopback up.
fn try_in_namespaces(attempt: fn() -> Result<(), Step>) -> Result<(), Trouble> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let ((go, go_write), (said, say)) = match (pipe(), pipe()) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(e), _) | (_, Err(e)) => return Err(explain("make a pipe", &e.into())),
    };
    let cloned =
        sys::clone_process(sys::NAMESPACES, None).map_err(|e| explain("create namespaces", &e))?;
    let (pid, pidfd) = match cloned {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop(go_write);
            let mut say = fs::File::from(say);
            if let Err((step, error)) = probe_child(fs::File::from(go), attempt) {
                drop(write!(say, "{} {step}: {error}", error.raw_os_error().unwrap_or(0)));
            }
            sys::exit_now(0)
        }
    };
    drop((go, say));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mapped = fs::write(format!("/proc/{pid}/setgroups"), "deny")
        .and_then(|()| fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1")))
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1")));
    if mapped.is_ok() {
        drop(fs::File::from(go_write).write_all(b"m"));
    } else {
        drop(go_write);
    }
    let mut text = String::new();
    drop(fs::File::from(said).read_to_string(&mut text));
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).ok();
    mapped.map_err(|e| explain("map user ids", &e))?;
    match text.split_once(' ') {
        None => Ok(()),
        Some((errno, step)) => Err(explain_step(step, errno.parse().unwrap_or(0))),
    }
}

fn probe_child(mut go: fs::File, attempt: fn() -> Result<(), Step>) -> Result<(), Step> {
    go.read_exact(&mut [0]).map_err(|e| ("map user ids", e))?;
    sys::loopback_up().map_err(|e| ("bring loopback up", e))?;
    attempt()
}

/// The step outer containers forbid most often.
fn mount_proc() -> Result<(), Step> {
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(|e| ("make mounts private", e.into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).map_err(|e| ("mount /proc", e.into()))
}

fn user_ids() -> Wall {
    match IdMapping::detect() {
        IdMapping::Ranges => {
            wall("user ids", WallState::Ok, "a range of its own for each session", "")
        }
        IdMapping::Single => wall(
            "user ids",
            WallState::Degraded,
            "sandboxes run as the server's own user, and have no other ids inside",
            "run as root for ids that no two sandboxes share",
        ),
    }
}

fn limits() -> Wall {
    let name = format!("probe-{}", std::process::id());
    match Cgroups::open(&name, &[]) {
        Ok(cgroups) => {
            let by = match cgroups.by() {
                LimitsBy::V2 => "cgroup v2",
                LimitsBy::V1 => "cgroup v1",
            };
            cgroups.close();
            wall("limits", WallState::Ok, format!("memory, processes and CPU by {by}"), "")
        }
        Err(none) => wall("limits", WallState::Missing, none.what, none.fix),
    }
}

fn disks() -> Wall {
    let dir = std::env::temp_dir().join(format!("vaquero-probe-{}", std::process::id()));
    let tried = match IdMapping::detect() {
        IdMapping::Ranges => Disks::open(&dir).map(drop),
        IdMapping::Single => Err(io::Error::other("an ordinary user has no loop devices")),
    };
    crate::remove::remove_tree(&dir).ok();
    match tried {
        Ok(()) => wall("disks", WallState::Ok, "one of its own for each session's files", ""),
        Err(error) => wall(
            "disks",
            WallState::Degraded,
            format!("files are only counted, and a sandbox with too many is ended: {error}"),
            "run as root, with e2fsprogs installed and /dev/loop-control there",
        ),
    }
}

fn seccomp() -> Wall {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|a| a == "kill_process") {
        wall("seccomp", WallState::Ok, "system calls are filtered by a list of allowed ones", "")
    } else {
        let fix = "use a kernel with CONFIG_SECCOMP_FILTER";
        wall("seccomp", WallState::Missing, "the kernel has no system call filters", fix)
    }
}

fn landlock() -> Wall {
    match sys::landlock_abi() {
        Some(abi) => wall("landlock", WallState::Ok, format!("ABI {abi}"), ""),
        None => wall(
            "landlock",
            WallState::Degraded,
            "the kernel has no Landlock; mounts and seccomp hold without it",
            "use Linux 5.13 or later with landlock in the lsm= list",
        ),
    }
}

fn executable() -> Wall {
    match super::start::sealed_exe() {
        Ok(_) => wall("executable", WallState::Ok, "PID 1 runs from a sealed memfd", ""),
        Err(error) => wall(
            "executable",
            WallState::Missing,
            format!("cannot seal a copy of the executable: {error}"),
            "sysctl vm.memfd_noexec=0",
        ),
    }
}
