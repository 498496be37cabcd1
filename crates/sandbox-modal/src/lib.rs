//! Sandboxes as machines of Modal, by the interface that its own SDK speaks, which Modal gives no promises about: experimental. A machine that is stopped becomes an image, and its next
//! one is made of it. What is done with machines is [`Remote`](vaquero_sandbox::remote::Remote)'s. Tried against a fake that Modal's own SDK is tried against as well, never against Modal itself.

mod control;
mod messages;
mod router;
mod rpc;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use vaquero_sandbox::remote::{Machine, Machines, Pipe, Remote, RemoteConfig, Rest, Wanted};
use vaquero_sandbox::{Provider, SandboxError, SandboxSpec, Uplink};

use self::control::Control;
use self::router::Router;

/// How Modal is reached.
#[derive(Clone)]
pub struct ModalConfig {
    /// The token's id.
    pub token_id: String,
    /// The token's secret.
    pub token_secret: String,
    /// Where its API is.
    pub server_url: String,
    /// The environment there; otherwise the workspace's default.
    pub environment: String,
    /// The app that sandboxes belong to.
    pub app: String,
    /// What sandboxes are made of whose environment names no image.
    pub image: String,
}

impl ModalConfig {
    /// The defaults with a token: the hosted service, Debian, and an app of our name.
    pub fn new(token_id: impl Into<String>, token_secret: impl Into<String>) -> Self {
        Self {
            token_id: token_id.into(),
            token_secret: token_secret.into(),
            server_url: "https://api.modal.com".to_owned(),
            environment: String::new(),
            app: "vaquero".to_owned(),
            image: "debian:stable".to_owned(),
        }
    }
}

impl fmt::Debug for ModalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModalConfig").field("server_url", &self.server_url).finish_non_exhaustive()
    }
}

/// Modal's machines.
#[derive(Debug)]
pub struct Modal {
    control: Arc<Control>,
    image: String,
}

/// Proves with a canary that the token is good, and that commands run in a sandbox and reach nothing.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: ModalConfig,
    remote: RemoteConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<Provider<Remote<Modal>>, SandboxError> {
    let machines = Modal { control: Arc::new(Control::new(&config)?), image: config.image };
    Remote::start(machines, remote, uplink).await
}

#[async_trait]
impl Machines for Modal {
    fn name(&self) -> &'static str {
        "modal"
    }

    fn image(&self) -> &str {
        &self.image
    }

    fn check(&self, _spec: &SandboxSpec) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        self.control.list(owner).await
    }

    async fn find(&self, _owner: &str, id: &str) -> Result<Option<Machine>, SandboxError> {
        self.control.find(id).await
    }

    async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError> {
        self.control.create(wanted).await
    }

    async fn stop(&self, id: &str) -> Result<Rest, SandboxError> {
        let snapshot = Router::of(&self.control, id).await?.snapshot().await?;
        self.control.terminate(id).await?;
        Ok(Rest::Snapshot(snapshot))
    }

    async fn wake(&self, _id: &str) -> Result<(), SandboxError> {
        // What was stopped is gone, and is never listed.
        Err(SandboxError::gone("Modal's sandboxes end when they are stopped"))
    }

    async fn destroy(&self, id: &str) -> Result<(), SandboxError> {
        self.control.terminate(id).await
    }

    async fn stay(&self, _id: &str, _linger: Duration) -> Result<(), SandboxError> {
        // A sandbox in which a program runs that is listened to is not idle.
        Ok(())
    }

    async fn write(&self, id: &str, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        Router::of(&self.control, id).await?.write(path, bytes).await
    }

    async fn exec(&self, id: &str, command: &[String]) -> Result<Pipe, SandboxError> {
        Router::of(&self.control, id).await?.exec(command).await
    }

    async fn snapshot(&self, id: &str) -> Result<String, SandboxError> {
        Router::of(&self.control, id).await?.snapshot().await
    }

    async fn forget(&self, snapshot: &str) -> Result<(), SandboxError> {
        self.control.forget(snapshot).await
    }
}
