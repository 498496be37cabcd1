//! What lies over a sandbox's root: what its environment has installed. Made once in a sandbox that may write everywhere, and read-only ever after.
//!
//! On disk a layer belongs to the ids 0–65535 that its sandbox has inside; each sandbox sees it through a mount that maps them to its own.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::mounts::{Source, Step, at, attach};
use super::skeleton::{SESSION_DIRS, Skeleton};
use super::sys::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};
use crate::engine::Layer;

/// Its parts on disk and where each lies: file systems of their own below the root have layers of their own.
const PARTS: [(&str, &CStr); 3] = [("root", c""), ("usr", c"usr"), ("dpkg", c"var/lib/dpkg")];
/// Within a part: what was written, and what the kernel needs while it is.
const WRITTEN: &str = "written";
const WORK: &str = "work";
/// Within a layer: the directories of the session that made it.
const SESSION: &str = "session";
/// Of those, the ones that every session begins with.
const SEEDS: [&str; 2] = ["workspace", "home"];
/// Where the pieces are put while they are joined; hidden by the root that comes of it.
const STAGE: &str = "/usr";
/// A directory of the host that an ordinary user's layer can add to: the user owns its likeness.
const LOCAL: &str = "/usr/local";

/// Where a layer is, or is made.
pub(crate) fn layer_dir(launcher: &Path, layer: &Layer) -> PathBuf {
    let unfinished = if layer.building { ".building" } else { "" };
    launcher.join("layers").join(format!("{}{unfinished}", layer.name))
}

/// The session's directory of a sandbox that makes a layer; the layer's own is there then.
pub(crate) fn session_of(layer: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(layer)?;
    Ok(layer.join(SESSION))
}

/// Turns what a sandbox has made into a layer: only what others read stays.
pub(crate) fn finish(made: &Path, to: &Path) -> io::Result<()> {
    for (part, _) in PARTS {
        crate::remove::remove_tree(&made.join(part).join(WORK))?;
    }
    for (name, _) in SESSION_DIRS {
        if !SEEDS.contains(&name) {
            crate::remove::remove_tree(&made.join(SESSION).join(name))?;
        }
    }
    crate::remove::remove_tree(&made.join(SESSION).join("home/.tool-results"))?;
    fs::rename(made, to)
}

/// What has to be joined for a sandbox.
#[derive(Debug)]
pub(crate) struct LayerPlan {
    parts: Vec<Part>,
    /// Copied to the session's own, which are new.
    seeds: Vec<(Source, &'static CStr)>,
    pub(crate) writable: bool,
}

#[derive(Debug)]
struct Part {
    place: &'static CStr,
    /// The topmost first.
    lower: Vec<Source>,
    upper: Option<Source>,
}

impl LayerPlan {
    /// The plan for a sandbox with a layer, or one that makes it; `None` where nothing has to be joined. `trees` says whether this process may clone mounts, `fresh`
    /// whether the session's directories are new.
    pub(crate) fn open(
        made: Option<(&Path, &Layer)>,
        skeleton: &Skeleton,
        trees: bool,
        fresh: bool,
    ) -> io::Result<Option<Self>> {
        if made.is_none() && !skeleton.is_chosen() {
            return Ok(None);
        }
        let building = made.is_some_and(|(_, layer)| layer.building);
        let mut parts = Vec::new();
        for (name, place) in PARTS {
            let mut below = skeleton.below(name);
            // Without ids of one's own there is no use for dpkg's records.
            below.retain(|path| path.is_dir() && (trees || name != "dpkg"));
            if below.is_empty() {
                continue;
            }
            let mut upper = None;
            if let Some((dir, layer)) = made {
                let (part, written) = (dir.join(name), dir.join(name).join(WRITTEN));
                if layer.building {
                    make_dir(&written)?;
                    make_dir(&part.join(WORK))?;
                    if name == "usr" && !trees {
                        repeat_directories(Path::new(LOCAL), &written.join("local"))?;
                    }
                    upper = Some(Source::of(&part, trees, ATTR_NOSUID | ATTR_NODEV)?);
                } else {
                    below.insert(0, written);
                }
            }
            let lower: io::Result<Vec<Source>> =
                below.iter().map(|path| Source::of(path, trees, GUARDED)).collect();
            parts.push(Part { place, lower: lower?, upper });
        }
        let mut seeds = Vec::new();
        if let Some((dir, layer)) = made
            && fresh
            && !building
        {
            for (name, place) in SESSION_DIRS {
                let seed = dir.join(SESSION).join(name);
                if name == "workspace" && !layer.workspace {
                    continue;
                }
                if SEEDS.contains(&name) && holds_anything(&seed) {
                    seeds.push((Source::of(&seed, trees, GUARDED)?, place));
                }
            }
        }
        Ok(Some(Self { parts, seeds, writable: building }))
    }

    /// Whether there is something to copy first.
    pub(crate) fn has_seeds(&self) -> bool {
        !self.seeds.is_empty()
    }

    /// The mounts through which the sandbox must see its own ids.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &OwnedFd> {
        let parts = self.parts.iter().flat_map(|part| part.lower.iter().chain(&part.upper));
        parts.chain(self.seeds.iter().map(|(seed, _)| seed)).filter_map(Source::tree)
    }

    /// Joins the parts: each as a mount of its own, with its place, and the seeds. Runs in the child.
    pub(crate) fn join(self) -> Result<Joined, Step> {
        let mut opened = Vec::new();
        for Part { place, lower, upper } in self.parts {
            let lower: io::Result<Vec<OwnedFd>> =
                lower.into_iter().map(|source| source.into_tree(GUARDED)).collect();
            let upper = upper.map(|source| source.into_tree(ATTR_NOSUID | ATTR_NODEV)).transpose();
            opened.push((place, at("open a layer", lower)?, at("open a layer", upper)?));
        }
        let mut seeds = Vec::new();
        for (seed, place) in self.seeds {
            seeds.push((at("open a layer", seed.into_tree(GUARDED))?, place));
        }
        at("stage a layer", stage())?;
        let mut number = 0;
        let mut stand = |tree: &OwnedFd| {
            number += 1;
            let place = format!("{STAGE}/{number}");
            at("stage a layer", rustix::fs::mkdir(&place, Mode::RWXU))?;
            let c_place = at("stage a layer", CString::new(place.clone()))?;
            at("stage a layer", attach(tree.as_fd(), &c_place))?;
            Ok::<String, Step>(place)
        };
        let mut parts = Vec::new();
        for (place, lower, upper) in opened {
            let lower: Result<Vec<String>, Step> = lower.iter().map(&mut stand).collect();
            let upper = upper.as_ref().map(&mut stand).transpose()?;
            let joined = overlay(&lower?.join(":"), upper.as_deref());
            parts.push((at("join a layer to the root", joined)?, place));
        }
        Ok(Joined { parts, seeds })
    }
}

const GUARDED: u64 = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;

/// A root and what lies in it, each a mount with its place; the root's is empty.
pub(crate) struct Joined {
    pub(crate) parts: Vec<(OwnedFd, &'static CStr)>,
    pub(crate) seeds: Vec<(OwnedFd, &'static CStr)>,
}

fn stage() -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(mount, c"", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn overlay(lower: &str, upper: Option<&str>) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "lowerdir", lower)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if let Some(upper) = upper {
        fsconfig_set_string(&context, "upperdir", format!("{upper}/{WRITTEN}"))?;
        fsconfig_set_string(&context, "workdir", format!("{upper}/{WORK}"))?;
    } else {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    // What is removed is noted in attributes that the sandbox's root may write.
    fsconfig_set_flag(&context, "userxattr")?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn holds_anything(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Makes the directories of a tree again, without its files: nobody but the owner of a directory can write into its copy.
fn repeat_directories(from: &Path, to: &Path) -> io::Result<()> {
    make_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            repeat_directories(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
