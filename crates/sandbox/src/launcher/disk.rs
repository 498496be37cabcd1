//! A disk for each session: an image with a file system of its own, so that no session can take more space or files than it is given. Only root has the loop devices for it.
//!
//! An image is mounted only while its sandbox lives: the kernel lets go of mount and device when the last process that sees them is gone, whatever becomes of the launcher.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::SeekFrom;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use super::mounts::{Source, c_path};
use super::skeleton::SESSION_DIRS;
use super::sys::{self, ATTR_NODEV, ATTR_NOSUID, LoopFile};
use super::{log, now};
use crate::remove::remove_tree;

/// The image's name in a session's directory.
pub(crate) const IMAGE: &str = "disk.img";
/// There can be one file or directory for so many bytes.
pub(crate) const BYTES_PER_FILE: u64 = 16 << 10;
/// The fewest bytes an image can have with room for its own records.
const SMALLEST: u64 = 16 << 20;
/// How long nobody must have taken a disk before another is made ready.
const QUIET: Duration = Duration::from_millis(20);

/// Makes and mounts disks.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Where templates, disks that are ready and the place to mount are; nobody else sees the mounts.
    dir: PathBuf,
    /// For the size asked for last.
    ready: Option<(u64, PathBuf, Disk)>,
    due: Option<(Duration, u64)>,
    made: u64,
}

/// A mounted disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The session's directories, in the order of `SESSION_DIRS`.
    pub(crate) trees: Vec<OwnedFd>,
    /// Of its loop device.
    pub(crate) number: u32,
}

impl Disks {
    /// Tries a small one; why there can be none, if there cannot.
    pub(crate) fn open(launcher: &Path) -> io::Result<Self> {
        let dir = launcher.join("disks");
        remove_tree(&dir)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join("mount"))?;
        sys::own_mounts()?;
        // What is mounted on the host later is seen here, and nothing the other way round.
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
        let disks = Self { dir, ready: None, due: None, made: 0 };
        let image = disks.dir.join("trial.img");
        let tried = disks.make(SMALLEST, &image).and_then(|()| disks.attach(&image, 0));
        fs::remove_file(&image).ok();
        tried.map(|_| disks)
    }

    /// A session's disk: the one it has, or a new one if it is `fresh`. `None` for a session from before there were disks.
    pub(crate) fn of_session(
        &mut self,
        session: &Path,
        bytes: u64,
        owner: u32,
        fresh: bool,
    ) -> io::Result<Option<Disk>> {
        let image = session.join(IMAGE);
        if fresh {
            fs::remove_file(&image).or_else(|e| missing(e, ()))?;
            let bytes = bytes.max(SMALLEST);
            self.due = Some((now() + QUIET, bytes));
            if let Some((size, ready, disk)) = self.ready.take()
                && size == bytes
            {
                fs::rename(ready, &image)?;
                for tree in &disk.trees {
                    sys::own_tree(tree.as_fd(), owner)?;
                }
                return Ok(Some(disk));
            }
            self.make(bytes, &image)?;
        } else if !image.exists() {
            return Ok(None);
        }
        self.attach(&image, owner).map(Some)
    }

    /// When to look after the one that is kept ready.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.due.map(|(due, _)| due)
    }

    /// Makes one ready, once nobody wants any.
    pub(crate) fn tend(&mut self, busy: bool) {
        let Some((due, bytes)) = self.due else { return };
        if now() < due {
            return;
        }
        if busy {
            self.due = Some((now() + QUIET, bytes));
            return;
        }
        self.due = None;
        if self.ready.as_ref().is_some_and(|(size, ..)| *size == bytes) {
            return;
        }
        self.made += 1;
        let image = self.dir.join(format!("ready-{}.img", self.made));
        match self.make(bytes, &image).and_then(|()| self.attach(&image, 0)) {
            Ok(disk) => self.ready = Some((bytes, image, disk)),
            Err(error) => log(&format!("no disk could be made ready: {error}")),
        }
    }

    /// An empty disk in a new file.
    fn make(&self, bytes: u64, image: &Path) -> io::Result<()> {
        let template = self.dir.join(format!("template-{bytes}.img"));
        if !template.exists() {
            let unfinished = self.dir.join("unfinished.img");
            format(bytes, &unfinished)?;
            fs::rename(unfinished, &template)?;
        }
        let made = copy_sparse(&template, image);
        if made.is_err() {
            fs::remove_file(image).ok();
        }
        made
    }

    /// Mounts an image, for as long as what it returns or a copy of it is held.
    fn attach(&self, image: &Path, owner: u32) -> io::Result<Disk> {
        let file = OpenOptions::new().read(true).write(true).open(image)?;
        // Two devices for one image would destroy it: a sandbox of the same session may have it, or a dying one still.
        let (number, device) = match in_use(&file)? {
            Some(found) => found,
            None => sys::attach_loop(&file)?,
        };
        let trees = self.mount(number, owner);
        // The mount holds it from here on, or nothing does and it is free again.
        drop(device);
        Ok(Disk { trees: trees?, number })
    }

    fn mount(&self, number: u32, owner: u32) -> io::Result<Vec<OwnedFd>> {
        let (place, device) = (self.dir.join("mount"), format!("/dev/loop{number}"));
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        // Space that is freed inside is given back to the host.
        mount(device.as_str(), &place, "ext4", flags, Some(c"discard"))?;
        let trees = SESSION_DIRS.iter().map(|(name, _)| {
            let dir = place.join(name);
            match fs::DirBuilder::new().mode(0o755).create(&dir) {
                Ok(()) => std::os::unix::fs::lchown(&dir, Some(owner), Some(owner))?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
            Source::of(&dir, true, ATTR_NOSUID | ATTR_NODEV)?.into_tree(0)
        });
        let trees = trees.collect();
        unmount(&c_path(&place)?, UnmountFlags::DETACH)?;
        trees
    }
}

fn missing<T>(error: io::Error, value: T) -> io::Result<T> {
    if error.kind() == io::ErrorKind::NotFound { Ok(value) } else { Err(error) }
}

/// Makes a file system in a new file that takes up no space yet.
fn format(bytes: u64, image: &Path) -> io::Result<()> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(image)?;
    file.set_len(bytes)?;
    let inodes = (bytes / BYTES_PER_FILE).max(1_024);
    let geometry = ["-m", "0", "-b", "4096", "-I", "256", "-O", "^resize_inode", "-J", "size=4"];
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(geometry)
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-N", &inodes.to_string()])
        .arg(image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()?;
    if made.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("mke2fs: {}", String::from_utf8_lossy(&made.stderr).trim())))
}

/// Copies what a file holds and leaves its holes holes; the same blocks where the file system can share them.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    loop {
        let mut start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            other => other?,
        };
        at = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        let mut target = start;
        while start < at {
            let left = usize::try_from(at - start).unwrap_or(usize::MAX);
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut start), &to, Some(&mut target), left)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The device that a file is behind already; it stays so for as long as it is held open.
fn in_use(file: &File) -> io::Result<Option<(u32, OwnedFd)>> {
    let meta = file.metadata()?;
    let wanted = LoopFile { device: meta.dev(), inode: meta.ino() };
    for number in sys::loops() {
        let device = File::open(format!("/dev/loop{number}"))?;
        if sys::loop_file(&device) == Some(wanted) {
            return Ok(Some((number, device.into())));
        }
    }
    Ok(None)
}
