//! A model that answers at once, so that only the server is measured. The last mark in the request decides: `#tool` asks a custom tool, `#bash` a command that answers with another mark, `#hold`
//! never answers, anything else gets a word. It reports when each request arrived.

use axum::{
    Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::{net::TcpListener, sync::mpsc};

const RUN: &str = r#"{"type":"tool_use","id":"toolu_ID","name":"bash","input":{}}"#;
const RUN_DELTA: &str =
    r#"{"type":"input_json_delta","partial_json":"{\"command\":\"echo '#done'\"}"}"#;
const WORD: &str = r#"{"type":"text","text":""}"#;
const WORD_DELTA: &str = r#"{"type":"text_delta","text":"ok"}"#;
const ASK: &str = r#"{"type":"tool_use","id":"toolu_ID","name":"ask","input":{}}"#;
const ASK_DELTA: &str = r#"{"type":"input_json_delta","partial_json":"{}"}"#;

/// The model.
pub(crate) struct Instantly {
    /// Where it listens.
    pub(crate) base: String,
    /// When each request had arrived.
    pub(crate) arrivals: mpsc::UnboundedReceiver<Instant>,
}

struct Shared {
    arrivals: mpsc::UnboundedSender<Instant>,
    next: AtomicU64,
}

impl Instantly {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { arrivals: sender, next: AtomicU64::new(1) });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/v1/messages", post(answer))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { base, arrivals })
    }
}

async fn answer(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    shared.arrivals.send(Instant::now()).unwrap_or_default();
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let mark = body.iter().rposition(|byte| *byte == b'#').map_or(&b""[..], |at| &body[at..]);
    if mark.starts_with(b"#hold") {
        std::future::pending::<()>().await;
    }
    let (block, delta, reason) = if mark.starts_with(b"#tool") {
        (ASK.replace("ID", &id.to_string()), ASK_DELTA, "tool_use")
    } else if mark.starts_with(b"#bash") {
        (RUN.replace("ID", &id.to_string()), RUN_DELTA, "tool_use")
    } else {
        (WORD.to_owned(), WORD_DELTA, "end_turn")
    };
    let events = [
        (
            "message_start",
            format!(
                r#"{{"type":"message_start","message":{{"id":"msg_{id}","type":"message","role":"assistant","model":"instant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":10,"output_tokens":1}}}}}}"#
            ),
        ),
        (
            "content_block_start",
            format!(r#"{{"type":"content_block_start","index":0,"content_block":{block}}}"#),
        ),
        (
            "content_block_delta",
            format!(r#"{{"type":"content_block_delta","index":0,"delta":{delta}}}"#),
        ),
        ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#.to_owned()),
        (
            "message_delta",
            format!(
                r#"{{"type":"message_delta","delta":{{"stop_reason":"{reason}","stop_sequence":null}},"usage":{{"output_tokens":2}}}}"#
            ),
        ),
        ("message_stop", r#"{"type":"message_stop"}"#.to_owned()),
    ];
    let mut text = String::new();
    for (name, data) in events {
        text.push_str(&format!("event: {name}\ndata: {data}\n\n"));
    }
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from(text)).into_response()
}
