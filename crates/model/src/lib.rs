//! Models: the seam every brain calls through, the Anthropic Messages provider, and a scripted stand-in for working offline.

mod anthropic;
mod assemble;
mod provider;
pub mod scripted;
mod unconfigured;

pub use anthropic::{Anthropic, AnthropicConfig, ConfigError, KEY_PREFIX_OF_OURS, choose_crypto};
pub use provider::{
    BlockKind, Message, ModelError, ModelEvent, ModelInfo, ModelProvider, ModelRequest,
    ModelStream, Role, StopReason, ToolDef,
};
pub use unconfigured::Unconfigured;
