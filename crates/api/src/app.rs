//! What every handler works with.

use crate::{
    ModelList,
    auth::KeyCache,
    change::Twins,
    rates::{Limiter, Rates},
    work::Pollers,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vaquero_store::{Live, SharedStore};
use vaquero_types::{AllowedImages, Clock, IdGen, SessionId, Timestamp};
use vaquero_vault::Keys;

/// What the binary hands over.
pub struct Parts {
    /// Everything durable.
    pub store: SharedStore,
    /// Live deltas.
    pub live: Arc<dyn Live>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn IdGen>,
    /// What secrets are sealed with, or why there is nothing.
    pub keys: Arc<Keys>,
    /// The models to list.
    pub models: ModelList,
    /// Told of every session whose sandbox and workspace are to go.
    pub ended: UnboundedSender<SessionId>,
    /// The text of `GET /metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Cancelled when the server stops: streams end, new work is refused.
    pub drain: CancellationToken,
    /// Limits.
    pub settings: Settings,
}

/// Limits of the API.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest request body, in bytes.
    pub body_max: usize,
    /// How long a request's body may stall.
    pub body_idle: Duration,
    /// How often an idle stream says that it is alive.
    pub keep_alive: Duration,
    /// Requests a minute.
    pub rates: Rates,
    /// How long an item of work is its worker's without a heartbeat, unless the worker asks for another time.
    pub work_lease: Duration,
    /// What sandboxes here can do.
    pub sandboxes: Sandboxes,
}

/// What sessions can ask of the sandboxes here, by provider, the default first. What cannot be kept is refused when a session is made.
#[derive(Clone, Debug)]
pub struct Sandboxes(pub Vec<Provider>);

/// What a provider of sandboxes can do.
#[derive(Clone, Debug)]
pub struct Provider {
    /// As environments name it.
    pub name: String,
    /// Something stands between its sandboxes and the host.
    pub isolated: bool,
    /// It makes them of images, and of which.
    pub images: Option<AllowedImages>,
    /// It installs what environments want; on the host itself only where the operator said so.
    pub installs: bool,
    /// It makes them before anybody wants them.
    pub keeps_ready: bool,
}

impl Sandboxes {
    /// Of the local provider alone.
    pub fn local() -> Self {
        let name = "local".to_owned();
        Self(vec![Provider {
            name,
            isolated: true,
            images: None,
            installs: true,
            keeps_ready: true,
        }])
    }

    /// The one an environment wants; else the names of those that are here.
    pub(crate) fn of(&self, wanted: Option<&str>) -> Result<&Provider, String> {
        let mut all = self.0.iter();
        let found = match wanted {
            Some(name) => all.find(|provider| provider.name == name),
            None => all.next(),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|provider| provider.name.as_str()).collect();
            names.join(", ")
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            body_max: 32 << 20,
            body_idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            rates: Rates::default(),
            work_lease: Duration::from_secs(60),
            sandboxes: Sandboxes::local(),
        }
    }
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct App {
    pub(crate) parts: Arc<Parts>,
    pub(crate) keys: Arc<KeyCache>,
    pub(crate) twins: Arc<Twins>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) pollers: Arc<Pollers>,
    pub(crate) streams: TaskTracker,
}

impl App {
    /// The application on these parts.
    pub fn new(parts: Parts) -> Self {
        Self {
            limiter: Arc::new(Limiter::new(parts.settings.rates.clone())),
            parts: Arc::new(parts),
            keys: Arc::default(),
            pollers: Arc::default(),
            twins: Arc::default(),
            streams: TaskTracker::new(),
        }
    }

    /// Waits until every open stream has ended; call it after the drain has begun.
    pub async fn streams_ended(&self) {
        self.streams.close();
        self.streams.wait().await;
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    pub(crate) fn new_id(&self) -> u128 {
        self.parts.ids.next(self.now())
    }
}
