//! Removing a tree that a hostile program has made: any depth, any modes, any names.
//! It follows no link and needs neither stack nor descriptors in proportion to the depth.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Removes `path` with everything below it. Nothing may be writing there any more.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_dir(CWD, path) {
        Err(e) if e == Errno::NOENT => return Ok(()),
        other => other?,
    };
    let mut next = 0_u64;
    loop {
        let dirs = empty_of_files(&top)?;
        if dirs.is_empty() {
            break;
        }
        for name in dirs {
            flatten(&top, &name, &mut next)?;
        }
    }
    drop(top);
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes one directory below `top`; directories in it move up to `top`, for a later round.
fn flatten(top: &OwnedFd, name: &CStr, next: &mut u64) -> io::Result<()> {
    let dir = open_dir(top.as_fd(), name)?;
    for inner in empty_of_files(&dir)? {
        // One that is empty needs no move.
        if rustix::fs::unlinkat(&dir, &inner, AtFlags::REMOVEDIR).is_ok() {
            continue;
        }
        // A directory must be writable to be moved: its `..` changes.
        drop(open_dir(dir.as_fd(), &inner)?);
        loop {
            *next += 1;
            let free = format!(".removing-{next}");
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&dir, &inner, top, free, flags) {
                Err(Errno::EXIST) => {}
                other => break other?,
            }
        }
    }
    rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Opens a directory, giving its owner every right to it first.
fn open_dir(at: impl AsFd + Copy, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let probe = rustix::fs::openat(at, name, flags | OFlags::PATH, Mode::empty())?;
    let stat = rustix::fs::fstat(&probe)?;
    if stat.st_mode & 0o700 != 0o700 {
        let place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&probe));
        rustix::fs::chmod(place, Mode::RWXU)?;
    }
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Removes everything in a directory but its directories, whose names it returns.
fn empty_of_files(dir: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut dirs = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            dirs.push(name.to_owned());
            continue;
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A file system that does not say what an entry is.
            Err(Errno::ISDIR) => dirs.push(name.to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn removes_deep_closed_and_linked_trees_and_nothing_else() {
        let base = std::env::temp_dir().join(format!("vaquero-remove-{}", std::process::id()));
        let (tree, outside) = (base.join("tree"), base.join("outside"));
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::create_dir_all(tree.join("closed/inner")).unwrap();
        fs::write(tree.join("closed/inner/file"), "x").unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink("/etc/shadow", tree.join("closed/absolute")).unwrap();
        let mut dir = rustix::fs::open(&tree, OFlags::DIRECTORY, Mode::empty()).unwrap();
        // Deeper than any path may be long.
        for _ in 0..3000 {
            rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        remove_tree(&tree).unwrap();
        remove_tree(&base).unwrap();
        assert!(!base.exists());
    }
}
