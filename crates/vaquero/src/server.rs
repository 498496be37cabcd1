//! A running server: every part made, wired and, at the end, taken down in order.

use crate::{
    admin,
    compute::{compute, offers},
    config::{Config, Role},
    listen,
    operate::Operator,
    registries::registries,
    stores::Opened,
    uplink::Egress,
    vault_keys::VaultKeys,
};
use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc::unbounded_channel, task::JoinSet};
use tokio_util::sync::CancellationToken;
use vaquero_api::{App, ModelList, Parts, Rates, Settings, keys};
use vaquero_blob::Blobs;
use vaquero_model::{Anthropic, AnthropicConfig, ModelProvider, Unconfigured};
use vaquero_sandbox::ComputeProvider;
use vaquero_store::SharedStore;
use vaquero_types::{Clock, RandomIds, WorkspaceId};
use vaquero_worker::{Checkpoints, Worker, World};

/// How long requests and streams may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// A server that accepts requests.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// A key it has just made; shown nowhere else.
    pub(crate) new_key: Option<String>,
    /// Where commands run, if they run here.
    pub(crate) compute: Option<Arc<dyn ComputeProvider>>,
    /// What it is called among those that share its store.
    pub(crate) node: String,
    app: App,
    store: Arc<Opened>,
    drain: CancellationToken,
    stop_worker: CancellationToken,
    tasks: JoinSet<()>,
    worker: JoinSet<()>,
    linger: bool,
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

fn metrics() -> anyhow::Result<PrometheusHandle> {
    if let Some(handle) = METRICS.get() {
        return Ok(handle.clone());
    }
    let handle =
        PrometheusBuilder::new().install_recorder().context("metrics cannot be collected")?;
    Ok(METRICS.get_or_init(|| handle).clone())
}

/// The upstream model, or what stands in while there is none.
pub(crate) fn upstream(config: &Config) -> anyhow::Result<Arc<dyn ModelProvider>> {
    let Some(key) = &config.anthropic_api_key else {
        tracing::warn!(
            "no upstream model: set VAQUERO_ANTHROPIC_API_KEY (or ANTHROPIC_API_KEY); until then every turn ends with an error that says so"
        );
        return Ok(Arc::new(Unconfigured));
    };
    let provider = Anthropic::new(AnthropicConfig {
        base_url: config.anthropic_base_url.clone(),
        api_key: key.clone(),
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(300),
    });
    Ok(Arc::new(provider.context("the upstream model cannot be used")?))
}

/// Where workspaces are kept for when their machine is gone.
fn checkpoints(
    config: &Config,
    store: &SharedStore,
    clock: &Arc<dyn Clock>,
    node: &str,
) -> anyhow::Result<Checkpoints> {
    let mut blobs = config.blob_url.as_deref().map(Blobs::open).transpose().context("blob_url")?;
    let kept = config.workspace_history;
    if blobs.is_none() && config.database_url.is_none() && kept > 0 {
        // The only server needs no checkpoints to go on with, only forks do.
        blobs = Some(Blobs::directory(&config.data_dir.join("blobs")).context("data_dir")?);
    }
    if blobs.is_none() && config.database_url.is_some() {
        tracing::warn!(
            "no blob_url: workspaces stay on the server they are on; when it is gone for good, so are their files"
        );
    }
    Ok(Checkpoints::new(Arc::clone(store), blobs, Arc::clone(clock), node.to_owned(), kept))
}

impl Server {
    /// Makes every part and starts serving. With `linger` the sandboxes outlive the server for a while.
    pub(crate) async fn start(config: &Config, linger: bool) -> anyhow::Result<Self> {
        let render = metrics()?;
        let (store, node) = Opened::open(config).await?;
        let store = Arc::new(store);
        let (shared, live) = (store.store(), store.live());
        let (clock, ids) = (store.clock(), Arc::new(RandomIds));
        let new_key = first_key(config, shared.as_ref(), clock.as_ref()).await?;
        let vault = VaultKeys::open(config)?;
        let models = upstream(config)?;
        let compute = if config.role == Role::Api {
            None
        } else {
            let egress = Egress::new(config, Arc::clone(&shared), &vault, Arc::clone(&clock))?;
            Some(compute(config, egress).await?)
        };
        let (drain, stop_worker) = (CancellationToken::new(), CancellationToken::new());
        let (ended, ended_inbox) = unbounded_channel();
        let app = App::new(Parts {
            store: Arc::clone(&shared),
            live: Arc::clone(&live),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&ids) as _,
            keys: Arc::clone(&vault.keys),
            models: ModelList::new(Arc::clone(&models), config.models.clone()),
            ended,
            metrics: Arc::new(move || render.render()),
            drain: drain.clone(),
            settings: Settings {
                sandboxes: offers(config),
                work_lease: Duration::from_secs(config.work_lease_seconds),
                rates: Rates::preset(&config.rate_limits).unwrap_or_default(),
                ..Settings::default()
            },
        });
        let router = match config.role {
            Role::All | Role::Api => vaquero_api::router(app.clone()),
            Role::Worker => vaquero_api::worker_router(app.clone()),
        };
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {} (listen)", config.listen))?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(listen::serve(listener, router, app.clone(), drain.clone(), GRACE));
        let mut worker = JoinSet::new();
        if let Some(compute) = &compute {
            let checkpoints = checkpoints(config, &shared, &clock, &node)?;
            let world = World {
                store: shared,
                live,
                models,
                compute: Arc::clone(compute),
                checkpoints: Some(Arc::new(checkpoints)),
                limits: config.sandbox_limits(),
                registries: registries(config.package_registries.clone()),
                clock: Arc::clone(&clock),
                ids: Arc::clone(&ids) as _,
            };
            let operator = Operator::of_server(
                Arc::clone(&store),
                clock,
                ids,
                vault,
                app.clone(),
                world.clone(),
            );
            tasks.spawn(admin::serve(config.data_dir.clone(), operator, drain.clone()));
            let settings = vaquero_worker::Config {
                name: node.clone(),
                slots: config.turns,
                lease: Duration::from_secs(config.lease_seconds),
                limits: config.limits(),
                max_tokens: config.model_max_tokens,
                retention: config.retention(),
                warm_max: config.sandbox_warm_max,
                ..vaquero_worker::Config::default()
            };
            worker.spawn(Worker::new(world, settings).run(stop_worker.clone(), ended_inbox));
        }
        Ok(Self {
            address,
            new_key,
            compute,
            node,
            app,
            store,
            drain,
            stop_worker,
            tasks,
            worker,
            linger,
        })
    }

    /// Which sandboxes it has.
    pub(crate) fn sandbox(&self) -> &'static str {
        self.compute.as_ref().map_or("none", |compute| compute.capabilities().name)
    }

    /// Stops: turns are handed over, streams end, requests finish, sandboxes are let go, the store is closed.
    pub(crate) async fn stop(mut self) {
        self.drain.cancel();
        self.stop_worker.cancel();
        if tokio::time::timeout(GRACE, async { while self.worker.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            tracing::warn!(
                "some turns did not stop in time; they go on from the log at the next start"
            );
        }
        if tokio::time::timeout(GRACE, self.app.streams_ended()).await.is_err() {
            tracing::warn!("some streams did not end in time");
        }
        while self.tasks.join_next().await.is_some() {}
        if let Some(compute) = &self.compute {
            compute.shutdown(self.linger).await;
        }
        self.store.close().await;
    }
}

/// Accepts the configured key; without one, and without any key yet, makes one.
async fn first_key(
    config: &Config,
    store: &dyn vaquero_store::Store,
    clock: &dyn Clock,
) -> anyhow::Result<Option<String>> {
    if let Some(key) = &config.api_key {
        keys::accept(store, clock, &RandomIds, key)
            .await
            .context("VAQUERO_API_KEY cannot be used")?;
        return Ok(None);
    }
    if !keys::list(store).await?.is_empty() {
        return Ok(None);
    }
    let workspace = WorkspaceId::from_wire(keys::DEFAULT_WORKSPACE);
    let (key, _) = keys::create(store, clock, &RandomIds, &workspace).await?;
    Ok(Some(key))
}
