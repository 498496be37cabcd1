//! What the child does between clone and exec: enter its root, put up the walls, become `hand`.
//! It runs in a copy of the single-threaded launcher and must end in exec or exit, never return.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use super::LeftOut;
use super::foreign::Start;
use super::lockdown;
use super::mounts::{Step, at};
use super::network;
use super::rootfs::{self, RootPlan};
use super::seccomp::Program;
use super::sys;
use crate::seam::Limits;

/// The descriptor number of the control socket in PID 1.
pub(crate) const CONTROL_FD: i32 = 3;

/// How the child is walled in.
pub(crate) enum Walls {
    /// Namespaces and everything in them.
    Isolated {
        root: Box<RootPlan>,
        /// As root: the child has ids of its own, and takes id 0 of them.
        own_ids: bool,
        /// Where the sockets of its way out go, if it has one.
        sockets: Option<OwnedFd>,
    },
    /// None: the host itself, in the session's workspace.
    UnsafeHost { workspace: CString },
}

/// Everything a child needs, made before the clone.
pub(crate) struct Plan<'a> {
    pub(crate) walls: Walls,
    pub(crate) limits: Limits,
    /// Without cgroups, rlimits have to stand in for them.
    pub(crate) degraded: bool,
    /// By a test.
    pub(crate) left_out: &'a LeftOut,
    pub(crate) filter: &'a Program,
    pub(crate) exe: &'a OwnedFd,
    pub(crate) start: &'a Start,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    /// Its end of the control socket.
    pub(crate) control: OwnedFd,
    /// Opened by the launcher: writing to each of these puts the writer into its cgroup.
    pub(crate) entries: Vec<File>,
    /// One byte when its ids are mapped.
    pub(crate) go: OwnedFd,
    /// Says what failed; closed by a successful exec.
    pub(crate) failure: OwnedFd,
}

/// Becomes `hand`, or says what failed and exits.
pub(crate) fn run(mut plan: Plan<'_>) -> ! {
    let failure = plan.failure.try_clone();
    let Err((step, error)) = become_hand(&mut plan);
    if let Ok(failure) = failure {
        let errno = error.raw_os_error().unwrap_or(0);
        // The launcher reads end-of-file as success, so a lost line must not look like one: exit says it too.
        drop(writeln!(File::from(failure), "{errno} {step}: {error}"));
    }
    sys::exit_now(97)
}

fn become_hand(plan: &mut Plan<'_>) -> Result<Infallible, Step> {
    // A thread that moves itself needs no lock on all others, which can take the kernel ten milliseconds.
    for mut entry in plan.entries.drain(..) {
        at("enter the cgroup", entry.write_all(b"0"))?;
    }
    let mut go = File::from(at("copy a descriptor", plan.go.try_clone())?);
    at("wait for the launcher", go.read_exact(&mut [0]))?;
    at("start a session", rustix::process::setsid())?;
    let walls =
        std::mem::replace(&mut plan.walls, Walls::UnsafeHost { workspace: CString::default() });
    let isolated = matches!(walls, Walls::Isolated { .. });
    let everywhere = matches!(&walls, Walls::Isolated { root, .. } if root.writable());
    match walls {
        Walls::Isolated { root, own_ids, sockets } => {
            if own_ids {
                take_ids()?;
            }
            at("set the host name", rustix::system::sethostname(b"sandbox"))?;
            if !plan.left_out.is("network") {
                at("bring loopback up", sys::loopback_up())?;
            }
            if let Some(launcher) = sockets {
                let made = network::open()?;
                at("hand the sockets over", network::hand_over(&launcher, &made))?;
            }
            rootfs::enter(*root)?;
            at("enter a cgroup namespace", enter_cgroup_namespace())?;
        }
        Walls::UnsafeHost { workspace } => {
            at("enter the workspace", rustix::process::chdir(workspace.as_c_str()))?;
            let me = Some(rustix::process::getpid());
            at("adopt orphans", rustix::process::set_child_subreaper(me))?;
        }
    }
    // Set after the ids changed, which clears it: PID 1 dies with its launcher even if it hangs.
    let kill = Some(Signal::KILL);
    at("tie to the launcher", rustix::process::set_parent_process_death_signal(kill))?;
    at("close standard streams", null_standard_streams())?;
    at("place the control socket", sys::dup_to(plan.control.as_fd(), CONTROL_FD))?;
    if isolated {
        lock(plan, everywhere)?;
    }
    // Last: it also marks the descriptors that the steps before have opened.
    at("close descriptors", sys::cloexec_from(CONTROL_FD + 1))?;
    #[cfg(feature = "attacks")]
    if plan.left_out.is("descriptors") {
        at("leave a descriptor open", sys::leave_open(CONTROL_FD + 60))?;
    }
    let envp: Vec<&CStr> = plan.envp.iter().map(CString::as_c_str).collect();
    if let (Start::Loaded(loader, first), true) = (plan.start, isolated) {
        // Its own name is the last of the loader's arguments.
        let argv = first.iter().chain(plan.argv.iter().skip(1)).map(CString::as_c_str);
        let argv: Vec<&CStr> = argv.collect();
        return Err(("start hand", sys::exec_path(loader, &argv, &envp)));
    }
    let argv: Vec<&CStr> = plan.argv.iter().map(CString::as_c_str).collect();
    Err(("start hand", sys::exec_fd(plan.exe.as_fd(), &argv, &envp)))
}

fn take_ids() -> Result<(), Step> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    at("drop groups", set_thread_groups(&[]))?;
    at("take a group id", set_thread_res_gid(gid, gid, gid))?;
    at("take a user id", set_thread_res_uid(uid, uid, uid))
}

fn enter_cgroup_namespace() -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix keeps unshare unsafe for the sake of CLONE_FILES")]
    // SAFETY: only the cgroup namespace changes; no descriptor table or memory is unshared.
    let unshared =
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) };
    Ok(unshared?)
}

fn null_standard_streams() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    (0..3).try_for_each(|target| sys::dup_to(null.as_fd(), target))
}

fn lock(plan: &Plan<'_>, everywhere: bool) -> Result<(), Step> {
    at("make a session keyring", without_keys(sys::fresh_keyring()))?;
    at("lower rlimits", lockdown::limit_resources(&plan.limits, plan.degraded))?;
    at("set no_new_privs", rustix::thread::set_no_new_privs(true))?;
    at("apply Landlock", lockdown::landlock(everywhere))?;
    at("drop capabilities", lockdown::drop_capabilities())?;
    if plan.left_out.is("seccomp") {
        return Ok(());
    }
    at("install seccomp", sys::seccomp(plan.filter))
}

/// A kernel without keyrings has none to leak.
fn without_keys(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other,
    }
}
