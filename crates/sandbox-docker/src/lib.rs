//! Sandboxes as containers of a Docker engine on this machine: made by the engine, walled in and spoken to as the local ones are.
//! It must not know sessions beyond their ids, and asks nothing of an image but a shell.

mod config;
mod container;
mod engine;
mod errors;
mod images;

use std::sync::Arc;

use vaquero_sandbox::{Habits, Provider, SandboxError, Uplink};

pub use config::DockerConfig;
pub use engine::Docker;

/// Sandboxes of a Docker engine.
pub type DockerProvider = Provider<Docker>;

/// Finds the engine, takes over what an earlier server has left there, and proves the walls with a canary.
/// Fails with [`SandboxError::Unavailable`], what is missing and how to get it.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: DockerConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<DockerProvider, SandboxError> {
    let DockerConfig { idle_stop, spares, call_ceiling, .. } = config;
    let habits = Habits { idle_stop, spares, call_ceiling };
    Provider::open(Docker::open(config).await?, habits, uplink).await
}
