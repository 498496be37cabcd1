//! Private records: what a brain needs and the API does not show. They are appended together with the public events they belong to, and are never rewritten.

use crate::tools::Evaluation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vaquero_types::{
    EventId, ThreadId, Timestamp,
    record::{NewRecord, RecordKind},
};

/// A tool call as the model made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// The id of its public `agent.*_tool_use` event; also the id of its execution.
    pub event: EventId,
    /// The provider's id, which the matching result must carry.
    pub tool_use_id: String,
    /// The tool.
    pub name: String,
    /// The arguments.
    pub input: Value,
    /// Who runs it and whether it may run.
    pub evaluation: Evaluation,
    /// A worker of a self-hosted environment runs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remote: bool,
}

/// A private record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Transcript {
    /// A client's message entered the context.
    User {
        /// Blocks in the shape of the Messages API.
        content: Vec<Value>,
    },
    /// A client's system message entered the context.
    System {
        /// Text blocks.
        content: Vec<Value>,
    },
    /// The model answered.
    Assistant {
        /// Its blocks, exactly as they must be replayed.
        content: Vec<Value>,
        /// The calls among them.
        calls: Vec<CallRecord>,
        /// All tokens of the request and its answer: how full the window was.
        window_tokens: u64,
        /// The turn goes on without tool results (a paused answer).
        goes_on: bool,
    },
    /// A call is settled. There is exactly one for each call.
    ToolResult {
        /// The call's event.
        call: EventId,
        /// The provider's id of the call.
        tool_use_id: String,
        /// Blocks in the shape of the Messages API, never empty.
        content: Vec<Value>,
        /// Whether the call failed.
        is_error: bool,
    },
    /// A new sandbox generation begins; nothing runs in it before this is durable.
    Generation {
        /// Its number, from 1.
        generation: u64,
        /// Which sandbox, if it is not the default one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sandbox: Option<String>,
    },
    /// A model request failed and will be repeated.
    Retry {
        /// How many requests in a row have failed.
        attempt: u32,
        /// Not before this.
        at: Timestamp,
    },
    /// The context was replaced by a summary.
    Compaction {
        /// What takes the place of everything before the kept tail.
        summary: String,
    },
    /// The model could not take an image or document: those of the newest message of the client's side, or else all, are left out.
    MediaWithheld {
        /// What the provider said.
        reason: String,
    },
    /// The turn ended; nothing is owed until a client sends more.
    Stop,
}

impl Transcript {
    /// The record to append.
    pub fn record(&self, id: EventId, thread: &ThreadId) -> NewRecord {
        let body = serde_json::to_string(self).expect("transcript records are plain data");
        NewRecord {
            kind: RecordKind::Transcript,
            event_id: id,
            thread: thread.clone(),
            event_type: "transcript".to_owned(),
            body: body.into(),
        }
    }
}
