//! The soft quota: where sessions have no disks of their own, their files are counted, and a sandbox whose files are too many is ended. It can be over for a moment, not for long.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, lock};
use crate::engine::Engine;
use crate::error::SandboxError;
use crate::launcher::BYTES_PER_FILE;
use crate::seam::{Limits, SandboxKey};

/// How often files are counted at least; counting may take a twentieth of the time.
const EVERY: Duration = Duration::from_secs(2);
const SHARE: u32 = 20;

/// What files there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    bytes: u64,
    files: u64,
}

impl Room {
    pub(super) fn of(limits: &Limits) -> Self {
        let bytes = limits.workspace_bytes;
        Self { bytes, files: (bytes / BYTES_PER_FILE).max(1_024) }
    }

    /// Whether the files below `dir` do not fit.
    pub(super) fn is_exceeded(self, dir: &Path) -> bool {
        let (mut bytes, mut files) = (0_u64, 0_u64);
        let mut directories: Vec<PathBuf> = vec![dir.to_owned()];
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                // Nobody needs to go so deep, but whoever hides files.
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => return true,
                // What cannot be read is not followed, and what is gone is gone.
                Err(_) => continue,
            };
            for entry in entries.flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                bytes = bytes.saturating_add(meta.blocks().saturating_mul(512));
                files += 1;
                if bytes > self.bytes || files > self.files {
                    return true;
                }
                if meta.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        false
    }
}

/// Ends sandboxes whose files are too many.
pub(super) async fn watch<E: Engine>(inner: Weak<Inner<E>>) {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        // Ending a sandbox takes its time, which is no reason to count the others less often.
        let mut counting = Duration::ZERO;
        let attached: Vec<(SandboxKey, u64, Room)> = lock(&inner.attached)
            .iter()
            .map(|(key, sandbox)| (key.clone(), sandbox.generation, sandbox.room))
            .collect();
        for (key, generation, room) in attached {
            let Some(dir) = inner.engine.counted(&key.session) else { continue };
            let started = Instant::now();
            let counted = tokio::task::spawn_blocking(move || room.is_exceeded(&dir)).await;
            counting += started.elapsed();
            if counted.unwrap_or_default() {
                tracing::warn!(%key, "a sandbox has more files than it may; ending it");
                inner.cut_off(&key, generation).await;
            }
        }
        pause = EVERY.max(counting * SHARE);
    }
}

/// Runs something that fills a directory, and gives it up once that is too full.
pub(super) async fn within<T>(
    room: Room,
    dir: PathBuf,
    work: impl Future<Output = Result<T, SandboxError>>,
) -> Result<T, SandboxError> {
    let full = async {
        let mut pause = EVERY;
        loop {
            tokio::time::sleep(pause).await;
            let (started, dir) = (Instant::now(), dir.clone());
            let counted = tokio::task::spawn_blocking(move || room.is_exceeded(&dir)).await;
            if counted.unwrap_or_default() {
                return;
            }
            pause = EVERY.max(started.elapsed() * SHARE);
        }
    };
    tokio::select! {
        done = work => done,
        () = full => Err(SandboxError::Provision("it takes more room than a sandbox may have".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn bytes_and_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inner")).unwrap();
        fs::write(dir.path().join("inner/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        assert!(!Room { bytes: 1 << 20, files: 3 }.is_exceeded(dir.path()));
        assert!(Room { bytes: 1 << 20, files: 2 }.is_exceeded(dir.path()));
        assert!(Room { bytes: 50_000, files: 100 }.is_exceeded(dir.path()));
        assert!(!Room { bytes: 1, files: 1 }.is_exceeded(&dir.path().join("nowhere")));
        let room = Room { bytes: 1 << 30, files: 1 << 20 };
        let mut deep = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1_000 {
            rustix::fs::mkdirat(&deep, "deeper", Mode::RWXU).unwrap();
            deep = rustix::fs::openat(&deep, "deeper", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(room.is_exceeded(dir.path()), "nothing is hidden by being deep");
        crate::remove::remove_tree(&dir.path().join("deeper")).unwrap();
    }
}
