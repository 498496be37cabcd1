//! Sandboxes: the seam to those who use them, one provider for whatever engine makes them, and the local Linux engine.
//! It knows nothing of sessions beyond their ids, of models, or of the store.

mod answer;
#[cfg(feature = "attacks")]
pub mod attacks;
#[cfg(feature = "attacks")]
pub mod conformance;
mod connection;
pub mod container;
mod content;
mod engine;
mod error;
mod examine;
mod files;
mod hand;
mod launcher;
mod local;
mod provider;
mod providers;
mod provision;
pub mod remote;
mod remove;
mod report;
mod root;
mod seam;

pub use content::blocks;
pub use engine::{BUILD, CANARY, Engine, Layer, Line, Made, Order};
pub use error::SandboxError;
pub use examine::{measure_bare, probe};
pub use files::{Files, make_private, mark_used, unused};
pub use hand::{contained_command_line, hand_main};
pub use launcher::launcher_main;
pub use local::{LimitsMode, Local, LocalConfig, LocalProvider, UnsafeHost};
pub use provider::{Habits, Provider, Walls, check_runs};
pub use providers::Providers;
pub use remove::remove_tree;
pub use report::{Report, Wall, WallState};
pub use seam::{
    Arrivals, Block, CallState, Capabilities, ComputeProvider, Entry, Fence, Isolation, Kind,
    Limits, LimitsBy, LimitsState, Meter, Networking, Outbound, PART, Page, Piece, PoolState,
    Provision, Quota, Reach, Sandbox, SandboxKey, SandboxSpec, Sockets, Stream, ToolResult,
    Traffic, Trust, Uplink, Vaults, WarmPool,
};
