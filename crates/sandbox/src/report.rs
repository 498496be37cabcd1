//! What `doctor` shows of the local provider: each wall, its state, and what to do about it.
//! Plain data; who looks and how is the launcher's business.

use serde::{Deserialize, Serialize};

/// How firmly a wall stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WallState {
    /// It holds.
    Ok,
    /// It is weaker than it could be; sandboxes work.
    Degraded,
    /// It is not there: sandboxes are refused, or, for limits, need an explicit flag.
    Missing,
}

/// One wall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    /// Its name.
    pub name: String,
    /// How firmly it stands.
    pub state: WallState,
    /// What was found.
    pub detail: String,
    /// What the operator can do; empty when nothing is to be done.
    pub fix: String,
}

/// Every wall of the local provider on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which a sandbox is built.
    pub walls: Vec<Wall>,
}
