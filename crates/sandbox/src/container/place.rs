//! What a server keeps on this machine for its containers, whatever engine makes them: sessions' files, the hand's kit, and of each container its line.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;

use super::{Kit, Port, WayOut, make_files, session_dirs, trust_files};
use crate::engine::Order;
use crate::error::SandboxError;
use crate::files::{Files, make_private};
use crate::remove::remove_tree;
use crate::seam::SandboxKey;

/// In the directory of a container: what is mounted for its line, and what the next server needs of the authority it trusts.
const LINE: &str = "line";
const KEPT: &str = "kept";

/// A directory of a server's.
#[derive(Debug)]
pub struct Place {
    owner: String,
    /// The host's id for a container's root, if that is another.
    root: Option<u32>,
    kit: Kit,
    files: Files,
    lines: PathBuf,
    names: PathBuf,
}

/// Something of this machine that a container sees.
#[derive(Clone, Debug)]
pub struct Mount {
    /// On this machine.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// It cannot be written there.
    pub read_only: bool,
}

impl Place {
    /// Opens it, with a kit of that executable.
    pub async fn open(
        dir: &Path,
        hand_exe: &Path,
        root: Option<u32>,
    ) -> Result<Self, SandboxError> {
        make_private(dir)?;
        let real = fs::canonicalize(dir)
            .map_err(|e| SandboxError::io("cannot find the data directory", e))?;
        let digest = Sha256::digest(real.as_os_str().as_encoded_bytes());
        let owner: String = format!("{digest:x}").chars().take(12).collect();
        let files = Files::open(dir, &TaskTracker::new())?;
        let (exe, kits, names) = (hand_exe.to_owned(), dir.join("hands"), dir.join("resolv.conf"));
        let file = names.clone();
        let made = tokio::task::spawn_blocking(move || {
            fs::write(file, "nameserver 127.0.0.1\n")?;
            Kit::build(&exe, &kits)
        });
        let kit = made.await.map_err(io::Error::other).and_then(|made| made);
        let kit = kit.map_err(|e| SandboxError::io("cannot copy the hand for containers", e))?;
        Ok(Self { owner, root, kit, files, lines: dir.join("lines"), names })
    }

    /// Stands for the data directory in names, so that two servers never meet.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// How the hand is started.
    pub fn kit(&self) -> &Kit {
        &self.kit
    }

    /// Sessions' files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    fn of(&self, key: &SandboxKey) -> PathBuf {
        let digest = Sha256::digest(key.to_string());
        self.lines.join(format!("{digest:x}").chars().take(32).collect::<String>())
    }

    /// Opens the line of a container.
    pub fn port(&self, key: &SandboxKey, way_out: WayOut) -> Result<Port, SandboxError> {
        Port::open(&self.of(key).join(LINE), way_out)
            .map_err(|e| SandboxError::io("cannot listen for the hand", e))
    }

    /// Of the authority that a container trusts, if it trusts one.
    pub fn kept(&self, key: &SandboxKey) -> Option<String> {
        fs::read_to_string(self.of(key).join(KEPT)).ok()
    }

    /// Makes a session's files and all else that its container sees of this machine. A new session begins with what is in `seeds`.
    pub async fn make_ready(
        &self,
        order: &Order<'_>,
        seeds: Option<PathBuf>,
    ) -> Result<Vec<Mount>, SandboxError> {
        let (session, root) = (self.files.of(&order.key.session), self.root);
        let (dir, trust, names) = (self.of(order.key), order.trust.clone(), self.names.clone());
        let kit = self.kit.dir().to_owned();
        let made = tokio::task::spawn_blocking(move || {
            make_files(&session, root, seeds.as_deref())?;
            let line = dir.join(LINE);
            fs::create_dir_all(&line)?;
            let fixed = |source: PathBuf, target: &str| Mount {
                source,
                target: target.to_owned(),
                read_only: true,
            };
            let mut mounts = vec![
                fixed(kit, Kit::PLACE),
                fixed(line, Port::PLACE),
                fixed(names, "/etc/resolv.conf"),
            ];
            mounts.extend(session_dirs().map(|(name, target)| Mount {
                source: session.join(name),
                target,
                read_only: false,
            }));
            if let Some(trust) = trust {
                let kept = dir.join(KEPT);
                fs::write(&kept, &trust.kept)?;
                fs::set_permissions(kept, fs::Permissions::from_mode(0o600))?;
                let files = trust_files(&dir, &trust)?;
                mounts.extend(files.into_iter().map(|(source, target)| fixed(source, &target)));
            }
            Ok(mounts)
        });
        let made = made.await.map_err(io::Error::other).and_then(|made| made);
        made.map_err(|e| SandboxError::io("cannot make the session's files", e))
    }

    /// Gives what one sandbox has to another, which has nothing yet. Whoever sees it by a mount goes on seeing it.
    pub fn rename(&self, from: &SandboxKey, to: &SandboxKey) -> Result<(), SandboxError> {
        let files = fs::rename(self.files.of(&from.session), self.files.of(&to.session));
        files
            .and_then(|()| fs::rename(self.of(from), self.of(to)))
            .map_err(|e| SandboxError::io("cannot give a sandbox to a session", e))
    }

    /// Removes what a container that is gone has left.
    pub fn forget(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        remove_tree(&self.of(key))
            .map_err(|e| SandboxError::io("cannot remove what a container has left", e))
    }

    /// Removes what all but these have left.
    pub fn forget_all_but(&self, living: &[SandboxKey]) {
        let kept: Vec<PathBuf> = living.iter().map(|key| self.of(key)).collect();
        for entry in fs::read_dir(&self.lines).into_iter().flatten().flatten() {
            if !kept.contains(&entry.path())
                && let Err(error) = remove_tree(&entry.path())
            {
                tracing::warn!(%error, "cannot remove what a container has left");
            }
        }
    }
}
