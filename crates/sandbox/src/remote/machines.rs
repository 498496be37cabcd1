//! What whoever offers machines has to do.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::Pipe;
use crate::error::SandboxError;
use crate::seam::{Limits, SandboxKey, SandboxSpec};

/// How long a program may take that is run to its end.
const SCRIPT: Duration = Duration::from_mins(2);
/// The most it may say.
const SAID: u64 = 1 << 20;

/// Offers machines.
#[async_trait]
pub trait Machines: fmt::Debug + Send + Sync + 'static {
    /// Its name, as operators and environments write it.
    fn name(&self) -> &'static str;

    /// What machines are made of when nobody names anything.
    fn image(&self) -> &str;

    /// Refuses what none of its machines could ever be.
    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError>;

    /// Those with this owner's mark.
    async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError>;

    /// One of an owner's, if it is still there.
    async fn find(&self, owner: &str, id: &str) -> Result<Option<Machine>, SandboxError> {
        Ok(self.list(owner).await?.into_iter().find(|machine| machine.id == id))
    }

    /// Makes one, whose network reaches nothing; its id, once it runs. [`SandboxError::Gone`] if what it should begin with is not there.
    async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError>;

    /// Ends what runs in it; its files stay.
    async fn stop(&self, id: &str) -> Result<Rest, SandboxError>;

    /// Starts one that was stopped; nothing of before runs in it.
    async fn wake(&self, id: &str) -> Result<(), SandboxError>;

    /// Keeps what runs in one from running, until it is resumed.
    async fn pause(&self, _id: &str) -> Result<(), SandboxError> {
        Err(SandboxError::cannot_pause(self.name()))
    }

    /// Has one that was paused go on.
    async fn resume(&self, _id: &str) -> Result<(), SandboxError> {
        Err(SandboxError::cannot_pause(self.name()))
    }

    /// Ends one for good; also if it is gone.
    async fn destroy(&self, id: &str) -> Result<(), SandboxError>;

    /// It is in use: it must not end by itself for another while.
    async fn stay(&self, id: &str, linger: Duration) -> Result<(), SandboxError>;

    /// Writes a file as root.
    async fn write(&self, id: &str, path: &str, bytes: Bytes) -> Result<(), SandboxError>;

    /// Starts a program as root.
    async fn exec(&self, id: &str, command: &[String]) -> Result<Pipe, SandboxError>;

    /// Runs a program as root to its end; what it writes to its standard output.
    async fn run(&self, id: &str, command: &[String]) -> Result<String, SandboxError> {
        let mut said = Vec::new();
        let mut output = self.exec(id, command).await?.read.take(SAID);
        let ended = tokio::time::timeout(SCRIPT, output.read_to_end(&mut said)).await;
        let ended = ended.map_err(|_| SandboxError::gone("a machine does not answer"))?;
        ended.map_err(|e| SandboxError::io("cannot hear what a machine says", e))?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Keeps what the files of a machine are now, for others to begin with.
    async fn snapshot(&self, id: &str) -> Result<String, SandboxError>;

    /// Removes a snapshot.
    async fn forget(&self, snapshot: &str) -> Result<(), SandboxError>;

    /// Whether a machine that is stopped keeps its files, or becomes a snapshot.
    fn keeps_files(&self) -> bool {
        true
    }

    /// Whether its standard streams carry only text.
    fn as_text(&self) -> bool {
        false
    }
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its id.
    pub id: String,
    /// It has not been stopped.
    pub runs: bool,
}

/// A machine that is asked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Whose it is to be.
    pub owner: &'a str,
    /// The sandbox that it is for; only people read it.
    pub key: &'a SandboxKey,
    /// What it is made of.
    pub image: &'a str,
    /// What it begins with, instead of an image.
    pub snapshot: Option<&'a str>,
    /// How large it should be.
    pub limits: Limits,
    /// How long it may be left alone before it ends by itself.
    pub linger: Duration,
}

/// What a machine becomes when it is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It is still there.
    Machine,
    /// It is gone, and the next one begins with this snapshot.
    Snapshot(String),
    /// It is gone, and its files with it.
    Nothing,
}

/// A name that nothing else has: a random UUID.
pub fn unique() -> String {
    let mut random = [0; 16];
    // Only an early boot has none, and then the time is as good.
    if getrandom::fill(&mut random).is_err() {
        random = crate::launcher::now().as_nanos().to_ne_bytes();
    }
    uuid::Builder::from_random_bytes(random).into_uuid().to_string()
}
