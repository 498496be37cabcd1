//! From the Messages API's stream events to ours: blocks are put together exactly as they must be replayed.

use crate::{BlockKind, ModelError, ModelEvent, StopReason};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vaquero_types::usage::Usage;

/// Most bytes of one answer; a provider that sends more is broken or hostile.
const ANSWER_MAX: usize = 64 << 20;

/// An answer being put together.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    blocks: BTreeMap<usize, Open>,
    usage: Usage,
    speed: Option<String>,
    stop: Option<StopReason>,
    bytes: usize,
    finished: bool,
}

#[derive(Debug)]
struct Open {
    block: Value,
    input: String,
}

impl Assembler {
    pub(crate) fn finished(&self) -> bool {
        self.finished
    }

    /// Takes one event's data and says what it means.
    pub(crate) fn take(&mut self, data: &str) -> Result<Vec<ModelEvent>, ModelError> {
        self.bytes += data.len();
        if self.bytes > ANSWER_MAX {
            return Err(ModelError::Failed("the model's answer is larger than 64 MB".to_owned()));
        }
        let event: Value = serde_json::from_str(data).map_err(|_| {
            ModelError::Failed("the model's stream holds something that is not JSON".to_owned())
        })?;
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => {
                self.count(&event["message"]["usage"]);
                Ok(vec![ModelEvent::Started { usage: self.usage }])
            }
            "content_block_start" => Ok(self.start(&event)),
            "content_block_delta" => Ok(self.delta(&event)),
            "content_block_stop" => Ok(self.end(&event)),
            "message_delta" => {
                self.count(&event["usage"]);
                if let Some(word) = event["delta"]["stop_reason"].as_str() {
                    self.stop = Some(stop_reason(word, &event["delta"]["stop_details"]));
                }
                Ok(Vec::new())
            }
            "message_stop" => {
                self.finished = true;
                let stop = self.stop.take().unwrap_or(StopReason::EndTurn);
                Ok(vec![ModelEvent::Done { stop, usage: self.usage, speed: self.speed.clone() }])
            }
            "error" => Err(from_error_body(&event["error"], None)),
            _ => Ok(Vec::new()),
        }
    }

    fn index(event: &Value) -> usize {
        usize::try_from(event["index"].as_u64().unwrap_or(0)).unwrap_or(0)
    }

    fn start(&mut self, event: &Value) -> Vec<ModelEvent> {
        let index = Self::index(event);
        let block = event["content_block"].clone();
        let kind = match block["type"].as_str() {
            Some("text") => BlockKind::Text,
            Some("thinking" | "redacted_thinking") => BlockKind::Thinking,
            Some("tool_use") => BlockKind::ToolUse,
            _ => BlockKind::Other,
        };
        let mut events = vec![ModelEvent::BlockStart { index, kind: kind.clone() }];
        if let (BlockKind::Text, Some(text)) = (kind, block["text"].as_str())
            && !text.is_empty()
        {
            events.push(ModelEvent::TextDelta { index, text: text.to_owned() });
        }
        self.blocks.insert(index, Open { block, input: String::new() });
        events
    }

    fn delta(&mut self, event: &Value) -> Vec<ModelEvent> {
        let index = Self::index(event);
        let Some(open) = self.blocks.get_mut(&index) else { return Vec::new() };
        let delta = &event["delta"];
        let append = |block: &mut Value, field: &str| {
            let more = delta[field].as_str().unwrap_or_default();
            if let Value::String(sum) = &mut block[field] {
                sum.push_str(more);
            } else {
                block[field] = Value::String(more.to_owned());
            }
        };
        match delta["type"].as_str().unwrap_or_default() {
            "text_delta" => {
                append(&mut open.block, "text");
                let text = delta["text"].as_str().unwrap_or_default();
                if text.is_empty() {
                    return Vec::new();
                }
                return vec![ModelEvent::TextDelta { index, text: text.to_owned() }];
            }
            "thinking_delta" => append(&mut open.block, "thinking"),
            "signature_delta" => append(&mut open.block, "signature"),
            "input_json_delta" => {
                open.input.push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            "citations_delta" => {
                if !open.block["citations"].is_array() {
                    open.block["citations"] = json!([]);
                }
                if let Some(list) = open.block["citations"].as_array_mut() {
                    list.push(delta["citation"].clone());
                }
            }
            _ => {}
        }
        Vec::new()
    }

    fn end(&mut self, event: &Value) -> Vec<ModelEvent> {
        let index = Self::index(event);
        let Some(mut open) = self.blocks.remove(&index) else { return Vec::new() };
        if !open.input.is_empty() {
            open.block["input"] = serde_json::from_str(&open.input).unwrap_or_else(|_| json!({}));
        } else if open.block["type"] == "tool_use" && !open.block["input"].is_object() {
            open.block["input"] = json!({});
        }
        vec![ModelEvent::BlockDone { index, block: open.block }]
    }

    /// Takes a usage object; later ones hold totals, and leave out what they do not repeat.
    fn count(&mut self, usage: &Value) {
        let take = |field: &Value, slot: &mut u64| {
            if let Some(count) = field.as_u64() {
                *slot = count;
            }
        };
        take(&usage["input_tokens"], &mut self.usage.input_tokens);
        take(&usage["output_tokens"], &mut self.usage.output_tokens);
        take(&usage["cache_read_input_tokens"], &mut self.usage.cache_read_input_tokens);
        let split = &usage["cache_creation"];
        if split.is_object() {
            take(&split["ephemeral_5m_input_tokens"], &mut self.usage.cache_creation_5m);
            take(&split["ephemeral_1h_input_tokens"], &mut self.usage.cache_creation_1h);
        } else {
            take(&usage["cache_creation_input_tokens"], &mut self.usage.cache_creation_5m);
        }
        if let Some(speed) = usage["speed"].as_str() {
            self.speed = Some(speed.to_owned());
        }
    }
}

fn stop_reason(word: &str, details: &Value) -> StopReason {
    let text = |name: &str| details[name].as_str().map(str::to_owned);
    match word {
        "tool_use" => StopReason::ToolUse,
        "max_tokens" => StopReason::MaxTokens,
        "pause_turn" => StopReason::PauseTurn,
        "refusal" => {
            StopReason::Refusal { category: text("category"), explanation: text("explanation") }
        }
        "model_context_window_exceeded" => StopReason::ContextWindowExceeded,
        _ => StopReason::EndTurn,
    }
}

/// A provider's message, short enough to show.
pub(crate) fn clip(message: &str) -> String {
    message.chars().take(500).collect()
}

/// The failure that an `error` object and, if it came as a response, its status tell of.
pub(crate) fn from_error_body(
    error: &Value,
    status: Option<(u16, Option<std::time::Duration>)>,
) -> ModelError {
    let message = clip(error["message"].as_str().unwrap_or("the model's provider gave no reason"));
    let (code, retry_after) = status.unwrap_or((0, None));
    let kind = error["type"].as_str().unwrap_or_default();
    match (kind, code) {
        ("overloaded_error", _) | (_, 529) => ModelError::Overloaded { message, retry_after },
        ("rate_limit_error", _) | (_, 429) => ModelError::RateLimited { message, retry_after },
        ("billing_error", _) | (_, 402) => ModelError::Billing(message),
        ("authentication_error" | "permission_error", _) | (_, 401 | 403) => {
            ModelError::Unauthorized(format!(
                "the upstream model refused the server's API key: {message}"
            ))
        }
        ("invalid_request_error" | "not_found_error" | "request_too_large", _)
        | (_, 400 | 404 | 413 | 422) => {
            let text = message.to_lowercase();
            if text.contains("prompt is too long") || text.contains("context window") || code == 413
            {
                ModelError::ContextTooLong(message)
            } else if ["image", "document", "pdf"].iter().any(|word| text.contains(word)) {
                ModelError::Media(message)
            } else {
                ModelError::Invalid(message)
            }
        }
        _ => ModelError::Failed(message),
    }
}
