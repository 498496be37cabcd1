//! A root file system that the operator chose instead of the host's `/usr`: a directory, a tarball, or an image in OCI layout. What has to be unpacked is unpacked once.
//! The files are the operator's choice, and still nothing of them may land elsewhere.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use crate::error::SandboxError;
use crate::remove::remove_tree;

/// Bits that programs in a sandbox have no use for.
const WITHOUT: u32 = 0o6000;
/// What marks a file of a lower layer as removed, and a directory's as all removed.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// A root file system that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) dir: PathBuf,
    /// Changes when its content does, as far as can be told without reading all of it.
    pub(crate) name: String,
}

/// Finds or makes the root file system in `chosen`; what is unpacked goes below `roots`.
pub(crate) fn prepare(chosen: &Path, roots: &Path) -> Result<Root, SandboxError> {
    let wrong = |what: String, fix: &str| SandboxError::unavailable(what, fix);
    let shown = chosen.display();
    let meta = fs::metadata(chosen).map_err(|error| {
        wrong(
            format!("there is no root file system in {shown}: {error}"),
            "set --sandbox-root to a directory, a tarball, or an image in OCI layout",
        )
    })?;
    let place = fs::canonicalize(chosen)
        .map_err(|error| SandboxError::io("cannot find the root file system", error))?;
    if roots.starts_with(&place) {
        let what = format!(
            "{shown} holds this server's own files, and is no root file system for sandboxes"
        );
        return Err(wrong(what, "sandboxes can read all of it: choose one that was made for them"));
    }
    let root = if meta.is_dir() && !place.join("oci-layout").exists() {
        let name = format!("{}@{}", place.display(), meta.mtime());
        Ok(Root { dir: place, name })
    } else if meta.is_dir() {
        image(&place, roots)
    } else {
        tarball(&place, &meta, roots)
    };
    let root = root.map_err(|error| {
        wrong(
            format!("the root file system in {shown} cannot be used: {error}"),
            "use a tarball (also gzip), or an image in OCI layout whose layers are gzip or plain",
        )
    })?;
    let shell = ["bin/bash", "usr/bin/bash"];
    if !shell.iter().any(|path| root.dir.join(path).symlink_metadata().is_ok()) {
        return Err(wrong(
            format!("the root file system in {shown} has no /bin/bash"),
            "install bash in it",
        ));
    }
    Ok(root)
}

fn tarball(file: &Path, meta: &fs::Metadata, roots: &Path) -> io::Result<Root> {
    let name = digest(format!("{} {} {}", file.display(), meta.size(), meta.mtime()).as_bytes());
    once(&name, roots, |to| unpack(File::open(file)?, to))
}

/// Does `work` in a directory of its own, unless that is done.
fn once(name: &str, roots: &Path, work: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<Root> {
    let dir = roots.join(name);
    if !dir.is_dir() {
        let unfinished = roots.join(format!("{name}.unfinished"));
        remove_tree(&unfinished)?;
        fs::create_dir_all(&unfinished)?;
        fs::set_permissions(&unfinished, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        tracing::info!(root = name, "unpacking a root file system");
        work(&unfinished)?;
        fs::rename(unfinished, &dir)?;
    }
    Ok(Root { dir, name: name.to_owned() })
}

/// Unpacks an archive over what is there, as a layer of an image.
fn unpack(mut file: File, to: &Path) -> io::Result<()> {
    let mut magic = [0; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.rewind()?;
    let reader = BufReader::new(file);
    let reader: Box<dyn Read> =
        if gzip { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) };
    let mut archive = Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_mask(WITHOUT);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if removed(&path, to)? {
            continue;
        }
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Block | EntryType::Char | EntryType::Fifo) {
            // What would land outside is left out.
            entry.unpack_in(to)?;
        }
    }
    Ok(())
}

/// Removes what a layer says is removed; whether the path says that.
fn removed(path: &Path, root: &Path) -> io::Result<bool> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(false) };
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(false) };
    let Some(parent) = path.parent().and_then(|parent| inside(parent, root)) else {
        return Ok(true);
    };
    if name == OPAQUE {
        for entry in fs::read_dir(parent)?.flatten() {
            remove(&entry.path())?;
        }
    } else if !hidden.is_empty() && hidden != ".." {
        remove(&parent.join(hidden))?;
    }
    Ok(true)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A directory below `root`, through no link.
fn inside(path: &Path, root: &Path) -> Option<PathBuf> {
    let mut place = root.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::CurDir => continue,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
        if !fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_dir()) {
            return None;
        }
    }
    Some(place)
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Described>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Described>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    digest: String,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Described {
    fn fits(&self) -> bool {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.platform.as_ref().is_none_or(|p| p.architecture == architecture && p.os == "linux")
    }
}

fn image(layout: &Path, roots: &Path) -> io::Result<Root> {
    let mut index: Index = parse(&fs::read(layout.join("index.json"))?)?;
    // An index may name another one, for several machines.
    let found = loop {
        let fits = index.manifests.into_iter().find(Described::fits);
        let found = fits.ok_or_else(|| io::Error::other("it has no image for this machine"))?;
        if !found.media_type.contains("index") && !found.media_type.contains("manifest.list") {
            break found;
        }
        index = parse(&small_blob(layout, &found.digest)?)?;
    };
    let manifest: Manifest = parse(&small_blob(layout, &found.digest)?)?;
    once(&found.digest.replace(':', "-"), roots, |to| {
        for layer in &manifest.layers {
            if layer.media_type.contains("zstd") {
                return Err(io::Error::other("its layers are compressed with zstd"));
            }
            let file = File::open(blob(layout, &layer.digest)?)?;
            let mut hasher = Sha256::new();
            io::copy(&mut &file, &mut hasher)?;
            if layer.digest != format!("sha256:{:x}", hasher.finalize()) {
                return Err(io::Error::other(format!(
                    "{} is not what its name says",
                    layer.digest
                )));
            }
            let mut file = file;
            file.rewind()?;
            unpack(file, to)?;
        }
        Ok(())
    })
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::from)
}

fn blob(layout: &Path, digest: &str) -> io::Result<PathBuf> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hex = hex.ok_or_else(|| io::Error::other(format!("`{digest}` is no digest by SHA-256")))?;
    Ok(layout.join("blobs/sha256").join(hex))
}

fn small_blob(layout: &Path, name: &str) -> io::Result<Vec<u8>> {
    const MOST: u64 = 4 << 20;
    let mut bytes = Vec::new();
    File::open(blob(layout, name)?)?.take(MOST).read_to_end(&mut bytes)?;
    if name == format!("sha256:{}", digest(&bytes)) {
        return Ok(bytes);
    }
    Err(io::Error::other(format!("{name} is not what its name says")))
}

fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
