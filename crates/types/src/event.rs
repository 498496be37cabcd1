//! Events: what clients send and what servers write.

pub mod server;

use crate::{
    EventId, Fields, Invalid, ThreadId,
    content::{Place, decode_blocks},
    fields::one_of,
};
use serde_json::{Value, json};

/// An event as a client sends it.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// `user.message`.
    Message {
        /// Its blocks.
        content: Vec<Value>,
    },
    /// `user.interrupt`.
    Interrupt {
        /// The thread it is for; all of them if none.
        thread: Option<ThreadId>,
    },
    /// `user.tool_confirmation`.
    Confirmation {
        /// The call.
        call: EventId,
        /// Whether it may run.
        allow: bool,
        /// Why not.
        deny_message: Option<String>,
    },
    /// `user.custom_tool_result`.
    CustomResult {
        /// The call.
        call: EventId,
        /// Its blocks.
        content: Option<Vec<Value>>,
        /// Whether it failed.
        is_error: Option<bool>,
    },
    /// `user.tool_result`.
    ToolResult {
        /// The call.
        call: EventId,
        /// Its blocks.
        content: Option<Vec<Value>>,
        /// Whether it failed.
        is_error: Option<bool>,
    },
    /// `user.define_outcome`.
    DefineOutcome,
    /// `system.message`.
    System {
        /// Text blocks.
        content: Vec<Value>,
    },
}

const TYPES: [&str; 7] = [
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
];

impl ClientEvent {
    /// Decodes the event at `path`.
    pub fn decode(value: Value, path: String) -> Result<Self, Invalid> {
        let mut fields = Fields::new(value, path)?;
        let kind = fields.tag()?;
        let event = match kind.as_str() {
            "user.message" => Self::Message { content: required(&mut fields, Place::Message)? },
            "user.interrupt" => Self::Interrupt {
                thread: fields.string("session_thread_id")?.map(ThreadId::from_wire),
            },
            "user.tool_confirmation" => confirmation(&mut fields)?,
            "user.custom_tool_result" => {
                let call = EventId::from_wire(fields.required_string("custom_tool_use_id")?);
                let (content, is_error) = result(&mut fields)?;
                Self::CustomResult { call, content, is_error }
            }
            "user.tool_result" => {
                let call = EventId::from_wire(fields.required_string("tool_use_id")?);
                let (content, is_error) = result(&mut fields)?;
                Self::ToolResult { call, content, is_error }
            }
            "user.define_outcome" => return Ok(Self::DefineOutcome),
            "system.message" => Self::System { content: required(&mut fields, Place::System)? },
            _ => return Err(fields.unknown_tag(&kind, &TYPES)),
        };
        fields.finish()?;
        Ok(event)
    }

    /// Its type.
    pub const fn event_type(&self) -> &'static str {
        match self {
            Self::Message { .. } => "user.message",
            Self::Interrupt { .. } => "user.interrupt",
            Self::Confirmation { .. } => "user.tool_confirmation",
            Self::CustomResult { .. } => "user.custom_tool_result",
            Self::ToolResult { .. } => "user.tool_result",
            Self::DefineOutcome => "user.define_outcome",
            Self::System { .. } => "system.message",
        }
    }

    /// The call it answers.
    pub const fn answers(&self) -> Option<&EventId> {
        match self {
            Self::Confirmation { call, .. }
            | Self::CustomResult { call, .. }
            | Self::ToolResult { call, .. } => Some(call),
            Self::Message { .. }
            | Self::Interrupt { .. }
            | Self::DefineOutcome
            | Self::System { .. } => None,
        }
    }

    /// Its body as stored and shown, without `id`, `type` and `processed_at`.
    pub fn body(&self) -> String {
        let body = match self {
            Self::Message { content } | Self::System { content } => json!({ "content": content }),
            Self::Interrupt { thread } => json!({ "session_thread_id": thread }),
            Self::Confirmation { call, allow, deny_message } => json!({
                "tool_use_id": call,
                "result": if *allow { "allow" } else { "deny" },
                "deny_message": deny_message,
                "session_thread_id": null,
            }),
            Self::CustomResult { call, content, is_error } => json!({
                "custom_tool_use_id": call, "content": content, "is_error": is_error, "session_thread_id": null,
            }),
            Self::ToolResult { call, content, is_error } => json!({
                "tool_use_id": call, "content": content, "is_error": is_error, "session_thread_id": null,
            }),
            Self::DefineOutcome => json!({}),
        };
        body.to_string()
    }
}

fn required(fields: &mut Fields, place: Place) -> Result<Vec<Value>, Invalid> {
    decode_blocks(fields, "content", place, 1)?
        .ok_or_else(|| fields.invalid("content", "field required"))
}

fn result(fields: &mut Fields) -> Result<(Option<Vec<Value>>, Option<bool>), Invalid> {
    let content = decode_blocks(fields, "content", Place::Result, 0)?;
    Ok((content, fields.boolean("is_error")?))
}

fn confirmation(fields: &mut Fields) -> Result<ClientEvent, Invalid> {
    let call = EventId::from_wire(fields.required_string("tool_use_id")?);
    let word = fields.required_string("result")?;
    let allow = match word.as_str() {
        "allow" => true,
        "deny" => false,
        _ => return Err(one_of(&fields.at("result"), &word, &["allow", "deny"])),
    };
    let deny_message = fields.text("deny_message", 0, 100_000)?;
    if allow && deny_message.is_some() {
        return Err(fields.invalid("deny_message", "may only be given with `result` \"deny\""));
    }
    Ok(ClientEvent::Confirmation { call, allow, deny_message })
}
