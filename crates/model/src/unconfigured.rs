//! What stands in while no upstream is configured: the server is healthy, and every turn says what to set.

use crate::{ModelError, ModelInfo, ModelProvider, ModelRequest, ModelStream};
use async_trait::async_trait;

/// No upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconfigured;

#[async_trait]
impl ModelProvider for Unconfigured {
    async fn stream(&self, _request: ModelRequest) -> Result<ModelStream, ModelError> {
        Err(ModelError::NotConfigured(
            "no upstream model is configured: set VAQUERO_ANTHROPIC_API_KEY (or ANTHROPIC_API_KEY) and start the server again".to_owned(),
        ))
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, ModelError> {
        Ok(Vec::new())
    }
}
