//! Where the local engine keeps its layers: each a directory, named for its content.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::Layer;
use crate::files::{mark_used, unused};
use crate::launcher::layer::{finish, layer_dir};
use crate::remove::remove_tree;

fn layer(name: &str, building: bool) -> Layer {
    Layer { name: name.to_owned(), building, workspace: true }
}

/// Where a layer is while it is made.
pub(super) fn building(launcher: &Path, name: &str) -> PathBuf {
    layer_dir(launcher, &layer(name, true))
}

/// Whether a layer is there; it is in use from now on.
pub(super) fn has(launcher: &Path, name: &str) -> bool {
    let dir = layer_dir(launcher, &layer(name, false));
    if !dir.is_dir() {
        return false;
    }
    mark_used(&dir);
    true
}

/// Keeps what a sandbox has made; without walls it is on the host, and only the mark is kept.
pub(super) fn keep(launcher: &Path, name: &str, isolated: bool) -> io::Result<()> {
    let finished = layer_dir(launcher, &layer(name, false));
    if isolated {
        finish(&building(launcher, name), &finished)
    } else {
        fs::create_dir_all(finished)
    }
}

/// Removes what the making of a layer has left behind.
pub(super) fn abandon(launcher: &Path, name: &str) {
    if let Err(error) = remove_tree(&building(launcher, name)) {
        tracing::warn!(layer = name, %error, "cannot remove what an installation left behind");
    }
}

/// Removes layers that nobody wants any more, and unfinished ones.
pub(super) fn clear(launcher: &Path) {
    let layers = launcher.join("layers");
    let entries = fs::read_dir(&layers).into_iter().flatten().flatten().map(|entry| entry.path());
    let unfinished = entries.filter(|path| path.extension().is_some_and(|e| e == "building"));
    for path in unfinished.chain(unused(&layers)) {
        if let Err(error) = remove_tree(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a layer");
        }
    }
}

/// What layers lie over: when the host's system changes, they are made anew.
pub(super) fn ground() -> BTreeMap<String, String> {
    let of = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let files = [("os", "/etc/os-release"), ("debian", "/etc/debian_version")];
    files.map(|(name, path)| (name.to_owned(), of(path))).into()
}
