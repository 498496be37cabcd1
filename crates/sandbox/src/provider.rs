//! One provider for every engine: who gets which sandbox, what is kept from the server before, when idle ones end, what is installed once for all.

mod canary;
mod idle;
mod layers;
mod pool;
mod quota;
mod sandbox;
mod spec;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::canary::check_reaches_nothing;
pub use self::canary::{Walls, check_runs};

use self::layers::Layers;
use self::pool::{Kind, Pool};
use self::quota::Room;
use self::sandbox::{HandSandbox, WayOut};
use self::spec::{check_spec, variables};
use crate::connection::{Connection, LARGE_KIB, Shared};
use crate::engine::{BUILD, CANARY, Engine, Layer, Line, Made, Order, SPARE};
use crate::error::SandboxError;
use crate::seam::{
    Arrivals, Capabilities, ComputeProvider, Isolation, Limits, Networking, Outbound, PoolState,
    Quota, Reach, Sandbox, SandboxKey, SandboxSpec, Trust, Uplink, check_part,
};

/// How a provider treats its sandboxes.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// After how long without a call a sandbox is stopped; its files stay.
    pub idle_stop: Duration,
    /// How many sandboxes like the last one are kept ready for new sessions, where the engine can; none once nobody has asked for one for as long as an idle sandbox lives.
    pub spares: u32,
    /// The longest any call may take, queueing included; past it the sandbox is ended.
    pub call_ceiling: Duration,
}

/// Sandboxes of an engine.
#[derive(Debug)]
pub struct Provider<E> {
    inner: Arc<Inner<E>>,
}

impl<E> Clone for Provider<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<E> {
    engine: E,
    habits: Habits,
    uplink: Option<Arc<dyn Uplink>>,
    shared: Shared,
    stopping: CancellationToken,
    attached: Mutex<HashMap<SandboxKey, Arc<HandSandbox>>>,
    /// One at a time per session for everything that makes or ends its sandboxes.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    layers: Layers,
    pool: Pool,
    canaries: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Only plain maps are behind these locks, and no code panics while it holds one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Engine> Provider<E> {
    /// Proves the walls with a canary, and removes leftovers. Fails with [`SandboxError::Unavailable`], what is missing and how to get it.
    ///
    /// Without an `uplink` no sandbox can have a way out.
    pub async fn open(
        engine: E,
        habits: Habits,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Self, SandboxError> {
        let shared =
            Shared { tasks: TaskTracker::new(), large: Arc::new(Semaphore::new(LARGE_KIB)) };
        let inner = Inner {
            engine,
            habits,
            uplink,
            shared,
            stopping: CancellationToken::new(),
            attached: Mutex::default(),
            turns: Mutex::default(),
            layers: Layers::default(),
            pool: Pool::default(),
            canaries: AtomicU64::new(0),
        };
        let provider = Self { inner: Arc::new(inner) };
        if let Err(error) = provider.canary().await {
            provider.shutdown(true).await;
            return Err(error);
        }
        provider.inner.clear_layers().await;
        if provider.capabilities().keeps_ready {
            provider.inner.clear_spares().await;
            provider.watch(pool::watch(Arc::downgrade(&provider.inner)));
        }
        provider.watch(idle::watch(Arc::downgrade(&provider.inner)));
        if provider.capabilities().quota == Quota::Soft {
            provider.watch(quota::watch(Arc::downgrade(&provider.inner)));
        }
        Ok(provider)
    }

    fn watch(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.inner.stopping.clone();
        self.inner.shared.tasks.spawn(async move {
            stopping.run_until_cancelled(work).await;
        });
    }

    async fn canary(&self) -> Result<(), SandboxError> {
        let number = self.inner.canaries.fetch_add(1, Ordering::Relaxed);
        let session = format!("{CANARY}{}-{number}", std::process::id());
        let key = SandboxKey::default_of(&session);
        let limits = Limits { workspace_bytes: 1 << 20, tmp_bytes: 1 << 20, ..Limits::default() };
        let nothing = Outbound { reach: Reach::Limited(Vec::new()), vaults: None };
        let outbound = self.inner.uplink.is_some().then_some(nothing);
        let spec = SandboxSpec { outbound, ..SandboxSpec::new(1, 1, limits) };
        let proved = match self.ensure(&key, &spec).await {
            Ok(sandbox) => self.inner.engine.prove(sandbox.as_ref()).await,
            Err(error) => Err(error),
        };
        let destroyed = self.destroy(&session).await;
        proved.and(destroyed)
    }
}

impl<E: Engine> Inner<E> {
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
    fn known(&self, key: &SandboxKey, generation: u64) -> Option<Arc<HandSandbox>> {
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

    /// Takes over a line to a hand: greets it and watches over it.
    async fn adopt(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
        line: Line,
    ) -> Result<Arc<HandSandbox>, SandboxError> {
        let Line { read, write, arrivals, kept } = line;
        let connection = Arc::new(Connection::open(read, write, &self.shared));
        let way_out = self.way_out(key, spec, kept.as_deref(), arrivals)?;
        let sandbox = Arc::new(HandSandbox {
            provider: self.engine.capabilities().name,
            generation: spec.generation,
            room: Room::of(&spec.limits),
            connection,
            call_ceiling: self.habits.call_ceiling,
            way_out,
        });
        sandbox.greet(spec).await?;
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

    /// Has what a sandbox sends served, for as long as the value lives.
    fn way_out(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
        kept: Option<&str>,
        arrivals: Option<Arrivals>,
    ) -> Result<Option<WayOut>, SandboxError> {
        let (Some(uplink), Some(outbound)) = (&self.uplink, &spec.outbound) else {
            return Ok(None);
        };
        // One that was made without a network reaches nothing, as it always has.
        let Some(arrivals) = arrivals else { return Ok(None) };
        let over = CancellationToken::new();
        let served = uplink.serve(key, outbound, kept, arrivals, over.clone());
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
        self.engine.end(key).await
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        check_part("session", session)?;
        let _turn = self.turn(session).await;
        self.forget(|k| k.session == session, "its session was deleted");
        self.engine.end_session(session).await?;
        self.engine.discard(session).await
    }

    async fn ensure(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<HandSandbox>, SandboxError> {
        key.check()?;
        check_spec(spec)?;
        self.engine.check(spec)?;
        let capabilities = self.engine.capabilities();
        let walled = capabilities.isolation != Isolation::None;
        if spec.outbound.is_some() && walled && self.uplink.is_none() {
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
    ) -> Result<Arc<HandSandbox>, SandboxError> {
        let _turn = self.turn(&key.session).await;
        if let Some(sandbox) = self.known(key, spec.generation) {
            return Ok(sandbox);
        }
        let (started, _waiting) = (Instant::now(), self.pool.wait());
        let kind = Kind::of(spec, layer.clone()).filter(|_| is_a_sessions(key));
        let given = match &kind {
            Some(kind) => self.given(kind, key, spec).await,
            None => None,
        };
        let was_ready = given.is_some();
        let sandbox = match given {
            Some(sandbox) => sandbox,
            None => self.make(key, spec, layer).await?,
        };
        if let Some(kind) = kind {
            self.measure(&kind, was_ready, started.elapsed());
            self.expect_another(kind);
        }
        Ok(sandbox)
    }

    /// A sandbox that was ready.
    async fn given(
        self: &Arc<Self>,
        kind: &Kind,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Option<Arc<HandSandbox>> {
        let line = self.claim(kind, key).await?;
        match self.adopt(key, spec, line).await {
            Ok(sandbox) => Some(sandbox),
            Err(error) => {
                tracing::warn!(%key, %error, "a sandbox that was ready does not answer");
                self.end_spare(key).await;
                None
            }
        }
    }

    async fn make(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
        layer: Option<Layer>,
    ) -> Result<Arc<HandSandbox>, SandboxError> {
        let mut last = SandboxError::gone("nothing keeps it alive");
        let secrets = spec.outbound.as_ref().is_some_and(|outbound| outbound.vaults.is_some());
        let trust = self.authority(secrets)?;
        let env = variables(spec);
        let order = order(key, spec, &env, trust, layer);
        for _ in 0..4 {
            match self.engine.create(&order).await? {
                Made::Line(line) => match self.adopt(key, spec, line).await {
                    Ok(sandbox) => return Ok(sandbox),
                    Err(SandboxError::StaleFence) => return Err(SandboxError::StaleFence),
                    Err(error) => {
                        last = error;
                        self.end(key).await?;
                    }
                },
                Made::Alive(other) if other > spec.generation => {
                    return Err(SandboxError::StaleFence);
                }
                Made::Alive(_) => self.end(key).await?,
                Made::Not(error) => last = error,
            }
        }
        Err(last)
    }

    /// An authority for one more sandbox, if that is to have the use of secrets.
    fn authority(&self, secrets: bool) -> Result<Option<Trust>, SandboxError> {
        let uplink = self.uplink.as_ref().filter(|_| secrets);
        let made = uplink.map(|uplink| uplink.authority()).transpose();
        made.map_err(|e| SandboxError::io("cannot make an authority", e))
    }

    async fn attach(
        self: &Arc<Self>,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<HandSandbox>>, SandboxError> {
        let generation = spec.generation;
        key.check()?;
        let _turn = self.turn(&key.session).await;
        if let Some(sandbox) = self.known(key, generation) {
            return Ok(Some(sandbox));
        }
        for _ in 0..3 {
            match self.engine.attach(key, generation).await {
                Ok(Some(line)) => match self.adopt(key, spec, line).await {
                    Ok(sandbox) => return Ok(Some(sandbox)),
                    Err(SandboxError::StaleFence) => return Err(SandboxError::StaleFence),
                    Err(error) => tracing::warn!(%key, %error, "a sandbox does not answer"),
                },
                Ok(None) => return Ok(None),
                Err(SandboxError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // It is there and cannot be spoken to: nobody will ever learn what it did.
        self.end(key).await?;
        Ok(None)
    }
}

/// Whether it is a session's, and not one of the provider's own.
fn is_a_sessions(key: &SandboxKey) -> bool {
    ![CANARY, BUILD, SPARE].iter().any(|own| key.session.starts_with(own))
}

fn order<'a>(
    key: &'a SandboxKey,
    spec: &'a SandboxSpec,
    env: &'a BTreeMap<String, String>,
    trust: Option<Trust>,
    layer: Option<Layer>,
) -> Order<'a> {
    Order {
        key,
        generation: spec.generation,
        limits: spec.limits,
        env,
        network: spec.outbound.is_some(),
        trust,
        layer,
        image: spec.image.as_deref(),
    }
}

#[async_trait]
impl<E: Engine> ComputeProvider for Provider<E> {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.engine.capabilities();
        let led = matches!(capabilities.networking, Networking::Controlled | Networking::Proxied);
        if self.inner.uplink.is_none() && led {
            capabilities.networking = Networking::None;
        }
        capabilities
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        check_spec(spec)?;
        let capabilities = self.inner.engine.capabilities();
        if spec.pool.is_some() && !capabilities.keeps_ready {
            return Err(SandboxError::Invalid(format!(
                "sandboxes of the {} provider cannot be made before they are wanted: the environment's `warm_pool` has to go",
                capabilities.name
            )));
        }
        self.inner.engine.check(spec)
    }

    fn prepare(&self, spec: &SandboxSpec) {
        if spec.provision.is_some() {
            self.inner.prepare(spec);
            return;
        }
        let first = SandboxSpec { generation: 1, ..spec.clone() };
        if let (Some(kind), Ok(())) = (Kind::of(&first, None), self.check(spec)) {
            self.inner.expect_another(kind);
        }
    }

    fn keep_warm(&self, pools: Vec<SandboxSpec>) {
        if self.inner.engine.capabilities().keeps_ready {
            let sound = pools.into_iter().filter(|spec| match self.check(spec) {
                Ok(()) => true,
                Err(error) => {
                    let pool = spec.pool.as_ref().map(|pool| &pool.name);
                    tracing::warn!(?pool, %error, "a warm pool cannot be filled");
                    false
                }
            });
            self.inner.pool.keep(sound.collect());
        }
    }

    fn pools(&self) -> Vec<PoolState> {
        self.inner.pool.states()
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

    async fn pause(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        key.check()?;
        let _turn = self.inner.turn(&key.session).await;
        let known = lock(&self.inner.attached).get(key).cloned();
        if known.is_some_and(|sandbox| sandbox.connection.idle().is_none()) {
            return Err(SandboxError::Refused("a call runs in it".to_owned()));
        }
        self.inner.engine.pause(key).await?;
        self.inner.forget(|other| other == key, "it was paused");
        Ok(())
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        self.inner.destroy(session).await
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let mut living = self.inner.engine.list().await?;
        living.retain(|(key, _)| !key.session.starts_with(SPARE));
        Ok(living)
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        let living = self.inner.engine.list().await?.into_iter().map(|(key, _)| key.session);
        let with_files = self.inner.engine.with_files().await?;
        let all = living.chain(with_files);
        let own = |name: &String| name.starts_with(BUILD) || name.starts_with(SPARE);
        Ok(all.filter(|session| !own(session)).collect())
    }

    async fn has_workspace(&self, session: &str) -> bool {
        check_part("session", session).is_ok() && self.inner.engine.has_files(session).await
    }

    async fn shutdown(&self, linger: bool) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.forget(|_| true, "the server is shutting down");
        // They hold nothing that anybody could miss.
        inner.end_spares().await;
        inner.engine.shutdown(linger).await;
    }
}
