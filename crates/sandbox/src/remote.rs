//! Sandboxes in machines that somebody else runs: E2B's, Modal's, Daytona's. Whoever offers machines is behind [`Machines`]; what a server does with them is written here, once. The
//! machine's own network is shut: the hand's line and its proxy's connections go over the standard streams of a relay that is started in it.

mod equip;
#[cfg(feature = "http")]
pub mod http;
mod line;
mod machines;
mod mux;
mod pipe;
mod records;
mod relay;
mod text;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

pub use self::machines::{Machine, Machines, Rest, Wanted, unique};
pub use self::pipe::{Input, Pipe};
use self::records::{Record, Records};
pub(crate) use self::relay::relay_main;
use crate::container::Kit;
use crate::engine::{BUILD, CANARY, Engine, Line, Made, Order, SPARE};
use crate::error::SandboxError;
use crate::files::{Files, mark_used, unused};
use crate::hand::relay_command_line;
use crate::provider::{Habits, Provider, check_reaches_nothing, check_runs};
use crate::remove::remove_tree;
use crate::seam::{
    Capabilities, Isolation, LimitsState, Networking, Quota, Sandbox, SandboxKey, SandboxSpec,
    Uplink,
};

/// Where the hand dials in a machine.
const LINE: &str = "/run/vaquero";
/// How long a hand may take to dial.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the provider is set up.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The server's data directory. The provider uses a directory of its name in it.
    pub data_dir: PathBuf,
    /// After how long without a call a sandbox is stopped; its files stay.
    pub idle_stop: Duration,
    /// How long machines live on without a server.
    pub linger: Duration,
    /// The longest any call may take, queueing included; past it the sandbox is ended.
    pub call_ceiling: Duration,
    /// The executable with the `hand` subcommand.
    pub hand_exe: PathBuf,
}

impl RemoteConfig {
    /// The defaults around a data directory: stop after 15 idle minutes, linger ten.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            idle_stop: Duration::from_mins(15),
            linger: Duration::from_mins(10),
            call_ceiling: Duration::from_hours(4),
            hand_exe: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// Machines, and what a server has of them.
#[derive(Debug)]
pub struct Remote<M> {
    machines: Arc<M>,
    linger: Duration,
    dir: PathBuf,
    records: Records,
    kit: Kit,
    packed: OnceCell<Bytes>,
}

impl<M: Machines> Remote<M> {
    /// Removes machines that an earlier server has left and nobody knows, and proves with a canary that commands run in one and reach nothing.
    ///
    /// Without an `uplink` no sandbox can have a way out.
    pub async fn start(
        machines: M,
        config: RemoteConfig,
        uplink: Option<Arc<dyn Uplink>>,
    ) -> Result<Provider<Self>, SandboxError> {
        // Machines that nobody has asked for cost money: only environments can want them.
        let habits =
            Habits { idle_stop: config.idle_stop, spares: 0, call_ceiling: config.call_ceiling };
        Provider::open(Self::open(machines, config).await?, habits, uplink).await
    }

    async fn open(machines: M, config: RemoteConfig) -> Result<Self, SandboxError> {
        let dir = config.data_dir.join(machines.name());
        let records = Records::open(&dir)?;
        let (exe, kits) = (config.hand_exe, dir.join("hands"));
        let built = tokio::task::spawn_blocking(move || Kit::build(&exe, &kits)).await;
        let kit = built.map_err(io::Error::other).and_then(|built| built);
        let kit = kit.map_err(|e| SandboxError::io("cannot copy the hand for machines", e))?;
        let (machines, linger, packed) = (Arc::new(machines), config.linger, OnceCell::new());
        let remote = Self { machines, linger, dir, records, kit, packed };
        remote.clear().await?;
        Ok(remote)
    }

    /// Destroys machines that no record names, and those of nobody's sessions; forgets those that are gone.
    async fn clear(&self) -> Result<(), SandboxError> {
        let machines = self.machines.list(self.records.owner()).await?;
        let mut known = Vec::new();
        for (key, record) in self.records.all() {
            let own = [CANARY, BUILD, SPARE].iter().any(|own| key.session.starts_with(own));
            let there = machines.iter().any(|machine| record.machine.as_ref() == Some(&machine.id));
            if own || !(there || record.snapshot.is_some()) {
                self.records.remove(&key)?;
            } else {
                known.extend(record.machine);
            }
        }
        for machine in machines.iter().filter(|machine| !known.contains(&machine.id)) {
            self.machines.destroy(&machine.id).await?;
        }
        Ok(())
    }

    /// The machine of a record, if a hand runs in it: one that was paused goes on.
    async fn running(
        &self,
        key: &SandboxKey,
        record: &mut Record,
    ) -> Result<Option<Machine>, SandboxError> {
        if !record.runs {
            return Ok(None);
        }
        let Some(mut machine) = self.machine(record).await? else { return Ok(None) };
        if record.paused {
            self.machines.resume(&machine.id).await?;
            machine.runs = true;
            record.paused = false;
            self.records.put(key, record)?;
        }
        Ok(Some(machine).filter(|machine| machine.runs))
    }

    /// The machine of a record, if it is still there.
    async fn machine(&self, record: &Record) -> Result<Option<Machine>, SandboxError> {
        let Some(id) = &record.machine else { return Ok(None) };
        self.machines.find(self.records.owner(), id).await
    }

    /// Has a machine for a sandbox that has none that runs: the one that was stopped, or a new one.
    async fn begin(&self, order: &Order<'_>, before: Record) -> Result<Line, SandboxError> {
        let stopped = self.machine(&before).await?;
        let id = match &stopped {
            Some(machine) => {
                if !machine.runs {
                    self.machines.wake(&machine.id).await?;
                }
                machine.id.clone()
            }
            None => self.make(order, &before).await?,
        };
        let record = Record {
            machine: Some(id.clone()),
            generation: order.generation,
            runs: true,
            paused: false,
            // Until the new machine has begun, that is where the files are.
            snapshot: before.snapshot.clone(),
            kept: order.trust.as_ref().map(|trust| trust.kept.clone()),
        };
        self.records.put(order.key, &record)?;
        let begun = match self.equip(&id, order).await {
            Ok(()) => self.talk(&id, &record).await,
            Err(error) => Err(error),
        };
        match (begun.is_ok(), stopped) {
            (true, None) => {
                if let Some(used) = &record.snapshot {
                    self.records.put(order.key, &Record { snapshot: None, ..record.clone() })?;
                    self.machines.forget(used).await?;
                }
            }
            (true, Some(_)) => {}
            (false, Some(_)) => self.end(order.key).await?,
            // It has nothing that anybody could miss.
            (false, None) => {
                self.machines.destroy(&id).await?;
                match &before.snapshot {
                    Some(_) => self.records.put(order.key, &before)?,
                    None => self.records.remove(order.key)?,
                }
            }
        }
        begun
    }

    async fn make(&self, order: &Order<'_>, before: &Record) -> Result<String, SandboxError> {
        let layer = order.layer.as_ref().filter(|layer| !layer.building);
        let installed = layer.map(|layer| self.layer(&layer.name)).transpose()?;
        let wanted = Wanted {
            owner: self.records.owner(),
            key: order.key,
            image: order.image.unwrap_or_else(|| self.machines.image()),
            snapshot: before.snapshot.as_deref().or(installed.as_deref()),
            limits: order.limits,
            linger: self.linger,
        };
        let made = self.machines.create(&wanted).await;
        if let Err(SandboxError::Gone { .. }) = &made {
            // Whoever keeps snapshots has lost it: the next attempt goes without.
            if before.snapshot.is_some() {
                self.records.remove(order.key)?;
            } else if let Some(layer) = layer {
                remove_tree(&self.layer_dir(&layer.name))
                    .map_err(|e| SandboxError::io("cannot forget what was installed", e))?;
            }
        }
        made
    }

    /// Speaks to the hand in a machine, and has the machine stay for as long as the line does.
    async fn talk(&self, id: &str, record: &Record) -> Result<Line, SandboxError> {
        self.machines.stay(id, self.linger).await?;
        let mut command = self.kit.start().to_vec();
        command.extend(relay_command_line(Path::new(LINE), self.machines.as_text()));
        let pipe = self.machines.exec(id, &command).await?;
        let (machines, linger, id) = (Arc::clone(&self.machines), self.linger, id.to_owned());
        let staying = async move {
            loop {
                tokio::time::sleep(linger / 3).await;
                if let Err(error) = machines.stay(&id, linger).await {
                    tracing::warn!(machine = id, %error, "a machine may end before its time");
                }
            }
        };
        let as_text = self.machines.as_text();
        line::line(pipe, as_text, record.kept.clone(), PATIENCE, staying).await
    }

    fn layer_dir(&self, name: &str) -> PathBuf {
        self.dir.join("layers").join(name)
    }

    /// The snapshot that a layer is.
    fn layer(&self, name: &str) -> Result<String, SandboxError> {
        std::fs::read_to_string(self.layer_dir(name).join("snapshot"))
            .map_err(|e| SandboxError::io("cannot find what was installed", e))
    }

    /// Whether a snapshot is of what some environment has installed.
    fn is_layer(&self, snapshot: &str) -> bool {
        let layers = std::fs::read_dir(self.dir.join("layers")).into_iter().flatten().flatten();
        let mut kept = layers.map(|layer| std::fs::read_to_string(layer.path().join("snapshot")));
        kept.any(|kept| kept.is_ok_and(|kept| kept == snapshot))
    }

    /// Ends a sandbox and its files.
    async fn remove(&self, key: &SandboxKey, record: &Record) -> Result<(), SandboxError> {
        if let Some(id) = &record.machine {
            self.machines.destroy(id).await?;
        }
        if let Some(snapshot) = &record.snapshot {
            self.machines.forget(snapshot).await?;
        }
        self.records.remove(key)
    }

    fn of_session(&self, session: &str) -> Vec<(SandboxKey, Record)> {
        let all = self.records.all().into_iter();
        all.filter(|(key, _)| key.session == session).collect()
    }
}

#[async_trait]
impl<M: Machines> Engine for Remote<M> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: self.machines.name(),
            isolation: Isolation::Elsewhere,
            own_ids: true,
            limits: LimitsState::Machine,
            quota: Quota::Hard,
            networking: Networking::Proxied,
            keeps_files: self.machines.keeps_files(),
            keeps_ready: true,
        }
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.image.as_deref().is_some_and(|image| self.is_layer(image)) {
            return Err(SandboxError::Invalid(
                "the image is what an environment has installed, and cannot be named".to_owned(),
            ));
        }
        self.machines.check(spec)
    }

    /// The walls are those of whoever runs the machine; what is checked is that nothing leads past the server's way out.
    async fn prove(&self, sandbox: &dyn Sandbox) -> Result<(), SandboxError> {
        check_runs(sandbox).await?;
        check_reaches_nothing(sandbox).await
    }

    async fn create(&self, order: &Order<'_>) -> Result<Made, SandboxError> {
        let mut record = self.records.get(order.key);
        if let Some(record) = &mut record
            && let Some(machine) = self.running(order.key, record).await?
        {
            if record.generation != order.generation {
                return Ok(Made::Alive(record.generation));
            }
            match self.talk(&machine.id, record).await {
                Ok(line) => return Ok(Made::Line(line)),
                Err(error) => {
                    self.end(order.key).await?;
                    return Err(error);
                }
            }
        }
        self.begin(order, record.unwrap_or_default()).await.map(Made::Line)
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        generation: u64,
    ) -> Result<Option<Line>, SandboxError> {
        let record = self.records.get(key);
        let Some(mut record) = record.filter(|record| record.generation == generation) else {
            return Ok(None);
        };
        match self.running(key, &mut record).await? {
            Some(machine) => self.talk(&machine.id, &record).await.map(Some),
            None => Ok(None),
        }
    }

    async fn give(&self, spare: &SandboxKey, to: &SandboxKey) -> Result<(), SandboxError> {
        self.records.rename(spare, to)
    }

    async fn list(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let records: Vec<_> =
            self.records.all().into_iter().filter(|(_, record)| record.runs).collect();
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let machines = self.machines.list(self.records.owner()).await?;
        let lives = |record: &Record| {
            let here = |m: &Machine| record.machine.as_ref() == Some(&m.id);
            machines.iter().any(|machine| here(machine) && (machine.runs || record.paused))
        };
        let living = records.into_iter().filter(|(_, record)| lives(record));
        Ok(living.map(|(key, record)| (key, record.generation)).collect())
    }

    async fn end(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        let Some(mut record) = self.records.get(key) else { return Ok(()) };
        if [CANARY, BUILD, SPARE].iter().any(|own| key.session.starts_with(own)) {
            return self.remove(key, &record).await;
        }
        // What was paused with its programs goes on before it is stopped without them.
        let running = self.running(key, &mut record).await?;
        let found = match running {
            Some(machine) => Some(machine),
            None => self.machine(&record).await?,
        };
        let Some(machine) = found else {
            record.machine = None;
            record.runs = false;
            // What is known of nothing is nothing.
            return match record.snapshot {
                Some(_) => self.records.put(key, &record),
                None => self.records.remove(key),
            };
        };
        if machine.runs {
            match self.machines.stop(&machine.id).await? {
                Rest::Machine => {}
                Rest::Snapshot(snapshot) => {
                    record.machine = None;
                    record.snapshot = Some(snapshot);
                }
                Rest::Nothing => return self.records.remove(key),
            }
        }
        record.runs = false;
        self.records.put(key, &record)
    }

    async fn pause(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        let Some(mut record) = self.records.get(key).filter(|record| record.runs) else {
            return Err(SandboxError::gone("no machine runs for it"));
        };
        if let (Some(id), false) = (&record.machine, record.paused) {
            self.machines.pause(id).await?;
            record.paused = true;
            self.records.put(key, &record)?;
        }
        Ok(())
    }

    /// Nothing of them is wanted any more: their files go with them.
    async fn end_session(&self, session: &str) -> Result<(), SandboxError> {
        self.discard(session).await
    }

    fn files(&self) -> Option<&Files> {
        None
    }

    async fn with_files(&self) -> Result<Vec<String>, SandboxError> {
        Ok(self.records.all().into_iter().map(|(key, _)| key.session).collect())
    }

    async fn has_files(&self, session: &str) -> bool {
        for (key, record) in self.of_session(session) {
            if record.snapshot.is_some() {
                return true;
            }
            match self.machine(&record).await {
                Ok(found) if found.is_some() => return true,
                Ok(_) => {}
                // What cannot be asked may have them: to say no would be to give them up.
                Err(error) => {
                    tracing::warn!(%key, %error, "cannot ask for a machine");
                    return true;
                }
            }
        }
        false
    }

    async fn discard(&self, session: &str) -> Result<(), SandboxError> {
        for (key, record) in self.of_session(session) {
            self.remove(&key, &record).await?;
        }
        Ok(())
    }

    async fn ground(&self, spec: &SandboxSpec) -> Result<BTreeMap<String, String>, SandboxError> {
        let image = spec.image.as_deref().unwrap_or_else(|| self.machines.image());
        Ok(BTreeMap::from([("image".to_owned(), image.to_owned())]))
    }

    async fn has_layer(&self, name: &str) -> bool {
        let there = self.layer(name).is_ok();
        if there {
            mark_used(&self.layer_dir(name));
        }
        there
    }

    async fn keep_layer(&self, key: &SandboxKey, name: &str) -> Result<(), SandboxError> {
        let record = self.records.get(key).unwrap_or_default();
        let Some(id) = &record.machine else {
            return Err(SandboxError::gone("the machine that was set up is gone"));
        };
        let snapshot = self.machines.snapshot(id).await?;
        let dir = self.layer_dir(name);
        let kept = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("snapshot"), &snapshot));
        kept.map_err(|e| SandboxError::io("cannot keep what was installed", e))?;
        self.remove(key, &record).await
    }

    async fn clear_layers(&self) {
        for dir in unused(&self.dir.join("layers")) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(snapshot) = self.layer(&name) else { continue };
            let removed = self.machines.forget(&snapshot).await;
            let removed = removed.and_then(|()| {
                remove_tree(&dir).map_err(|e| SandboxError::io("cannot remove a layer", e))
            });
            if let Err(error) = removed {
                tracing::warn!(layer = name, %error, "cannot remove what was installed");
            }
        }
    }

    async fn shutdown(&self, linger: bool) {
        if linger {
            return;
        }
        for (key, _) in self.records.all().into_iter().filter(|(_, record)| record.runs) {
            if let Err(error) = self.end(&key).await {
                tracing::warn!(%key, %error, "a machine stays behind");
            }
        }
    }
}
