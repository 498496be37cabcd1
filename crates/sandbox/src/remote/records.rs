//! What a server knows of its machines: whose each is, and what it has become. A file for each sandbox, since the machines themselves cannot be trusted to say.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::files::make_private;
use crate::seam::SandboxKey;

/// In the directory: who this server is to those who run the machines.
const OWNER: &str = "owner";

/// One sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its machine, if it has one.
    pub(super) machine: Option<String>,
    /// The last generation that was begun.
    pub(super) generation: u64,
    /// A hand of that generation was started in the machine, and the machine not stopped since.
    pub(super) runs: bool,
    /// The machine keeps what runs in it, and nothing of it moves.
    #[serde(default)]
    pub(super) paused: bool,
    /// What its next machine is made of.
    pub(super) snapshot: Option<String>,
    /// Of the authority that it trusts.
    pub(super) kept: Option<String>,
}

/// A directory of records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    owner: String,
}

impl Records {
    pub(super) fn open(dir: &Path) -> Result<Self, SandboxError> {
        let records = dir.join("machines");
        make_private(&records)?;
        let file = dir.join(OWNER);
        let owner = match fs::read_to_string(&file) {
            Ok(owner) => owner,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let owner = super::unique();
                write(&file, owner.as_bytes()).map_err(failed)?;
                owner
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { dir: records, owner })
    }

    /// Stands for this data directory wherever machines are listed.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    fn file(&self, key: &SandboxKey) -> PathBuf {
        self.dir.join(format!("{}.{}", key.session, key.name))
    }

    pub(super) fn get(&self, key: &SandboxKey) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.file(key)).ok()?).ok()
    }

    pub(super) fn put(&self, key: &SandboxKey, record: &Record) -> Result<(), SandboxError> {
        let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        write(&self.file(key), &bytes).map_err(failed)
    }

    pub(super) fn remove(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        match fs::remove_file(self.file(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// What was known of one sandbox is known of another, which has no record.
    pub(super) fn rename(&self, from: &SandboxKey, to: &SandboxKey) -> Result<(), SandboxError> {
        fs::rename(self.file(from), self.file(to)).map_err(failed)
    }

    pub(super) fn all(&self) -> Vec<(SandboxKey, Record)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let keys = names.filter_map(|name| {
            // Half-written ones begin with a dot.
            let (session, name) =
                name.split_once('.').filter(|(session, _)| !session.is_empty())?;
            Some(SandboxKey { session: session.to_owned(), name: name.to_owned() })
        });
        keys.filter_map(|key| Some((key.clone(), self.get(&key)?))).collect()
    }
}

/// Replaces a file, which nobody else may read.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // A dot at the beginning: no session's id has one.
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = file.with_file_name(format!(".{name}"));
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(new, file)
}

fn failed(error: io::Error) -> SandboxError {
    SandboxError::io("cannot keep what is known of machines", error)
}
