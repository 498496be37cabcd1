//! Results of tools as the API has them.

use serde_json::{Value, json};
use vaquero_hand::protocol::{Block, ToolResult};

/// The blocks of a result in the shape of the Messages API; empty texts are left out.
pub fn blocks(result: ToolResult) -> Vec<Value> {
    let source = |media_type: String, data: String| json!({ "type": "base64", "media_type": media_type, "data": data });
    result
        .content
        .into_iter()
        .filter_map(|block| match block {
            Block::Text { text } if text.is_empty() => None,
            Block::Text { text } => Some(json!({ "type": "text", "text": text })),
            Block::Image { media_type, data } => {
                Some(json!({ "type": "image", "source": source(media_type, data) }))
            }
            Block::Document { media_type, data } => {
                Some(json!({ "type": "document", "source": source(media_type, data) }))
            }
        })
        .collect()
}
