//! What a real provider would refuse, and what no correct brain ever sends.

use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// A digest of what a request asks, without its cache marks.
pub(super) fn digest(request: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    bare(&request["messages"]).to_string().hash(&mut hasher);
    hasher.finish()
}

fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(name, _)| *name != "cache_control")
                .map(|(name, value)| (name.clone(), bare(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(bare).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Whether an image is not what its media type says, as far as its first bytes show.
pub(super) fn has_bad_image(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_bad_image),
        Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "image") => {
            let source = &value["source"];
            let begins = match source["media_type"].as_str() {
                Some("image/png") => "iVBORw",
                Some("image/jpeg") => "/9j/",
                Some("image/gif") => "R0lGOD",
                Some("image/webp") => "UklGR",
                _ => return false,
            };
            !source["data"].as_str().is_some_and(|data| data.starts_with(begins))
        }
        Value::Object(fields) => fields.get("content").is_some_and(has_bad_image),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The first thing wrong with a request, if anything is. `histories` holds the digests of every conversation's blocks so far.
pub(super) fn violation(
    request: &Value,
    histories: &mut HashMap<u64, Vec<Vec<u64>>>,
) -> Option<String> {
    let Some(messages) = request["messages"].as_array().filter(|list| !list.is_empty()) else {
        return Some("messages: at least one is required".to_owned());
    };
    if messages[0]["role"] != "user" {
        return Some("messages.0: the first message must be the user's".to_owned());
    }
    let marks = request.to_string().matches("\"cache_control\"").count();
    if marks > 4 {
        return Some(format!("at most 4 cache breakpoints are allowed, got {marks}"));
    }
    let mut open: BTreeSet<String> = BTreeSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages.{index}");
        let Some(blocks) = message["content"].as_array().filter(|list| !list.is_empty()) else {
            return Some(format!("{at}.content: at least one block is required"));
        };
        if index > 0 && messages[index - 1]["role"] == message["role"] {
            return Some(format!("{at}: two {} messages in a row", message["role"]));
        }
        if message["role"] == "assistant" && !open.is_empty() {
            return Some(format!("{at}: tool_use without tool_result: {open:?}"));
        }
        let pending = std::mem::take(&mut open);
        let mut settled = BTreeSet::new();
        for block in blocks {
            let text = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
            match block["type"].as_str() {
                Some("text") if text("text").is_empty() => {
                    return Some(format!("{at}: text content blocks must be non-empty"));
                }
                Some("tool_use") => {
                    if !known.insert(text("id")) {
                        return Some(format!("{at}: tool_use id {} is used twice", text("id")));
                    }
                    open.insert(text("id"));
                }
                Some("tool_result") => {
                    let id = text("tool_use_id");
                    if !pending.contains(&id) || !settled.insert(id.clone()) {
                        return Some(format!(
                            "{at}: tool_result {id} answers no tool_use of the message before, or answers it twice"
                        ));
                    }
                }
                _ => {}
            }
        }
        let missing: Vec<&String> = pending.difference(&settled).collect();
        if message["role"] == "user" && !missing.is_empty() {
            return Some(format!("{at}: tool_use without tool_result: {missing:?}"));
        }
    }
    if !open.is_empty() {
        return Some(format!("tool_use without tool_result: {open:?}"));
    }
    history(request, messages, histories)
}

/// Most conversations with the same beginning that are told apart.
const ALIKE: usize = 1_000;

/// Each request of a conversation must begin with the blocks of the one before.
/// A system prompt with these words is of a conversation that goes on in several ways.
const FORKS: &str = "may be forked";

fn history(
    request: &Value,
    messages: &[Value],
    histories: &mut HashMap<u64, Vec<Vec<u64>>>,
) -> Option<String> {
    let hash = |value: &Value| {
        let mut hasher = DefaultHasher::new();
        bare(value).to_string().hash(&mut hasher);
        hasher.finish()
    };
    let blocks: Vec<u64> = messages
        .iter()
        .flat_map(|message| message["content"].as_array().into_iter().flatten())
        .map(hash)
        .collect();
    if request["system"].to_string().contains(FORKS) {
        return None;
    }
    let key = blocks[0] ^ hash(&request["system"]);
    let compacts = messages.last().is_some_and(|last| {
        last["content"]
            .to_string()
            .contains("The conversation is about to outgrow the context window")
    });
    if compacts {
        return None;
    }
    let answered = messages.iter().any(|message| message["role"] == "assistant");
    let known = histories.entry(key).or_default();
    // A brain that stood still for long asks what another has asked, and had answered, meanwhile.
    let again = known.iter().any(|before| before.starts_with(&blocks));
    match known.iter().position(|before| blocks.starts_with(before)) {
        Some(position) => known[position] = blocks,
        None if answered && !again && !known.is_empty() => {
            return Some("the conversation's history was rewritten: it does not begin with what was sent before".to_owned());
        }
        None if known.len() < ALIKE => known.push(blocks),
        None => {}
    }
    None
}
