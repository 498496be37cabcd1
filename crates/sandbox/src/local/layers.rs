//! Layers: what environments want installed, made once for all sandboxes that want the same. A layer that could not be made leaves nothing behind.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::quota::{Room, within};
use super::{BUILD, Inner, lock};
use crate::error::SandboxError;
use crate::launcher::layer::{finish, layer_dir};
use crate::launcher::wire::Layer;
use crate::provision;
use crate::remove::remove_tree;
use crate::seam::{Fence, Outbound, Provision, Reach, Sandbox, SandboxKey, SandboxSpec};

/// Part of every layer's name: raised when what is made of the same wish changes.
const MADE_BY: u32 = 1;
/// Layers that are made at the same time; others wait.
const AT_ONCE: usize = 4;
/// A layer that no sandbox has asked for in so long is removed.
const UNUSED: Duration = Duration::from_hours(30 * 24);
/// In a layer: when it was last asked for.
const USED: &str = "used";

type Making = Shared<BoxFuture<'static, Result<(), String>>>;

impl Layer {
    fn named(name: String, building: bool) -> Self {
        Self { name, building, workspace: true }
    }
}

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

impl Inner {
    /// The layer that a sandbox needs, made if there is none yet; everybody who wants it waits for the same making.
    pub(super) async fn layer(
        self: &Arc<Self>,
        spec: &SandboxSpec,
    ) -> Result<Option<Layer>, SandboxError> {
        let Some(provision) = &spec.provision else { return Ok(None) };
        let workspace = !spec.restored;
        let layer = Layer { name: self.name_of(provision, spec), building: false, workspace };
        if !self.has(&layer) {
            self.making(&layer, provision, spec).await.map_err(SandboxError::Provision)?;
        }
        // Only whether it is still in use hangs on it.
        drop(File::create(layer_dir(&self.options.dir, &layer).join(USED)));
        Ok(self.options.isolated.then_some(layer))
    }

    /// Begins to make the layer that a sandbox needs.
    pub(super) fn prepare(self: &Arc<Self>, spec: &SandboxSpec) {
        let Some(provision) = &spec.provision else { return };
        let layer = Layer::named(self.name_of(provision, spec), false);
        if !self.has(&layer) {
            drop(self.making(&layer, provision, spec));
        }
    }

    fn has(&self, layer: &Layer) -> bool {
        layer_dir(&self.options.dir, layer).is_dir()
    }

    /// By its content: what is wanted, what it may be had from, and what it lies over.
    fn name_of(&self, provision: &Provision, spec: &SandboxSpec) -> String {
        let reach = spec.outbound.as_ref().map(|outbound| &outbound.reach);
        let all = (MADE_BY, &self.ground, provision, reach);
        let text = serde_json::to_vec(&all).expect("plain data");
        format!("{:x}", Sha256::digest(text)).chars().take(40).collect()
    }

    fn making(
        self: &Arc<Self>,
        layer: &Layer,
        provision: &Arc<Provision>,
        spec: &SandboxSpec,
    ) -> Making {
        let mut making = lock(&self.layers.making);
        if let Some(known) = making.get(&layer.name) {
            return known.clone();
        }
        let (inner, name) = (Arc::clone(self), layer.name.clone());
        let (provision, spec) = (Arc::clone(provision), spec.clone());
        let task = self.shared.tasks.spawn(async move {
            let stopping = inner.stopping.clone();
            let made = stopping.run_until_cancelled(inner.make(&name, &provision, &spec)).await;
            let made =
                made.unwrap_or_else(|| Err(SandboxError::gone("the server is shutting down")));
            if let Err(error) = &made {
                tracing::warn!(layer = name, %error, "an environment could not be set up");
                inner.abandon(&name).await;
            }
            lock(&inner.layers.making).remove(&name);
            made.map_err(|error| {
                if let SandboxError::Provision(what) = error { what } else { error.to_string() }
            })
        });
        let known = task.map(|made| made.unwrap_or_else(|error| Err(error.to_string())));
        let known = known.boxed().shared();
        making.insert(layer.name.clone(), known.clone());
        known
    }

    async fn make(
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
            limits: spec.limits,
            env: provision.env.clone(),
            // Whoever gets the layer has other secrets, or none.
            outbound: reach.map(|reach: Reach| Outbound { reach, vaults: None }),
            provision: None,
            restored: false,
        };
        let building = Layer::named(name.to_owned(), true);
        let made = layer_dir(&self.options.dir, &building);
        let workdir = if self.options.isolated {
            "/workspace".to_owned()
        } else {
            self.options.workspaces.join(&key.session).join("workspace").display().to_string()
        };
        let wanted = self.options.isolated.then(|| building.clone());
        let sandbox = self.create(&key, &plain, wanted).await?;
        let fence = Fence { epoch: 1, generation: sandbox.generation() };
        let installing = provision::install(sandbox.as_ref(), fence, provision, &workdir);
        let installed = within(Room::of(&spec.limits), made.clone(), installing).await;
        self.end(&key).await?;
        installed?;
        let finished = layer_dir(&self.options.dir, &Layer { building: false, ..building });
        let isolated = self.options.isolated;
        let done = tokio::task::spawn_blocking(move || {
            if isolated { finish(&made, &finished) } else { fs::create_dir_all(finished) }
        });
        let done = done.await.map_err(std::io::Error::other).and_then(|done| done);
        done.map_err(|e| SandboxError::io("cannot keep what was installed", e))?;
        if !isolated {
            self.discard(&key.session).await?;
        }
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
        let layer = Layer::named(name.to_owned(), true);
        let made = layer_dir(&self.options.dir, &layer);
        let removed = tokio::task::spawn_blocking(move || remove_tree(&made)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(layer = name, %error, "cannot remove what an installation left behind");
        }
    }

    /// Removes layers that nobody wants any more, and those that an earlier server was making.
    pub(super) async fn clear_layers(self: &Arc<Self>) {
        let living = self.list().await.unwrap_or_default();
        for listed in living.iter().filter(|listed| listed.key.session.starts_with(BUILD)) {
            drop(self.end(&listed.key).await);
        }
        let dir = self.options.dir.join("layers");
        let cleared = tokio::task::spawn_blocking(move || {
            for path in unwanted(&dir) {
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a layer");
                }
            }
        });
        drop(cleared.await);
    }
}

fn unwanted(layers: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(layers) else { return Vec::new() };
    #[expect(clippy::disallowed_methods, reason = "the times of files are the system's")]
    let now = SystemTime::now();
    let old = |path: &PathBuf| {
        let used = fs::metadata(path.join(USED)).and_then(|meta| meta.modified());
        used.is_ok_and(|used| now.duration_since(used).is_ok_and(|since| since > UNUSED))
    };
    let unfinished = |path: &PathBuf| path.extension().is_some_and(|e| e == "building");
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| unfinished(path) || old(path)).collect()
}

/// What layers lie over: when the host's system changes, they are made anew.
pub(super) fn ground() -> BTreeMap<&'static str, String> {
    let of = |path: &str| fs::read_to_string(path).unwrap_or_default();
    BTreeMap::from([("os", of("/etc/os-release")), ("debian", of("/etc/debian_version"))])
}
