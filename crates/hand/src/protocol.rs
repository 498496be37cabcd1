//! The words between a server and the hand in a sandbox: length-prefixed JSON frames over one byte stream. Data and framing only; it performs nothing.
//!
//! A frame is a `u32` in network byte order, then that many bytes of JSON. Requests are answered out of order, by id. After the first command ran, everything a hand
//! says is hostile input.

use crate::pack::Piece;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// What both sides must agree on.
pub const VERSION: u32 = 3;

/// The largest frame either side accepts, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// What the model reads of a call that was stopped.
pub const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// Who is asking: requests of an older lease epoch, or of another sandbox generation, are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    /// The lease epoch of the worker.
    pub epoch: u64,
    /// The sandbox generation it means.
    pub generation: u64,
}

/// A piece of a tool's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    Image {
        /// `image/png`, …
        media_type: String,
        /// Base64.
        data: String,
    },
    /// A PDF document.
    Document {
        /// `application/pdf`.
        media_type: String,
        /// Base64.
        data: String,
    },
}

/// What a tool call came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// What the model reads.
    pub content: Vec<Block>,
    /// Whether the call failed.
    pub is_error: bool,
}

impl ToolResult {
    /// A result of one text block.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: vec![Block::Text { text: text.into() }], is_error: false }
    }

    /// A failure of one text block.
    pub fn error(text: impl Into<String>) -> Self {
        Self { content: vec![Block::Text { text: text.into() }], is_error: true }
    }
}

/// What a server asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the response.
    pub id: u64,
    /// Who asks.
    pub fence: Fence,
    /// What for.
    pub op: Op,
}

/// The things a hand does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Says who it is.
    Hello {
        /// Variables of the shell from its next command on; those of the last greeting that are not among them go.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        variables: BTreeMap<String, String>,
    },
    /// Runs a tool; idempotent by `call_id`.
    Run {
        /// The call.
        call_id: String,
        /// `bash`, `read`, `write`, `edit`, `glob` or `grep`; or `exec`, which no model knows.
        tool: String,
        /// The input as the model wrote it.
        input: Value,
        /// An upper bound the server sets, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// What became of a call.
    Status {
        /// The call.
        call_id: String,
    },
    /// The call's result is durable at the server.
    Ack {
        /// The call.
        call_id: String,
    },
    /// Stops a call, with everything else that runs in the sandbox.
    Cancel {
        /// The call.
        call_id: String,
    },
    /// Reads part of a file.
    ReadFile {
        /// The path as the sandbox sees it.
        path: String,
        /// The first byte wanted.
        offset: u64,
        /// Most bytes wanted.
        limit: u64,
    },
    /// Writes a file.
    WriteFile {
        /// The path as the sandbox sees it.
        path: String,
        /// Base64.
        data_b64: String,
        /// Permission bits.
        mode: u32,
        /// Adds to the end instead of replacing.
        #[serde(default)]
        append: bool,
    },
    /// Packs the workspace as it is now.
    Pack {},
    /// A page of the last packing.
    Page {
        /// Which.
        index: u32,
    },
    /// A part of a large file of the workspace.
    Part {
        /// Its path below the workspace, in base64.
        path_b64: String,
        /// Where the part begins.
        offset: u64,
    },
    /// Writes the next part of a large file of the workspace.
    PutPart {
        /// Its path below the workspace, in base64.
        path_b64: String,
        /// It is the first.
        first: bool,
        /// Base64.
        data_b64: String,
    },
    /// Makes the entries of a page.
    Unpack {
        /// The page, in base64.
        data_b64: String,
    },
}

/// What a hand answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok(Reply),
    /// It was refused.
    Err(Refusal),
}

/// What a request that was done brings back; each has the fields of its op.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Reply {
    /// Who the hand is.
    Hello {
        /// Its protocol version.
        version: u32,
        /// Its generation.
        generation: u64,
        /// Its process id, as it sees itself.
        pid: u32,
    },
    /// The result of a run.
    Run {
        /// The result.
        result: ToolResult,
    },
    /// What became of a call.
    Status {
        /// The state.
        state: State,
        /// The result of a finished call that was not acknowledged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<ToolResult>,
    },
    /// Acknowledged.
    Ack {},
    /// Stopped, or over already.
    Cancel {},
    /// Part of a file.
    ReadFile {
        /// Base64.
        data_b64: String,
        /// The file's size.
        size: u64,
        /// Nothing follows.
        eof: bool,
    },
    /// Written.
    WriteFile {
        /// The file's size.
        size: u64,
    },
    /// The pages of the workspace.
    Pack {
        /// In order.
        pages: Vec<Piece>,
    },
    /// A page or a part.
    Bytes {
        /// Base64.
        data_b64: String,
    },
    /// A part was written, or a page unpacked.
    Put {},
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Never heard of.
    Unknown,
    /// Under way.
    Running,
    /// Over.
    Finished,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For the server.
    pub code: RefusalCode,
    /// For a person.
    pub message: String,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// A newer epoch has spoken, or the generation is another.
    StaleFence,
    /// The request makes no sense.
    BadRequest,
    /// There is no such call.
    UnknownCall,
    /// The call was acknowledged; its result is gone.
    Acked,
    /// The system refused.
    Io,
    /// More than the limit.
    TooLarge,
}

/// Writes one frame.
pub fn write_frame(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let frame = encode(message)?;
    to.write_all(&frame)
}

/// One frame as bytes.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too large"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Reads one frame; none at a clean end.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too large"));
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}
