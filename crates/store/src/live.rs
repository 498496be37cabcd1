//! Live deltas: what is being written right now, for whoever looks on. Provisional and lossy; the log is the truth.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast;
use vaquero_types::{EventId, SessionId, ThreadId};

/// How many deltas a slow reader may lag behind before it loses some.
const BACKLOG: usize = 512;

/// A piece of an event that is not durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// An event began.
    Start {
        /// Its thread.
        thread: ThreadId,
        /// Its id.
        event: EventId,
        /// Its type (`agent.message`, `agent.thinking`).
        event_type: &'static str,
    },
    /// More text of one of its blocks.
    Text {
        /// Its thread.
        thread: ThreadId,
        /// The event's id.
        event: EventId,
        /// The block's position in the event's content.
        index: usize,
        /// The text that comes next.
        text: Arc<str>,
    },
}

/// Where deltas go and come from.
pub trait Live: Send + Sync + 'static {
    /// Hands a delta to whoever looks on; cheap when nobody does.
    fn publish(&self, session: &SessionId, delta: Delta);
    /// Deltas from here on. A `Lagged` error means some were lost.
    fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Delta>;
}

/// Deltas within one process.
#[derive(Default)]
pub struct LocalLive {
    channels: Mutex<HashMap<SessionId, broadcast::Sender<Delta>>>,
}

impl LocalLive {
    /// The sessions that somebody looks on at.
    pub fn followed(&self) -> Vec<SessionId> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = channels.iter().filter(|(_, sender)| sender.receiver_count() > 0);
        followed.map(|(session, _)| session.clone()).collect()
    }
}

impl Live for LocalLive {
    fn publish(&self, session: &SessionId, delta: Delta) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = channels.get(session)
            && sender.send(delta).is_err()
        {
            channels.remove(session);
        }
    }

    fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Delta> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, sender| sender.receiver_count() > 0);
        channels.entry(session.clone()).or_insert_with(|| broadcast::channel(BACKLOG).0).subscribe()
    }
}

impl std::fmt::Debug for LocalLive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalLive").finish_non_exhaustive()
    }
}
