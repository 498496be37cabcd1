//! The events a server writes, in the exact shape the SDK's types give them: every nullable field is there, as null.

use crate::{CredentialId, EventId, ThreadId, VaultId};
use serde_json::{Map, Value, json};

/// An event without its envelope: its type, and a JSON object without `id`, `type` and `processed_at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBody {
    /// The type.
    pub event_type: &'static str,
    /// The JSON object.
    pub body: String,
}

fn event(event_type: &'static str, body: &Value) -> EventBody {
    EventBody { event_type, body: body.to_string() }
}

/// Why a session or thread went idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The turn is over, by itself or by an interrupt.
    EndTurn,
    /// A client must answer these calls.
    RequiresAction {
        /// The `agent.*_tool_use` events that wait.
        event_ids: Vec<EventId>,
    },
    /// The turn failed for good; a message starts a new one.
    RetriesExhausted,
    /// The session's budget is used up.
    BudgetReached,
    /// The model declined.
    Refusal {
        /// The wire's category.
        category: Option<String>,
        /// For a person to read.
        explanation: Option<String>,
    },
}

impl StopReason {
    fn fields(&self) -> (Value, Value) {
        match self {
            Self::EndTurn => (json!({ "type": "end_turn" }), Value::Null),
            Self::RequiresAction { event_ids } => {
                (json!({ "type": "requires_action", "event_ids": event_ids }), Value::Null)
            }
            Self::RetriesExhausted => (json!({ "type": "retries_exhausted" }), Value::Null),
            Self::BudgetReached => (json!({ "type": "budget_reached" }), Value::Null),
            Self::Refusal { category, explanation } => (
                json!({ "type": "refusal" }),
                json!({ "type": "refusal", "category": category, "explanation": explanation }),
            ),
        }
    }
}

/// What a `session.error` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionErrorKind {
    /// Something no other kind names.
    Unknown,
    /// The model's provider is overloaded.
    ModelOverloaded,
    /// The model's provider limits the rate of requests.
    ModelRateLimited,
    /// A model request failed.
    ModelRequestFailed,
    /// The model's provider wants to be paid.
    Billing,
    /// The turn used up its tool calls or model requests.
    ToolUseLimitReached,
    /// The context cannot be made to fit the model's window.
    CompactionLimitReached,
}

impl SessionErrorKind {
    const fn wire(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_error",
            Self::ModelOverloaded => "model_overloaded_error",
            Self::ModelRateLimited => "model_rate_limited_error",
            Self::ModelRequestFailed => "model_request_failed_error",
            Self::Billing => "billing_error",
            Self::ToolUseLimitReached => "tool_use_limit_reached_error",
            Self::CompactionLimitReached => "compaction_limit_reached_error",
        }
    }
}

/// What the server does about a `session.error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryStatus {
    /// It tries again by itself.
    Retrying,
    /// It has given up; a message starts a new turn.
    Exhausted,
    /// The session is over.
    Terminal,
}

impl RetryStatus {
    const fn wire(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Exhausted => "exhausted",
            Self::Terminal => "terminal",
        }
    }
}

/// The verdict on a call, as its event shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// `always_allow`.
    Allow,
    /// `always_ask`.
    Ask,
    /// `auto`, with nobody to judge it: ask.
    AutoAsk,
    /// No such tool, or not enabled; no policy was consulted.
    Refused,
}

impl Permission {
    fn fields(self) -> (&'static str, Value) {
        match self {
            Self::Allow => ("allow", json!({ "type": "always_allow" })),
            Self::Ask => ("ask", json!({ "type": "always_ask" })),
            Self::AutoAsk => (
                "ask",
                json!({ "type": "auto", "evaluated_permission": { "type": "ask", "reason_code": "indeterminate" } }),
            ),
            Self::Refused => ("deny", Value::Null),
        }
    }
}

/// A text block.
pub fn text_block(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// `agent.message`. Blocks keep their type and text alone.
pub fn agent_message(texts: &[Value]) -> EventBody {
    let content: Vec<Value> =
        texts.iter().map(|block| json!({ "type": "text", "text": block["text"] })).collect();
    event("agent.message", &json!({ "content": content }))
}

/// `agent.thinking`: a signal without content.
pub fn agent_thinking() -> EventBody {
    event("agent.thinking", &json!({}))
}

/// `agent.tool_use`.
pub fn agent_tool_use(name: &str, input: &Value, permission: Permission) -> EventBody {
    let (evaluated, evaluation) = permission.fields();
    event(
        "agent.tool_use",
        &json!({
            "name": name,
            "input": object(input),
            "evaluated_permission": evaluated,
            "evaluation": evaluation,
            "session_thread_id": null,
        }),
    )
}

/// `agent.custom_tool_use`.
pub fn agent_custom_tool_use(name: &str, input: &Value) -> EventBody {
    let body = json!({ "name": name, "input": object(input), "session_thread_id": null });
    event("agent.custom_tool_use", &body)
}

/// `agent.tool_result`.
pub fn agent_tool_result(tool_use: &EventId, content: &[Value], is_error: bool) -> EventBody {
    let content: Vec<Value> = content.iter().map(event_block).collect();
    event(
        "agent.tool_result",
        &json!({ "tool_use_id": tool_use, "content": content, "is_error": is_error }),
    )
}

/// `agent.thread_context_compacted`.
pub fn thread_context_compacted() -> EventBody {
    event("agent.thread_context_compacted", &json!({}))
}

/// `session.status_running`.
pub fn status_running() -> EventBody {
    event("session.status_running", &json!({}))
}

/// `session.status_rescheduled`.
pub fn status_rescheduled() -> EventBody {
    event("session.status_rescheduled", &json!({}))
}

/// `session.status_terminated`.
pub fn status_terminated() -> EventBody {
    event("session.status_terminated", &json!({}))
}

/// `session.status_idle`.
pub fn status_idle(reason: &StopReason) -> EventBody {
    let (stop_reason, stop_details) = reason.fields();
    event(
        "session.status_idle",
        &json!({ "stop_reason": stop_reason, "stop_details": stop_details }),
    )
}

/// `session.thread_status_running`.
pub fn thread_status_running(thread: &ThreadId, agent: &str) -> EventBody {
    event("session.thread_status_running", &thread_of(thread, agent))
}

/// `session.thread_status_rescheduled`.
pub fn thread_status_rescheduled(thread: &ThreadId, agent: &str) -> EventBody {
    event("session.thread_status_rescheduled", &thread_of(thread, agent))
}

/// `session.thread_status_terminated`.
pub fn thread_status_terminated(thread: &ThreadId, agent: &str) -> EventBody {
    event("session.thread_status_terminated", &thread_of(thread, agent))
}

/// `session.thread_status_idle`.
pub fn thread_status_idle(thread: &ThreadId, agent: &str, reason: &StopReason) -> EventBody {
    let (stop_reason, stop_details) = reason.fields();
    let mut body = thread_of(thread, agent);
    body["stop_reason"] = stop_reason;
    body["stop_details"] = stop_details;
    event("session.thread_status_idle", &body)
}

/// `session.error`.
pub fn session_error(kind: SessionErrorKind, message: &str, retry: RetryStatus) -> EventBody {
    event(
        "session.error",
        &json!({ "error": {
            "type": kind.wire(),
            "message": message,
            "retry_status": { "type": retry.wire() },
        } }),
    )
}

/// `session.error`: a secret is for a host that the environment does not allow. The session goes on, and so does the placeholder.
pub fn credential_host_unreachable(
    vault: &VaultId,
    credential: &CredentialId,
    message: &str,
) -> EventBody {
    event(
        "session.error",
        &json!({ "error": {
            "type": "credential_host_unreachable_error",
            "credential_id": credential,
            "vault_id": vault,
            "message": message,
            "retry_status": { "type": RetryStatus::Retrying.wire() },
        } }),
    )
}

/// `session.usage`: the session's usage as a retrieve shows it.
pub fn session_usage(usage: &Value) -> EventBody {
    event("session.usage", &json!({ "usage": usage, "budget": null }))
}

/// `session.updated`: only the fields that changed.
pub fn session_updated(changed: Map<String, Value>) -> EventBody {
    event("session.updated", &Value::Object(changed))
}

/// `session.deleted`.
pub fn session_deleted() -> EventBody {
    event("session.deleted", &json!({}))
}

/// `span.model_request_start`.
pub fn model_request_start() -> EventBody {
    event("span.model_request_start", &json!({}))
}

/// `span.model_request_end`.
pub fn model_request_end(start: &EventId, is_error: bool, usage: &Value) -> EventBody {
    event(
        "span.model_request_end",
        &json!({ "model_request_start_id": start, "is_error": is_error, "model_usage": usage }),
    )
}

fn thread_of(thread: &ThreadId, agent: &str) -> Value {
    json!({ "session_thread_id": thread, "agent_name": agent })
}

/// Tool inputs are objects on the wire, whatever the model wrote.
fn object(input: &Value) -> Value {
    if input.is_object() { input.clone() } else { json!({}) }
}

/// A block of the Messages API as an event shows it: documents have nullable fields there.
fn event_block(block: &Value) -> Value {
    let mut block = block.clone();
    if block["type"] == "document" {
        for name in ["title", "context"] {
            if block.get(name).is_none() {
                block[name] = Value::Null;
            }
        }
    }
    block
}
