//! Brains: they claim sessions, perform the steps the turn machine decides, and write what came of them. The only place where core meets the world.

mod ask;
mod checkpoint;
pub mod crash;
mod hands;
mod kept;
mod outbound;
mod pools;
mod reap;
mod resume;
mod retention;
mod run;
mod sandboxes;
mod turn;

pub use checkpoint::Checkpoints;
pub use resume::resume;
pub use retention::Retention;
pub use run::{Config, Worker};

use futures::future::{BoxFuture, Shared};
use std::sync::Arc;
use vaquero_model::ModelProvider;
use vaquero_sandbox::{ComputeProvider, Limits};
use vaquero_store::{Live, SharedStore};
use vaquero_types::{Clock, IdGen};

/// Hosts of package registries, found out when they are first asked for.
pub type Registries = Shared<BoxFuture<'static, Arc<[String]>>>;

/// No registries.
pub fn no_registries() -> Registries {
    use futures::FutureExt as _;
    futures::future::ready(Arc::from([])).boxed().shared()
}

/// What a brain works with.
#[derive(Clone)]
pub struct World {
    /// The log.
    pub store: SharedStore,
    /// Where deltas go.
    pub live: Arc<dyn Live>,
    /// The models.
    pub models: Arc<dyn ModelProvider>,
    /// The hands.
    pub compute: Arc<dyn ComputeProvider>,
    /// Where workspaces are kept for when their machine is gone; none if this is the only one.
    pub checkpoints: Option<Arc<Checkpoints>>,
    /// What each sandbox may use.
    pub limits: Limits,
    /// Hosts of package registries, which environments can allow together.
    pub registries: Registries,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn IdGen>,
}
