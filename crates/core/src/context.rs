//! The messages of a model request, built from transcript records alone: the same records always give the same messages, and later records only add to them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The client, and tool results.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of the conversation.
    System,
}

/// One message of the Messages API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Its blocks, in wire shape; shared with the requests that carry them.
    #[expect(clippy::rc_buffer, reason = "the last message grows")]
    pub content: Arc<Vec<Value>>,
}

/// Adds blocks at the end, to the last message if the same side is speaking.
pub fn push(messages: &mut Vec<Message>, role: Role, content: impl IntoIterator<Item = Value>) {
    match messages.last_mut() {
        Some(last) if last.role == role => Arc::make_mut(&mut last.content).extend(content),
        _ => messages.push(Message { role, content: Arc::new(content.into_iter().collect()) }),
    }
}

/// A `tool_result` block.
pub fn tool_result(tool_use_id: &str, content: &[Value], is_error: bool) -> Value {
    let mut block =
        json!({ "type": "tool_result", "tool_use_id": tool_use_id, "content": content });
    if is_error {
        block["is_error"] = Value::Bool(true);
    }
    block
}

/// What a model is asked when the window is nearly full.
pub const COMPACTION_REQUEST: &str = "The conversation is about to outgrow the context window. Write a summary that lets you go on \
without the messages so far: the task and every instruction that still holds, decisions made and why, the state of files and of anything else you changed, \
results you will need, what is left to do and what you were about to do. Be complete and concrete; answer with the summary alone and call no tools.";

/// Replaces the context by a summary. What follows the summary stays: a question not yet answered, or the last calls with their results.
pub fn compact(messages: &mut Vec<Message>, summary: &str) {
    let tail_from = match messages.last() {
        Some(last) if last.role == Role::User => {
            let has_results = last.content.iter().any(|block| block["type"] == "tool_result");
            messages.len() - if has_results { 2 } else { 1 }
        }
        _ => messages.len(),
    };
    let tail = messages.split_off(tail_from.min(messages.len()));
    messages.clear();
    let note = format!(
        "The conversation before this point was replaced by this summary of it:\n\n{summary}"
    );
    push(messages, Role::User, [json!({ "type": "text", "text": note })]);
    for message in tail {
        push(messages, message.role, Arc::unwrap_or_clone(message.content));
    }
}

fn is_media(block: &Value) -> bool {
    block["type"] == "image" || block["type"] == "document"
}

fn blocks_have_media(blocks: &[Value]) -> bool {
    let inner = |block: &Value| block["content"].as_array().is_some_and(|it| blocks_have_media(it));
    blocks.iter().any(|block| is_media(block) || inner(block))
}

/// Whether a context holds images or documents.
pub fn has_media(messages: &[Message]) -> bool {
    messages.iter().any(|message| blocks_have_media(&message.content))
}

/// Puts a note in the place of images and documents: those of the newest message of the client's side if it has any, else all.
pub fn withhold_media(messages: &mut [Message], reason: &str) {
    fn withhold(blocks: &mut [Value], note: &Value) {
        for block in blocks {
            if is_media(block) {
                *block = note.clone();
            } else if let Some(inner) = block.get_mut("content").and_then(Value::as_array_mut) {
                withhold(inner, note);
            }
        }
    }
    let text = format!("[left out: the model could not take it: {reason}]");
    let note = json!({ "type": "text", "text": text });
    let newest = messages.iter().rposition(|message| message.role == Role::User);
    let from = newest.filter(|at| blocks_have_media(&messages[*at].content)).unwrap_or_default();
    for message in &mut messages[from..] {
        if blocks_have_media(&message.content) {
            withhold(Arc::make_mut(&mut message.content).as_mut_slice(), &note);
        }
    }
}

/// A rough count of a context's tokens, for when no model has counted it yet: four bytes each; images and documents at a flat rate.
pub fn estimate_tokens(messages: &[Message]) -> u64 {
    fn weigh(value: &Value) -> u64 {
        match value {
            Value::String(text) => text.len() as u64,
            Value::Array(items) => items.iter().map(weigh).sum(),
            Value::Object(fields) => {
                if fields.get("type").is_some_and(|kind| kind == "base64") {
                    return 6_000;
                }
                fields.values().map(weigh).sum::<u64>() + 8
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        }
    }
    messages.iter().flat_map(|message| message.content.iter()).map(weigh).sum::<u64>() / 4
}

/// The blocks of a client's event as the Messages API takes them: fields that are null there are left out here.
pub fn blocks_from_event(content: &Value) -> Vec<Value> {
    fn strip(value: &Value) -> Value {
        match value {
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, value)| (name.clone(), strip(value)))
                    .collect(),
            ),
            Value::Array(items) => Value::Array(items.iter().map(strip).collect()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        }
    }
    content.as_array().map(|blocks| blocks.iter().map(strip).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        json!({ "type": "text", "text": text })
    }

    #[test]
    fn compaction_keeps_an_unanswered_question() {
        let mut messages = Vec::new();
        push(&mut messages, Role::User, [text("old")]);
        push(&mut messages, Role::Assistant, [text("answer")]);
        push(&mut messages, Role::User, [text("new")]);
        compact(&mut messages, "S");
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].content[1], text("new"));
    }

    #[test]
    fn compaction_keeps_calls_with_their_results() {
        let mut messages = Vec::new();
        push(&mut messages, Role::User, [text("old")]);
        push(
            &mut messages,
            Role::Assistant,
            [json!({"type":"tool_use","id":"t1","name":"bash","input":{}})],
        );
        push(&mut messages, Role::User, [tool_result("t1", &[text("out")], false)]);
        compact(&mut messages, "S");
        let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::User, Role::Assistant, Role::User]);
    }
}
