//! Sandboxes as machines of Daytona: its API makes, stops and ends them, and the toolbox in each starts programs and writes files. What is done with them is
//! [`Remote`](vaquero_sandbox::remote::Remote)'s. Tried against a fake that Daytona's own SDK is tried against as well, never against Daytona itself.

mod control;
mod toolbox;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use vaquero_sandbox::remote::{Machine, Machines, Pipe, Remote, RemoteConfig, Rest, Wanted};
use vaquero_sandbox::{Provider, SandboxError, SandboxSpec, Uplink};

use self::control::Control;

/// How Daytona is reached.
#[derive(Clone)]
pub struct DaytonaConfig {
    /// The organization's key.
    pub api_key: String,
    /// Where its API is.
    pub api_url: String,
    /// Where machines are made, such as `us` or `eu`; otherwise where the organization's are.
    pub target: Option<String>,
    /// The snapshot that sandboxes begin with whose environment names no image; otherwise the organization's default.
    pub snapshot: String,
}

impl DaytonaConfig {
    /// The defaults with a key: the hosted service, and what the organization has set there.
    pub fn new(api_key: impl Into<String>) -> Self {
        Self {
            api_key: api_key.into(),
            api_url: "https://app.daytona.io/api".to_owned(),
            target: None,
            snapshot: String::new(),
        }
    }
}

impl fmt::Debug for DaytonaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaytonaConfig").field("api_url", &self.api_url).finish_non_exhaustive()
    }
}

/// Daytona's machines.
#[derive(Debug)]
pub struct Daytona {
    control: Control,
    snapshot: String,
}

/// Proves with a canary that the key is good, and that commands run in a sandbox and reach nothing.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: DaytonaConfig,
    remote: RemoteConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<Provider<Remote<Daytona>>, SandboxError> {
    let control = Control::new(&config)?;
    Remote::start(Daytona { control, snapshot: config.snapshot }, remote, uplink).await
}

#[async_trait]
impl Machines for Daytona {
    fn name(&self) -> &'static str {
        "daytona"
    }

    fn image(&self) -> &str {
        &self.snapshot
    }

    fn check(&self, _spec: &SandboxSpec) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        self.control.list(owner).await
    }

    async fn find(&self, _owner: &str, id: &str) -> Result<Option<Machine>, SandboxError> {
        self.control.look(id).await
    }

    async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError> {
        self.control.create(wanted, &self.snapshot).await
    }

    async fn stop(&self, id: &str) -> Result<Rest, SandboxError> {
        self.control.stop(id).await?;
        Ok(Rest::Machine)
    }

    async fn wake(&self, id: &str) -> Result<(), SandboxError> {
        self.control.start(id).await
    }

    async fn pause(&self, id: &str) -> Result<(), SandboxError> {
        self.control.pause(id).await
    }

    async fn resume(&self, id: &str) -> Result<(), SandboxError> {
        self.control.start(id).await
    }

    async fn destroy(&self, id: &str) -> Result<(), SandboxError> {
        self.control.delete(id).await
    }

    async fn stay(&self, id: &str, _linger: Duration) -> Result<(), SandboxError> {
        self.control.refresh(id).await
    }

    async fn write(&self, id: &str, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        self.control.toolbox(id).await?.write(path, bytes).await
    }

    async fn exec(&self, id: &str, command: &[String]) -> Result<Pipe, SandboxError> {
        self.control.toolbox(id).await?.start(command).await
    }

    async fn run(&self, id: &str, command: &[String]) -> Result<String, SandboxError> {
        self.control.toolbox(id).await?.run(command).await
    }

    async fn snapshot(&self, id: &str) -> Result<String, SandboxError> {
        self.control.keep(id).await
    }

    async fn forget(&self, snapshot: &str) -> Result<(), SandboxError> {
        self.control.forget(snapshot).await
    }

    /// What programs say is labelled line by line.
    fn as_text(&self) -> bool {
        true
    }
}
