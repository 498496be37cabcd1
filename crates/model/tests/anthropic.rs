//! The Messages API as providers really send it: cut anywhere, in pieces of any size, with failures in every place.

use futures::StreamExt;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use vaquero_model::{
    Anthropic, AnthropicConfig, Message, ModelError, ModelEvent, ModelProvider, ModelRequest, Role,
    StopReason,
};

/// A provider that answers one request with these pieces and hangs up.
async fn upstream(pieces: Vec<Vec<u8>>) -> (Anthropic, JoinSet<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base_url = format!("http://{}/", listener.local_addr().expect("an address"));
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        let mut buffer = vec![0; 65_536];
        while !complete(&request) {
            let count = stream.read(&mut buffer).await.expect("a request");
            request.extend_from_slice(&buffer[..count]);
        }
        for piece in pieces {
            stream.write_all(&piece).await.expect("sent");
            stream.flush().await.expect("sent");
            tokio::task::yield_now().await;
        }
        request
    });
    let config = AnthropicConfig {
        base_url,
        api_key: "key".to_owned(),
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
    };
    (Anthropic::new(config).expect("a provider"), serving)
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.parse().unwrap_or(usize::MAX))
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        max_tokens: 10,
        system: None,
        tools: Vec::new(),
        messages: vec![Message {
            role: Role::User,
            content: Arc::new(vec![json!({ "type": "text", "text": "hi" })]),
        }],
        effort: Some("low".to_owned()),
        fast: true,
        inference_geo: Some("us".to_owned()),
    }
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

fn stream_of(events: &[Value]) -> String {
    let mut text = HEAD.to_owned();
    for event in events {
        let name = event["type"].as_str().unwrap_or_default();
        text.push_str(&format!("event: {name}\r\ndata: {event}\r\n\r\n: comment\n"));
    }
    text
}

fn answer() -> Vec<Value> {
    let delta = |index: u64, delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
    vec![
        json!({ "type": "message_start", "message": { "usage": { "input_tokens": 7, "cache_read_input_tokens": 90, "output_tokens": 1, "cache_creation": { "ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0 } } } }),
        json!({ "type": "ping" }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "thinking", "thinking": "" } }),
        delta(0, json!({ "type": "thinking_delta", "thinking": "hm, " })),
        delta(0, json!({ "type": "thinking_delta", "thinking": "日本" })),
        delta(0, json!({ "type": "signature_delta", "signature": "c2ln" })),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "text", "text": "" } }),
        delta(1, json!({ "type": "text_delta", "text": "héllo " })),
        delta(1, json!({ "type": "text_delta", "text": "🐄" })),
        delta(1, json!({ "type": "something_new" })),
        json!({ "type": "content_block_stop", "index": 1 }),
        json!({ "type": "content_block_start", "index": 2, "content_block": { "type": "tool_use", "id": "toolu_1", "name": "bash", "input": {} } }),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "{\"command\": \"ec" })),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "ho\"}" })),
        json!({ "type": "content_block_stop", "index": 2 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 42 } }),
        json!({ "type": "message_stop" }),
    ]
}

async fn collect(pieces: Vec<Vec<u8>>) -> Result<Vec<ModelEvent>, ModelError> {
    let (provider, _serving) = upstream(pieces).await;
    let mut stream = provider.stream(request()).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event?);
    }
    Ok(events)
}

#[tokio::test]
async fn an_answer_is_the_same_in_pieces_of_any_size() {
    let whole = stream_of(&answer());
    let expected = collect(vec![whole.clone().into_bytes()]).await.expect("an answer");
    let blocks: Vec<&Value> = expected
        .iter()
        .filter_map(|event| {
            if let ModelEvent::BlockDone { block, .. } = event { Some(block) } else { None }
        })
        .collect();
    assert_eq!(
        blocks[0],
        &json!({ "type": "thinking", "thinking": "hm, 日本", "signature": "c2ln" })
    );
    assert_eq!(blocks[1]["text"], "héllo 🐄");
    assert_eq!(blocks[2]["input"], json!({ "command": "echo" }));
    let Some(ModelEvent::Done { stop, usage, .. }) = expected.last() else { panic!("it ends") };
    assert_eq!(*stop, StopReason::ToolUse);
    assert_eq!(
        (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_input_tokens,
            usage.cache_creation_5m
        ),
        (7, 42, 90, 3)
    );
    for size in [1, 2, 3, 7, 100] {
        let pieces = whole.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
        assert_eq!(collect(pieces).await.expect("an answer"), expected, "in pieces of {size}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_a_failure_wherever_it_breaks() {
    let whole = stream_of(&answer());
    let last = whole.len() - "event: message_stop".len() - 60;
    for cut in (HEAD.len() + 1..last).step_by(97) {
        let broken = collect(vec![whole.as_bytes()[..cut].to_vec()]).await;
        assert!(matches!(broken, Err(ModelError::Failed(_))), "cut at {cut}: {broken:?}");
    }
    let odd = format!("{HEAD}event: x\ndata: not json\n\n");
    assert!(matches!(collect(vec![odd.into_bytes()]).await, Err(ModelError::Failed(_))));
    let hung_up = collect(vec![Vec::new()]).await;
    assert!(matches!(hung_up, Err(ModelError::Failed(_))), "{hung_up:?}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let body = |kind: &str, message: &str| {
        json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string()
    };
    let refuse = async |status: u16, headers: &str, body: String| {
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}connection: close\r\n\r\n{body}"
        );
        collect(vec![text.into_bytes()]).await.expect_err("refused")
    };
    let late = refuse(429, "retry-after: 7\r\n", body("rate_limit_error", "slow down")).await;
    assert_eq!(
        late,
        ModelError::RateLimited {
            message: "slow down".to_owned(),
            retry_after: Some(Duration::from_secs(7))
        }
    );
    assert!(matches!(
        refuse(529, "", body("overloaded_error", "busy")).await,
        ModelError::Overloaded { .. }
    ));
    assert!(matches!(refuse(500, "", body("api_error", "oops")).await, ModelError::Failed(_)));
    assert!(
        matches!(refuse(502, "", "<html>bad gateway</html>".to_owned()).await, ModelError::Failed(text) if text.contains("502"))
    );
    assert!(matches!(
        refuse(400, "", body("invalid_request_error", "no")).await,
        ModelError::Invalid(_)
    ));
    assert!(matches!(
        refuse(400, "", body("invalid_request_error", "prompt is too long: 9 > 8")).await,
        ModelError::ContextTooLong(_)
    ));
    for what in ["messages.1.content.0.image.source: too many pixels", "The PDF was not valid"] {
        let refused = refuse(400, "", body("invalid_request_error", what)).await;
        assert!(matches!(refused, ModelError::Media(_)), "{refused:?}");
    }
    assert!(
        matches!(refuse(401, "", body("authentication_error", "bad key")).await, ModelError::Unauthorized(text) if text.contains("API key"))
    );
    assert!(matches!(refuse(402, "", body("billing_error", "pay")).await, ModelError::Billing(_)));
    let mut events = answer();
    events.truncate(8);
    events.push(
        json!({ "type": "error", "error": { "type": "overloaded_error", "message": "busy" } }),
    );
    let inside = collect(vec![stream_of(&events).into_bytes()]).await.expect_err("an error");
    assert!(
        matches!(inside, ModelError::Overloaded { .. }),
        "in the middle of a stream: {inside:?}"
    );
}

#[tokio::test]
async fn the_request_says_what_was_asked() {
    let (provider, mut serving) = upstream(vec![stream_of(&answer()).into_bytes()]).await;
    let mut stream = provider.stream(request()).await.expect("a stream");
    while stream.next().await.is_some() {}
    let sent = serving.join_next().await.expect("served").expect("served");
    let text = String::from_utf8(sent).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("POST /v1/messages HTTP/1.1"), "{head}");
    assert!(
        head.contains("x-api-key: key") && head.contains("anthropic-version: 2023-06-01"),
        "{head}"
    );
    let body: Value = serde_json::from_str(body).expect("JSON");
    let content =
        json!([{ "type": "text", "text": "hi", "cache_control": { "type": "ephemeral" } }]);
    assert_eq!(
        body,
        json!({
            "model": "m", "max_tokens": 10, "stream": true,
            "messages": [{ "role": "user", "content": content }],
            "output_config": { "effort": "low" }, "speed": "fast", "inference_geo": "us",
        })
    );
}
