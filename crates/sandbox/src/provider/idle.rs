//! Ending sandboxes that nobody uses, to give their memory back; their files stay.
//! It must never end one that somebody waits for.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use crate::engine::{Engine, SPARE};
use crate::seam::SandboxKey;

/// Stops sandboxes that nobody has used for a while, also those that no session has asked for since
/// this server started.
pub(super) async fn watch<E: Engine>(inner: Weak<Inner<E>>) {
    let mut unclaimed: HashMap<(SandboxKey, u64), Instant> = HashMap::new();
    loop {
        let Some(limit) = inner.upgrade().map(|inner| inner.habits.idle_stop) else { return };
        let pause = (limit / 4).clamp(Duration::from_millis(20), Duration::from_secs(30));
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        let Ok(living) = inner.engine.list().await else { continue };
        let mut idle = Vec::new();
        let mut seen = HashMap::new();
        // Whoever keeps spares looks after them.
        let sessions = living.into_iter().filter(|(key, _)| !key.session.starts_with(SPARE));
        for (key, generation) in sessions {
            let used = if let Some(sandbox) = inner.known(&key, generation) {
                sandbox.connection.idle()
            } else {
                let entry = (key.clone(), generation);
                let since = unclaimed.get(&entry).copied().unwrap_or_else(Instant::now);
                seen.insert(entry, since);
                Some(since.elapsed())
            };
            if used.is_some_and(|used| used >= limit) {
                idle.push((key, generation));
            }
        }
        unclaimed = seen;
        for (key, generation) in idle {
            inner.stop_if_idle(&key, generation, limit).await;
        }
    }
}

impl<E: Engine> Inner<E> {
    async fn stop_if_idle(&self, key: &SandboxKey, generation: u64, limit: Duration) {
        let _turn = self.turn(&key.session).await;
        // While this waited for its turn, a call may have come.
        let busy = self
            .known(key, generation)
            .is_some_and(|s| s.connection.idle().is_none_or(|idle| idle < limit));
        if busy {
            return;
        }
        tracing::debug!(%key, "stopping an idle sandbox");
        if let Err(error) = self.end(key).await {
            tracing::warn!(%key, %error, "cannot stop an idle sandbox");
        }
    }
}
