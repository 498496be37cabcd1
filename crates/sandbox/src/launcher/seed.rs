//! Copies files into a session's directories before anything runs there. What is copied was made by a hostile program: no link of it is followed, and what is neither file,
//! directory nor link is left out.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timestamps, openat2};
use rustix::io::Errno;

/// Copies what is in `from` to `to`, with modes, owners and times.
pub(crate) fn copy(from: BorrowedFd<'_>, to: &CStr) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, c".", flags, Mode::empty())?;
    let to = rustix::fs::open(to, flags, Mode::empty())?;
    let mut directories: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = directories.pop() {
        let (source, target) = (below(&from, &path, flags)?, below(&to, &path, flags)?);
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = rustix::fs::statat(&source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    rustix::fs::mkdirat(&target, name, Mode::RWXU)?;
                    let mut inner = path.clone();
                    if !inner.is_empty() {
                        inner.push(b'/');
                    }
                    inner.extend_from_slice(name.to_bytes());
                    directories.push(inner);
                }
                FileType::RegularFile => copy_file(&source, &target, name)?,
                FileType::Symlink => {
                    let link = rustix::fs::readlinkat(&source, name, Vec::new())?;
                    rustix::fs::symlinkat(link, &target, name)?;
                }
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => continue,
            }
            dress(&target, name, &stat)?;
        }
    }
    Ok(())
}

/// Opens a directory below another, through no link.
fn below(top: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(top, OsStr::from_bytes(path), flags | OFlags::NOFOLLOW, Mode::empty(), inside)?)
}

fn copy_file(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let from = rustix::fs::openat(source, name, reading, Mode::empty())?;
    let to = rustix::fs::openat(target, name, writing, Mode::RUSR | Mode::WUSR)?;
    // The same blocks, where the file system can share them.
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Ok(()),
        Err(_) => io::copy(&mut File::from(from), &mut File::from(to)).map(drop),
    }
}

/// Gives a copy the owner, mode and times of what it is a copy of.
fn dress(at: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    use rustix::fs::{Gid, Timespec, Uid};
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // An id that this sandbox does not have.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(at, name, mode, AtFlags::empty())?;
    }
    let modified =
        Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    let times = Timestamps { last_access: modified, last_modification: modified };
    rustix::fs::utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn trees_are_copied_and_links_stay_links() {
        let base = std::env::temp_dir().join(format!("vaquero-seed-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        let pipe = Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), FileType::Fifo, pipe, 0).unwrap();
        let source = rustix::fs::open(&from, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let place = CString::new(to.as_os_str().as_bytes()).unwrap();
        copy(source.unwrap().as_fd(), &place).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        let mode = |path| fs::symlink_metadata(to.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a/b/file"), mode("a")), (0o640, 0o750));
        assert_eq!(fs::read_link(to.join("link")).unwrap().as_os_str(), "/etc/shadow");
        assert!(!to.join("pipe").exists());
        fs::remove_dir_all(base).unwrap();
    }
}
