//! What differs between providers: an engine makes sandboxes somewhere and says how to speak to the hand in each. What is the same for all of them is the [`Provider`](crate::Provider)'s:
//! who gets which, what is kept from the last server, when idle ones end, what is installed once for all.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::SandboxError;
use crate::files::Files;
use crate::seam::{Arrivals, Capabilities, Limits, Sandbox, SandboxKey, SandboxSpec, Trust};

/// Session ids beginning so are the provider's own: sandboxes that prove the walls.
pub const CANARY: &str = "canary-";
/// Those of sandboxes that make layers.
pub const BUILD: &str = "build-";
/// Those of sandboxes that are nobody's yet.
pub(crate) const SPARE: &str = "spare-";

/// Makes sandboxes somewhere.
///
/// The provider asks for one thing at a time for each session, and never for a sandbox under a key whose last one it has not ended.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// What its sandboxes can do.
    fn capabilities(&self) -> Capabilities;

    /// Refuses what its sandboxes could never do, with what to do about it.
    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError>;

    /// Whether the walls of the first sandbox stand, as seen from inside.
    async fn prove(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError>;

    /// Makes a sandbox, or connects to the one that lives under that key.
    async fn create(&self, order: &Order<'_>) -> Result<Made, SandboxError>;

    /// Connects to a sandbox if exactly this generation lives; `None` if it does not.
    async fn attach(&self, key: &SandboxKey, generation: u64)
    -> Result<Option<Line>, SandboxError>;

    /// Gives a sandbox that nobody has had, and its empty files, to a session that has none: from then on it is found under that key. Where [`Capabilities::keeps_ready`].
    async fn give(&self, _spare: &SandboxKey, _to: &SandboxKey) -> Result<(), SandboxError> {
        Err(SandboxError::Refused("its sandboxes cannot be given away".to_owned()))
    }

    /// The sandboxes that live.
    async fn list(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError>;

    /// Ends a sandbox with everything in it; returns when it is gone.
    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError>;

    /// Keeps a sandbox from running until it is attached to.
    async fn pause(&self, _key: &SandboxKey) -> Result<(), SandboxError> {
        Err(SandboxError::cannot_pause(self.capabilities().name))
    }

    /// Ends every sandbox of a session.
    async fn end_session(&self, session: &str) -> Result<(), SandboxError>;

    /// Sessions' files, if they are on this machine.
    fn files(&self) -> Option<&Files>;

    /// The sessions that have files.
    async fn with_files(&self) -> Result<Vec<String>, SandboxError> {
        self.files().map_or_else(|| Ok(Vec::new()), Files::names)
    }

    /// Whether a session has files.
    async fn has_files(&self, session: &str) -> bool {
        self.files().is_some_and(|files| files.of(session).is_dir())
    }

    /// Removes a session's files; none of its sandboxes lives.
    async fn discard(&self, session: &str) -> Result<(), SandboxError> {
        match self.files() {
            Some(files) => files.discard(session).await,
            None => Ok(()),
        }
    }

    /// Where the files of a session can be counted, if nothing else keeps them from growing.
    fn counted(&self, session: &str) -> Option<PathBuf> {
        self.files().map(|files| files.of(session))
    }

    /// Where calls start in a sandbox of that session.
    fn workdir(&self, _session: &str) -> String {
        "/workspace".to_owned()
    }

    /// What layers of sandboxes like this lie over; others are made when it changes.
    async fn ground(&self, _spec: &SandboxSpec) -> Result<BTreeMap<String, String>, SandboxError> {
        Ok(BTreeMap::new())
    }

    /// Whether a layer is there; it is then in use from now on.
    async fn has_layer(&self, _name: &str) -> bool {
        false
    }

    /// Where a layer that is being made can be counted.
    fn layer_counted(&self, _name: &str) -> Option<PathBuf> {
        None
    }

    /// Ends the sandbox that has made a layer, and keeps the layer. An engine that cannot refuses what is to be installed in [`Engine::check`].
    async fn keep_layer(&self, _key: &SandboxKey, _name: &str) -> Result<(), SandboxError> {
        Err(SandboxError::Provision("nothing can be kept of it here".to_owned()))
    }

    /// Removes what the making of a layer has left behind; its sandbox has ended.
    async fn abandon_layer(&self, _name: &str) {}

    /// Removes layers that nobody wants any more, and those that an earlier server was making.
    async fn clear_layers(&self) {}

    /// The server stops. With `linger` sandboxes live on for the next one.
    async fn shutdown(&self, linger: bool);
}

/// A sandbox that is asked for.
#[derive(Debug)]
pub struct Order<'a> {
    /// Whose it is.
    pub key: &'a SandboxKey,
    /// Which one.
    pub generation: u64,
    /// What it may use.
    pub limits: Limits,
    /// Its variables, beside those of every sandbox.
    pub env: &'a BTreeMap<String, String>,
    /// Whether it has a way out.
    pub network: bool,
    /// The authority it is to trust.
    pub trust: Option<Trust>,
    /// What lies over its root.
    pub layer: Option<Layer>,
    /// Instead of the engine's own root.
    pub image: Option<&'a str>,
}

/// What an environment has installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// By its content.
    pub name: String,
    /// The sandbox is to make it.
    pub building: bool,
    /// A new workspace begins with what setup left in its own.
    pub workspace: bool,
}

/// What came of an order.
#[derive(Debug)]
pub enum Made {
    /// The sandbox, which may have lived before.
    Line(Line),
    /// Another generation of it lives.
    Alive(u64),
    /// Nothing, for a reason that may pass.
    Not(SandboxError),
}

/// How to speak to a hand.
pub struct Line {
    /// What it says.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What it is told.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// How what its sandbox sends arrives, if it has a way out.
    pub arrivals: Option<Arrivals>,
    /// Of the authority its sandbox trusts.
    pub kept: Option<String>,
}

impl Line {
    /// One over a socket of this machine.
    pub fn over(
        stream: UnixStream,
        arrivals: Option<Arrivals>,
        kept: Option<String>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (read, write) = tokio::net::UnixStream::from_std(stream)?.into_split();
        Ok(Self { read: Box::new(read), write: Box::new(write), arrivals, kept })
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("arrivals", &self.arrivals).finish_non_exhaustive()
    }
}
