//! The daemon in each of E2B's sandboxes: it speaks the Connect protocol, here with JSON.

use std::io;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::io::StreamReader;
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::http::{Http, secret};
use vaquero_sandbox::remote::{Input, Pipe};

use crate::E2bConfig;
use crate::control::{Made, text};

/// Where it listens in a sandbox.
const PORT: &str = "49983";
/// A frame's flags and length.
const HEAD: u8 = 5;
/// The flag of the last one.
const LAST: u8 = 2;
/// The longest frame.
const FRAME: usize = 16 << 20;
/// Seconds between two signs of life.
const ALIVE: &str = "50";

#[derive(Debug)]
pub(crate) struct Envd {
    http: Http,
    url: String,
}

impl Envd {
    pub(crate) fn new(config: &E2bConfig, made: &Made) -> Result<Self, SandboxError> {
        let id = HeaderValue::from_str(&made.id)
            .map_err(|_| SandboxError::Protocol("a sandbox's id is none".to_owned()))?;
        let root = format!("Basic {}", STANDARD.encode("root:"));
        let mut headers = HeaderMap::from_iter([
            (HeaderName::from_static("e2b-sandbox-id"), id),
            (HeaderName::from_static("e2b-sandbox-port"), HeaderValue::from_static(PORT)),
            (HeaderName::from_static("connect-protocol-version"), HeaderValue::from_static("1")),
            (AUTHORIZATION, secret(&root)?),
        ]);
        if let Some(token) = &made.token {
            headers.insert(HeaderName::from_static("x-access-token"), secret(token)?);
        }
        let domain = made.domain.as_deref().filter(|domain| !domain.is_empty());
        let url = match &config.sandbox_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("https://{PORT}-{}.{}", made.id, domain.unwrap_or(&config.domain)),
        };
        Ok(Self { http: Http::new("E2B's sandbox", headers)?, url })
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.http.client().post(format!("{}{path}", self.url))
    }

    /// Writes a file as root.
    pub(crate) async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // Not every body can be sent again: whoever answers is in the sandbox, and not busy.
        let part = Part::stream_with_length(bytes, length).file_name(path.to_owned());
        let request = self.post("/files").query(&[("path", path), ("username", "root")]);
        let request = request.multipart(Form::new().part("file", part));
        self.http.send_once(request).await.map(drop)
    }

    /// Starts a program as root.
    pub(crate) async fn start(&self, command: &[String]) -> Result<Pipe, SandboxError> {
        let [program, arguments @ ..] = command else {
            return Err(SandboxError::Invalid("no program is named".to_owned()));
        };
        let wanted = json!({
            "process": { "cmd": program, "args": arguments, "envs": {} }, "stdin": true,
        });
        let request = self
            .post("/process.Process/Start")
            .header(CONTENT_TYPE, "application/connect+json")
            .header("keepalive-ping-interval", ALIVE)
            .body(frame(&wanted));
        let answer = self.http.send(request).await?;
        let mut events = Box::pin(events(answer.bytes_stream()));
        let process = loop {
            let event = events.next().await.transpose();
            let event = event
                .map_err(|e| SandboxError::gone(format!("a program cannot be started: {e}")))?;
            let Some(event) = event else {
                return Err(SandboxError::gone("a program ended before it began"));
            };
            if let Some(process) = event["start"]["pid"].as_u64() {
                break process;
            }
        };
        let said = events.try_filter_map(|event| async move {
            let said = STANDARD.decode(text(&event["data"], "stdout")).map_err(io::Error::other)?;
            Ok((!said.is_empty()).then(|| Bytes::from(said)))
        });
        Ok(Pipe::of(said, Told { http: self.http.clone(), url: self.url.clone(), process }))
    }
}

/// What a program is told.
struct Told {
    http: Http,
    url: String,
    process: u64,
}

#[async_trait]
impl Input for Told {
    async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        let body = json!({
            "process": { "pid": self.process }, "input": { "stdin": STANDARD.encode(&piece) },
        });
        let url = format!("{}/process.Process/SendInput", self.url);
        let request = self.http.client().post(url).json(&body);
        self.http.send_once(request).await.map(drop).map_err(io::Error::other)
    }
}

fn frame(message: &Value) -> Bytes {
    let message = message.to_string();
    let mut frame = BytesMut::with_capacity(usize::from(HEAD) + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message.as_bytes());
    frame.freeze()
}

/// What happens to a program, until it ends.
fn events(
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = io::Result<Value>> + Send {
    let codec = LengthDelimitedCodec::builder()
        .length_field_offset(1)
        .length_field_length(4)
        .length_adjustment(HEAD.into())
        .num_skip(0)
        .max_frame_length(FRAME)
        .new_codec();
    let body = StreamReader::new(Box::pin(body.map_err(io::Error::other)));
    stream::try_unfold(FramedRead::new(body, codec), |mut frames| async move {
        let Some(frame) = frames.next().await.transpose()? else { return Ok(None) };
        let mut message: Value = serde_json::from_slice(&frame[usize::from(HEAD)..])?;
        if frame[0] & LAST != 0 {
            let error = &message["error"];
            if error.is_null() {
                return Ok(None);
            }
            return Err(io::Error::other(format!(
                "{}: {}",
                text(error, "code"),
                text(error, "message")
            )));
        }
        Ok(Some((message["event"].take(), frames)))
    })
}
