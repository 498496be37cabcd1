//! What the provider is told by the binary. Plain data, checked by whoever uses it.

use std::path::PathBuf;
use std::time::Duration;

/// How the provider is set up.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// The server's data directory. The provider uses `docker/` in it, or `gvisor/`, which the engine must see under the same path.
    pub data_dir: PathBuf,
    /// Where the engine listens: `unix://` and a path.
    pub host: String,
    /// The image of sandboxes whose environment names none.
    pub image: String,
    /// The engine's runtime; its default if none is named.
    pub runtime: Option<String>,
    /// The runtime gives each container a kernel of its own, as gVisor's does.
    pub own_kernel: bool,
    /// Whether limits may be weaker than cgroups make them.
    pub degraded: bool,
    /// After how long without a call a sandbox is stopped; its files stay.
    pub idle_stop: Duration,
    /// How many containers are kept ready for new sessions, once one was asked for or announced.
    pub spares: u32,
    /// How long containers live on without a server.
    pub linger: Duration,
    /// The longest any call may take, queueing included; past it the sandbox is ended.
    pub call_ceiling: Duration,
    /// The executable with the `hand` subcommand.
    pub hand_exe: PathBuf,
}

impl DockerConfig {
    /// The defaults around a data directory and an image: the usual socket, stop after 15 idle minutes, linger ten.
    pub fn new(data_dir: impl Into<PathBuf>, image: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            host: "unix:///var/run/docker.sock".to_owned(),
            image: image.into(),
            runtime: None,
            own_kernel: false,
            degraded: false,
            idle_stop: Duration::from_mins(15),
            spares: 1,
            linger: Duration::from_mins(10),
            call_ceiling: Duration::from_hours(4),
            hand_exe: PathBuf::from("/proc/self/exe"),
        }
    }
}
