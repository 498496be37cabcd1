//! Sandboxes: the seam every provider implements, and the local Linux provider.
//! It knows nothing of sessions beyond their ids, of models, or of the store.

mod answer;
#[cfg(feature = "attacks")]
pub mod attacks;
mod connection;
mod content;
mod error;
mod examine;
mod hand;
mod launcher;
mod local;
mod provision;
mod remove;
mod report;
mod root;
mod seam;

pub use content::blocks;
pub use error::SandboxError;
pub use examine::{measure_bare, probe};
pub use hand::hand_main;
pub use launcher::launcher_main;
pub use local::{LimitsMode, LocalConfig, LocalProvider, UnsafeHost};
pub use report::{Report, Wall, WallState};
pub use seam::{
    Block, CallState, Capabilities, ComputeProvider, Entry, Fence, Isolation, Kind, Limits,
    LimitsBy, LimitsState, Meter, Networking, Outbound, PART, Page, Piece, Provision, Quota, Reach,
    Sandbox, SandboxKey, SandboxSpec, Sockets, ToolResult, Traffic, Trust, Uplink, Vaults,
};
