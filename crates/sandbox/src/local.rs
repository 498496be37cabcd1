//! The local Linux provider: sandboxes by plain system calls, made by a launcher that outlives the server.
//! The server's side of it: who gets which sandbox, when idle ones end, what is left on disk.

mod canary;
mod config;
mod found;
mod idle;
mod layers;
mod post;
mod quota;
mod sandbox;
mod spec;
mod unsafe_host;
mod workspaces;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{LimitsMode, LocalConfig};
pub use unsafe_host::UnsafeHost;

use self::found::Found;
use self::layers::Layers;
use self::quota::Room;
use self::sandbox::{LocalSandbox, WayOut};
use self::spec::{check_spec, variables};
use crate::connection::{Connection, LARGE_KIB, Shared};
use crate::error::SandboxError;
use crate::launcher::wire::{Answer, Ask, Layer, Listed, SparesWanted};
use crate::launcher::{LeftOut, Options};
use crate::root;
use crate::seam::{
    Capabilities, ComputeProvider, Isolation, Limits, LimitsState, Networking, Outbound, Quota,
    Reach, Sandbox, SandboxKey, SandboxSpec, Sockets, Uplink, check_part,
};

/// A sandbox has to be there, or refused, within this time.
const ENSURE_TIMEOUT: Duration = Duration::from_mins(1);
/// The same where files may have to be copied first.
const SEED_TIMEOUT: Duration = Duration::from_mins(11);
/// Killing a sandbox means waiting for everything in it.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// Session ids beginning so are the provider's own.
const CANARY: &str = "canary-";
/// Those of sandboxes that make layers.
const BUILD: &str = "build-";

/// Sandboxes on this Linux machine, walled in by namespaces, seccomp and cgroups.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LocalConfig,
    options: Options,
    uplink: Option<Arc<dyn Uplink>>,
    capabilities: Capabilities,
    trash: PathBuf,
    shared: Shared,
    stopping: CancellationToken,
    /// The launcher in use; another is found when this one is gone.
    launcher: tokio::sync::Mutex<Arc<Found>>,
    attached: Mutex<HashMap<SandboxKey, Arc<LocalSandbox>>>,
    /// One at a time per session for everything that makes or ends its sandboxes.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    layers: Layers,
    /// What layers lie over.
    ground: BTreeMap<&'static str, String>,
    discarded: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Only plain maps are behind these locks, and no code panics while it holds one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalProvider {
    /// Starts or re-adopts the launcher, proves the walls with a canary, and removes leftovers.
    /// Fails with [`SandboxError::Unavailable`], what is missing and how to get it.
    ///
    /// Without an `uplink` no sandbox can have a way out.
    pub async fn start(
        config: LocalConfig,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Self, SandboxError> {
        Self::open(config, true, uplink).await
    }

    async fn open(
        config: LocalConfig,
        isolated: bool,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Self, SandboxError> {
        let inner = Inner::open(config, isolated, uplink).await?;
        let provider = Self { inner: Arc::new(inner) };
        if let Err(error) = provider.canary().await {
            provider.shutdown(true).await;
            return Err(error);
        }
        provider.inner.clear_layers().await;
        let idle = idle::watch(Arc::downgrade(&provider.inner));
        let stopping = provider.inner.stopping.clone();
        provider.inner.shared.tasks.spawn(async move {
            stopping.run_until_cancelled(idle).await;
        });
        let counted = !provider.inner.options.left_out.is("disks");
        if counted && provider.inner.capabilities.quota == Quota::Soft {
            let counting = quota::watch(Arc::downgrade(&provider.inner));
            let stopping = provider.inner.stopping.clone();
            provider.inner.shared.tasks.spawn(async move {
                stopping.run_until_cancelled(counting).await;
            });
        }
        Ok(provider)
    }

    async fn canary(&self) -> Result<(), SandboxError> {
        let number = self.inner.discarded.fetch_add(1, Ordering::Relaxed);
        let session = format!("{CANARY}{}-{number}", std::process::id());
        let key = SandboxKey::default_of(&session);
        let limits = Limits { workspace_bytes: 1 << 20, tmp_bytes: 1 << 20, ..Limits::default() };
        let nothing = Outbound { reach: Reach::Limited(Vec::new()), vaults: None };
        let outbound = self.inner.uplink.is_some().then_some(nothing);
        let env = BTreeMap::new();
        let spec = SandboxSpec {
            generation: 1,
            epoch: 1,
            limits,
            env,
            outbound,
            provision: None,
            restored: false,
        };
        let checked = match self.ensure(&key, &spec).await {
            Ok(sandbox) if self.inner.options.isolated => {
                let chosen = self.inner.options.root.is_some();
                canary::check(&*sandbox, &self.inner.options.dir, chosen).await
            }
            Ok(sandbox) => canary::check_runs(&*sandbox).await,
            Err(error) => Err(error),
        };
        let destroyed = self.destroy(&session).await;
        checked.and(destroyed)
    }
}

impl Inner {
    async fn open(
        config: LocalConfig,
        isolated: bool,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Self, SandboxError> {
        let data = std::path::absolute(&config.data_dir)
            .map_err(|e| SandboxError::io("cannot find the data directory", e))?;
        let (dir, workspaces, trash) =
            (data.join("launcher"), data.join("workspaces"), data.join("trash"));
        for private in [&dir, &workspaces, &trash] {
            make_private(private)
                .map_err(|e| SandboxError::io(format!("cannot make {}", private.display()), e))?;
        }
        let mut ground = layers::ground();
        let mut root = None;
        if let Some(chosen) = config.root.clone().filter(|_| isolated) {
            let roots = dir.join("roots");
            let prepared = tokio::task::spawn_blocking(move || root::prepare(&chosen, &roots));
            let prepared = prepared.await.map_err(io::Error::other);
            let prepared = prepared
                .map_err(|e| SandboxError::io("cannot prepare the root file system", e))??;
            ground = BTreeMap::from([("root", prepared.name)]);
            root = Some(prepared.dir);
        }
        let options = Options {
            dir,
            workspaces,
            linger: config.linger,
            isolated,
            degraded: config.limits_mode == LimitsMode::Degraded || !isolated,
            root,
            left_out: LeftOut {
                #[cfg(feature = "attacks")]
                wall: config.left_out.clone(),
            },
        };
        let shared =
            Shared { tasks: TaskTracker::new(), large: Arc::new(Semaphore::new(LARGE_KIB)) };
        let found = found::find(&config.launcher_exe, &options, &shared.tasks).await?;
        let capabilities = Capabilities {
            name: if isolated { "local" } else { "unsafe-host" },
            isolation: if isolated { Isolation::Namespaces } else { Isolation::None },
            limits: found.limits.map_or(LimitsState::Degraded, LimitsState::Enforced),
            quota: if found.disks { Quota::Hard } else { Quota::Soft },
            networking: match (isolated, &uplink) {
                (false, _) => Networking::Host,
                (true, None) => Networking::None,
                (true, Some(_)) => Networking::Controlled,
            },
        };
        let inner = Self {
            config,
            options,
            uplink,
            capabilities,
            trash,
            shared,
            stopping: CancellationToken::new(),
            launcher: tokio::sync::Mutex::new(Arc::new(found)),
            attached: Mutex::default(),
            turns: Mutex::default(),
            layers: Layers::default(),
            ground,
            discarded: AtomicU64::new(0),
        };
        inner.empty_trash();
        Ok(inner)
    }

    /// The launcher, found anew if the last one is gone.
    async fn launcher(&self) -> Result<Arc<Found>, SandboxError> {
        let mut launcher = self.launcher.lock().await;
        if !launcher.post.is_open() {
            if self.stopping.is_cancelled() {
                return Err(SandboxError::gone("the server is shutting down"));
            }
            tracing::warn!("the launcher is gone; looking for another");
            let found =
                found::find(&self.config.launcher_exe, &self.options, &self.shared.tasks).await?;
            *launcher = Arc::new(found);
        }
        Ok(Arc::clone(&launcher))
    }

    /// How many spares there are to be, and for how long.
    fn spares_wanted(&self) -> SparesWanted {
        let idle_ms = u64::try_from(self.config.idle_stop.as_millis()).unwrap_or(u64::MAX);
        SparesWanted { count: self.config.spares, idle_ms }
    }

    /// Has a spare made while whoever will want it still thinks. Sandboxes with secrets have an authority of their own, and no spares.
    fn have_ready(self: &Arc<Self>, spec: &SandboxSpec) {
        let secrets = spec.outbound.as_ref().is_some_and(|outbound| outbound.vaults.is_some());
        if secrets || !self.options.isolated || check_spec(spec).is_err() {
            return;
        }
        let ask = Ask::Ready {
            limits: spec.limits,
            env: variables(spec),
            network: spec.outbound.is_some(),
            layer: None,
            spares: self.spares_wanted(),
        };
        let inner = Arc::clone(self);
        self.shared.tasks.spawn(async move {
            // Without a spare, the sandbox is made when it is wanted.
            if let Ok(launcher) = inner.launcher().await {
                drop(launcher.post.ask(ask, ENSURE_TIMEOUT).await);
            }
        });
    }

    /// Waits for this session's turn.
    async fn turn(&self, session: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(session.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    /// A sandbox that this server already talks to.
    fn known(&self, key: &SandboxKey, generation: u64) -> Option<Arc<LocalSandbox>> {
        let mut attached = lock(&self.attached);
        let sandbox = attached.get(key)?;
        if !sandbox.connection.is_open() {
            attached.remove(key);
            return None;
        }
        (sandbox.generation == generation).then(|| Arc::clone(sandbox))
    }

    fn forget(&self, which: impl Fn(&SandboxKey) -> bool, why: &str) {
        lock(&self.attached).retain(|key, sandbox| {
            let forgotten = which(key);
            if forgotten {
                sandbox.connection.close(why);
            }
            !forgotten
        });
    }

    /// Takes over a stream to a sandbox: greets it and watches over it.
    async fn adopt(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
        kept: Option<&str>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Arc<LocalSandbox>, SandboxError> {
        let mut descriptors = descriptors.into_iter();
        let stream = descriptors.next();
        let stream = stream.ok_or_else(|| SandboxError::gone("the launcher sent no stream"))?;
        let connection = Arc::new(Connection::open(stream, &self.shared)?);
        let way_out = self.way_out(key, spec, kept, descriptors.collect())?;
        let sandbox = Arc::new(LocalSandbox {
            generation: spec.generation,
            room: Room::of(&spec.limits),
            connection,
            call_ceiling: self.config.call_ceiling,
            way_out,
        });
        sandbox.greet(spec.epoch).await?;
        lock(&self.attached).insert(key.clone(), Arc::clone(&sandbox));
        let (inner, key) = (Arc::downgrade(self), key.clone());
        let (ended, watched) = (sandbox.connection.ended(), Arc::downgrade(&sandbox));
        self.shared.tasks.spawn(async move {
            ended.await;
            let (Some(inner), Some(watched)) = (inner.upgrade(), watched.upgrade()) else { return };
            lock(&inner.attached).retain(|_, other| !Arc::ptr_eq(other, &watched));
            if watched.connection.is_broken() {
                inner.cut_off(&key, watched.generation).await;
            }
        });
        Ok(sandbox)
    }

    /// Has the sockets of a sandbox served, for as long as the value lives.
    fn way_out(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
        kept: Option<&str>,
        sockets: Vec<OwnedFd>,
    ) -> Result<Option<WayOut>, SandboxError> {
        let (Some(uplink), Some(outbound)) = (&self.uplink, &spec.outbound) else {
            return Ok(None);
        };
        let Ok([proxy, catch_all, names]) = <[OwnedFd; 3]>::try_from(sockets) else {
            // One that was made without a network: it reaches nothing, as it always has.
            return Ok(None);
        };
        let sockets =
            Sockets { proxy: proxy.into(), catch_all: catch_all.into(), names: names.into() };
        let over = CancellationToken::new();
        let served = uplink.serve(key, outbound, kept, sockets, over.clone());
        let meter =
            served.map_err(|e| SandboxError::io("cannot serve the sandbox's network", e))?;
        Ok(Some(WayOut { meter, _until: over.drop_guard() }))
    }

    /// Ends a sandbox whose hand cannot be trusted any more.
    async fn cut_off(&self, key: &SandboxKey, generation: u64) {
        let _turn = self.turn(&key.session).await;
        let replaced = lock(&self.attached).get(key).is_some_and(|s| s.generation != generation);
        if replaced {
            return;
        }
        if let Err(error) = self.end(key).await {
            tracing::warn!(%key, %error, "cannot end a broken sandbox");
        }
    }

    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        self.forget(|k| k == key, "it was stopped");
        let launcher = self.launcher().await?;
        done(launcher.post.ask(Ask::Stop { key: key.clone() }, STOP_TIMEOUT).await)
    }

    async fn ensure(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<LocalSandbox>, SandboxError> {
        key.check()?;
        check_spec(spec)?;
        if spec.outbound.is_some() && self.options.isolated && self.uplink.is_none() {
            return Err(SandboxError::Invalid("this provider has no way out".to_owned()));
        }
        if let Some(sandbox) = self.known(key, spec.generation) {
            return Ok(sandbox);
        }
        let layer = self.layer(spec).await?;
        self.create(key, spec, layer).await
    }

    /// Makes a sandbox, or connects to it if exactly this one is there.
    async fn create(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
        layer: Option<Layer>,
    ) -> Result<Arc<LocalSandbox>, SandboxError> {
        let _turn = self.turn(&key.session).await;
        if let Some(sandbox) = self.known(key, spec.generation) {
            return Ok(sandbox);
        }
        let mut last = SandboxError::gone("the launcher does not keep it");
        let secrets = spec.outbound.as_ref().is_some_and(|outbound| outbound.vaults.is_some());
        let trust = match &self.uplink {
            Some(uplink) if secrets => {
                let made = uplink.authority();
                Some(made.map_err(|e| SandboxError::io("cannot make an authority", e))?)
            }
            _ => None,
        };
        // What the session begins with may have to be copied first.
        let patience = if layer.is_some() { SEED_TIMEOUT } else { ENSURE_TIMEOUT };
        let own = key.session.starts_with(CANARY) || key.session.starts_with(BUILD);
        for _ in 0..4 {
            let launcher = self.launcher().await?;
            let ask = Ask::Create {
                key: key.clone(),
                generation: spec.generation,
                limits: spec.limits,
                env: variables(spec),
                network: spec.outbound.is_some(),
                trust: trust.clone(),
                // What a sandbox with secrets is like is not what the next one is like.
                spares: (!secrets && !own).then(|| self.spares_wanted()),
                layer: layer.clone(),
            };
            match launcher.post.ask(ask, patience).await {
                Ok((Answer::Stream { kept, .. }, descriptors)) => {
                    match self.adopt(key, spec, kept.as_deref(), descriptors).await {
                        Ok(sandbox) => return Ok(sandbox),
                        Err(SandboxError::StaleFence) => return Err(SandboxError::StaleFence),
                        Err(error) => last = error,
                    }
                    self.end(key).await?;
                }
                Ok((Answer::Absent { alive: Some(other) }, _)) if other > spec.generation => {
                    return Err(SandboxError::StaleFence);
                }
                Ok((Answer::Absent { alive: Some(_) }, _)) => self.end(key).await?,
                Ok((Answer::Failed { what, fix }, _)) => {
                    return Err(SandboxError::Unavailable { what, fix });
                }
                Ok(_) => {}
                Err(error @ SandboxError::Gone { .. }) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn attach(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<LocalSandbox>>, SandboxError> {
        let generation = spec.generation;
        key.check()?;
        let _turn = self.turn(&key.session).await;
        if let Some(sandbox) = self.known(key, generation) {
            return Ok(Some(sandbox));
        }
        for _ in 0..3 {
            let launcher = self.launcher().await?;
            let ask = Ask::Attach { key: key.clone(), generation };
            match launcher.post.ask(ask, ENSURE_TIMEOUT).await {
                Ok((Answer::Stream { kept, .. }, descriptors)) => {
                    match self.adopt(key, spec, kept.as_deref(), descriptors).await {
                        Ok(sandbox) => return Ok(Some(sandbox)),
                        Err(SandboxError::StaleFence) => return Err(SandboxError::StaleFence),
                        Err(error) => tracing::warn!(%key, %error, "a sandbox does not answer"),
                    }
                }
                Ok((Answer::Absent { .. }, _)) => return Ok(None),
                Ok(_) | Err(SandboxError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // It is there and cannot be spoken to: nobody will ever learn what it did.
        self.end(key).await?;
        Ok(None)
    }
}

fn done(answer: Result<(Answer, Vec<OwnedFd>), SandboxError>) -> Result<(), SandboxError> {
    match answer {
        // A launcher that ended has taken its sandboxes along.
        Ok((Answer::Done {}, _)) | Err(SandboxError::Gone { .. }) => Ok(()),
        Ok(_) => Err(SandboxError::gone("the launcher gave no account of the sandbox")),
        Err(error) => Err(error),
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

#[async_trait]
impl ComputeProvider for LocalProvider {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities.clone()
    }

    fn prepare(&self, spec: &SandboxSpec) {
        if spec.provision.is_some() {
            self.inner.prepare(spec);
        } else {
            self.inner.have_ready(spec);
        }
    }

    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        Ok(self.inner.ensure(key, spec).await?)
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        let attached = self.inner.attach(key, spec).await?;
        Ok(attached.map(|sandbox| sandbox as Arc<dyn Sandbox>))
    }

    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        key.check()?;
        let _turn = self.inner.turn(&key.session).await;
        self.inner.end(key).await
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        self.inner.destroy(session).await
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let listed = self.inner.list().await?.into_iter();
        Ok(listed.map(|Listed { key, generation }| (key, generation)).collect())
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        self.inner.sessions().await
    }

    async fn has_workspace(&self, session: &str) -> bool {
        check_part("session", session).is_ok()
            && self.inner.options.workspaces.join(session).is_dir()
    }

    async fn shutdown(&self, linger: bool) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.forget(|_| true, "the server is shutting down");
        let launcher = Arc::clone(&*inner.launcher.lock().await);
        if !linger && launcher.post.is_open() {
            found::quit(&launcher.post).await;
        }
        launcher.post.close();
    }
}
