//! Sessions made in numbers, and streams of theirs that are read with as little work as possible.

use anyhow::{Context, ensure};
use bytes::BytesMut;
use futures::{Stream, StreamExt, stream};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::pin::Pin;
use vaquero_testkit::Client;

/// Sessions of one agent in one environment.
pub(crate) async fn make(
    client: &Client,
    tools: Value,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let agent = json!({ "name": "load", "model": "instant", "tools": tools });
    let agent = client.post("/v1/agents", agent).await?;
    let environment = json!({ "name": format!("load {}", agent["id"]) });
    let environment = client.post("/v1/environments", environment).await?;
    let body = json!({ "agent": agent["id"], "environment_id": environment["id"] });
    stream::iter(0..count)
        .map(|_| async {
            let session = client.post("/v1/sessions", body.clone()).await?;
            Ok(session["id"].as_str().context("an id")?.to_owned())
        })
        .buffer_unordered(64)
        .collect::<Vec<anyhow::Result<String>>>()
        .await
        .into_iter()
        .collect()
}

/// An open stream of a session's events.
pub(crate) struct Following {
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: BytesMut,
}

impl Following {
    pub(crate) async fn open(client: &Client, session: &str) -> anyhow::Result<Self> {
        let path = format!("/v1/sessions/{session}/events/stream");
        let response: Response = client.request(Method::GET, &path).send().await?;
        ensure!(response.status().is_success(), "the stream was refused: {}", response.status());
        Ok(Self { bytes: Box::pin(response.bytes_stream()), buffer: BytesMut::new() })
    }

    /// Reads until an event of this type has come.
    pub(crate) async fn until(&mut self, event_type: &str) -> anyhow::Result<()> {
        let mark = format!("event: {event_type}\n");
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame = self.buffer.split_to(end + 2);
                if frame.windows(mark.len()).any(|part| part == mark.as_bytes()) {
                    return Ok(());
                }
            }
            self.buffer.extend_from_slice(&self.bytes.next().await.context("the stream ended")??);
        }
    }
}
