//! One sandbox as the launcher sees it: being made, living, dying.
//! It must never wait for a child: what takes time is polled for by the office.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal,
};

use super::cgroup::Group;
use super::child::{self, CONTROL_FD, Plan, Walls};
use super::layer::LayerPlan;
use super::mounts::{Source, c_path};
use super::network::SOCKETS;
use super::rootfs::RootPlan;
use super::session::{UNSEEDED, standard_variables};
use super::skeleton::write_trust;
use super::start::Ready;
use super::sys::{self, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, Cloned};
use super::uids::{IdMapping, RANGE};
use super::{Trouble, now, probe};
use crate::engine::Layer;
use crate::hand::command_line;
use crate::seam::{Limits, SandboxKey, Trust};

/// A child that has not become PID 1 within this time never will.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for one that copies files first.
const SEED_TIMEOUT: Duration = Duration::from_mins(10);

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is asked for.
pub(crate) struct Order<'a> {
    pub(crate) key: &'a SandboxKey,
    pub(crate) generation: u64,
    pub(crate) limits: Limits,
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Whether it gets a way out.
    pub(crate) network: bool,
    /// The authority it is to trust.
    pub(crate) trust: Option<&'a Trust>,
    /// What lies over its root, and where it is.
    pub(crate) layer: Option<(&'a Path, &'a Layer)>,
    /// The session's directory, which exists with all its parts.
    pub(crate) session: PathBuf,
    /// The loop device that they are on.
    pub(crate) disk: Option<u32>,
    /// Whether nothing has ever run in it.
    pub(crate) fresh: bool,
    /// First host id of its range; `None` with a single id.
    pub(crate) base: Option<u32>,
    pub(crate) isolated: bool,
}

/// A sandbox.
pub(crate) struct Member {
    pub(crate) generation: u64,
    pub(crate) base: Option<u32>,
    pub(crate) pidfd: OwnedFd,
    pid: libc::pid_t,
    control: OwnedFd,
    /// Where its child sends the sockets of its way out while it starts.
    coming: Option<OwnedFd>,
    sockets: Vec<OwnedFd>,
    /// Kept for whichever server comes next; the launcher has no use for it.
    pub(crate) kept: Option<String>,
    group: Group,
    isolated: bool,
    /// Until it has started: the mark of a session whose files are not there yet.
    unseeded: Option<PathBuf>,
    /// Until it has become PID 1: where it would say what failed, and when to give up.
    pub(crate) starting: Option<(File, Duration)>,
}

/// A sandbox that was killed, until nothing is left of it.
pub(crate) struct Dying {
    pub(crate) key: SandboxKey,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) base: Option<u32>,
    group: Group,
}

impl Member {
    /// Starts a sandbox. It is ready when its `starting` pipe ends without a word.
    pub(crate) fn start(
        order: &Order<'_>,
        ready: &Ready,
        trees: Option<Vec<OwnedFd>>,
    ) -> Result<Self, Trouble> {
        let Some(cgroups) = &ready.cgroups else {
            return Self::start_in(order, ready, &Group::default(), trees);
        };
        let name = format!("{}.{}", order.key.session, order.key.name);
        let mut group = cgroups
            .create(&name, &order.limits, order.disk)
            .map_err(|e| probe::explain("make a cgroup", &e))?;
        let started = Self::start_in(order, ready, &group, trees);
        match started {
            Ok(member) => Ok(Self { group, ..member }),
            Err(trouble) => {
                group.remove_soon();
                Err(trouble)
            }
        }
    }

    fn start_in(
        order: &Order<'_>,
        ready: &Ready,
        group: &Group,
        trees: Option<Vec<OwnedFd>>,
    ) -> Result<Self, Trouble> {
        let failed = |what: &'static str| move |e: io::Error| probe::explain(what, &e);
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).map_err(|e| probe::explain("make a pipe", &e.into()));
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| probe::explain("make a socket", &e.into()))?;
        let ((go, go_write), (starting, failure)) = (pipe()?, pipe()?);
        let (coming, sockets) = if order.network && order.isolated {
            let pair =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let (ours, theirs) = pair.map_err(|e| probe::explain("make a socket", &e.into()))?;
            (Some(ours), Some(theirs))
        } else {
            (None, None)
        };
        let walls = walls(order, ready, sockets, trees)
            .map_err(failed("open the session's directories"))?;
        let (mut foreign, mut patience) = (Vec::new(), START_TIMEOUT);
        if let Walls::Isolated { root, .. } = &walls {
            foreign = root.foreign().map_err(failed("copy a descriptor"))?;
            if root.layer.as_ref().is_some_and(LayerPlan::has_seeds) {
                patience = SEED_TIMEOUT;
            }
        }
        let plan = Plan {
            walls,
            limits: order.limits,
            degraded: ready.cgroups.is_none() && !ready.left_out.is("limits"),
            left_out: &ready.left_out,
            filter: &ready.filter,
            exe: &ready.exe,
            start: ready.skeleton.start(),
            argv: arguments(order).map_err(failed("name the directories"))?,
            envp: environment(order).map_err(failed("set the environment"))?,
            control: theirs,
            entries: group.entries().map_err(failed("enter the cgroup"))?,
            go,
            failure,
        };
        let mut flags = if order.isolated { sys::NAMESPACES } else { 0 };
        for (wall, flag) in [("network", libc::CLONE_NEWNET), ("ipc", libc::CLONE_NEWIPC)] {
            if ready.left_out.is(wall) {
                flags &= !u64::from(flag.unsigned_abs());
            }
        }
        let into = group.descriptor().map_err(failed("enter the cgroup"))?;
        let cloned = sys::clone_process(flags, into.as_ref().map(AsFd::as_fd));
        let (pid, pidfd) = match cloned.map_err(failed("create namespaces"))? {
            Cloned::Child => {
                // Or it would wait for itself if the launcher died now, with copies of all the launcher holds.
                drop(go_write);
                child::run(plan)
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(plan);
        let member = Self {
            generation: order.generation,
            base: order.base,
            pidfd,
            pid,
            control,
            coming,
            sockets: Vec::new(),
            kept: order.trust.map(|trust| trust.kept.clone()),
            group: Group::default(),
            isolated: order.isolated,
            unseeded: (order.fresh && order.layer.is_some()).then(|| order.session.join(UNSEEDED)),
            starting: Some((File::from(starting), now() + patience)),
        };
        match member.admit(order, &foreign, File::from(go_write)) {
            Ok(()) => Ok(member),
            Err(error) => {
                member.kill();
                // It dies at once: nothing in it runs yet.
                let pidfd = WaitId::PidFd(member.pidfd.as_fd());
                rustix::process::waitid(pidfd, WaitIdOptions::EXITED).ok();
                Err(probe::explain("map user ids", &error))
            }
        }
    }

    /// Maps the child's ids, also in the mounts that are not its own, and lets it go on.
    fn admit(&self, order: &Order<'_>, foreign: &[OwnedFd], mut go: File) -> io::Result<()> {
        if order.isolated {
            map_ids(self.pid, order.base)?;
        }
        if !foreign.is_empty() {
            let users = File::open(format!("/proc/{}/ns/user", self.pid))?;
            for tree in foreign {
                sys::map_mount(tree.as_fd(), users.as_fd()).map_err(|e| cannot_map(&e))?;
            }
        }
        go.write_all(b"m")
    }

    /// What the starting child had to say: `None` while it is still at it.
    pub(crate) fn progress(&mut self) -> Option<Result<(), Trouble>> {
        let (pipe, _) = self.starting.as_mut()?;
        let mut text = [0; 512];
        let count = match pipe.read(&mut text) {
            Ok(count) => count,
            Err(error) => return Some(Err(probe::explain("hear from the child", &error))),
        };
        self.starting = None;
        if count == 0 {
            if let Some(mark) = self.unseeded.take()
                && let Err(error) = fs::remove_file(mark)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Some(Err(probe::explain("note that the session has begun", &error)));
            }
            return Some(self.take_sockets());
        }
        let said = String::from_utf8_lossy(&text[..count]).trim().to_owned();
        let (errno, step) = said.split_once(' ').unwrap_or(("0", &said));
        Some(Err(probe::explain_step(step, errno.parse().unwrap_or(0))))
    }

    fn take_sockets(&mut self) -> Result<(), Trouble> {
        let Some(coming) = self.coming.take() else { return Ok(()) };
        match super::wire::receive_bytes(&coming, &mut Vec::new()) {
            Ok((_, sockets)) if sockets.len() == SOCKETS => {
                self.sockets = sockets;
                Ok(())
            }
            Ok(_) => Err(probe::explain_step("hear of the sandbox's sockets", 0)),
            Err(error) => Err(probe::explain("hear of the sandbox's sockets", &error)),
        }
    }

    /// The sockets of its way out; none if it has none.
    pub(crate) fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.sockets.iter().map(OwnedFd::try_clone).collect()
    }

    /// Makes a fresh stream to PID 1 and returns the server's end.
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        super::wire::send_bytes(&self.control, b"c", &[theirs.as_fd()])?;
        Ok(ours)
    }

    /// Whether PID 1 has ended, noticed or not.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let found = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        found.is_ok_and(|count| count > 0)
    }

    /// Kills everything in it.
    fn kill(&self) {
        if !self.isolated {
            kill_descendants(self.pid);
        }
        // It may be gone already; the pidfd makes sure that nobody else is hit.
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }

    /// Kills it and keeps what is left, to be collected.
    pub(crate) fn die(self, key: SandboxKey) -> Dying {
        self.kill();
        Dying { key, pidfd: Some(self.pidfd), base: self.base, group: self.group }
    }
}

impl Dying {
    /// Collects what has ended; true when nothing is left.
    pub(crate) fn collect(&mut self) -> bool {
        if let Some(pidfd) = &self.pidfd {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
                Ok(None) => return false,
                // PID 1 is collected only after everything else in its namespace is gone.
                Ok(Some(status)) => {
                    self.pidfd = None;
                    if status.terminating_signal() != Some(libc::SIGKILL) {
                        super::log(&format!("{}: PID 1 ended by itself: {status:?}", self.key));
                    }
                }
                Err(_) => self.pidfd = None,
            }
        }
        self.group.remove()
    }
}

fn walls(
    order: &Order<'_>,
    ready: &Ready,
    sockets: Option<OwnedFd>,
    disk: Option<Vec<OwnedFd>>,
) -> io::Result<Walls> {
    if !order.isolated {
        return Ok(Walls::UnsafeHost { workspace: c_path(&order.session.join("workspace"))? });
    }
    // Only the owner of the mount namespace may clone mounts; a user's child does it by path.
    let trees = IdMapping::detect() == IdMapping::Ranges;
    let pid_max = ready.cgroups.is_none() && !ready.left_out.is("limits");
    let (skeleton, limits) = (&ready.skeleton, order.limits);
    let mut root = RootPlan::new(skeleton, &order.session, disk, trees, limits, pid_max)?;
    root.masked = !ready.left_out.is("masks");
    root.layer = LayerPlan::open(order.layer, &ready.skeleton, trees, order.fresh)?;
    if let Some(trust) = order.trust {
        let bundle = ready.skeleton.bundle()?;
        let files = write_trust(&order.session, bundle, &trust.certificate)?;
        for (file, place) in files {
            let source = Source::of(&file, trees, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)?;
            root.trust.push((source, CString::new(place)?));
        }
    }
    Ok(Walls::Isolated { root: Box::new(root), own_ids: order.base.is_some(), sockets })
}

fn arguments(order: &Order<'_>) -> io::Result<Vec<CString>> {
    let (workdir, spill) =
        (order.session.join("workspace"), order.session.join("home/.tool-results"));
    let places = (!order.isolated).then_some((workdir.as_path(), spill.as_path()));
    command_line(CONTROL_FD, order.generation, places)
}

fn environment(order: &Order<'_>) -> io::Result<Vec<CString>> {
    let home = if order.isolated {
        "/root".to_owned()
    } else {
        order.session.join("home").to_string_lossy().into_owned()
    };
    let network = order.network && order.isolated;
    let mut all = standard_variables(&home, network, order.trust.is_some());
    all.insert("PATH".to_owned(), SEARCH_PATH.to_owned());
    all.extend(order.env.clone());
    all.iter().map(|(name, value)| Ok(CString::new(format!("{name}={value}"))?)).collect()
}

fn map_ids(pid: libc::pid_t, base: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uids, gids) = if let Some(base) = base {
        (format!("0 {base} {RANGE}"), format!("0 {base} {RANGE}"))
    } else {
        // Without this the kernel lets no ordinary user map a group.
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        (format!("0 {uid} 1"), format!("0 {gid} 1"))
    };
    fs::write(format!("/proc/{pid}/uid_map"), uids)?;
    fs::write(format!("/proc/{pid}/gid_map"), gids)
}

fn cannot_map(error: &io::Error) -> io::Error {
    let what = "a file system that the sandbox's root is made of (of /usr, of --sandbox-root, or of the data directory) cannot map them";
    let which =
        "ext4, xfs, btrfs and tmpfs can, the overlay of a container cannot: keep both on a volume";
    io::Error::new(error.kind(), format!("{what}: {error}; {which}"))
}

/// Kills every process that descends from `root`, again and again until none is found. Without a pid
/// namespace this is the best there is: `hand` adopts orphans, so none escapes by forking twice.
fn kill_descendants(root: libc::pid_t) {
    for _ in 0..50 {
        let found = descendants(root);
        if found.is_empty() {
            return;
        }
        for pid in found {
            let Some(pid) = Pid::from_raw(pid) else { continue };
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                pidfd_send_signal(&pidfd, Signal::KILL).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn descendants(root: libc::pid_t) -> Vec<libc::pid_t> {
    let mut parents = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The command's name may hold anything, but nothing after its last parenthesis does.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut rest = rest.split(' ');
        let (state, parent) = (rest.next(), rest.next().and_then(|p| p.parse().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "Z"
        {
            parents.insert(pid, parent);
        }
    }
    let descends = |mut pid: libc::pid_t| {
        for _ in 0..parents.len() {
            match parents.get(&pid) {
                Some(&parent) if parent == root => return true,
                Some(&parent) => pid = parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|&pid| pid != root && descends(pid)).collect()
}
