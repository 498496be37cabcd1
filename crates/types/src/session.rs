//! Sessions: one run of an agent in an environment, and the status words its threads share.

use crate::{VaultId, agent::SessionAgent, environment::NamedSandbox};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest title, in characters.
pub const TITLE_MAX: usize = 512;

/// What a session's row keeps as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionBody {
    /// The agent, frozen, overrides applied.
    pub agent: SessionAgent,
    /// For people.
    pub title: Option<String>,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// The vaults whose credentials it has the use of, fixed when it is made.
    #[serde(default)]
    pub vault_ids: Vec<VaultId>,
    /// Its environment is self-hosted, which an environment is for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub self_hosted: bool,
    /// The sandboxes it has beside its default one, as its environment had them when it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<NamedSandbox>,
}

/// What a session or thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for a client: at the start, after a turn, or with calls to answer.
    Idle,
    /// A turn is under way or about to start.
    Running,
    /// A transient failure; the server tries again by itself.
    Rescheduling,
    /// Over: archived, or failed for good.
    Terminated,
}

impl Status {
    /// The wire's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }

    /// Reads the wire's word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "idle" => Some(Self::Idle),
            "running" => Some(Self::Running),
            "rescheduling" => Some(Self::Rescheduling),
            "terminated" => Some(Self::Terminated),
            _ => None,
        }
    }
}
