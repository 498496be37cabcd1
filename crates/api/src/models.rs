//! Models: what the upstream has, cached, and what the operator adds.

pub(crate) mod list;
pub(crate) mod retrieve;

use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;
use vaquero_model::{ModelInfo, ModelProvider};
use vaquero_types::Timestamp;

/// How long the upstream's list is believed.
const FRESH: Duration = Duration::from_secs(300);
/// How long a failure to get it is.
const FAILED: Duration = Duration::from_secs(15);

/// The models a client may choose from.
#[derive(Clone)]
pub struct ModelList {
    provider: Arc<dyn ModelProvider>,
    configured: Arc<[ModelInfo]>,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    models: Vec<ModelInfo>,
    until: Option<Timestamp>,
}

impl ModelList {
    /// The upstream's models, and these.
    pub fn new(provider: Arc<dyn ModelProvider>, configured: Vec<ModelInfo>) -> Self {
        Self { provider, configured: configured.into(), cache: Arc::default() }
    }

    /// All models; an upstream that cannot be asked leaves what it said last.
    pub(crate) async fn all(&self, now: Timestamp) -> Vec<ModelInfo> {
        let mut cache = self.cache.lock().await;
        if cache.until.is_none_or(|until| until <= now) {
            match self.provider.models().await {
                Ok(models) => {
                    cache.models = models;
                    cache.until = Some(now.plus(FRESH));
                }
                Err(error) => {
                    tracing::warn!(%error, "the upstream's models cannot be listed");
                    cache.until = Some(now.plus(FAILED));
                }
            }
        }
        let known = |id: &str| cache.models.iter().any(|model| model.id == id);
        let added = self.configured.iter().filter(|model| !known(&model.id));
        added.chain(&cache.models).cloned().collect()
    }
}
