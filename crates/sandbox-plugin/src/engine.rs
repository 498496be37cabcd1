//! The engine behind a plug-in: what is the server's of each sandbox is made ready here, and the rest is asked for.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use vaquero_sandbox::container::{Place, Port, WayOut, variables};
use vaquero_sandbox::{
    Capabilities, Engine, Files, Isolation, LimitsState, Line, Made, Networking, Order, Quota,
    Sandbox, SandboxError, SandboxKey, SandboxSpec, Walls, check_runs, contained_command_line,
};

use crate::PluginConfig;
use crate::program::Program;
use crate::protocol::{self, Ask, Create, Hello, Limits, Listed, Listing, Mount, VERSION};

/// How long a hand may take to call once its sandbox has been started.
const CALL: Duration = Duration::from_secs(30);

/// A plug-in, and what a server has with it.
#[derive(Debug)]
pub struct Plugin {
    program: Program,
    config: PluginConfig,
    hello: Hello,
    place: Place,
}

impl Plugin {
    pub(crate) async fn open(mut config: PluginConfig) -> Result<Self, SandboxError> {
        let program = Program::new(config.command.clone());
        let hello: Hello = program.ask(Ask::Hello { version: VERSION }).await?;
        if hello.version != VERSION {
            return Err(SandboxError::unavailable(
                format!("the plug-in speaks version {} and the server {VERSION}", hello.version),
                "use a plug-in for this version of the server",
            ));
        }
        if !hello.limits && !config.degraded {
            return Err(SandboxError::unavailable(
                "the plug-in keeps no limits",
                "have it keep them and say so, or accept none with --sandbox-limits=degraded",
            ));
        }
        config.data_dir = std::path::absolute(&config.data_dir)
            .map_err(|e| SandboxError::io("cannot find the data directory", e))?;
        let place = Place::open(&config.data_dir.join("plugin"), &config.hand_exe, None).await?;
        let plugin = Self { program, config, hello, place };
        let living: Vec<SandboxKey> =
            plugin.list().await?.into_iter().map(|(key, _)| key).collect();
        plugin.place.forget_all_but(&living);
        Ok(plugin)
    }

    fn name(&self, key: &SandboxKey) -> String {
        format!("{}.{}.{}", self.place.owner(), key.session, key.name)
    }

    fn key(&self, name: &str) -> Option<SandboxKey> {
        let (session, name) =
            name.strip_prefix(self.place.owner())?.strip_prefix('.')?.split_once('.')?;
        Some(SandboxKey { session: session.to_owned(), name: name.to_owned() })
    }

    fn way_out(&self, network: bool) -> WayOut {
        match (network, self.hello.way_out) {
            (_, protocol::WayOut::Forwarded) => WayOut::Forwarded,
            (true, protocol::WayOut::Sockets) => WayOut::Sockets,
            (false, protocol::WayOut::Sockets) => WayOut::None,
        }
    }

    async fn alive(&self, key: &SandboxKey) -> Result<Option<u64>, SandboxError> {
        let living = self.list().await?;
        Ok(living.into_iter().find(|(other, _)| other == key).map(|(_, generation)| generation))
    }

    async fn connect(&self, key: &SandboxKey) -> Result<Line, SandboxError> {
        let port = self.place.port(key, self.way_out(true))?;
        port.line(None, self.place.kept(key), CALL).await
    }

    async fn start(&self, order: &Order<'_>) -> Result<Line, SandboxError> {
        let mounts = self.place.make_ready(order, None).await?.into_iter().map(|mount| Mount {
            source: mount.source,
            target: mount.target,
            read_only: mount.read_only,
        });
        let way_out = self.way_out(order.network);
        let port = self.place.port(order.key, way_out)?;
        let mut command = self.place.kit().start().to_vec();
        let linger = self.config.linger;
        command.extend(contained_command_line(order, &Port::address(), way_out, linger));
        let create = Create {
            sandbox: self.name(order.key),
            generation: order.generation,
            image: order.image.map(str::to_owned),
            command,
            variables: variables(order),
            mounts: mounts.collect(),
            limits: Limits {
                memory_bytes: order.limits.memory_bytes,
                processes: order.limits.pids,
                cpu_millis: order.limits.cpu_millis,
                tmp_bytes: order.limits.tmp_bytes,
            },
        };
        let _: Value = self.program.ask(Ask::Create(Box::new(create))).await?;
        port.line(None, order.trust.as_ref().map(|trust| trust.kept.clone()), CALL).await
    }
}

#[async_trait]
impl Engine for Plugin {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "plugin",
            isolation: if self.hello.own_kernel {
                Isolation::Kernel
            } else {
                Isolation::Namespaces
            },
            own_ids: self.hello.own_ids,
            // How it keeps them, nobody here can tell.
            limits: LimitsState::Degraded,
            quota: Quota::Soft,
            networking: match self.hello.way_out {
                protocol::WayOut::Sockets => Networking::Controlled,
                protocol::WayOut::Forwarded => Networking::Proxied,
            },
            keeps_files: true,
            keeps_ready: false,
        }
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.provision.is_some() {
            return Err(SandboxError::Provision(
                "sandboxes of a plug-in are not set up by the server: have its image bring the packages, or name another provider".to_owned(),
            ));
        }
        if spec.image.is_some() && !self.hello.images {
            return Err(SandboxError::Invalid(
                "the plug-in makes no sandboxes of images".to_owned(),
            ));
        }
        Ok(())
    }

    async fn prove(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
        if self.hello.own_kernel {
            return check_runs(sandbox).await;
        }
        let host_mark = self.config.data_dir.clone();
        let walls = Walls { host_mark, own_root: true, own_ids: self.hello.own_ids };
        walls.check(sandbox).await
    }

    async fn create(&self, order: &Order<'_>) -> Result<Made, SandboxError> {
        let made = match self.alive(order.key).await? {
            Some(generation) if generation == order.generation => self.connect(order.key).await,
            Some(other) => return Ok(Made::Alive(other)),
            None => self.start(order).await,
        };
        match made {
            Ok(line) => Ok(Made::Line(line)),
            Err(error) => {
                self.end(order.key).await?;
                Err(error)
            }
        }
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        generation: u64,
    ) -> Result<Option<Line>, SandboxError> {
        if self.alive(key).await? != Some(generation) {
            return Ok(None);
        }
        self.connect(key).await.map(Some)
    }

    async fn list(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let owner = self.place.owner().to_owned();
        let Listing { sandboxes } = self.program.ask(Ask::List { owner }).await?;
        let known = |Listed { sandbox, generation }| Some((self.key(&sandbox)?, generation));
        Ok(sandboxes.into_iter().filter_map(known).collect())
    }

    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        let _: Value = self.program.ask(Ask::End { sandbox: self.name(key) }).await?;
        self.place.forget(key)
    }

    async fn end_session(&self, session: &str) -> Result<(), SandboxError> {
        for (key, _) in self.list().await? {
            if key.session == session {
                self.end(&key).await?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Option<&Files> {
        Some(self.place.files())
    }

    async fn shutdown(&self, linger: bool) {
        if linger {
            return;
        }
        for (key, _) in self.list().await.unwrap_or_default() {
            if let Err(error) = self.end(&key).await {
                tracing::warn!(%key, %error, "a sandbox stays behind");
            }
        }
    }
}
