//! The engine of a Docker daemon: which containers there are, how each is made, found again and ended.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, SystemInfo, SystemInfoCgroupVersionEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker as Client};
use futures::StreamExt;
use vaquero_sandbox::container::{Place, WayOut};
use vaquero_sandbox::{
    Capabilities, Engine, Files, Isolation, LimitsBy, LimitsState, Line, Made, Networking, Order,
    Quota, Sandbox, SandboxError, SandboxKey, SandboxSpec, Walls, check_runs,
};

use crate::config::DockerConfig;
use crate::container::{GENERATION, OWNER, Parts, body, key_of, name};
use crate::errors::{failed, is_conflict, is_missing};
use crate::images::{self, Layers};

/// How long the engine may take for one answer, in seconds.
const ANSWER: u64 = 120;
/// How long a hand may take to call once its container runs.
const CALL: Duration = Duration::from_secs(30);
/// How often the end of a container is looked for, and how long between.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(50);

/// A Docker engine, and what a server has there.
#[derive(Debug)]
pub struct Docker {
    client: Client,
    config: DockerConfig,
    capabilities: Capabilities,
    /// Its containers' ids are others outside.
    remapped: bool,
    place: Place,
    layers: Layers,
}

impl Docker {
    pub(crate) async fn open(mut config: DockerConfig) -> Result<Self, SandboxError> {
        let client = connect(&config.host).await?;
        let asked = client.info().await;
        let info =
            asked.map_err(|error| failed("cannot ask the Docker engine what it can do", &error))?;
        let capabilities = capabilities(&info, &config)?;
        config.data_dir = std::path::absolute(&config.data_dir)
            .map_err(|e| SandboxError::io("cannot find the data directory", e))?;
        let dir = config.data_dir.join(capabilities.name);
        let root = remapped(&info);
        let place = Place::open(&dir, &config.hand_exe, root).await?;
        let layers = Layers::new(dir.join("layers"), place.owner());
        let remapped = root.is_some();
        let docker = Self { client, config, capabilities, remapped, place, layers };
        docker.clear().await?;
        Ok(docker)
    }

    /// Removes containers that have ended, and what is left of those that are gone.
    async fn clear(&self) -> Result<(), SandboxError> {
        let mut living = Vec::new();
        for container in self.containers().await? {
            let Some((key, _)) = identity(&container) else { continue };
            if runs(&container) {
                living.push(key);
            } else {
                self.remove(&name(self.place.owner(), &key)).await?;
            }
        }
        self.place.forget_all_but(&living);
        Ok(())
    }

    /// The containers of one session, or all, with their generations.
    async fn identities(
        &self,
        session: Option<&str>,
        running: bool,
    ) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let all = self.containers().await?;
        let all = all.iter().filter(|container| !running || runs(container));
        let theirs = |key: &SandboxKey| session.is_none_or(|session| key.session == session);
        Ok(all.filter_map(identity).filter(|(key, _)| theirs(key)).collect())
    }

    /// Its containers, ended ones too.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, SandboxError> {
        let labels = vec![format!("{OWNER}={}", self.place.owner())];
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.client.list_containers(Some(options)).await;
        listed.map_err(|error| failed("cannot list containers", &error))
    }

    async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, SandboxError> {
        match self.client.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("cannot look at a container", &error)),
        }
    }

    /// Removes a container with everything that runs in it, and waits until it is gone.
    async fn remove(&self, name: &str) -> Result<(), SandboxError> {
        for _ in 0..TRIES {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match self.client.remove_container(name, Some(options)).await {
                Ok(()) => return Ok(()),
                Err(error) if is_missing(&error) => return Ok(()),
                // Somebody else is at it.
                Err(error) if is_conflict(&error) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(failed("cannot remove a container", &error)),
            }
        }
        Err(SandboxError::gone("the Docker engine does not come to an end with its container"))
    }

    fn runtime_is_a_kernel(&self) -> bool {
        self.capabilities.isolation == Isolation::Kernel
    }

    /// A socket of gVisor's own network cannot be handed to another process.
    fn way_out(&self, network: bool) -> WayOut {
        match (network, self.runtime_is_a_kernel()) {
            // A proxy that nobody serves is no way out.
            (_, true) => WayOut::Forwarded,
            (false, false) => WayOut::None,
            (true, false) => WayOut::Sockets,
        }
    }

    /// Connects to a container that is there.
    async fn connect(
        &self,
        key: &SandboxKey,
        generation: u64,
    ) -> Result<Option<Line>, SandboxError> {
        let name = name(self.place.owner(), key);
        let Some(found) = self.inspect(&name).await? else { return Ok(None) };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        if labels.get(GENERATION) != Some(&generation.to_string()) {
            return Ok(None);
        }
        let state = found.state.unwrap_or_default();
        match state.status {
            Some(ContainerStateStatusEnum::RUNNING) => {}
            Some(ContainerStateStatusEnum::PAUSED) => {
                let woken = self.client.unpause_container(&name).await;
                woken.map_err(|error| failed("cannot wake a container", &error))?;
            }
            _ => return Ok(None),
        }
        let port = self.place.port(key, self.way_out(true))?;
        let kept = self.place.kept(key);
        let hand = state.pid.and_then(|pid| i32::try_from(pid).ok());
        // For a kernel of its own, that kernel's process speaks.
        let hand = hand.filter(|pid| *pid != 0 && !self.runtime_is_a_kernel());
        port.line(hand, kept, CALL).await.map(Some)
    }

    /// Makes a container and waits for its hand.
    async fn start(&self, order: &Order<'_>) -> Result<Made, SandboxError> {
        let image = match &order.layer {
            Some(layer) if !layer.building => self.layers.image(&layer.name),
            _ => {
                let image = order.image.unwrap_or(&self.config.image);
                images::find(&self.client, image).await?;
                image.to_owned()
            }
        };
        let seeds = order.layer.as_ref().filter(|layer| layer.workspace && !layer.building);
        let seeds = seeds.map(|layer| self.layers.seeds(&layer.name));
        let parts = Parts {
            owner: self.place.owner(),
            image: &image,
            kit: self.place.kit(),
            mounts: self.place.make_ready(order, seeds).await?,
            runtime: self.config.runtime.as_deref(),
            own_kernel: self.runtime_is_a_kernel(),
            way_out: self.way_out(order.network),
            linger: self.config.linger,
        };
        let port = self.place.port(order.key, parts.way_out)?;
        let name = name(self.place.owner(), order.key);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        match self.client.create_container(Some(options), body(order, &parts)).await {
            Ok(_) => {}
            Err(error) if is_conflict(&error) => {
                return Ok(Made::Not(SandboxError::gone("another container took its name")));
            }
            Err(error) => return Err(failed("cannot make a container", &error)),
        }
        let started = self.client.start_container(&name, None::<StartContainerOptions>).await;
        if let Err(error) = started {
            self.remove(&name).await?;
            return Err(failed("cannot start a container", &error));
        }
        let kept = order.trust.as_ref().map(|trust| trust.kept.clone());
        let mut ended = self.client.wait_container(&name, None::<WaitContainerOptions>);
        let line = tokio::select! {
            biased;
            line = port.line(None, kept, CALL) => line,
            ended = ended.next() => Err(SandboxError::unavailable(
                format!("the hand of a container of {image} ended at once ({ended:?})"),
                "use an image for this machine's architecture",
            )),
        };
        match line {
            Ok(line) => Ok(Made::Line(line)),
            Err(error) => {
                self.remove(&name).await?;
                Err(error)
            }
        }
    }
}

async fn connect(host: &str) -> Result<Client, SandboxError> {
    let Some(path) = host.strip_prefix("unix://") else {
        return Err(SandboxError::unavailable(
            format!("the Docker engine at {host} may be on another machine"),
            "name one on this machine (unix:///var/run/docker.sock): sandboxes speak to the server over a directory that both see",
        ));
    };
    let unreachable = |error: Error| {
        SandboxError::unavailable(
            format!("cannot reach the Docker engine at {host}: {error}"),
            "start it, name another with --docker-host, or give this user the right to use its socket",
        )
    };
    let client =
        Client::connect_with_unix(path, ANSWER, API_DEFAULT_VERSION).map_err(unreachable)?;
    client.negotiate_version().await.map_err(unreachable)
}

/// What the engine can do, or why that is not enough.
fn capabilities(info: &SystemInfo, config: &DockerConfig) -> Result<Capabilities, SandboxError> {
    let runtime = config.runtime.as_deref();
    if let Some(name) = runtime
        && !info.runtimes.as_ref().is_some_and(|known| known.contains_key(name))
    {
        return Err(SandboxError::unavailable(
            format!("the Docker engine knows no runtime {name}"),
            "add it to the engine's daemon.json, under `runtimes`",
        ));
    }
    let limits = [
        ("memory", info.memory_limit),
        ("processes", info.pids_limit),
        ("CPU time", info.cpu_cfs_quota),
    ];
    let missing: Vec<&str> =
        limits.iter().filter(|(_, can)| *can != Some(true)).map(|(what, _)| *what).collect();
    if !missing.is_empty() && !config.degraded {
        return Err(SandboxError::unavailable(
            format!("the Docker engine cannot limit {}", missing.join(", ")),
            "give it the cgroup controllers it misses, or accept weaker limits with --sandbox-limits=degraded",
        ));
    }
    let by = match info.cgroup_version {
        Some(SystemInfoCgroupVersionEnum::_2) => LimitsBy::V2,
        _ => LimitsBy::V1,
    };
    let kernel = config.own_kernel;
    Ok(Capabilities {
        name: if kernel { "gvisor" } else { "docker" },
        isolation: if kernel { Isolation::Kernel } else { Isolation::Namespaces },
        // An engine that maps ids maps all containers to the same ones.
        own_ids: false,
        limits: if missing.is_empty() { LimitsState::Enforced(by) } else { LimitsState::Degraded },
        quota: Quota::Soft,
        networking: if kernel { Networking::Proxied } else { Networking::Controlled },
        keeps_files: true,
        keeps_ready: true,
    })
}

/// The first id of the range that an engine with `userns-remap` maps containers to.
fn remapped(info: &SystemInfo) -> Option<u32> {
    let options = info.security_options.as_ref()?;
    if !options.iter().any(|option| option == "name=userns") {
        return None;
    }
    // Such an engine keeps everything in a directory named for its range.
    let (_, last) = info.docker_root_dir.as_ref()?.rsplit_once('/')?;
    last.split_once('.')?.0.parse().ok()
}

/// Whether it has the letters of an image's name, tag and digest.
fn is_reference(image: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    (1..=512).contains(&image.len())
        && image.starts_with(|c: char| c.is_ascii_alphanumeric())
        && image.chars().all(letter)
}

fn runs(container: &ContainerSummary) -> bool {
    matches!(
        container.state,
        Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
    )
}

/// Which sandbox a container is: by its name, which can be changed, as its labels cannot.
fn identity(container: &ContainerSummary) -> Option<(SandboxKey, u64)> {
    let labels = container.labels.as_ref()?;
    let names = container.names.as_ref()?;
    let key = key_of(labels.get(OWNER)?, names.first()?.trim_start_matches('/'))?;
    Some((key, labels.get(GENERATION)?.parse().ok()?))
}

#[async_trait]
impl Engine for Docker {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        match &spec.image {
            Some(image) if !is_reference(image) => {
                Err(SandboxError::Invalid(format!("`{image}` cannot be the name of an image")))
            }
            _ => Ok(()),
        }
    }

    async fn prove(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
        if self.runtime_is_a_kernel() {
            return check_runs(sandbox).await;
        }
        let walls = Walls {
            host_mark: self.config.data_dir.clone(),
            own_root: true,
            own_ids: self.remapped,
        };
        walls.check(sandbox).await
    }

    async fn create(&self, order: &Order<'_>) -> Result<Made, SandboxError> {
        let name = name(self.place.owner(), order.key);
        let Some(found) = self.inspect(&name).await? else {
            return self.start(order).await;
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let alive = labels.get(GENERATION).and_then(|generation| generation.parse().ok());
        match self.connect(order.key, order.generation).await {
            Ok(Some(line)) => Ok(Made::Line(line)),
            Ok(None) => match alive {
                Some(other) if other > order.generation => Ok(Made::Alive(other)),
                _ => {
                    self.end(order.key).await?;
                    self.start(order).await
                }
            },
            Err(error @ SandboxError::Gone { .. }) => Ok(Made::Not(error)),
            Err(error) => Err(error),
        }
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        generation: u64,
    ) -> Result<Option<Line>, SandboxError> {
        self.connect(key, generation).await
    }

    async fn give(&self, spare: &SandboxKey, to: &SandboxKey) -> Result<(), SandboxError> {
        let owner = self.place.owner();
        let options = RenameContainerOptionsBuilder::default().name(&name(owner, to)).build();
        let renamed = self.client.rename_container(&name(owner, spare), options).await;
        renamed.map_err(|error| failed("cannot rename a container", &error))?;
        let given = self.place.rename(spare, to);
        if given.is_err() {
            self.end(to).await?;
        }
        given
    }

    async fn list(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        self.identities(None, true).await
    }

    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        self.remove(&name(self.place.owner(), key)).await?;
        self.place.forget(key)
    }

    async fn pause(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        let paused = self.client.pause_container(&name(self.place.owner(), key)).await;
        paused.map_err(|error| failed("cannot pause a container", &error))
    }

    async fn end_session(&self, session: &str) -> Result<(), SandboxError> {
        for (key, _) in self.identities(Some(session), false).await? {
            self.end(&key).await?;
        }
        Ok(())
    }

    fn files(&self) -> Option<&Files> {
        Some(self.place.files())
    }

    async fn ground(&self, spec: &SandboxSpec) -> Result<BTreeMap<String, String>, SandboxError> {
        let image = spec.image.as_deref().unwrap_or(&self.config.image);
        let id = images::find(&self.client, image).await?;
        Ok(BTreeMap::from([("image".to_owned(), id)]))
    }

    async fn has_layer(&self, name: &str) -> bool {
        self.layers.has(&self.client, name).await
    }

    fn layer_counted(&self, name: &str) -> Option<PathBuf> {
        Some(self.place.files().of(&format!("{}{name}", vaquero_sandbox::BUILD)))
    }

    async fn keep_layer(&self, key: &SandboxKey, layer: &str) -> Result<(), SandboxError> {
        let files = self.place.files().of(&key.session);
        self.layers.keep(&self.client, &name(self.place.owner(), key), layer, &files).await?;
        self.end(key).await?;
        self.place.files().discard(&key.session).await
    }

    async fn abandon_layer(&self, name: &str) {
        let session = format!("{}{name}", vaquero_sandbox::BUILD);
        if let Err(error) = self.place.files().discard(&session).await {
            tracing::warn!(layer = name, %error, "cannot remove what an installation left behind");
        }
    }

    async fn clear_layers(&self) {
        self.layers.clear(&self.client).await;
    }

    async fn shutdown(&self, linger: bool) {
        if linger {
            return;
        }
        let keys = self.identities(None, false).await.unwrap_or_default();
        for (key, _) in keys {
            if let Err(error) = self.end(&key).await {
                tracing::warn!(%key, %error, "a container stays behind");
            }
        }
    }
}
