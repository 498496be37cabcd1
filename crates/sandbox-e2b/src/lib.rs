//! Sandboxes as machines of E2B: its control plane makes, pauses and ends them, and its daemon in each starts programs and writes files. What is done with them is
//! [`Remote`](vaquero_sandbox::remote::Remote)'s. Tried against a fake that E2B's own SDK is tried against as well, never against E2B itself.

mod control;
mod envd;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use vaquero_sandbox::remote::{Machine, Machines, Pipe, Remote, RemoteConfig, Rest, Wanted};
use vaquero_sandbox::{Provider, SandboxError, SandboxSpec, Uplink};

use self::control::{Control, Made};
use self::envd::Envd;

/// How E2B is reached.
#[derive(Clone)]
pub struct E2bConfig {
    /// The team's key.
    pub api_key: String,
    /// Where the control plane is.
    pub api_url: String,
    /// Where all sandboxes are reached; otherwise each has a host of its own.
    pub sandbox_url: Option<String>,
    /// Of sandboxes, where the control plane names none.
    pub domain: String,
    /// What sandboxes are made of whose environment names no image.
    pub template: String,
}

impl E2bConfig {
    /// The defaults with a key: the hosted service, its template `base`.
    pub fn new(api_key: impl Into<String>) -> Self {
        Self {
            api_key: api_key.into(),
            api_url: "https://api.e2b.app".to_owned(),
            sandbox_url: None,
            domain: "e2b.app".to_owned(),
            template: "base".to_owned(),
        }
    }
}

impl fmt::Debug for E2bConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("E2bConfig").field("api_url", &self.api_url).finish_non_exhaustive()
    }
}

/// E2B's machines.
#[derive(Debug)]
pub struct E2b {
    control: Control,
    config: E2bConfig,
    /// Of machines that were spoken to.
    daemons: Mutex<HashMap<String, Arc<Envd>>>,
}

/// Proves with a canary that the key is good, and that commands run in a sandbox and reach nothing.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: E2bConfig,
    remote: RemoteConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<Provider<Remote<E2b>>, SandboxError> {
    let control = Control::new(&config)?;
    let machines = E2b { control, config, daemons: Mutex::default() };
    Remote::start(machines, remote, uplink).await
}

impl E2b {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Envd>>> {
        // Only a plain map is behind this lock, and no code panics while it holds it.
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, made: &Made) -> Result<Arc<Envd>, SandboxError> {
        let daemon = Arc::new(Envd::new(&self.config, made)?);
        self.lock().insert(made.id.clone(), Arc::clone(&daemon));
        Ok(daemon)
    }

    async fn daemon(&self, id: &str) -> Result<Arc<Envd>, SandboxError> {
        let known = self.lock().get(id).cloned();
        match known {
            Some(daemon) => Ok(daemon),
            None => self.know(&self.control.find(id).await?),
        }
    }
}

#[async_trait]
impl Machines for E2b {
    fn name(&self) -> &'static str {
        "e2b"
    }

    fn image(&self) -> &str {
        &self.config.template
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
        let made = self.control.create(wanted).await?;
        self.know(&made)?;
        Ok(made.id)
    }

    async fn stop(&self, id: &str) -> Result<Rest, SandboxError> {
        self.lock().remove(id);
        self.control.pause(id, false).await?;
        Ok(Rest::Machine)
    }

    async fn wake(&self, id: &str) -> Result<(), SandboxError> {
        let made = self.control.connect(id).await?;
        self.know(&made).map(drop)
    }

    async fn pause(&self, id: &str) -> Result<(), SandboxError> {
        self.lock().remove(id);
        self.control.pause(id, true).await
    }

    async fn resume(&self, id: &str) -> Result<(), SandboxError> {
        self.wake(id).await
    }

    async fn destroy(&self, id: &str) -> Result<(), SandboxError> {
        self.lock().remove(id);
        self.control.kill(id).await
    }

    async fn stay(&self, id: &str, linger: Duration) -> Result<(), SandboxError> {
        self.control.keep(id, linger).await
    }

    async fn write(&self, id: &str, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        self.daemon(id).await?.write(path, bytes).await
    }

    async fn exec(&self, id: &str, command: &[String]) -> Result<Pipe, SandboxError> {
        self.daemon(id).await?.start(command).await
    }

    async fn snapshot(&self, id: &str) -> Result<String, SandboxError> {
        self.control.snapshot(id).await
    }

    async fn forget(&self, snapshot: &str) -> Result<(), SandboxError> {
        self.control.forget(snapshot).await
    }
}
