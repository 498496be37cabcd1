//! What is on record of sandboxes: what runs where, since when, and what it has used. Written beside the turn, never in its way: nothing hangs on it but what people see.

use crate::World;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vaquero_sandbox::{Sandbox, SandboxKey};
use vaquero_store::{StoreError, WorkerName, sandboxes};
use vaquero_types::{
    SessionId, Timestamp,
    sandbox::{SandboxKind, SandboxRecord, SandboxState, Traffic},
};

/// Keeps the records of one server's sandboxes.
#[derive(Clone)]
pub(crate) struct Sandboxes {
    world: World,
    server: WorkerName,
    running: Arc<Mutex<HashMap<SandboxKey, Running>>>,
    notes: UnboundedSender<Note>,
}

/// What a turn has to say.
pub(crate) enum Note {
    Found(SandboxKey, Arc<dyn Sandbox>),
    Used(SandboxKey),
}

struct Running {
    record: SandboxRecord,
    /// What went over the sandbox's way out before this server's share of it began.
    before: Traffic,
    sandbox: Weak<dyn Sandbox>,
}

impl Sandboxes {
    pub(crate) fn new(world: World, server: WorkerName) -> (Self, UnboundedReceiver<Note>) {
        let (notes, inbox) = unbounded_channel();
        (Self { world, server, running: Arc::default(), notes }, inbox)
    }

    /// Writes down what turns say, one after the other.
    pub(crate) async fn run(self, mut inbox: UnboundedReceiver<Note>) {
        while let Some(note) = inbox.recv().await {
            match note {
                Note::Found(key, sandbox) => self.take_down(&key, &sandbox).await,
                Note::Used(key) => self.refresh(&key).await,
            }
        }
    }

    /// A turn has found or made a sandbox.
    pub(crate) fn found(&self, key: &SandboxKey, sandbox: &Arc<dyn Sandbox>) {
        // Nobody hears it once the server stops.
        drop(self.notes.send(Note::Found(key.clone(), Arc::clone(sandbox))));
    }

    /// A turn that had a sandbox has ended.
    pub(crate) fn used(&self, key: &SandboxKey) {
        drop(self.notes.send(Note::Used(key.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxKey, Running>> {
        // Only a plain map is behind this lock, and no code panics while it holds it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_down(&self, key: &SandboxKey, sandbox: &Arc<dyn Sandbox>) {
        let same = |running: &Running| {
            running.sandbox.upgrade().is_some_and(|known| Arc::ptr_eq(&known, sandbox))
        };
        if self.lock().get(key).is_some_and(same) {
            return;
        }
        if let Err(error) = self.note(key, sandbox).await {
            tracing::warn!(%key, %error, "a sandbox is not on record");
        }
    }

    async fn note(&self, key: &SandboxKey, sandbox: &Arc<dyn Sandbox>) -> Result<(), StoreError> {
        let (session, name) = key.owner();
        let session = SessionId::from_wire(session);
        let known = sandboxes::list(self.world.store.as_ref(), Some(&session), true).await?;
        let known = known.into_iter().find(|record| record.name == name);
        let now = self.world.clock.now();
        let generation = sandbox.generation();
        let before = known.as_ref().map(|record| record.network).unwrap_or_default();
        let same = known.as_ref().filter(|record| {
            record.generation == generation && record.state != SandboxState::Ended
        });
        let started_at = same.map_or(now, |record| record.started_at);
        let earlier = match (&known, same) {
            (_, Some(record)) => record.active_seconds,
            // Nobody saw it end: it was last seen then.
            (Some(record), None) => record.clone().ended(record.updated_at).active_seconds,
            (None, None) => 0,
        };
        let record = SandboxRecord {
            kind: SandboxKind::Sandbox,
            session_id: session,
            name: name.to_owned(),
            provider: sandbox.provider().to_owned(),
            server: self.server.clone(),
            state: SandboxState::Running,
            generation,
            started_at,
            updated_at: now,
            ended_at: None,
            active_seconds: earlier,
            network: before,
        };
        let running = Running { record: record.clone(), before, sandbox: Arc::downgrade(sandbox) };
        self.lock().insert(key.clone(), running);
        self.put(&record, now).await;
        Ok(())
    }

    async fn refresh(&self, key: &SandboxKey) {
        let now = self.world.clock.now();
        let changed = {
            let mut running = self.lock();
            let Some(running) = running.get_mut(key) else { return };
            running.refresh();
            running.record.updated_at = now;
            running.record.clone()
        };
        self.put(&changed, now).await;
    }

    /// Compares what is on record as running here with what lives.
    pub(crate) async fn compare(&self, first: bool) {
        let living: BTreeSet<SandboxKey> = match self.world.compute.living().await {
            Ok(living) => living.into_iter().map(|(key, _)| key).collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot list sandboxes; their records stay as they are");
                return;
            }
        };
        let now = self.world.clock.now();
        let mut ended: Vec<SandboxRecord> = {
            let mut running = self.lock();
            let gone: Vec<SandboxKey> =
                running.keys().filter(|key| !living.contains(key)).cloned().collect();
            gone.iter().filter_map(|key| running.remove(key)).map(Running::last).collect()
        };
        if first {
            // Of the server's life before this one.
            match sandboxes::list(self.world.store.as_ref(), None, false).await {
                Ok(all) => ended.extend(all.into_iter().filter(|record| {
                    let key = SandboxKey::of(record.session_id.as_str(), &record.name);
                    record.server == self.server
                        && record.state != SandboxState::Ended
                        && !living.contains(&key)
                })),
                Err(error) => tracing::warn!(%error, "cannot read the records of sandboxes"),
            }
        }
        for record in ended {
            self.put(&record.ended(now), now).await;
        }
    }

    /// A session's sandboxes are gone, and the session with them.
    pub(crate) async fn forget(&self, session: &SessionId) {
        self.lock().retain(|key, _| key.owner().0 != session.as_str());
        let now = self.world.clock.now();
        if let Err(error) = sandboxes::remove(self.world.store.as_ref(), session, now).await {
            tracing::warn!(%session, %error, "the record of a sandbox stays behind");
        }
    }

    async fn put(&self, record: &SandboxRecord, now: Timestamp) {
        if let Err(error) = sandboxes::put(self.world.store.as_ref(), record, now).await {
            tracing::warn!(session = %record.session_id, %error, "a sandbox's record is not written");
        }
    }
}

impl Running {
    fn refresh(&mut self) {
        if let Some(sandbox) = self.sandbox.upgrade() {
            self.record.network = self.before.plus(sandbox.traffic());
        }
    }

    fn last(mut self) -> SandboxRecord {
        self.refresh();
        self.record
    }
}
