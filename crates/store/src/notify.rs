//! Wake-ups inside one process: who waits for a session to grow, and who waits for work. Armed before the caller looks, so nothing is missed.

use crate::Seq;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;
use vaquero_types::SessionId;

/// One session that somebody waits for.
#[derive(Debug, Default)]
struct Watched {
    head: AtomicU64,
    grown: Notify,
}

/// The wake-ups of a store.
#[derive(Debug, Default)]
pub struct Wakes {
    watched: Mutex<HashMap<SessionId, Arc<Watched>>>,
    ready: Notify,
}

/// A wait for one session; made before its position is read.
#[derive(Debug)]
pub struct Watch<'a> {
    wakes: &'a Wakes,
    session: &'a SessionId,
    watched: Option<Arc<Watched>>,
}

impl Wakes {
    /// Starts watching a session.
    pub fn watch<'a>(&'a self, session: &'a SessionId) -> Watch<'a> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Arc::clone(watched.entry(session.clone()).or_default());
        Watch { wakes: self, session, watched: Some(entry) }
    }

    /// The sessions that somebody waits for.
    pub fn watched(&self) -> Vec<SessionId> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.keys().cloned().collect()
    }

    /// Says that a session's log ends at `head` now (`u64::MAX` once it is deleted).
    pub fn grown(&self, session: &SessionId, head: Seq) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = watched.get(session) {
            entry.head.fetch_max(head, Ordering::AcqRel);
            entry.grown.notify_waiters();
        }
    }

    /// Says that a session may be ready to claim.
    pub fn ready(&self) {
        self.ready.notify_one();
    }

    /// Waits until a session may be ready to claim; a wake-up given before the call counts.
    pub async fn wait_ready(&self) {
        self.ready.notified().await;
    }
}

impl Watch<'_> {
    /// Waits until the log ends after `seen`. `read_head` reads where it ends; it runs after the watch is armed.
    pub async fn past<E>(
        &self,
        seen: Seq,
        read_head: impl Future<Output = Result<Seq, E>>,
    ) -> Result<(), E> {
        let Some(watched) = &self.watched else { return Ok(()) };
        let grown = watched.grown.notified();
        tokio::pin!(grown);
        grown.as_mut().enable();
        if watched.head.load(Ordering::Acquire) > seen || read_head.await? > seen {
            return Ok(());
        }
        grown.await;
        Ok(())
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.wakes.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.watched = None;
        if watched.get(self.session).is_some_and(|entry| Arc::strong_count(entry) == 1) {
            watched.remove(self.session);
        }
    }
}
