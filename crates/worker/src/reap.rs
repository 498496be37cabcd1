//! Removes sandboxes and workspaces that no session of this worker's needs any more: at once when one ends here, and from time to time by comparing what is here with what the
//! store says, since sessions also end, and move, on other servers.

use crate::{World, kept::Kept, sandboxes::Sandboxes};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use vaquero_store::WorkerName;
use vaquero_types::{SessionId, sandbox::owner_of};

/// How often to compare.
const EVERY: Duration = Duration::from_secs(30);
/// How often to look for checkpoints of sessions that ended.
const SWEEP: Duration = Duration::from_secs(6 * 3600);

/// Sessions with a turn under way here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active(Arc<Mutex<HashMap<SessionId, usize>>>);

/// A turn under way, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct Entered {
    active: Active,
    session: SessionId,
}

impl Active {
    pub(crate) fn enter(&self, session: &SessionId) -> Entered {
        let mut active = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *active.entry(session.clone()).or_default() += 1;
        Entered { active: self.clone(), session: session.clone() }
    }

    fn contains(&self, session: &SessionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(session)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut active = self.active.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = active.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.session);
            }
        }
    }
}

pub(crate) struct Reaper {
    pub(crate) world: World,
    pub(crate) name: WorkerName,
    pub(crate) kept: Kept,
    pub(crate) active: Active,
    pub(crate) sandboxes: Sandboxes,
}

impl Reaper {
    /// Runs until `stop`; `ended` names sessions that ended through this server.
    pub(crate) async fn run(
        self,
        mut ended: mpsc::UnboundedReceiver<SessionId>,
        stop: CancellationToken,
    ) {
        let mut rounds = tokio::time::interval(EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        let mut sweeps = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = rounds.tick() => {
                    self.sandboxes.compare(std::mem::take(&mut first)).await;
                    self.compare().await;
                }
                _ = sweeps.tick() => self.sweep().await,
                Some(session) = ended.recv() => self.remove(&session).await,
                () = stop.cancelled() => return,
            }
        }
    }

    async fn sweep(&self) {
        let Some(checkpoints) = &self.world.checkpoints else { return };
        match checkpoints.sweep().await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "removed checkpoints of sessions that ended"),
            Err(error) => tracing::warn!(%error, "cannot remove old checkpoints"),
        }
    }

    async fn compare(&self) {
        let here = match self.world.compute.sessions().await {
            Ok(here) => here,
            Err(error) => {
                tracing::warn!(%error, "cannot list sandboxes; nothing is removed");
                return;
            }
        };
        let owners: BTreeSet<SessionId> =
            here.iter().map(|files| SessionId::from_wire(owner_of(files).0)).collect();
        let here: Vec<SessionId> = owners.into_iter().collect();
        let Some(kept) = self.kept_of(&here).await else { return };
        let mut removed = 0;
        for session in here.iter().filter(|session| !kept.contains(session)) {
            // Once more, right before: a turn may have begun here meanwhile.
            let again = std::slice::from_ref(session);
            if self.kept_of(again).await.is_some_and(|kept| kept.is_empty())
                && !self.active.contains(session)
            {
                self.remove(session).await;
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(
                removed,
                "removed sandboxes and workspaces of sessions that ended or moved"
            );
        }
    }

    async fn kept_of(&self, sessions: &[SessionId]) -> Option<Vec<SessionId>> {
        match self.world.store.kept_by(&self.name, sessions).await {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(%error, "cannot look up sessions; nothing is removed");
                None
            }
        }
    }

    async fn remove(&self, session: &SessionId) {
        self.kept.forget(session);
        self.sandboxes.forget(session).await;
        for files in self.files_of(session).await {
            if let Some(checkpoints) = &self.world.checkpoints {
                checkpoints.forget(&files);
                if let Err(error) = checkpoints.discard_ended(&files).await {
                    tracing::warn!(%session, %error, "cannot remove the checkpoints of a session that ended; a later sweep does");
                }
            }
            if let Err(error) = self.world.compute.destroy(files.as_str()).await {
                tracing::warn!(%session, %error, "cannot remove the sandbox of a session that ended; the next round tries again");
            }
        }
    }

    /// Under which names a session has files: its own, and those of its other sandboxes that are here.
    async fn files_of(&self, session: &SessionId) -> Vec<SessionId> {
        let here = self.world.compute.sessions().await.unwrap_or_default();
        let others = here.into_iter().filter(|files| {
            let (owner, _) = owner_of(files);
            owner == session.as_str() && files != owner
        });
        let others = others.map(SessionId::from_wire);
        std::iter::once(session.clone()).chain(others).collect()
    }
}
