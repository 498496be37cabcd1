//! Sessions' files on this machine's disk: a directory for each, and the trash they go through.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio_util::task::TaskTracker;

use crate::error::SandboxError;
use crate::remove::remove_tree;

/// A layer that no sandbox has asked for in so long is removed.
const UNUSED: Duration = Duration::from_hours(30 * 24);
/// In the directory of one: when it was last asked for.
const USED: &str = "used";

/// Directories of sessions.
#[derive(Debug)]
pub struct Files {
    workspaces: PathBuf,
    trash: PathBuf,
    discarded: AtomicU64,
}

impl Files {
    /// Those below a directory, made if they are not there; removes what was being removed before.
    pub fn open(below: &Path, tasks: &TaskTracker) -> Result<Self, SandboxError> {
        let (workspaces, trash) = (below.join("workspaces"), below.join("trash"));
        make_private(&workspaces)?;
        make_private(&trash)?;
        let files = Self { workspaces, trash, discarded: AtomicU64::new(0) };
        files.empty_trash(tasks);
        Ok(files)
    }

    /// Where all of them are.
    pub fn root(&self) -> &Path {
        &self.workspaces
    }

    /// Of one session.
    pub fn of(&self, session: &str) -> PathBuf {
        self.workspaces.join(session)
    }

    /// The names of all.
    pub fn names(&self) -> Result<Vec<String>, SandboxError> {
        let entries = fs::read_dir(&self.workspaces)
            .map_err(|e| SandboxError::io("cannot list the workspaces", e))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Moves a session's out of the way, so that they are gone at once, and removes them.
    pub async fn discard(&self, session: &str) -> Result<(), SandboxError> {
        let number = self.discarded.fetch_add(1, Ordering::Relaxed);
        let from = self.of(session);
        // In a container every server may have the same process id.
        let moment = crate::launcher::now().as_nanos();
        let to = self.trash.join(format!("{session}.{moment}.{number}"));
        let removed = tokio::task::spawn_blocking(move || {
            match fs::rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            remove_tree(&to)
        });
        removed
            .await
            .map_err(io::Error::other)
            .and_then(|removed| removed)
            .map_err(|e| SandboxError::io("cannot remove the session's workspace", e))
    }

    /// Removes what an earlier server had begun to remove, while this one already works.
    fn empty_trash(&self, tasks: &TaskTracker) {
        let Ok(entries) = fs::read_dir(&self.trash) else { return };
        let old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        tasks.spawn_blocking(move || {
            for path in old {
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove old files");
                }
            }
        });
    }
}

/// Makes a directory that nobody else may look into.
pub fn make_private(dir: &Path) -> Result<(), SandboxError> {
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
    };
    make().map_err(|e| SandboxError::io(format!("cannot make {}", dir.display()), e))
}

/// Notes that what is in a directory is in use.
pub fn mark_used(dir: &Path) {
    // Only when it is removed hangs on it.
    drop(File::create(dir.join(USED)));
}

/// The directories in a directory that have not been in use for thirty days.
pub fn unused(all: &Path) -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the times of files are the system's")]
    let now = SystemTime::now();
    let old = |path: &PathBuf| {
        let used = fs::metadata(path.join(USED)).and_then(|meta| meta.modified());
        used.is_ok_and(|used| now.duration_since(used).is_ok_and(|since| since > UNUSED))
    };
    let entries = fs::read_dir(all).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(old).collect()
}
