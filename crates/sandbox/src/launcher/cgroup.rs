//! Limits by cgroups: a group per sandbox under one of our own, v2 where it is delegated, else v1.
//! It never limits less than asked: what the kernel refuses is an error, and the caller decides.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lockdown::PIDS_RESERVE;
use crate::seam::{Limits, LimitsBy};

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Why there are no cgroups to use, and what the operator can do about it.
#[derive(Debug)]
pub(crate) struct NoCgroups {
    pub(crate) what: String,
    pub(crate) fix: &'static str,
}

const FIX: &str = "run as root, or under systemd with Delegate=yes (`systemd-run --user --scope \
    -p Delegate=yes …`), or accept weaker limits with --sandbox-limits=degraded";

/// Our own group in each hierarchy, parent of the sandboxes' groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    by: LimitsBy,
    /// v1: one per controller, in the order of `CONTROLLERS`, and one for disks where there is a hierarchy for them. v2: a single one.
    bases: Vec<PathBuf>,
    /// The disks that every sandbox reads, as `major:minor`.
    disks: BTreeSet<String>,
}

/// The groups of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Group {
    by: Option<LimitsBy>,
    dirs: Vec<PathBuf>,
}

impl Cgroups {
    /// Finds or makes our groups, called `vaquero-{tag}`, and removes what an earlier launcher left.
    ///
    /// `files` are on the disks that sandboxes read.
    pub(crate) fn open(tag: &str, files: &[&Path]) -> Result<Self, NoCgroups> {
        let name = format!("vaquero-{tag}");
        let opened = open_v2(&name).or_else(|v2| match open_v1(&name) {
            Ok(opened) => Ok(opened),
            Err(v1) => {
                Err(NoCgroups { what: format!("no usable cgroups (v2: {v2}; v1: {v1})"), fix: FIX })
            }
        })?;
        opened.clear();
        Ok(Self { disks: files.iter().filter_map(|file| disk_of(file)).collect(), ..opened })
    }

    /// Which mechanism this is.
    pub(crate) fn by(&self) -> LimitsBy {
        self.by
    }

    /// Makes the group of one sandbox with its limits set; `own` is the loop device of its files, if they are on one.
    pub(crate) fn create(
        &self,
        name: &str,
        limits: &Limits,
        own: Option<u32>,
    ) -> io::Result<Group> {
        let mut group = Group { by: Some(self.by), dirs: Vec::new() };
        let made = self.fill(name, limits, own, &mut group);
        if made.is_err() {
            group.remove_soon();
        }
        made.map(|()| group)
    }

    fn fill(
        &self,
        name: &str,
        limits: &Limits,
        own: Option<u32>,
        group: &mut Group,
    ) -> io::Result<()> {
        for base in &self.bases {
            let dir = base.join(name);
            if let Err(error) = fs::create_dir(&dir)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
            group.dirs.push(dir);
        }
        match self.by {
            LimitsBy::V2 => limit_v2(&group.dirs[0], limits)?,
            LimitsBy::V1 => limit_v1(&group.dirs, limits)?,
        }
        let own = own.map(|number| format!("7:{number}"));
        for disk in self.disks.iter().chain(&own) {
            limit_disk(self.by, &group.dirs, disk, limits.io_bytes)?;
        }
        Ok(())
    }

    /// Kills and removes every sandbox group: only right when no launcher owns them.
    fn clear(&self) {
        for base in &self.bases {
            let Ok(entries) = fs::read_dir(base) else { continue };
            for entry in entries.flatten().filter(|e| e.path().is_dir()) {
                kill_all(&entry.path());
                remove_dir_soon(&entry.path());
            }
        }
    }

    /// Removes our own groups; the sandboxes' must be gone.
    pub(crate) fn close(&self) {
        self.clear();
        for base in &self.bases {
            remove_dir_soon(base);
        }
    }
}

impl Group {
    /// v1: what a new process writes `0` to, to be in the group with everything it will start.
    pub(crate) fn entries(&self) -> io::Result<Vec<fs::File>> {
        if self.by != Some(LimitsBy::V1) {
            return Ok(Vec::new());
        }
        self.dirs
            .iter()
            .map(|dir| fs::OpenOptions::new().write(true).open(dir.join("tasks")))
            .collect()
    }

    /// v2: the group to make a new process in.
    pub(crate) fn descriptor(&self) -> io::Result<Option<fs::File>> {
        if self.by != Some(LimitsBy::V2) {
            return Ok(None);
        }
        self.dirs.first().map(fs::File::open).transpose()
    }

    /// Removes the group, whose last processes may take a moment to die.
    pub(crate) fn remove_soon(&mut self) {
        for dir in self.dirs.drain(..) {
            remove_dir_soon(&dir);
        }
    }

    /// Removes the group; false if something in it is still dying.
    pub(crate) fn remove(&mut self) -> bool {
        self.dirs.retain(|dir| match fs::remove_dir(dir) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
        self.dirs.is_empty()
    }
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::write(file, value).map_err(|e| {
        io::Error::new(e.kind(), format!("write {value:?} to {}: {e}", file.display()))
    })
}

fn limit_v2(dir: &Path, limits: &Limits) -> io::Result<()> {
    write(&dir.join("memory.max"), &limits.memory_bytes.to_string())?;
    let swap = dir.join("memory.swap.max");
    if swap.exists() {
        write(&swap, "0")?;
    }
    write(&dir.join("pids.max"), &(limits.pids + PIDS_RESERVE).to_string())?;
    let quota = u64::from(limits.cpu_millis).saturating_mul(100);
    write(&dir.join("cpu.max"), &format!("{quota} 100000"))
}

fn limit_v1(dirs: &[PathBuf], limits: &Limits) -> io::Result<()> {
    let [memory, pids, cpu, ..] = dirs else {
        return Err(io::Error::other("a v1 group needs memory, pids and cpu"));
    };
    let bytes = limits.memory_bytes.to_string();
    write(&memory.join("memory.limit_in_bytes"), &bytes)?;
    let with_swap = memory.join("memory.memsw.limit_in_bytes");
    if with_swap.exists() {
        write(&with_swap, &bytes)?;
    }
    write(&pids.join("pids.max"), &(limits.pids + PIDS_RESERVE).to_string())?;
    let quota = u64::from(limits.cpu_millis).saturating_mul(100);
    // Of the period that every new group has, 100 ms; writing that again would take the kernel a millisecond.
    write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())
}

/// Limits reading from a disk and writing to it, where the kernel can.
fn limit_disk(by: LimitsBy, dirs: &[PathBuf], disk: &str, bytes: u64) -> io::Result<()> {
    let limited = match (by, dirs) {
        (LimitsBy::V2, [dir]) if dir.join("io.max").exists() => {
            fs::write(dir.join("io.max"), format!("{disk} rbps={bytes} wbps={bytes}"))
        }
        (LimitsBy::V1, [.., blkio]) if dirs.len() > CONTROLLERS.len() => {
            let limit = format!("{disk} {bytes}");
            fs::write(blkio.join("blkio.throttle.read_bps_device"), &limit)
                .and_then(|()| fs::write(blkio.join("blkio.throttle.write_bps_device"), &limit))
        }
        _ => Ok(()),
    };
    match limited {
        // A file system that is on no single disk.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) || e.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// The whole disk that a file is on, as `major:minor`; none for file systems that are on none.
fn disk_of(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(file).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let block = fs::canonicalize(block).ok()?;
    let disk = if block.join("partition").exists() { block.parent()? } else { &block };
    Some(fs::read_to_string(disk.join("dev")).ok()?.trim().to_owned())
}

/// One cgroup mount: where it is, what part of the hierarchy it shows, and its options.
struct Mounted {
    at: PathBuf,
    root: String,
    v2: bool,
    options: BTreeSet<String>,
}

fn mounted() -> Vec<Mounted> {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let kind = *right.first()?;
    if kind != "cgroup" && kind != "cgroup2" {
        return None;
    }
    let options = right.get(2)?.split(',').map(str::to_owned).collect();
    let (root, at) = ((*left.get(3)?).to_owned(), PathBuf::from(left.get(4)?));
    Some(Mounted { at, root, v2: kind == "cgroup2", options })
}

/// This process's path in the hierarchy of a v1 controller, or of v2 for an empty name.
fn own_path(controller: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = names.split(',').any(|name| name == controller);
        found.then(|| path.to_owned())
    })
}

/// The directory of this process's own group below a mount.
fn own_dir(mount: &Mounted, path: &str) -> PathBuf {
    let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or("/");
    mount.at.join(below.trim_start_matches('/'))
}

fn open_v1(name: &str) -> Result<Cgroups, String> {
    let mounts = mounted();
    let mut bases = Vec::new();
    let base_in = |controller: &str| -> Result<PathBuf, String> {
        let mount = mounts
            .iter()
            .find(|m| !m.v2 && m.options.contains(controller))
            .ok_or_else(|| format!("no {controller} hierarchy is mounted"))?;
        let path = own_path(controller).ok_or_else(|| format!("no own {controller} group"))?;
        let base = own_dir(mount, &path).join(name);
        make_base(&base)?;
        Ok(base)
    };
    for controller in CONTROLLERS {
        let base = base_in(controller)?;
        if controller == "cpu" {
            // Against a server that is in the parent group itself, all sandboxes together weigh half.
            write(&base.join("cpu.shares"), "512").map_err(|e| e.to_string())?;
        }
        bases.push(base);
    }
    bases.extend(base_in("blkio").ok());
    Ok(Cgroups { by: LimitsBy::V1, bases, disks: BTreeSet::new() })
}

fn make_base(base: &Path) -> Result<(), String> {
    match fs::create_dir(base) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("mkdir {}: {e}", base.display()))
        }
        _ => Ok(()),
    }
}

fn open_v2(name: &str) -> Result<Cgroups, String> {
    let mounts = mounted();
    let mount = mounts.iter().find(|m| m.v2).ok_or("not mounted")?;
    let own = own_dir(mount, &own_path("").ok_or("no own group")?);
    let parent = if has_controllers(&mount.at) && is_real_root(&mount.at) && writable(&mount.at) {
        mount.at.clone()
    } else if has_controllers(&own) {
        vacate(&own)?;
        own
    } else {
        return Err("the memory, pids and cpu controllers are not available in it".to_owned());
    };
    enable(&parent)?;
    let base = parent.join(name);
    make_base(&base)?;
    enable(&base)?;
    write(&base.join("cpu.weight"), "50").map_err(|e| e.to_string())?;
    Ok(Cgroups { by: LimitsBy::V2, bases: vec![base], disks: BTreeSet::new() })
}

fn has_controllers(dir: &Path) -> bool {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let have: BTreeSet<&str> = text.split_whitespace().collect();
    CONTROLLERS.iter().all(|c| have.contains(c))
}

/// The root of the whole hierarchy, which may hold processes beside groups; only it has no events file.
fn is_real_root(dir: &Path) -> bool {
    !dir.join("cgroup.events").exists()
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// A group with limits for its children may hold no processes: moves this one and its server aside,
/// if they are the only ones there.
fn vacate(own: &Path) -> Result<(), String> {
    let text = fs::read_to_string(own.join("cgroup.procs")).map_err(|e| e.to_string())?;
    let ours: Vec<libc::pid_t> = [Some(rustix::process::getpid()), rustix::process::getppid()]
        .into_iter()
        .flatten()
        .map(rustix::process::Pid::as_raw_nonzero)
        .map(std::num::NonZero::get)
        .collect();
    let there: Vec<libc::pid_t> = text.lines().filter_map(|l| l.parse().ok()).collect();
    if let Some(stranger) = there.iter().find(|pid| !ours.contains(pid)) {
        return Err(format!("process {stranger} shares {}", own.display()));
    }
    if there.is_empty() {
        return Ok(());
    }
    let aside = own.join("vaquero-main");
    make_base(&aside)?;
    there
        .iter()
        .try_for_each(|pid| write(&aside.join("cgroup.procs"), &pid.to_string()))
        .map_err(|e| e.to_string())
}

fn enable(dir: &Path) -> Result<(), String> {
    write(&dir.join("cgroup.subtree_control"), "+memory +pids +cpu").map_err(|e| e.to_string())?;
    // Not every group is given the disks as well.
    write(&dir.join("cgroup.subtree_control"), "+io").ok();
    Ok(())
}

fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in
        text.lines().filter_map(|l| l.parse().ok()).filter_map(rustix::process::Pid::from_raw)
    {
        // One that is gone already is what we want.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
}

/// Removes a group whose last processes may take a moment to die.
fn remove_dir_soon(dir: &Path) {
    for _ in 0..200 {
        match fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_understood() {
        let v1 =
            parse_mount("35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory");
        let v1 = v1.unwrap();
        assert!(!v1.v2 && v1.options.contains("memory"));
        assert_eq!(own_dir(&v1, "/a/b"), PathBuf::from("/sys/fs/cgroup/memory/a/b"));
        let inner = parse_mount(
            "35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory",
        )
        .unwrap();
        assert_eq!(own_dir(&inner, "/docker/1"), PathBuf::from("/sys/fs/cgroup/memory/"));
        assert!(parse_mount("23 1 0:21 / /proc rw - proc proc rw").is_none());
    }
}
