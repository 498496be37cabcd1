//! Mounts that are not attached yet: cloned by a launcher that may, or by the child itself; and how a step that failed is named.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::sys::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, mount_setattr};

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

/// A detached copy of a mount.
pub(crate) fn clone_tree(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(CWD, path, flags)?)
}

/// The same with everything below it, to be read and no more.
pub(crate) fn guarded_tree(path: &CStr) -> io::Result<OwnedFd> {
    let tree = clone_tree(path, true)?;
    mount_setattr(tree.as_fd(), c"", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, true)?;
    Ok(tree)
}

/// Attaches a mount at a place below this directory.
pub(crate) fn attach(tree: BorrowedFd<'_>, place: &CStr) -> io::Result<()> {
    Ok(move_mount(tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// A step that failed, by the name an operator can look up.
pub(crate) type Step = (&'static str, io::Error);

pub(crate) fn at<T, E: Into<io::Error>>(
    step: &'static str,
    result: Result<T, E>,
) -> Result<T, Step> {
    result.map_err(|e| (step, e.into()))
}
