//! The stand-in's answers, as a stream of events or as one message.

use super::{check, script::Plan};
use axum::{
    Json,
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn respond(request: &Value, plan: Plan, cut: bool) -> Response {
    let has_calls = plan.blocks.iter().any(|block| block["type"] == "tool_use");
    let stop_reason = plan.stop_reason.unwrap_or(if has_calls { "tool_use" } else { "end_turn" });
    let [input, output, read, write] = plan.usage.unwrap_or_else(|| usage(request, &plan.blocks));
    let id = format!("msg_{:016x}", check::digest(request));
    let counts = json!({
        "input_tokens": input, "output_tokens": output, "cache_read_input_tokens": read, "cache_creation_input_tokens": write,
        "cache_creation": { "ephemeral_5m_input_tokens": write, "ephemeral_1h_input_tokens": 0 },
        "service_tier": "standard",
    });
    if request["stream"] != true {
        return Json(json!({
            "id": id, "type": "message", "role": "assistant", "model": request["model"], "content": plan.blocks,
            "stop_reason": stop_reason, "stop_sequence": null, "stop_details": plan.stop_details, "usage": counts,
        }))
        .into_response();
    }
    let mut started = counts;
    started["output_tokens"] = json!(1);
    let start = json!({ "type": "message_start", "message": {
        "id": id, "type": "message", "role": "assistant", "model": request["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": started,
    } });
    let mut frames = vec![frame(&start)];
    for (index, block) in plan.blocks.iter().enumerate() {
        frames.extend(block_frames(index, block));
    }
    if cut {
        frames.truncate(frames.len().div_ceil(2));
    } else {
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": null, "stop_details": plan.stop_details });
        frames.push(frame(&json!({ "type": "message_delta", "delta": delta, "usage": { "output_tokens": output } })));
        frames.push(frame(&json!({ "type": "message_stop" })));
    }
    let (delay, slow) = (plan.delay_ms, plan.slow_ms);
    let paced = delay > 0 || slow > 0;
    let body = if paced || cut {
        let frames =
            stream::iter(frames.into_iter().enumerate()).then(move |(index, frame)| async move {
                let pause = if index == 0 { delay } else { slow };
                if pause > 0 {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Ok::<Bytes, std::io::Error>(frame)
            });
        if cut {
            let broken = stream::iter([Err(std::io::Error::other("cut by the script"))]);
            Body::from_stream(frames.chain(broken))
        } else {
            Body::from_stream(frames)
        }
    } else {
        Body::from(frames.concat())
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

fn frame(event: &Value) -> Bytes {
    let name = event["type"].as_str().unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {event}\n\n"))
}

fn block_frames(index: usize, block: &Value) -> Vec<Bytes> {
    let delta = |delta: Value| {
        frame(&json!({ "type": "content_block_delta", "index": index, "delta": delta }))
    };
    let start = |block: Value| {
        frame(&json!({ "type": "content_block_start", "index": index, "content_block": block }))
    };
    let mut frames = Vec::new();
    match block["type"].as_str().unwrap_or_default() {
        "thinking" => {
            frames.push(start(json!({ "type": "thinking", "thinking": "", "signature": "" })));
            frames.push(delta(json!({ "type": "thinking_delta", "thinking": block["thinking"] })));
            frames
                .push(delta(json!({ "type": "signature_delta", "signature": block["signature"] })));
        }
        "tool_use" => {
            let mut empty = block.clone();
            empty["input"] = json!({});
            frames.push(start(empty));
            let input = block["input"].to_string();
            frames.push(delta(json!({ "type": "input_json_delta", "partial_json": input })));
        }
        _ => {
            frames.push(start(json!({ "type": "text", "text": "" })));
            let text = block["text"].as_str().unwrap_or_default();
            for word in text.split_inclusive(' ') {
                frames.push(delta(json!({ "type": "text_delta", "text": word })));
            }
        }
    }
    frames.push(frame(&json!({ "type": "content_block_stop", "index": index })));
    frames
}

/// Plausible counts from sizes: what lies before the last message counts as read from the cache.
fn usage(request: &Value, blocks: &[Value]) -> [u64; 4] {
    let tokens = |bytes: usize| bytes as u64 / 4 + 1;
    let size = |value: &Value| value.to_string().len();
    let messages = request["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let (before, last) = messages.split_at(messages.len().saturating_sub(1));
    let fixed = size(&request["tools"]) + size(&request["system"]);
    let written: usize = blocks.iter().map(size).sum();
    if before.is_empty() {
        [3, tokens(written), 0, tokens(fixed + last.iter().map(size).sum::<usize>())]
    } else {
        let read = tokens(fixed + before.iter().map(size).sum::<usize>());
        [3, tokens(written), read, tokens(last.iter().map(size).sum())]
    }
}
