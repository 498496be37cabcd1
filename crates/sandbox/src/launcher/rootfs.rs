//! The root a sandbox sees: a read-only skeleton made once, the host's `/usr`, and what a session owns.
//! Nothing of the host's `/etc`, `/home`, `/root`, `/var`, `/run` or `/sys` is ever in it, but a few public files.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};

use super::debian;
use super::foreign::{self, Start};
use super::layer::LayerPlan;
use super::lockdown::PIDS_RESERVE;
use super::seed;
use super::sys::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, mount_setattr};
use crate::seam::Limits;

/// The host's top-level entries that belong to `/usr`, wherever a distribution keeps them.
const USR_ALIASES: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Once the numbers have wrapped around, the kernel hands out none below this.
const KERNEL_RESERVED_PIDS: u32 = 300;
/// A session's directories: name on disk, place in the sandbox.
pub(crate) const SESSION_DIRS: [(&str, &CStr); 4] = [
    ("workspace", c"workspace"),
    ("home", c"root"),
    ("uploads", c"mnt/session/uploads"),
    ("outputs", c"mnt/session/outputs"),
];
/// Host files every program may read, copied so that no host directory is mounted for them.
const PUBLIC_ETC: [&str; 10] = [
    "ld.so.cache",
    "ld.so.conf",
    "os-release",
    "debian_version",
    "protocols",
    "services",
    "mime.types",
    "localtime",
    "timezone",
    "ssl/openssl.cnf",
];
/// Host directories of public files and links, copied likewise.
const PUBLIC_ETC_DIRS: [&str; 5] =
    ["alternatives", "ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted", "ca-certificates"];

/// Where programs find the certificates they trust.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// The skeleton on disk, and which parts of the host are mounted on it.
#[derive(Debug)]
pub(crate) struct Skeleton {
    root: PathBuf,
    /// Directories outside `/usr` that a host without merged `/usr` needs.
    aliases: Vec<(CString, CString)>,
    /// What package managers need beside it.
    extras: PathBuf,
    chosen: Option<Chosen>,
}

/// A root file system that takes the place of the host's.
#[derive(Debug)]
struct Chosen {
    dir: PathBuf,
    /// Its own libraries may be others than those a hand needs.
    start: Start,
}

impl Skeleton {
    /// Makes the skeleton in `root`, which must not exist.
    pub(crate) fn build(root: &Path, chosen: Option<&Path>) -> io::Result<Self> {
        let dir = |path: &str| make_dir(&root.join(path));
        for path in [
            "proc",
            "dev/pts",
            "dev/shm",
            "etc/ssl/certs",
            "tmp",
            "workspace",
            "root",
            "run",
            "mnt/session/uploads",
            "mnt/session/outputs",
            "var",
        ] {
            dir(path)?;
        }
        if chosen.is_none() {
            for path in ["usr", "home", "var/lib/dpkg", "var/cache", "var/log", "opt"] {
                dir(path)?;
            }
            symlink("/run", root.join("var/run"))?;
        }
        symlink("/tmp", root.join("var/tmp"))?;
        for device in DEVICES {
            fs::write(root.join("dev").join(device), "")?;
        }
        for (link, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            symlink(target, root.join("dev").join(link))?;
        }
        let extras = root.with_extension("debian");
        if let Some(chosen) = chosen {
            write_names(&root.join("etc"))?;
            // The host's, where it has none.
            let bundles = [chosen.join(BUNDLE), Path::new("/").join(BUNDLE)];
            let bundle = bundles.iter().find_map(|path| fs::read(path).ok()).unwrap_or_default();
            fs::write(root.join(BUNDLE), bundle)?;
            debian::settings(&root.join("etc"))?;
            let chosen = Chosen { dir: chosen.to_owned(), start: foreign::build(root)? };
            return Ok(Self {
                root: root.to_owned(),
                aliases: Vec::new(),
                extras,
                chosen: Some(chosen),
            });
        }
        write_etc(&root.join("etc"))?;
        // Something to mount certificates on, also where the host has none.
        let bundle = root.join(BUNDLE);
        if bundle.is_symlink() {
            // It may lead anywhere: the file itself takes its place.
            fs::remove_file(&bundle)?;
            drop(fs::copy(Path::new("/").join(BUNDLE), &bundle));
        }
        if !bundle.exists() {
            fs::write(bundle, "")?;
        }
        let aliases = link_aliases(root)?;
        debian::build(&extras)?;
        Ok(Self { root: root.to_owned(), aliases, extras, chosen: None })
    }

    /// Whether the root is another than the host's, which is always joined from parts.
    pub(crate) fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }

    /// How a hand is started on it.
    pub(crate) fn start(&self) -> &Start {
        self.chosen.as_ref().map_or(&Start::Sealed, |chosen| &chosen.start)
    }

    /// What a layer's part lies over, the topmost first.
    pub(crate) fn below(&self, part: &str) -> Vec<PathBuf> {
        match (part, &self.chosen) {
            ("root", Some(chosen)) => vec![self.root.clone(), chosen.dir.clone()],
            (_, Some(_)) => Vec::new(),
            ("root", None) => vec![self.extras.clone(), self.root.clone()],
            ("usr", None) => vec![PathBuf::from("/usr")],
            ("dpkg", None) => vec![PathBuf::from("/var/lib/dpkg")],
            (_, None) => Vec::new(),
        }
    }

    /// Writes a file of the host's certificates and another one.
    pub(crate) fn write_trust(&self, to: &Path, certificate: &str) -> io::Result<()> {
        let mut all = fs::read(self.root.join(BUNDLE))?;
        all.push(b'\n');
        all.extend_from_slice(certificate.as_bytes());
        fs::write(to, all)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o644))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }
}

/// Repeats the host's `/bin`, `/lib64`, … : links as links, directories to be mounted.
fn link_aliases(root: &Path) -> io::Result<Vec<(CString, CString)>> {
    let mut mounts = Vec::new();
    for alias in USR_ALIASES {
        let host = Path::new("/").join(alias);
        let Ok(meta) = fs::symlink_metadata(&host) else { continue };
        if meta.is_symlink() {
            symlink(fs::read_link(&host)?, root.join(alias))?;
        } else if meta.is_dir() {
            fs::create_dir(root.join(alias))?;
            mounts.push((c_path(&host)?, CString::new(alias)?));
        }
    }
    Ok(mounts)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// What says by which name a sandbox goes, and who answers for others.
fn write_names(etc: &Path) -> io::Result<()> {
    for (name, text) in [
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
        ("hostname", "sandbox\n"),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
    ] {
        fs::write(etc.join(name), text)?;
    }
    Ok(())
}

fn write_etc(etc: &Path) -> io::Result<()> {
    write_names(etc)?;
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        ),
        ("group", "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n"),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        ),
        ("shells", "/bin/sh\n/bin/bash\n"),
        ("host.conf", "multi on\n"),
    ] {
        fs::write(etc.join(name), text)?;
    }
    let host = Path::new("/etc");
    for name in PUBLIC_ETC {
        copy_public(&host.join(name), &etc.join(name))?;
    }
    for name in PUBLIC_ETC_DIRS {
        copy_public_dir(&host.join(name), &etc.join(name), 3)?;
    }
    Ok(())
}

/// Copies a file or link that anyone may read; anything else is left out.
pub(crate) fn copy_public(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if meta.is_file() && meta.permissions().mode() & 0o004 != 0 {
        fs::copy(from, to)?;
    }
    Ok(())
}

fn copy_public_dir(from: &Path, to: &Path, depth: u8) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for entry in entries.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if depth > 0 {
                copy_public_dir(&from, &to, depth - 1)?;
            }
        } else {
            copy_public(&from, &to)?;
        }
    }
    Ok(())
}

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A directory to mount: cloned by a launcher that may, or named for a child that can reach it.
#[derive(Debug)]
pub(crate) enum Source {
    /// A detached mount.
    Tree(OwnedFd),
    /// A path the child's user can reach.
    Path(CString),
}

impl Source {
    /// A source for `path`. `trees` says whether this process may clone mounts.
    pub(crate) fn of(path: &Path, trees: bool, attributes: u64) -> io::Result<Self> {
        if !trees {
            return Ok(Self::Path(c_path(path)?));
        }
        let tree = clone_tree(&c_path(path)?, false)?;
        mount_setattr(tree.as_fd(), c"", attributes, false)?;
        Ok(Self::Tree(tree))
    }

    /// The mount, if it is one already.
    pub(crate) fn tree(&self) -> Option<&OwnedFd> {
        match self {
            Self::Tree(tree) => Some(tree),
            Self::Path(_) => None,
        }
    }

    pub(crate) fn into_tree(self, attributes: u64) -> io::Result<OwnedFd> {
        match self {
            Self::Tree(tree) => Ok(tree),
            Self::Path(path) => {
                let tree = clone_tree(&path, true)?;
                mount_setattr(tree.as_fd(), c"", attributes, true)?;
                Ok(tree)
            }
        }
    }
}

fn clone_tree(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(CWD, path, flags)?)
}

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
    /// A file of certificates that takes the place of the host's.
    pub(crate) trust: Option<Source>,
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
        let aliases = skeleton.aliases.clone();
        let (session, masked, trust, layer) = (session?, true, None, None);
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

/// A step that failed, by the name an operator can look up.
pub(crate) type Step = (&'static str, io::Error);

pub(crate) fn at<T, E: Into<io::Error>>(
    step: &'static str,
    result: Result<T, E>,
) -> Result<T, Step> {
    result.map_err(|e| (step, e.into()))
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

    let trust = plan.trust.map(|source| source.into_tree(guarded)).transpose();
    let trust = at("open the certificates", trust)?;
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
    if let Some(trust) = &trust {
        at("mount the certificates", attach(trust.as_fd(), c"etc/ssl/certs/ca-certificates.crt"))?;
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

fn guarded_tree(path: &CStr) -> io::Result<OwnedFd> {
    let tree = clone_tree(path, true)?;
    mount_setattr(tree.as_fd(), c"", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, true)?;
    Ok(tree)
}

pub(crate) fn attach(tree: BorrowedFd<'_>, place: &CStr) -> io::Result<()> {
    Ok(move_mount(tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
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
    for place in [
        c"proc/kcore",
        c"proc/keys",
        c"proc/key-users",
        c"proc/kmsg",
        c"proc/timer_list",
        c"proc/sched_debug",
        c"proc/latency_stats",
        c"proc/kallsyms",
    ] {
        if fs::symlink_metadata(Path::new(std::ffi::OsStr::from_bytes(place.to_bytes()))).is_err() {
            continue;
        }
        let null = at("open a device", clone_tree(c"dev/null", false))?;
        at("mask a file of /proc", attach(null.as_fd(), place))?;
    }
    for place in [c"proc/acpi", c"proc/scsi", c"proc/asound"] {
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount(c"tmpfs", place, c"tmpfs", flags, Some(c"size=0,nr_inodes=1")) {
            Err(e) if e == rustix::io::Errno::NOENT => {}
            other => at("mask a directory of /proc", other)?,
        }
    }
    Ok(())
}
