//! The worker: as many turns at once as it has slots, each in a task of its own, until it is told to stop.

use crate::{
    World, crash,
    kept::Kept,
    pools,
    reap::{Active, Reaper},
    retention::{self, Retention},
    sandboxes::Sandboxes,
    turn::Turn,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use vaquero_core::Limits;
use vaquero_store::{Claimed, StoreError};
use vaquero_types::SessionId;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, unique among those that share a store.
    pub name: String,
    /// Most turns at once.
    pub slots: usize,
    /// How long a lease lasts without renewal.
    pub lease: Duration,
    /// How often to look for work that no wake-up announced.
    pub sweep: Duration,
    /// What a turn may use.
    pub limits: Limits,
    /// Most tokens of one answer.
    pub max_tokens: u32,
    /// How long sessions are kept.
    pub retention: Retention,
    /// Most sandboxes that environments' warm pools keep ready here.
    pub warm_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "local".to_owned(),
            slots: 256,
            lease: Duration::from_secs(30),
            sweep: Duration::from_secs(5),
            limits: Limits::default(),
            max_tokens: 32_000,
            retention: Retention::default(),
            warm_max: 32,
        }
    }
}

/// A worker.
pub struct Worker {
    world: World,
    config: Config,
}

impl Worker {
    /// A worker that has not started.
    pub fn new(world: World, config: Config) -> Self {
        Self { world, config }
    }

    /// Works until `stop`, then hands its turns over and returns. `ended` names sessions whose sandbox and workspace are to go.
    pub async fn run(self, stop: CancellationToken, ended: mpsc::UnboundedReceiver<SessionId>) {
        let mut background = JoinSet::new();
        let (kept, active) = (Kept::default(), Active::default());
        let (sandboxes, notes) = Sandboxes::new(self.world.clone(), self.config.name.clone());
        background.spawn(sandboxes.clone().run(notes));
        let reaper = Reaper {
            world: self.world.clone(),
            name: self.config.name.clone(),
            kept: kept.clone(),
            active: active.clone(),
            sandboxes: sandboxes.clone(),
        };
        background.spawn(reaper.run(ended, stop.clone()));
        background.spawn(retention::run(self.world.clone(), self.config.retention, stop.clone()));
        let (every, most) = (self.config.sweep, self.config.warm_max);
        background.spawn(pools::run(self.world.clone(), every, most, stop.clone()));
        background.spawn(beat(self.world.clone(), self.config.clone(), stop.clone()));
        let slots = Arc::new(Semaphore::new(self.config.slots));
        let mut turns = JoinSet::new();
        while !stop.is_cancelled() {
            let permit = tokio::select! {
                biased;
                permit = Arc::clone(&slots).acquire_owned() => permit,
                () = stop.cancelled() => break,
            };
            let Ok(permit) = permit else { break };
            let Some(claimed) = self.next(&stop).await else { continue };
            crash::point("claimed");
            metrics::counter!("vaquero_claims_total").increment(1);
            let turn = Turn::new(
                self.world.clone(),
                self.config.clone(),
                kept.clone(),
                sandboxes.clone(),
                claimed.lease,
                stop.clone(),
            );
            let active = active.enter(&claimed.row.id);
            turns.spawn(async move {
                let _guards = (permit, active);
                turn.run(claimed.row).await;
            });
            while let Some(done) = turns.try_join_next() {
                note(done);
            }
        }
        while let Some(done) = turns.join_next().await {
            note(done);
        }
        if let Some(checkpoints) = &self.world.checkpoints {
            checkpoints.flush().await;
        }
        background.shutdown().await;
    }

    /// The next session to work on; none when it is worth looking again, or time to stop.
    async fn next(&self, stop: &CancellationToken) -> Option<Claimed> {
        let claimed = self
            .world
            .store
            .claim(&self.config.name, self.config.lease, self.world.clock.now())
            .await;
        match claimed {
            Ok(Some(claimed)) => return Some(claimed),
            Ok(None) => {}
            Err(StoreError::Closed) => stop.cancelled().await,
            Err(error) => tracing::error!(%error, "cannot claim; will look again"),
        }
        tokio::select! {
            biased;
            woken = self.world.store.wait_ready() => {
                if let Err(error) = woken {
                    tracing::error!(%error, "cannot wait for work; will look again");
                    tokio::time::sleep(self.config.sweep).await;
                }
            }
            () = tokio::time::sleep(self.config.sweep) => {}
            () = stop.cancelled() => {}
        }
        None
    }
}

/// Says that this worker lives, as long as it does: its sessions are left to it.
async fn beat(world: World, config: Config, stop: CancellationToken) {
    let mut beats = tokio::time::interval(config.lease / 3);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(beats.tick()).await.is_some() {
        let now = world.clock.now();
        if let Err(error) = world.store.heartbeat(&config.name, config.lease, now).await {
            tracing::warn!(%error, "the store does not hear that this worker lives");
        }
    }
}

fn note(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        metrics::counter!("vaquero_turn_panics_total").increment(1);
        tracing::error!(%error, "a turn panicked; its session will be claimed again");
    }
}
