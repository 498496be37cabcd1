//! The worker: as many turns at once as it has slots, each in a task of its own, until it is told to stop.

use crate::{World, crash, kept::Kept, turn::Turn};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
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
        let kept = Kept::default();
        background.spawn(reap(self.world.clone(), kept.clone(), ended, stop.clone()));
        let slots = Arc::new(Semaphore::new(self.config.slots));
        let mut turns = JoinSet::new();
        while !stop.is_cancelled() {
            let permit = tokio::select! {
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
                claimed.lease,
                stop.clone(),
            );
            turns.spawn(async move {
                let _permit = permit;
                turn.run(claimed.row).await;
            });
            while let Some(done) = turns.try_join_next() {
                note(done);
            }
        }
        while let Some(done) = turns.join_next().await {
            note(done);
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

fn note(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        metrics::counter!("vaquero_turn_panics_total").increment(1);
        tracing::error!(%error, "a turn panicked; its session will be claimed again");
    }
}

/// Removes what belongs to sessions that are gone: first all that earlier servers left, then each as it ends.
async fn reap(
    world: World,
    kept: Kept,
    mut ended: mpsc::UnboundedReceiver<SessionId>,
    stop: CancellationToken,
) {
    match world.store.session_ids().await {
        Ok(ids) => {
            let keep: BTreeSet<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
            match world.compute.reap(&keep).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(
                    count,
                    "removed sandboxes and workspaces of sessions that are gone"
                ),
                Err(error) => {
                    tracing::warn!(%error, "cannot remove what is left of deleted sessions")
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot list sessions; nothing is reaped"),
    }
    loop {
        let session = tokio::select! {
            session = ended.recv() => session,
            () = stop.cancelled() => return,
        };
        let Some(session) = session else { return };
        kept.forget(&session);
        if let Err(error) = world.compute.destroy(session.as_str()).await {
            tracing::warn!(%session, %error, "cannot remove the sandbox of a session that ended; the next start tries again");
        }
    }
}
