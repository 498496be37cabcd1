//! The fold of a log: what a brain must know to go on with a session. It can be kept as a snapshot and always be rebuilt.

use crate::{
    context::{self, Message, Role},
    tools::Evaluation,
    transcript::{CallRecord, Transcript},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use vaquero_types::{
    EventId, Timestamp,
    environment::DEFAULT_SANDBOX,
    record::{Record, RecordKind, Seq},
};

/// The format of a serialized state; a snapshot of another one is ignored.
pub const STATE_VERSION: u32 = 1;

/// A client event that was accepted and not taken yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// Its body, as JSON.
    pub body: Value,
}

/// What a client said to a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It may run.
    Allow,
    /// It may not.
    Deny {
        /// Why.
        message: Option<String>,
    },
    /// The client ran it.
    Result {
        /// Blocks in the shape of the Messages API.
        content: Vec<Value>,
        /// Whether it failed.
        is_error: bool,
    },
}

/// An unsettled call of the model's last answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The call.
    pub record: CallRecord,
    /// What the client said to it.
    pub reply: Option<Reply>,
    /// The reply is in the log as a processed event.
    pub reply_taken: bool,
}

impl Call {
    /// Whether the sandbox may run it now.
    pub fn runnable(&self) -> bool {
        if self.record.remote {
            return false;
        }
        match self.record.evaluation {
            Evaluation::Allow => true,
            Evaluation::Ask | Evaluation::AutoAsk => {
                self.reply_taken && self.reply == Some(Reply::Allow)
            }
            Evaluation::Custom | Evaluation::Refused => false,
        }
    }

    /// Whether only a client can move it on.
    pub fn waits_for_client(&self) -> bool {
        match &self.reply {
            None => self.awaits_reply(),
            // It may run; that it has is still to be heard from the worker.
            Some(Reply::Allow) => self.record.remote,
            Some(Reply::Deny { .. } | Reply::Result { .. }) => false,
        }
    }

    /// Whether no client has said anything to it yet, and one must.
    pub fn awaits_reply(&self) -> bool {
        let asked = match self.record.evaluation {
            Evaluation::Ask | Evaluation::AutoAsk | Evaluation::Custom => true,
            Evaluation::Allow => self.record.remote,
            Evaluation::Refused => false,
        };
        asked && self.reply.is_none()
    }
}

/// How far the present turn has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Model requests of this turn that were answered.
    pub model_calls: u32,
    /// Tool calls of this turn.
    pub tool_calls: u32,
    /// Compactions since the model last answered.
    pub compactions: u32,
    /// Model requests that failed in a row.
    pub attempt: u32,
    /// The next request must not start before this.
    pub retry_at: Option<Timestamp>,
    /// When the client's message that began the turn was taken.
    pub started_at: Option<Timestamp>,
}

/// The folded log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The last record folded in.
    pub seq: Seq,
    /// The context.
    pub messages: Vec<Message>,
    /// Client events not taken yet, in order.
    pub queue: VecDeque<Queued>,
    /// Unsettled calls, in the order the model made them.
    pub calls: Vec<Call>,
    /// The model owes an answer.
    pub owed: bool,
    /// A `span.model_request_start` that has no end yet.
    pub open_span: Option<EventId>,
    /// The newest generation of the default sandbox; 0 before the first.
    pub generation: u64,
    /// Those of the others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub generations: BTreeMap<String, u64>,
    /// Tokens that the last request and its answer took together.
    pub window_tokens: u64,
    /// The present turn.
    pub progress: Progress,
}

impl State {
    /// A state from a snapshot, or none if its format is another.
    pub fn from_snapshot(version: u32, body: &[u8]) -> Option<Self> {
        (version == STATE_VERSION).then(|| serde_json::from_slice(body).ok()).flatten()
    }

    /// The snapshot of this state.
    pub fn to_snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the state is plain data")
    }

    /// The newest generation of a sandbox; 0 before the first.
    pub fn generation(&self, sandbox: &str) -> u64 {
        if sandbox == DEFAULT_SANDBOX {
            return self.generation;
        }
        self.generations.get(sandbox).copied().unwrap_or(0)
    }

    /// Folds one record in. Records at or before `seq` are known already.
    pub fn apply(&mut self, record: &Record) {
        if record.seq <= self.seq {
            return;
        }
        self.seq = record.seq;
        match record.new.kind {
            RecordKind::Received => self.receive(record),
            RecordKind::Event => self.event(record),
            RecordKind::Transcript => {
                if let Ok(transcript) = serde_json::from_str(&record.new.body) {
                    self.transcript(transcript);
                }
            }
        }
    }

    fn receive(&mut self, record: &Record) {
        let body = body_of(record);
        if record.new.event_type == "user.tool_confirmation"
            && let Some(call) = self.call_mut(body["tool_use_id"].as_str().unwrap_or_default())
        {
            call.reply = Some(confirmation(&body));
        }
        self.queue.push_back(Queued {
            id: record.new.event_id.clone(),
            event_type: record.new.event_type.clone(),
            body,
        });
    }

    fn event(&mut self, record: &Record) {
        match record.new.event_type.as_str() {
            "user.custom_tool_result" | "user.tool_result" => {
                let body = body_of(record);
                let id =
                    body["custom_tool_use_id"].as_str().or_else(|| body["tool_use_id"].as_str());
                if let Some(call) = self.call_mut(id.unwrap_or_default()) {
                    let content = context::blocks_from_event(&body["content"]);
                    let is_error = body["is_error"].as_bool().unwrap_or(false);
                    call.reply = Some(Reply::Result { content, is_error });
                    call.reply_taken = true;
                }
            }
            "user.tool_confirmation" => {
                let body = body_of(record);
                if let Some(call) = self.call_mut(body["tool_use_id"].as_str().unwrap_or_default())
                {
                    call.reply.get_or_insert_with(|| confirmation(&body));
                    call.reply_taken = true;
                }
                self.dequeue(&record.new.event_id);
            }
            "user.message" => {
                self.dequeue(&record.new.event_id);
                if !self.owed && self.calls.is_empty() {
                    self.progress = Progress { started_at: Some(record.at), ..Progress::default() };
                }
            }
            "user.interrupt" | "system.message" => self.dequeue(&record.new.event_id),
            "span.model_request_start" => {
                self.open_span = Some(record.new.event_id.clone());
                self.progress.retry_at = None;
            }
            "span.model_request_end" => self.open_span = None,
            _ => {}
        }
    }

    fn transcript(&mut self, transcript: Transcript) {
        match transcript {
            Transcript::User { content } => {
                context::push(&mut self.messages, Role::User, content);
                self.owed = true;
            }
            Transcript::System { content } => {
                context::push(&mut self.messages, Role::System, content);
            }
            Transcript::Assistant { content, calls, window_tokens, goes_on } => {
                if !content.is_empty() {
                    context::push(&mut self.messages, Role::Assistant, content);
                }
                self.window_tokens = window_tokens;
                self.progress.model_calls += 1;
                self.progress.tool_calls += u32::try_from(calls.len()).unwrap_or(u32::MAX);
                self.progress.attempt = 0;
                self.progress.retry_at = None;
                self.progress.compactions = 0;
                self.owed = goes_on;
                self.calls = calls
                    .into_iter()
                    .map(|record| Call { record, reply: None, reply_taken: false })
                    .collect();
            }
            Transcript::ToolResult { call, tool_use_id, content, is_error } => {
                let before = self.calls.len();
                self.calls.retain(|open| open.record.event != call);
                if self.calls.len() < before {
                    let block = context::tool_result(&tool_use_id, &content, is_error);
                    context::push(&mut self.messages, Role::User, [block]);
                    self.owed = true;
                }
            }
            Transcript::Generation { generation, sandbox: None } => self.generation = generation,
            Transcript::Generation { generation, sandbox: Some(name) } => {
                self.generations.insert(name, generation);
            }
            Transcript::Retry { attempt, at } => {
                self.progress.attempt = attempt;
                self.progress.retry_at = Some(at);
            }
            Transcript::Compaction { summary } => {
                context::compact(&mut self.messages, &summary);
                self.window_tokens = 0;
                self.progress.attempt = 0;
                self.progress.retry_at = None;
                self.progress.compactions += 1;
            }
            Transcript::MediaWithheld { reason } => {
                context::withhold_media(&mut self.messages, &reason);
            }
            Transcript::Stop => {
                self.owed = false;
                if self.calls.is_empty() {
                    self.progress = Progress::default();
                }
            }
        }
    }

    /// Whether a brain has begun the present turn: something is owed or open.
    pub fn begun(&self) -> bool {
        self.owed || !self.calls.is_empty() || self.open_span.is_some()
    }

    fn dequeue(&mut self, id: &EventId) {
        self.queue.retain(|queued| queued.id != *id);
    }

    /// The unsettled call with this event id.
    pub fn call(&self, id: &EventId) -> Option<&Call> {
        self.calls.iter().find(|call| call.record.event == *id)
    }

    fn call_mut(&mut self, id: &str) -> Option<&mut Call> {
        self.calls.iter_mut().find(|call| call.record.event.as_str() == id)
    }
}

fn body_of(record: &Record) -> Value {
    serde_json::from_str(&record.new.body).unwrap_or_default()
}

fn confirmation(body: &Value) -> Reply {
    if body["result"] == "deny" {
        Reply::Deny { message: body["deny_message"].as_str().map(str::to_owned) }
    } else {
        Reply::Allow
    }
}
