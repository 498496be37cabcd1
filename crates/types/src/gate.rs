//! What a session waits for: the open tool calls a client must answer. Kept beside the session row so that a client's answer is checked and recorded in one transaction.

use crate::EventId;
use serde::{Deserialize, Serialize};

/// What kind of answer an open call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Awaits {
    /// `user.tool_confirmation`: a built-in tool whose policy asks.
    Confirmation,
    /// `user.custom_tool_result`: a tool the client runs.
    CustomResult,
    /// `user.tool_result`: a built-in tool on a self-hosted environment.
    ToolResult,
}

/// One call that a client must answer before the turn goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCall {
    /// The id of its `agent.*_tool_use` event.
    pub id: EventId,
    /// The answer it waits for.
    pub awaits: Awaits,
    /// An answer is recorded and waits for the agent to take it.
    #[serde(default)]
    pub answered: bool,
}

/// The open calls of a session, in the order of their events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gate {
    /// Open calls, oldest first.
    pub calls: Vec<OpenCall>,
}

/// A change of the gate, applied inside the transaction that records its cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GateChange {
    /// The agent made a call that a client must answer.
    Open(EventId, Awaits),
    /// A client answered.
    Answer(EventId),
    /// The call is settled and no longer waits.
    Close(EventId),
    /// Nothing waits any more.
    Clear,
}

impl Gate {
    /// Applies one change; repeating it changes nothing.
    pub fn apply(&mut self, change: &GateChange) {
        match change {
            GateChange::Open(id, awaits) => {
                if self.find(id).is_none() {
                    self.calls.push(OpenCall { id: id.clone(), awaits: *awaits, answered: false });
                }
            }
            GateChange::Answer(id) => {
                if let Some(call) = self.calls.iter_mut().find(|call| call.id == *id) {
                    call.answered = true;
                }
            }
            GateChange::Close(id) => self.calls.retain(|call| call.id != *id),
            GateChange::Clear => self.calls.clear(),
        }
    }

    /// The open call with this id.
    pub fn find(&self, id: &EventId) -> Option<&OpenCall> {
        self.calls.iter().find(|call| call.id == *id)
    }

    /// The ids that still need an answer, oldest first.
    pub fn unanswered(&self) -> Vec<EventId> {
        self.calls.iter().filter(|call| !call.answered).map(|call| call.id.clone()).collect()
    }
}
