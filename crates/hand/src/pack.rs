//! The workspace as data: pages that list its entries, small files within them, and large files as parts that are read one by one. Pages and parts are known by their
//! SHA-256, so whoever keeps them needs only those it does not have yet. A change shows in its page and part alone: pages end where the name of an entry says so.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The format of pages.
pub const FORMAT: u32 = 1;
/// Files up to this size are within their page.
const INLINE: u64 = 16 << 10;
/// The length of each part of a larger file but the last.
pub const PART: u64 = 1 << 20;
/// A page ends at the latest after this many bytes of content, or entries.
const PAGE_BYTES: usize = 512 << 10;
const PAGE_ENTRIES: usize = 4_096;
/// One entry in so many ends its page.
const PAGE_ODDS: u8 = 64;
/// Most entries of a workspace.
const ENTRIES: usize = 500_000;

/// A page or part: what it holds, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// SHA-256, in lower-case hex.
    pub sha256: String,
    /// Bytes.
    pub length: u64,
}

impl Piece {
    /// The piece that these bytes are.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let sha256 = digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            text
        });
        Self { sha256, length: bytes.len() as u64 }
    }
}

/// A page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// [`FORMAT`].
    pub format: u32,
    /// In the order of their paths, directories before what is in them.
    pub entries: Vec<Entry>,
}

/// A file, directory or symbolic link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the workspace; empty if it is not UTF-8.
    pub path: String,
    /// The path in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_b64: Option<String>,
    /// Permission bits.
    pub mode: u32,
    /// The owner's number in the sandbox.
    #[serde(default)]
    pub uid: u32,
    /// The group's.
    #[serde(default)]
    pub gid: u32,
    /// When a file's content changed: nanoseconds since 1970.
    pub modified: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// Where it points, in base64.
        target_b64: String,
    },
    /// A small file.
    File {
        /// Its content, in base64.
        content_b64: String,
    },
    /// A large file.
    Parts {
        /// Its content, one after the other.
        parts: Vec<Piece>,
    },
}

impl Entry {
    fn name(&self) -> io::Result<PathBuf> {
        let path = match &self.path_b64 {
            Some(text) => PathBuf::from(OsString::from_vec(decode(text)?)),
            None => PathBuf::from(&self.path),
        };
        below(&path)?;
        Ok(path)
    }

    /// Its path as bytes.
    pub fn path_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(self.name()?.into_os_string().into_vec())
    }
}

/// Refuses what does not lie below the workspace.
fn below(path: &Path) -> io::Result<()> {
    let below = path.components().all(|part| matches!(part, Component::Normal(_)));
    if below && !path.as_os_str().is_empty() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a path leads out of the workspace"))
}

fn decode(text: &str) -> io::Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Packs a workspace, again and again.
#[derive(Debug)]
pub(crate) struct Packer {
    root: PathBuf,
    /// The parts of large files that were read before.
    read: HashMap<PathBuf, (Stamp, Vec<Piece>)>,
    /// The paths of the last packing, page by page.
    pages: Vec<(Piece, Vec<PathBuf>)>,
}

impl Packer {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, read: HashMap::new(), pages: Vec::new() }
    }

    /// The pages of the workspace as it is now.
    pub(crate) fn pack(&mut self) -> io::Result<Vec<Piece>> {
        let mut paths = Vec::new();
        walk(&self.root, Path::new(""), &mut paths)?;
        let before = std::mem::take(&mut self.read);
        let mut fresh = Fresh { before, now: HashMap::new() };
        let mut pages = Vec::new();
        let mut page = Vec::new();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let last = paths.len();
        for (place, path) in paths.into_iter().enumerate() {
            if let Some(entry) = entry(&self.root, &path, &mut fresh)? {
                bytes += weight(&entry);
                entries.push(entry);
            }
            let ends = Sha256::digest(path.as_os_str().as_bytes())[0] < u8::MAX / PAGE_ODDS + 1;
            page.push(path);
            if ends || bytes >= PAGE_BYTES || page.len() >= PAGE_ENTRIES || place + 1 == last {
                let encoded = encode(std::mem::take(&mut entries))?;
                pages.push((Piece::of(&encoded), std::mem::take(&mut page)));
                bytes = 0;
            }
        }
        self.read = fresh.now;
        self.pages = pages;
        Ok(self.pages.iter().map(|(piece, _)| piece.clone()).collect())
    }

    /// A page of the last packing. If its entries have changed since, so have its bytes.
    pub(crate) fn page(&mut self, index: usize) -> io::Result<Vec<u8>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such page");
        let paths = &self.pages.get(index).ok_or_else(missing)?.1;
        let mut fresh = Fresh { before: std::mem::take(&mut self.read), now: HashMap::new() };
        let mut entries = Vec::new();
        for path in paths {
            entries.extend(entry(&self.root, path, &mut fresh)?);
        }
        fresh.before.extend(fresh.now);
        self.read = fresh.before;
        encode(entries)
    }

    /// Makes the entries of a page. Large files must have been written before: here they get their properties.
    pub(crate) fn unpack(&self, page: &[u8]) -> io::Result<()> {
        let page: Page = serde_json::from_slice(page)?;
        if page.format != FORMAT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page of another format"));
        }
        for entry in &page.entries {
            make(&self.root.join(entry.name()?), entry)?;
        }
        Ok(())
    }
}

/// Parts of large files, known from before or read now.
struct Fresh {
    before: HashMap<PathBuf, (Stamp, Vec<Piece>)>,
    now: HashMap<PathBuf, (Stamp, Vec<Piece>)>,
}

fn encode(entries: Vec<Entry>) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Page { format: FORMAT, entries })?)
}

fn weight(entry: &Entry) -> usize {
    entry.path.len()
        + match &entry.kind {
            Kind::Directory => 100,
            Kind::Link { target_b64 } => 100 + target_b64.len(),
            Kind::File { content_b64 } => 100 + content_b64.len(),
            Kind::Parts { parts } => 100 + 100 * parts.len(),
        }
}

/// Gathers paths in order. What goes away meanwhile is not there.
fn walk(root: &Path, below: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    let Ok(listed) = fs::read_dir(root.join(below)) else { return Ok(()) };
    let mut names: Vec<(OsString, bool)> = Vec::new();
    for entry in listed.flatten() {
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        names.push((entry.file_name(), directory));
    }
    names.sort();
    for (name, directory) in names {
        if paths.len() >= ENTRIES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the workspace has too many entries",
            ));
        }
        let path = below.join(name);
        paths.push(path.clone());
        if directory {
            walk(root, &path, paths)?;
        }
    }
    Ok(())
}

/// An entry as it is now; none if it is gone, or of a kind that is not kept.
fn entry(root: &Path, path: &Path, fresh: &mut Fresh) -> io::Result<Option<Entry>> {
    let full = root.join(path);
    let Ok(metadata) = fs::symlink_metadata(&full) else { return Ok(None) };
    let kind = metadata.file_type();
    let kind = if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        let Ok(target) = fs::read_link(&full) else { return Ok(None) };
        Kind::Link { target_b64: STANDARD.encode(target.as_os_str().as_bytes()) }
    } else if kind.is_file() {
        match content(&full, path, &metadata, fresh) {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        return Ok(None);
    };
    let (path, path_b64) = match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (String::new(), Some(STANDARD.encode(path.as_os_str().as_bytes()))),
    };
    // Directories change with what is put into them.
    let keeps_time = matches!(kind, Kind::File { .. } | Kind::Parts { .. });
    let modified = metadata
        .modified()
        .ok()
        .filter(|_| keeps_time)
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
    let mode = metadata.mode() & 0o7777;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    Ok(Some(Entry { path, path_b64, mode, uid, gid, modified, kind }))
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn content(full: &Path, path: &Path, metadata: &Metadata, fresh: &mut Fresh) -> io::Result<Kind> {
    let stamp = Stamp::of(metadata);
    if metadata.size() <= INLINE {
        let mut content = Vec::new();
        open(full)?.take(INLINE).read_to_end(&mut content)?;
        return Ok(Kind::File { content_b64: STANDARD.encode(content) });
    }
    let known = fresh.before.remove(path).filter(|(before, _)| *before == stamp);
    let parts = match known {
        Some((_, parts)) => parts,
        None => parts_of(open(full)?)?,
    };
    fresh.now.insert(path.to_owned(), (stamp, parts.clone()));
    Ok(Kind::Parts { parts })
}

fn parts_of(mut file: File) -> io::Result<Vec<Piece>> {
    let mut parts = Vec::new();
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        (&mut file).take(PART).read_to_end(&mut buffer)?;
        if buffer.is_empty() {
            return Ok(parts);
        }
        parts.push(Piece::of(&buffer));
    }
}

/// Part of a file of the workspace, for whoever lacks it.
pub(crate) fn part(root: &Path, path: &OsStr, offset: u64) -> io::Result<Vec<u8>> {
    below(Path::new(path))?;
    let mut file = open(&root.join(path))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(PART).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Adds a part to the end of a file of the workspace; the first one makes it.
pub(crate) fn put_part(root: &Path, path: &OsStr, first: bool, bytes: &[u8]) -> io::Result<()> {
    below(Path::new(path))?;
    let full = root.join(path);
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.create(true).append(!first).write(true).truncate(first).custom_flags(flags);
    options.open(full)?.write_all(bytes)
}

fn make(full: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    match &entry.kind {
        Kind::Directory => fs::create_dir_all(full)?,
        Kind::Link { target_b64 } => {
            symlink(OsString::from_vec(decode(target_b64)?), full)?;
            return own(full, entry);
        }
        Kind::File { content_b64 } => {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
            options.open(full)?.write_all(&decode(content_b64)?)?;
        }
        Kind::Parts { .. } => {}
    }
    own(full, entry)?;
    if entry.kind != Kind::Directory {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(entry.modified);
        open(full)?.set_times(FileTimes::new().set_modified(modified))?;
    }
    // Last: a file that nobody may write to is made as well. A directory stays open to its owner, who has more to put into it.
    let open = if entry.kind == Kind::Directory { 0o700 } else { 0 };
    fs::set_permissions(full, Permissions::from_mode(entry.mode & 0o7777 | open))
}

/// Whoever cannot give files away keeps them.
fn own(full: &Path, entry: &Entry) -> io::Result<()> {
    match lchown(full, Some(entry.uid), Some(entry.gid)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        // A number that this sandbox has no room for.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for whoever keeps pieces: copies a workspace, and counts what had to be fetched.
    fn copy(from: &mut Packer, to: &Packer, kept: &mut HashMap<Piece, Vec<u8>>) -> usize {
        let mut fetched = 0;
        for (index, piece) in from.pack().expect("packed").into_iter().enumerate() {
            if !kept.contains_key(&piece) {
                fetched += 1;
                let bytes = from.page(index).expect("a page");
                assert_eq!(Piece::of(&bytes), piece, "nothing changed meanwhile");
                kept.insert(piece.clone(), bytes);
            }
            let bytes = &kept[&piece].clone();
            let page: Page = serde_json::from_slice(bytes).expect("a page");
            for entry in &page.entries {
                let Kind::Parts { parts } = &entry.kind else { continue };
                let path = entry.name().expect("a path");
                for (number, piece) in parts.iter().enumerate() {
                    if !kept.contains_key(piece) {
                        fetched += 1;
                        let offset = number as u64 * PART;
                        let bytes = part(&from.root, path.as_os_str(), offset).expect("a part");
                        assert_eq!(Piece::of(&bytes), *piece);
                        kept.insert(piece.clone(), bytes);
                    }
                    put_part(&to.root, path.as_os_str(), number == 0, &kept[piece]).expect("put");
                }
            }
            to.unpack(bytes).expect("unpacked");
        }
        fetched
    }

    #[test]
    fn a_workspace_is_copied_with_everything_that_makes_it() {
        let (one, two) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        let at = |name: &str| one.path().join(name);
        fs::create_dir_all(at("a/b")).expect("made");
        fs::write(at("a/b/small"), "text").expect("written");
        fs::write(at("large"), vec![7; 2_500_000]).expect("written");
        fs::write(at("run"), "#!/bin/sh\n").expect("written");
        fs::set_permissions(at("run"), Permissions::from_mode(0o555)).expect("set");
        symlink("a/b/small", at("link")).expect("linked");
        symlink("/etc/passwd", at("away")).expect("linked");
        fs::write(at("empty"), "").expect("written");
        let odd = PathBuf::from(OsString::from_vec(b"odd\xff".to_vec()));
        fs::write(one.path().join(&odd), "odd").expect("written");
        let (mut from, to) = (Packer::new(one.path().into()), Packer::new(two.path().into()));
        let mut kept = HashMap::new();
        copy(&mut from, &to, &mut kept);
        let copied = |name: &str| two.path().join(name);
        assert_eq!(fs::read(copied("a/b/small")).expect("read"), b"text");
        assert_eq!(fs::read(copied("large")).expect("read"), vec![7; 2_500_000]);
        assert_eq!(fs::metadata(copied("run")).expect("there").mode() & 0o777, 0o555);
        assert_eq!(fs::read_link(copied("away")).expect("a link"), Path::new("/etc/passwd"));
        assert_eq!(fs::read(two.path().join(odd)).expect("read"), b"odd");
        assert_eq!(fs::read(copied("empty")).expect("read"), b"");
        let modified =
            |path: PathBuf| fs::metadata(path).expect("there").modified().expect("known");
        assert_eq!(modified(at("large")), modified(copied("large")));
        let mut again = Packer::new(two.path().into());
        assert_eq!(
            again.pack().expect("packed"),
            from.pack().expect("packed"),
            "a copy packs alike"
        );
    }

    #[test]
    fn a_small_change_costs_little() {
        let (one, two) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        for number in 0..2_000 {
            let name = one.path().join(format!("file-{number}"));
            fs::write(name, format!("content {number}").repeat(20)).expect("written");
        }
        fs::write(one.path().join("large"), vec![1; 5 << 20]).expect("written");
        let (mut from, to) = (Packer::new(one.path().into()), Packer::new(two.path().into()));
        let mut kept = HashMap::new();
        assert!(copy(&mut from, &to, &mut kept) > 10);
        assert_eq!(copy(&mut from, &to, &mut kept), 0, "nothing changed");
        fs::write(one.path().join("file-1000"), "changed").expect("written");
        assert_eq!(copy(&mut from, &to, &mut kept), 1, "its page");
        let mut large =
            OpenOptions::new().append(true).open(one.path().join("large")).expect("opened");
        large.write_all(b"more").expect("written");
        assert_eq!(copy(&mut from, &to, &mut kept), 2, "its page and its last part");
        assert_eq!(fs::read(two.path().join("file-1000")).expect("read"), b"changed");
    }

    #[test]
    fn a_page_cannot_lead_out_of_the_workspace() {
        let place = tempfile::tempdir().expect("made");
        let packer = Packer::new(place.path().join("workspace"));
        for path in ["../out", "/etc/out", "", "a/../../out"] {
            let entry = Entry {
                path: path.to_owned(),
                path_b64: None,
                mode: 0o644,
                uid: 0,
                gid: 0,
                modified: 0,
                kind: Kind::File { content_b64: String::new() },
            };
            assert!(packer.unpack(&encode(vec![entry]).expect("encoded")).is_err(), "{path}");
        }
        assert!(!place.path().join("out").exists());
    }
}
