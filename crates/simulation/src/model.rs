//! A model that calls a tool as often as the newest message says, then ends its turn. It fails now and then, and complains about conversations that no brain should hold.

use crate::network::Wire;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::sleep;
use vaquero_model::{
    BlockKind, ModelError, ModelEvent, ModelInfo, ModelProvider, ModelRequest, ModelStream, Role,
    StopReason,
};
use vaquero_types::usage::Usage;

pub(crate) struct Model(pub(crate) Arc<Wire>);

/// How often the newest text asks for a call, and how many were made since.
fn wanted(request: &ModelRequest) -> (u64, u64) {
    let (mut wanted, mut made) = (0, 0);
    for message in &request.messages {
        for block in message.content.iter() {
            match (message.role, block["type"].as_str()) {
                (Role::User, Some("text")) => {
                    let text = block["text"].as_str().unwrap_or_default();
                    if let Some(count) = text.strip_prefix("calls ") {
                        (wanted, made) = (count.parse().unwrap_or(0), 0);
                    }
                }
                (Role::Assistant, Some("tool_use")) => made += 1,
                _ => {}
            }
        }
    }
    (wanted, made)
}

/// Every call must have exactly one result, right after it.
fn complaint(request: &ModelRequest) -> Option<String> {
    let mut open: BTreeSet<String> = BTreeSet::new();
    for message in &request.messages {
        let ids = |kind: &str, field: &str| -> Vec<String> {
            let blocks = message.content.iter().filter(|block| block["type"] == kind);
            blocks.filter_map(|block| block[field].as_str().map(str::to_owned)).collect()
        };
        if message.role == Role::Assistant {
            if !open.is_empty() {
                return Some(format!("calls without results: {open:?}"));
            }
            open.extend(ids("tool_use", "id"));
        } else {
            for id in ids("tool_result", "tool_use_id") {
                if !open.remove(&id) {
                    return Some(format!("a result for no call, or a second one: {id}"));
                }
            }
        }
    }
    (!open.is_empty()).then(|| format!("calls without results: {open:?}"))
}

#[async_trait]
impl ModelProvider for Model {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        self.0.moves().await;
        let mut dice = self.0.dice("model");
        if let Some(complaint) = complaint(&request) {
            self.0.shared.complain(complaint);
        }
        sleep(Duration::from_millis(5 + dice.roll(400))).await;
        self.0.moves().await;
        if self.0.shared.troubled() && dice.rarely(12) {
            return Err(ModelError::Failed("the model is unwell".to_owned()));
        }
        let (wanted, made) = wanted(&request);
        let (kind, block, stop): (BlockKind, Value, StopReason) = if made < wanted {
            let id = format!("toolu_{:016x}", dice.roll(u64::MAX));
            let block = json!({ "type": "tool_use", "id": id, "name": "bash", "input": { "command": "true" } });
            (BlockKind::ToolUse, block, StopReason::ToolUse)
        } else {
            (BlockKind::Text, json!({ "type": "text", "text": "done" }), StopReason::EndTurn)
        };
        let usage = Usage::default();
        let events = [
            ModelEvent::Started { usage },
            ModelEvent::BlockStart { index: 0, kind },
            ModelEvent::BlockDone { index: 0, block },
            ModelEvent::Done { stop, usage, speed: None },
        ];
        Ok(stream::iter(events.map(Ok)).boxed())
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, ModelError> {
        Ok(Vec::new())
    }
}
