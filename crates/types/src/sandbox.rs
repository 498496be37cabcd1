//! What the sandbox of a session is, and what it has used: an extension.

use crate::{SessionId, Timestamp, environment::DEFAULT_SANDBOX};
use serde::{Deserialize, Serialize};

/// What went over a sandbox's way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections to hosts.
    pub connections: u64,
    /// Connections that were refused.
    pub refusals: u64,
    /// Bytes to hosts.
    pub sent_bytes: u64,
    /// Bytes from hosts.
    pub received_bytes: u64,
}

impl Traffic {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            refusals: self.refusals + other.refusals,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_bytes: self.received_bytes + other.received_bytes,
        }
    }
}

/// Whether a sandbox lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// It does.
    Running,
    /// It does, and nothing in it moves until the session's next call.
    Paused,
    /// It has ended; the next call makes another one around the same workspace.
    Ended,
}

/// The constant `sandbox`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxKind {
    /// The constant.
    #[default]
    Sandbox,
}

/// One sandbox of a session, as stored and as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Always `sandbox`.
    #[serde(rename = "type")]
    pub kind: SandboxKind,
    /// The session.
    pub session_id: SessionId,
    /// Its name within the session.
    pub name: String,
    /// Who makes it: `local`, …
    pub provider: String,
    /// The server that works with it.
    pub server: String,
    /// Whether it lives.
    pub state: SandboxState,
    /// Counts the session's sandboxes, from 1.
    pub generation: u64,
    /// When this generation was made.
    pub started_at: Timestamp,
    /// When it was last seen at work.
    pub updated_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Seconds that sandboxes of the session have lived, all generations together.
    pub active_seconds: u64,
    /// What all of them sent and received.
    pub network: Traffic,
}

impl SandboxRecord {
    /// It has ended, at the latest now.
    #[must_use]
    pub fn ended(mut self, at: Timestamp) -> Self {
        if self.state != SandboxState::Ended {
            self.active_seconds += at.since(self.started_at).as_secs();
            self.state = SandboxState::Ended;
            self.ended_at = Some(at);
        }
        self
    }

    /// As it is to be shown: with the time up to now, if it lives.
    #[must_use]
    pub fn shown(mut self, now: Timestamp) -> Self {
        if self.state != SandboxState::Ended {
            self.active_seconds += now.since(self.started_at).as_secs();
        }
        self
    }
}

/// Between a session and the name of another of its sandboxes; no session's id has it.
const OF: char = '-';

/// Under which name a sandbox's files are kept: its session's, or one of its own.
pub fn files_of(session: &str, name: &str) -> String {
    if name == DEFAULT_SANDBOX { session.to_owned() } else { format!("{session}{OF}{name}") }
}

/// The session and the sandbox whose files are kept under a name.
pub fn owner_of(files: &str) -> (&str, &str) {
    files.split_once(OF).unwrap_or((files, DEFAULT_SANDBOX))
}
