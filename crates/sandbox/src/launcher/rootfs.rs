//! The root a sandbox sees: the skeleton, the host's `/usr` or another root file system, what lies over them, and what a session owns.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use super::layer::LayerPlan;
use super::lockdown::PIDS_RESERVE;
use super::mounts::{Source, Step, at, attach, clone_tree, guarded_tree};
use super::seed;
use super::skeleton::{DEVICES, SESSION_DIRS, Skeleton};
use super::sys::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, mount_setattr};
use crate::seam::Limits;

/// Once the numbers have wrapped around, the kernel hands out none below this.
const KERNEL_RESERVED_PIDS: u32 = 300;

/// Files and directories that show what is the machine's, and not the sandbox's.
pub(crate) const MASKED_FILES: [&CStr; 8] = [
    c"proc/kcore",
    c"proc/keys",
    c"proc/key-users",
    c"proc/kmsg",
    c"proc/timer_list",
    c"proc/sched_debug",
    c"proc/latency_stats",
    c"proc/kallsyms",
];
pub(crate) const MASKED_DIRS: [&CStr; 3] = [c"proc/acpi", c"proc/scsi", c"proc/asound"];

/// Everything the child needs to build its root.
#[derive(Debug)]
pub(crate) struct RootPlan {
    pub(crate) skeleton: Source,
    pub(crate) aliases: Vec<(CString, CString)>,
    /// Programs are the host's.
    host_usr: bool,
    /// In the order of `SESSION_DIRS`.
    pub(crate) session: Vec<Source>,
    pub(crate) limits: Limits,
    /// Limits processes by the namespace's own `pid_max`, for want of a cgroup.
    pub(crate) pid_max: bool,
    /// Hides what `/proc` shows of the whole machine.
    pub(crate) masked: bool,
    /// Files of certificates that take the place of the host's.
    pub(crate) trust: Vec<(Source, CString)>,
    /// What lies over all of it.
    pub(crate) layer: Option<LayerPlan>,
}

impl RootPlan {
    /// The plan for one sandbox around a session's directories, which may be on a disk of their own.
    pub(crate) fn new(
        skeleton: &Skeleton,
        session: &Path,
        disk: Option<Vec<OwnedFd>>,
        trees: bool,
        limits: Limits,
        pid_max: bool,
    ) -> io::Result<Self> {
        let root = Source::of(skeleton.path(), trees, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)?;
        let session: io::Result<Vec<Source>> = match disk {
            Some(disk) => Ok(disk.into_iter().map(Source::Tree).collect()),
            None => SESSION_DIRS
                .iter()
                .map(|(name, _)| Source::of(&session.join(name), trees, ATTR_NOSUID | ATTR_NODEV))
                .collect(),
        };
        let aliases = skeleton.aliases().to_vec();
        let (session, masked, trust, layer) = (session?, true, Vec::new(), None);
        let host_usr = !skeleton.is_chosen();
        Ok(Self {
            skeleton: root,
            aliases,
            host_usr,
            session,
            limits,
            pid_max,
            masked,
            trust,
            layer,
        })
    }

    /// Whether everything but what the kernel shows may be written.
    pub(crate) fn writable(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.writable)
    }

    /// The mounts through which the sandbox must see its own ids: they belong to ids from 0 on.
    pub(crate) fn foreign(&self) -> io::Result<Vec<OwnedFd>> {
        let session = self.session.iter().filter_map(Source::tree);
        let session = session.filter(|_| self.writable());
        let layer = self.layer.iter().flat_map(LayerPlan::foreign);
        layer.chain(session).map(OwnedFd::try_clone).collect()
    }
}

/// Builds the root and makes it this process's own. Runs in the child, in its new namespaces.
pub(crate) fn enter(plan: RootPlan) -> Result<(), Step> {
    at(
        "make mounts private",
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE),
    )?;
    let guarded = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
    // Every source is opened before the first mount hides anything.
    let mut root = at("open the skeleton", plan.skeleton.into_tree(guarded))?;
    let mut usr = Vec::new();
    if plan.host_usr {
        usr.push((at("open /usr", guarded_tree(c"/usr"))?, c"usr".to_owned()));
    }
    for (host, place) in plan.aliases {
        usr.push((at("open a library directory", guarded_tree(&host))?, place));
    }
    let mut devices = Vec::new();
    for device in DEVICES {
        let host = at("name a device", CString::new(format!("/dev/{device}")))?;
        devices.push((at("open a device", clone_tree(&host, false))?, device));
    }
    let mut session = Vec::new();
    for (source, (_, place)) in plan.session.into_iter().zip(SESSION_DIRS) {
        let tree = source.into_tree(ATTR_NOSUID | ATTR_NODEV);
        session.push((at("open the workspace", tree)?, place));
    }

    let mut trust = Vec::new();
    for (source, place) in plan.trust {
        trust.push((at("open the certificates", source.into_tree(guarded))?, place));
    }
    let mut seeds = Vec::new();
    if let Some(layer) = plan.layer {
        let joined = layer.join()?;
        for (tree, place) in joined.parts {
            // In the place of what it was joined with.
            usr.retain(|(_, other)| other.as_c_str() != place);
            if place.is_empty() {
                root = tree;
            } else {
                usr.push((tree, place.to_owned()));
            }
        }
        seeds = joined.seeds;
    }

    at("attach the root", attach(root.as_fd(), c"/usr"))?;
    at("enter the root", rustix::process::chdir("/usr"))?;
    for (tree, place) in &usr {
        at("mount /usr", attach(tree.as_fd(), place))?;
    }
    for (tree, device) in &devices {
        let place = at("name a device", CString::new(format!("dev/{device}")))?;
        at("mount a device", attach(tree.as_fd(), &place))?;
    }
    for (tree, place) in &session {
        at("mount the workspace", attach(tree.as_fd(), place))?;
    }
    for (tree, place) in &trust {
        at("mount the certificates", attach(tree.as_fd(), place))?;
    }
    mount_kernel_file_systems(&plan.limits)?;
    if plan.pid_max {
        // Where the file is not the namespace's own, the write fails and nothing changes.
        let value = (KERNEL_RESERVED_PIDS + 1 + plan.limits.pids + PIDS_RESERVE).to_string();
        drop(fs::write("proc/sys/kernel/pid_max", value));
    }
    if plan.masked {
        mask_proc()?;
    }
    at("pivot_root", rustix::process::pivot_root(".", "."))?;
    at("leave the host's root", unmount(".", UnmountFlags::DETACH))?;
    for (seed, place) in seeds {
        at("copy what the session begins with", seed::copy(seed.as_fd(), place))?;
    }
    at("enter the workspace", rustix::process::chdir("/workspace"))
}

fn mount_kernel_file_systems(limits: &Limits) -> Result<(), Step> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    let inert = plain | MountFlags::NOEXEC;
    let tmpfs = |bytes: u64| CString::new(format!("mode=1777,size={bytes},nr_inodes=262144"));
    let tmp = at("size /tmp", tmpfs(limits.tmp_bytes))?;
    let shm = at("size /dev/shm", tmpfs(limits.tmp_bytes / 4))?;
    at("mount /proc", mount(c"proc", c"proc", c"proc", inert, None))?;
    at("mount /tmp", mount(c"tmpfs", c"tmp", c"tmpfs", plain, Some(tmp.as_c_str())))?;
    at("mount /dev/shm", mount(c"tmpfs", c"dev/shm", c"tmpfs", inert, Some(shm.as_c_str())))?;
    let pts = c"newinstance,ptmxmode=0666,mode=0620";
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    at("mount /dev/pts", mount(c"devpts", c"dev/pts", c"devpts", flags, Some(pts)))
}

/// Makes what `/proc` shows of the whole machine unreadable or at least unwritable.
fn mask_proc() -> Result<(), Step> {
    for place in [c"proc/sys", c"proc/sysrq-trigger", c"proc/irq", c"proc/bus", c"proc/fs"] {
        let tree = match clone_tree(place, true) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => at("open a part of /proc", other)?,
        };
        at("make /proc read-only", mount_setattr(tree.as_fd(), c"", ATTR_RDONLY, true))?;
        at("make /proc read-only", attach(tree.as_fd(), place))?;
    }
    for place in MASKED_FILES {
        if fs::symlink_metadata(Path::new(std::ffi::OsStr::from_bytes(place.to_bytes()))).is_err() {
            continue;
        }
        let null = at("open a device", clone_tree(c"dev/null", false))?;
        at("mask a file of /proc", attach(null.as_fd(), place))?;
    }
    for place in MASKED_DIRS {
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount(c"tmpfs", place, c"tmpfs", flags, Some(c"size=0,nr_inodes=1")) {
            Err(e) if e == rustix::io::Errno::NOENT => {}
            other => at("mask a directory of /proc", other)?,
        }
    }
    Ok(())
}
