//! A provider of one's own: a program that makes containers on this machine, told what to make by lines of JSON. Everything else, the hand, the walls it puts up, the way out and the
//! files, is the server's, as it is for every engine.

mod engine;
mod program;
mod protocol;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vaquero_sandbox::{Habits, Provider, SandboxError, Uplink};

pub use engine::Plugin;

/// How the provider is set up.
#[derive(Clone, Debug)]
pub struct PluginConfig {
    /// The server's data directory. The provider uses `plugin/` in it.
    pub data_dir: PathBuf,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether limits may be none.
    pub degraded: bool,
    /// After how long without a call a sandbox is stopped; its files stay.
    pub idle_stop: Duration,
    /// How long sandboxes live on without a server.
    pub linger: Duration,
    /// The longest any call may take, queueing included; past it the sandbox is ended.
    pub call_ceiling: Duration,
    /// The executable with the `hand` subcommand.
    pub hand_exe: PathBuf,
}

impl PluginConfig {
    /// The defaults around a data directory and a program: stop after 15 idle minutes, linger ten.
    pub fn new(data_dir: impl Into<PathBuf>, command: Vec<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            command,
            degraded: false,
            idle_stop: Duration::from_mins(15),
            linger: Duration::from_mins(10),
            call_ceiling: Duration::from_hours(4),
            hand_exe: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// Starts the program, asks what it can do, and proves the walls of its sandboxes with a canary.
/// Fails with [`SandboxError::Unavailable`], what is missing and how to get it.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: PluginConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<Provider<Plugin>, SandboxError> {
    let habits =
        Habits { idle_stop: config.idle_stop, spares: 0, call_ceiling: config.call_ceiling };
    Provider::open(Plugin::open(config).await?, habits, uplink).await
}
