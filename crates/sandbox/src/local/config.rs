//! What the local provider is told by the binary. Plain data, checked by whoever uses it.

use std::path::PathBuf;
use std::time::Duration;

/// Whether limits may be weaker than cgroups make them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsMode {
    /// Refuse to start without cgroups.
    Enforced,
    /// Use cgroups where there are any, else rlimits, `pid_max` and tmpfs sizes.
    Degraded,
}

/// How the local providers are set up.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The server's data directory. The provider uses `launcher/`, `workspaces/` and `trash/` in it.
    pub data_dir: PathBuf,
    /// Whether limits may be weaker than cgroups make them.
    pub limits_mode: LimitsMode,
    /// After how long without a call a sandbox is stopped; its files stay.
    pub idle_stop: Duration,
    /// How many sandboxes are kept ready for new sessions, once one was asked for or announced.
    pub spares: u32,
    /// How long the launcher and its sandboxes live on without a server.
    pub linger: Duration,
    /// What sandboxes see instead of the host's `/usr`: a directory, a tarball, or an image in OCI layout.
    pub root: Option<PathBuf>,
    /// The executable with the `launcher` and `hand` subcommands.
    pub launcher_exe: PathBuf,
    /// The longest any call may take, queueing included; past it the sandbox is ended.
    pub call_ceiling: Duration,
    /// A wall that a test leaves out.
    #[cfg(feature = "attacks")]
    pub left_out: Option<String>,
}

impl LocalConfig {
    /// The defaults around a data directory: enforced limits, stop after 15 idle minutes, linger ten.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            limits_mode: LimitsMode::Enforced,
            idle_stop: Duration::from_mins(15),
            spares: 1,
            linger: Duration::from_mins(10),
            root: None,
            launcher_exe: PathBuf::from("/proc/self/exe"),
            call_ceiling: Duration::from_hours(4),
            #[cfg(feature = "attacks")]
            left_out: None,
        }
    }
}
