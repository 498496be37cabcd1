//! Items of a self-hosted environment's work queue: each asks for a worker to serve one session.

use crate::{EnvironmentId, SessionId, Timestamp, WorkId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where an item is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// Waits for a worker.
    Queued,
    /// A worker has taken it, and has not said that it is at it.
    Starting,
    /// A worker is at it.
    Active,
    /// Its worker is to leave.
    Stopping,
    /// Over.
    Stopped,
}

impl WorkState {
    /// The wire's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// The constant `work`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkKind {
    /// The constant.
    #[default]
    Work,
}

/// What is to be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkData {
    /// A session's tool calls.
    Session {
        /// The session.
        id: SessionId,
    },
}

impl WorkData {
    /// The session.
    pub const fn session(&self) -> &SessionId {
        match self {
            Self::Session { id } => id,
        }
    }
}

/// An item, as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Always `work`.
    #[serde(rename = "type")]
    pub kind: WorkKind,
    /// Its id.
    pub id: WorkId,
    /// The environment whose queue it is in.
    pub environment_id: EnvironmentId,
    /// What is to be served.
    pub data: WorkData,
    /// Where it is on its way.
    pub state: WorkState,
    /// At most 16 pairs.
    pub metadata: BTreeMap<String, String>,
    /// What its worker needs; only in the answer that hands it out, and never stored.
    pub secret: Option<String>,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When a worker took it.
    pub acknowledged_at: Option<Timestamp>,
    /// When that worker was at it.
    pub started_at: Option<Timestamp>,
    /// When that worker last said so.
    pub latest_heartbeat_at: Option<Timestamp>,
    /// When somebody wanted it to end.
    pub stop_requested_at: Option<Timestamp>,
    /// When it ended.
    pub stopped_at: Option<Timestamp>,
}

/// What only the server knows of an item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkLease {
    /// When it was last handed out.
    pub polled_at: Option<Timestamp>,
    /// Until when it is its worker's.
    pub until: Option<Timestamp>,
    /// Seconds that a heartbeat extends it by.
    pub ttl_seconds: u64,
}

/// An item, as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptWork {
    /// What is shown.
    #[serde(flatten)]
    pub work: Work,
    /// What is not.
    pub lease: WorkLease,
}
