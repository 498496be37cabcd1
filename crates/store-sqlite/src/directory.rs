//! The data directory: made private, held by one server at a time.

use rustix::fs::{FlockOperation, Mode, flock};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server holds the directory.
    #[error("the data directory {} is in use by another server (process {holder}); stop it, or choose another --data-dir", directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// The process id the holder wrote down.
        holder: String,
    },
    /// The directory or its files cannot be used.
    #[error("the data directory {} cannot be used", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database was written by a newer release.
    #[error(
        "the database has schema version {found}, this release knows versions up to {known}; start the newer release that wrote it"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// SQLite failed.
    #[error("the database cannot be opened")]
    Database(#[from] rusqlite::Error),
    /// The writer thread could not be started.
    #[error("the writer thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// The lock on a data directory, held until dropped or until the process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory if needed, with access for its owner alone, and locks it.
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Directory { directory: directory.to_owned(), source };
        if !directory.exists() {
            fs::create_dir_all(directory).map_err(failed)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(Mode::from_raw_mode(0o600).as_raw_mode())
            .open(directory.join("lock"))
            .map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let read = file.read_to_string(&mut holder);
            if read.is_err() || holder.trim().is_empty() {
                "unknown".clone_into(&mut holder);
            }
            let holder = holder.trim().to_owned();
            return Err(OpenError::Locked { directory: directory.to_owned(), holder });
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The median time one `fdatasync` takes in `directory`, over 15 small writes.
pub fn measure_fdatasync(directory: &Path) -> std::io::Result<Duration> {
    let path = directory.join(".fdatasync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..15 {
        file.write_all(&[0; 4096])?;
        #[expect(clippy::disallowed_methods, reason = "this measures real time")]
        let start = std::time::Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort();
    Ok(times[times.len() / 2])
}
