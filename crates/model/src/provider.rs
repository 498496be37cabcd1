//! The seam: what a brain asks a model, and what comes back.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use vaquero_types::usage::Usage;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The client, and tool results.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of the conversation.
    System,
}

/// One message, its blocks in the shape of the Messages API.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Its blocks, shared with whoever keeps the conversation.
    #[expect(clippy::rc_buffer, reason = "whoever keeps it goes on adding to it")]
    pub content: Arc<Vec<Value>>,
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolDef {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its input.
    pub input_schema: Value,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRequest {
    /// The model's id.
    pub model: String,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// The system prompt.
    pub system: Option<String>,
    /// The tools, in a stable order.
    pub tools: Vec<ToolDef>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// `low` … `max`; none for the model's default.
    pub effort: Option<String>,
    /// Ask for the fast variant.
    pub fast: bool,
    /// Where inference may happen.
    pub inference_geo: Option<String>,
}

/// What kind of block begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Text.
    Text,
    /// Thinking, readable or not.
    Thinking,
    /// A call.
    ToolUse,
    /// Something else, passed through.
    Other,
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It has said what it wanted.
    EndTurn,
    /// It waits for tool results.
    ToolUse,
    /// It ran into `max_tokens`.
    MaxTokens,
    /// It wants to be asked again.
    PauseTurn,
    /// It declines.
    Refusal {
        /// The provider's category.
        category: Option<String>,
        /// For a person to read.
        explanation: Option<String>,
    },
    /// The window is full.
    ContextWindowExceeded,
}

/// What comes back, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    /// The answer began; input is counted.
    Started {
        /// Tokens so far.
        usage: Usage,
    },
    /// A block began.
    BlockStart {
        /// Its position.
        index: usize,
        /// What it is.
        kind: BlockKind,
    },
    /// More text of a text block.
    TextDelta {
        /// The block's position.
        index: usize,
        /// The text.
        text: String,
    },
    /// A block is complete.
    BlockDone {
        /// Its position.
        index: usize,
        /// The block, exactly as it must be replayed.
        block: Value,
    },
    /// The answer is complete.
    Done {
        /// Why.
        stop: StopReason,
        /// All tokens.
        usage: Usage,
        /// The speed it was served at.
        speed: Option<String>,
    },
}

/// Why a request failed. Messages hold no secret and are short enough to show.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The provider is overloaded.
    #[error("{message}")]
    Overloaded {
        /// What it said.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The provider limits our rate.
    #[error("{message}")]
    RateLimited {
        /// What it said.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The provider or the connection failed.
    #[error("{0}")]
    Failed(String),
    /// The provider refuses the request as it is.
    #[error("{0}")]
    Invalid(String),
    /// The request does not fit the model's window.
    #[error("{0}")]
    ContextTooLong(String),
    /// The model cannot take an image or a document of the request.
    #[error("{0}")]
    Media(String),
    /// The provider wants to be paid.
    #[error("{0}")]
    Billing(String),
    /// The provider does not take our key.
    #[error("{0}")]
    Unauthorized(String),
    /// No provider is configured.
    #[error("{0}")]
    NotConfigured(String),
}

/// A model as the models API shows it; what the provider adds is passed through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its id.
    pub id: String,
    /// Its name for people.
    pub display_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An answer being written.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ModelError>>;

/// Somewhere models run. Dropping a stream stops the request.
#[async_trait]
pub trait ModelProvider: Send + Sync + 'static {
    /// Asks a model.
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError>;

    /// The models it has.
    async fn models(&self) -> Result<Vec<ModelInfo>, ModelError>;
}
