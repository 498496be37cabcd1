//! The local Linux engine: sandboxes by plain system calls, made by a launcher that outlives the server. The server's side of it.

mod config;
mod found;
mod layers;
mod post;
mod unsafe_host;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{LimitsMode, LocalConfig};
pub use unsafe_host::UnsafeHost;

use self::found::Found;
use crate::engine::{Engine, Line, Made, Order};
use crate::error::SandboxError;
use crate::files::{Files, make_private};
use crate::launcher::network::SOCKETS;
use crate::launcher::wire::{Answer, Ask, Listed};
use crate::launcher::{LeftOut, Options};
use crate::provider::{Habits, Provider, Walls, check_runs};
use crate::root;
use crate::seam::{
    Arrivals, Capabilities, Isolation, LimitsState, Networking, Quota, Sandbox, SandboxKey,
    SandboxSpec, Sockets, Uplink,
};

/// A sandbox has to be there, or refused, within this time.
const ENSURE_TIMEOUT: Duration = Duration::from_mins(1);
/// The same where files may have to be copied first.
const SEED_TIMEOUT: Duration = Duration::from_mins(11);
/// Killing a sandbox means waiting for everything in it.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);

/// Sandboxes on this Linux machine, walled in by namespaces, seccomp and cgroups.
pub type LocalProvider = Provider<Local>;

/// A launcher, and what it does for a server.
#[derive(Debug)]
pub struct Local {
    config: LocalConfig,
    options: Options,
    capabilities: Capabilities,
    files: Files,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// The launcher in use; another is found when this one is gone.
    launcher: tokio::sync::Mutex<Arc<Found>>,
    /// What layers lie over.
    ground: BTreeMap<String, String>,
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
        Self::begin(config, true, uplink).await
    }

    async fn begin(
        config: LocalConfig,
        isolated: bool,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Self, SandboxError> {
        let LocalConfig { idle_stop, spares, call_ceiling, .. } = config;
        let habits = Habits { idle_stop, spares, call_ceiling };
        Self::open(Local::open(config, isolated).await?, habits, uplink).await
    }
}

impl Local {
    async fn open(config: LocalConfig, isolated: bool) -> Result<Self, SandboxError> {
        let data = std::path::absolute(&config.data_dir)
            .map_err(|e| SandboxError::io("cannot find the data directory", e))?;
        let (dir, tasks) = (data.join("launcher"), TaskTracker::new());
        make_private(&dir)?;
        let files = Files::open(&data, &tasks)?;
        let mut ground = layers::ground();
        let mut root = None;
        if let Some(chosen) = config.root.clone().filter(|_| isolated) {
            let roots = dir.join("roots");
            let prepared = tokio::task::spawn_blocking(move || root::prepare(&chosen, &roots));
            let prepared = prepared.await.map_err(io::Error::other);
            let prepared = prepared
                .map_err(|e| SandboxError::io("cannot prepare the root file system", e))??;
            ground = BTreeMap::from([("root".to_owned(), prepared.name)]);
            root = Some(prepared.dir);
        }
        let options = Options {
            dir,
            workspaces: files.root().to_owned(),
            linger: config.linger,
            isolated,
            degraded: config.limits_mode == LimitsMode::Degraded || !isolated,
            root,
            left_out: LeftOut {
                #[cfg(feature = "attacks")]
                wall: config.left_out.clone(),
            },
        };
        let found = found::find(&config.launcher_exe, &options, &tasks).await?;
        let capabilities = Capabilities {
            name: if isolated { "local" } else { "unsafe-host" },
            isolation: if isolated { Isolation::Namespaces } else { Isolation::None },
            own_ids: isolated && rustix::process::geteuid().is_root(),
            limits: found.limits.map_or(LimitsState::Degraded, LimitsState::Enforced),
            quota: if found.disks { Quota::Hard } else { Quota::Soft },
            networking: if isolated { Networking::Controlled } else { Networking::Host },
            keeps_files: true,
            keeps_ready: isolated,
        };
        Ok(Self {
            config,
            options,
            capabilities,
            files,
            tasks,
            stopping: CancellationToken::new(),
            launcher: tokio::sync::Mutex::new(Arc::new(found)),
            ground,
        })
    }

    /// The launcher, found anew if the last one is gone.
    async fn launcher(&self) -> Result<Arc<Found>, SandboxError> {
        let mut launcher = self.launcher.lock().await;
        if !launcher.post.is_open() {
            if self.stopping.is_cancelled() {
                return Err(SandboxError::gone("the server is shutting down"));
            }
            tracing::warn!("the launcher is gone; looking for another");
            let found = found::find(&self.config.launcher_exe, &self.options, &self.tasks).await?;
            *launcher = Arc::new(found);
        }
        Ok(Arc::clone(&launcher))
    }
}

#[async_trait]
impl Engine for Local {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.image.is_some() {
            return Err(SandboxError::Invalid(format!(
                "the {} provider makes no sandboxes of images: its root file system is what the server was started with",
                self.capabilities.name
            )));
        }
        Ok(())
    }

    async fn prove(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
        if !self.options.isolated {
            return check_runs(sandbox).await;
        }
        let walls = Walls {
            host_mark: self.options.dir.clone(),
            own_root: self.options.root.is_some(),
            own_ids: self.capabilities.own_ids,
        };
        walls.check(sandbox).await
    }

    async fn create(&self, order: &Order<'_>) -> Result<Made, SandboxError> {
        // What the session begins with may have to be copied first.
        let patience = if order.layer.is_some() { SEED_TIMEOUT } else { ENSURE_TIMEOUT };
        let ask = Ask::Create {
            key: order.key.clone(),
            generation: order.generation,
            limits: order.limits,
            env: order.env.clone(),
            network: order.network,
            trust: order.trust.clone(),
            layer: order.layer.clone(),
        };
        match self.launcher().await?.post.ask(ask, patience).await {
            Ok((Answer::Stream { kept, .. }, descriptors)) => {
                Ok(line(kept, descriptors).map_or_else(Made::Not, Made::Line))
            }
            Ok((Answer::Absent { alive: Some(other) }, _)) => Ok(Made::Alive(other)),
            Ok((Answer::Failed { what, fix }, _)) => Err(SandboxError::Unavailable { what, fix }),
            Ok(_) => Ok(Made::Not(SandboxError::gone("the launcher does not keep it"))),
            Err(error @ SandboxError::Gone { .. }) => Ok(Made::Not(error)),
            Err(error) => Err(error),
        }
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        generation: u64,
    ) -> Result<Option<Line>, SandboxError> {
        let ask = Ask::Attach { key: key.clone(), generation };
        match self.launcher().await?.post.ask(ask, ENSURE_TIMEOUT).await? {
            (Answer::Stream { kept, .. }, descriptors) => line(kept, descriptors).map(Some),
            (Answer::Absent { .. }, _) => Ok(None),
            _ => Err(SandboxError::gone("the launcher does not keep it")),
        }
    }

    async fn give(&self, spare: &SandboxKey, to: &SandboxKey) -> Result<(), SandboxError> {
        let ask = Ask::Give { spare: spare.clone(), to: to.clone() };
        match self.launcher().await?.post.ask(ask, ENSURE_TIMEOUT).await? {
            (Answer::Done {}, _) => Ok(()),
            (Answer::Failed { what, fix }, _) => Err(SandboxError::Unavailable { what, fix }),
            _ => Err(SandboxError::gone("the launcher does not keep it")),
        }
    }

    async fn list(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let launcher = self.launcher().await?;
        let mut all: Vec<(SandboxKey, u64)> = Vec::new();
        loop {
            let after = all.last().map(|(key, _)| key.clone());
            match launcher.post.ask(Ask::List { after }, ENSURE_TIMEOUT).await? {
                (Answer::Listing { sandboxes, more }, _) => {
                    let none = sandboxes.is_empty();
                    let listed = |Listed { key, generation }| (key, generation);
                    all.extend(sandboxes.into_iter().map(listed));
                    if !more || none {
                        return Ok(all);
                    }
                }
                _ => return Err(SandboxError::gone("the launcher does not list its sandboxes")),
            }
        }
    }

    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        let launcher = self.launcher().await?;
        done(launcher.post.ask(Ask::Stop { key: key.clone() }, STOP_TIMEOUT).await)
    }

    async fn end_session(&self, session: &str) -> Result<(), SandboxError> {
        match self.launcher().await {
            Ok(launcher) => {
                let ask = Ask::StopSession { session: session.to_owned() };
                done(launcher.post.ask(ask, STOP_TIMEOUT).await)
            }
            // Without a launcher there are no sandboxes, but there may be files.
            Err(error) => {
                tracing::warn!(%error, "no launcher while a session is destroyed");
                Ok(())
            }
        }
    }

    fn files(&self) -> Option<&Files> {
        Some(&self.files)
    }

    fn counted(&self, session: &str) -> Option<PathBuf> {
        (!self.options.left_out.is("disks")).then(|| self.files.of(session))
    }

    fn workdir(&self, session: &str) -> String {
        if self.options.isolated {
            return "/workspace".to_owned();
        }
        self.files.of(session).join("workspace").display().to_string()
    }

    async fn ground(&self, _spec: &SandboxSpec) -> Result<BTreeMap<String, String>, SandboxError> {
        Ok(self.ground.clone())
    }

    async fn has_layer(&self, name: &str) -> bool {
        layers::has(&self.options.dir, name)
    }

    fn layer_counted(&self, name: &str) -> Option<PathBuf> {
        Some(layers::building(&self.options.dir, name))
    }

    async fn keep_layer(&self, key: &SandboxKey, name: &str) -> Result<(), SandboxError> {
        self.end(key).await?;
        let (dir, name) = (self.options.dir.clone(), name.to_owned());
        let isolated = self.options.isolated;
        let kept = tokio::task::spawn_blocking(move || layers::keep(&dir, &name, isolated)).await;
        let kept = kept.map_err(io::Error::other).and_then(|kept| kept);
        kept.map_err(|e| SandboxError::io("cannot keep what was installed", e))?;
        if isolated { Ok(()) } else { self.files.discard(&key.session).await }
    }

    async fn abandon_layer(&self, name: &str) {
        let (dir, name) = (self.options.dir.clone(), name.to_owned());
        drop(tokio::task::spawn_blocking(move || layers::abandon(&dir, &name)).await);
    }

    async fn clear_layers(&self) {
        let dir = self.options.dir.clone();
        drop(tokio::task::spawn_blocking(move || layers::clear(&dir)).await);
    }

    async fn shutdown(&self, linger: bool) {
        self.stopping.cancel();
        let launcher = Arc::clone(&*self.launcher.lock().await);
        if !linger && launcher.post.is_open() {
            found::quit(&launcher.post).await;
        }
        launcher.post.close();
    }
}

fn line(kept: Option<String>, descriptors: Vec<OwnedFd>) -> Result<Line, SandboxError> {
    let mut descriptors = descriptors.into_iter();
    let stream = descriptors.next();
    let stream = stream.ok_or_else(|| SandboxError::gone("the launcher sent no stream"))?;
    let sockets = <[OwnedFd; SOCKETS]>::try_from(descriptors.collect::<Vec<_>>()).ok();
    let arrivals = sockets.map(|sockets| Arrivals::Sockets(Sockets::from(sockets)));
    Line::over(UnixStream::from(stream), arrivals, kept)
        .map_err(|e| SandboxError::io("cannot use the sandbox's stream", e))
}

fn done(answer: Result<(Answer, Vec<OwnedFd>), SandboxError>) -> Result<(), SandboxError> {
    match answer {
        // A launcher that ended has taken its sandboxes along.
        Ok((Answer::Done {}, _)) | Err(SandboxError::Gone { .. }) => Ok(()),
        Ok(_) => Err(SandboxError::gone("the launcher gave no account of the sandbox")),
        Err(error) => Err(error),
    }
}
