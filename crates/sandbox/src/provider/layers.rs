//! Layers: what environments want installed, made once for all sandboxes that want the same. A layer that could not be made leaves nothing behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::quota::{Room, within};
use super::{Inner, lock};
use crate::engine::{BUILD, Engine, Layer};
use crate::error::SandboxError;
use crate::provision;
use crate::seam::{Fence, Isolation, Outbound, Provision, Reach, Sandbox, SandboxKey, SandboxSpec};

/// Part of every layer's name: raised when what is made of the same wish changes.
const MADE_BY: u32 = 1;
/// Layers that are made at the same time; others wait.
const AT_ONCE: usize = 4;

type Making = Shared<BoxFuture<'static, Result<(), String>>>;

/// The layers that are being made.
pub(super) struct Layers {
    making: Mutex<HashMap<String, Making>>,
    /// Whoever may make environments could have any number made at once.
    places: Semaphore,
}

impl Default for Layers {
    fn default() -> Self {
        Self { making: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layers").finish_non_exhaustive()
    }
}

impl<E: Engine> Inner<E> {
    /// The layer that a sandbox needs, made if there is none yet; everybody who wants it waits for the same making.
    pub(super) async fn layer(
        self: &Arc<Self>,
        spec: &SandboxSpec,
    ) -> Result<Option<Layer>, SandboxError> {
        let Some(provision) = &spec.provision else { return Ok(None) };
        let name = self.name_of(provision, spec).await?;
        if !self.engine.has_layer(&name).await {
            self.making(&name, provision, spec).await.map_err(SandboxError::Provision)?;
            // From now on it is in use.
            self.engine.has_layer(&name).await;
        }
        let layer = Layer { name, building: false, workspace: !spec.restored };
        Ok(self.lies_over().then_some(layer))
    }

    /// The layer that a sandbox needs, if it needs none or it is there; none if it has to be made.
    pub(super) async fn ready_layer(
        self: &Arc<Self>,
        spec: &SandboxSpec,
    ) -> Result<Option<Option<Layer>>, SandboxError> {
        if let Some(provision) = &spec.provision {
            let name = self.name_of(provision, spec).await?;
            if !self.engine.has_layer(&name).await {
                return Ok(None);
            }
        }
        self.layer(spec).await.map(Some)
    }

    /// Begins to make the layer that a sandbox needs.
    pub(super) fn prepare(self: &Arc<Self>, spec: &SandboxSpec) {
        let (inner, spec) = (Arc::clone(self), spec.clone());
        self.shared.tasks.spawn(async move {
            let Some(provision) = &spec.provision else { return };
            let Ok(name) = inner.name_of(provision, &spec).await else { return };
            if !inner.engine.has_layer(&name).await {
                drop(inner.making(&name, provision, &spec));
            }
        });
    }

    /// Whether what is installed stays apart from what it is installed on.
    fn lies_over(&self) -> bool {
        self.engine.capabilities().isolation != Isolation::None
    }

    /// By its content: what is wanted, what it may be had from, and what it lies over.
    async fn name_of(
        &self,
        provision: &Provision,
        spec: &SandboxSpec,
    ) -> Result<String, SandboxError> {
        let reach = spec.outbound.as_ref().map(|outbound| &outbound.reach);
        let ground = self.engine.ground(spec).await?;
        let all = (MADE_BY, ground, provision, reach);
        let text = serde_json::to_vec(&all).expect("plain data");
        Ok(format!("{:x}", Sha256::digest(text)).chars().take(40).collect())
    }

    fn making(
        self: &Arc<Self>,
        name: &str,
        provision: &Arc<Provision>,
        spec: &SandboxSpec,
    ) -> Making {
        let mut making = lock(&self.layers.making);
        if let Some(known) = making.get(name) {
            return known.clone();
        }
        let (inner, called) = (Arc::clone(self), name.to_owned());
        let (provision, spec) = (Arc::clone(provision), spec.clone());
        let task = self.shared.tasks.spawn(async move {
            let stopping = inner.stopping.clone();
            let made =
                stopping.run_until_cancelled(inner.install(&called, &provision, &spec)).await;
            let made =
                made.unwrap_or_else(|| Err(SandboxError::gone("the server is shutting down")));
            if let Err(error) = &made {
                tracing::warn!(layer = called, %error, "an environment could not be set up");
                inner.abandon(&called).await;
            }
            lock(&inner.layers.making).remove(&called);
            made.map_err(|error| {
                if let SandboxError::Provision(what) = error { what } else { error.to_string() }
            })
        });
        let known = task.map(|made| made.unwrap_or_else(|error| Err(error.to_string())));
        let known = known.boxed().shared();
        making.insert(name.to_owned(), known.clone());
        known
    }

    async fn install(
        self: &Arc<Self>,
        name: &str,
        provision: &Provision,
        spec: &SandboxSpec,
    ) -> Result<(), SandboxError> {
        // The semaphore is never closed.
        let _place = self.layers.places.acquire().await.ok();
        let started = tokio::time::Instant::now();
        let key = SandboxKey::default_of(format!("{BUILD}{name}"));
        self.abandon(name).await;
        let reach = spec.outbound.as_ref().map(|outbound| outbound.reach.clone());
        let plain = SandboxSpec {
            generation: 1,
            epoch: 1,
            env: provision.env.clone(),
            // Whoever gets the layer has other secrets, or none.
            outbound: reach.map(|reach: Reach| Outbound { reach, vaults: None }),
            provision: None,
            restored: false,
            ..spec.clone()
        };
        let building = Layer { name: name.to_owned(), building: true, workspace: true };
        let sandbox = self.create(&key, &plain, self.lies_over().then_some(building)).await?;
        let fence = Fence { epoch: 1, generation: sandbox.generation() };
        let workdir = self.engine.workdir(&key.session);
        let installing = provision::install(sandbox.as_ref(), fence, provision, &workdir);
        match self.engine.layer_counted(name) {
            Some(dir) => within(Room::of(&spec.limits), dir, installing).await?,
            None => installing.await?,
        }
        self.forget(|k| *k == key, "its layer is made");
        self.engine.keep_layer(&key, name).await?;
        tracing::info!(
            layer = name,
            seconds = started.elapsed().as_secs(),
            "an environment is set up"
        );
        Ok(())
    }

    /// Removes what the making of a layer has left behind.
    async fn abandon(&self, name: &str) {
        let key = SandboxKey::default_of(format!("{BUILD}{name}"));
        if let Err(error) = self.end(&key).await {
            tracing::warn!(%key, %error, "cannot end a sandbox that installs");
        }
        self.engine.abandon_layer(name).await;
    }

    /// Removes layers that nobody wants any more, and those that an earlier server was making.
    pub(super) async fn clear_layers(&self) {
        let living = self.engine.list().await.unwrap_or_default();
        for (key, _) in living.iter().filter(|(key, _)| key.session.starts_with(BUILD)) {
            drop(self.end(key).await);
        }
        self.engine.clear_layers().await;
    }
}
