//! Folded states of sessions that are between turns, so that the next turn on this worker folds only what is new. A state is a function of the log alone, so one
//! that lags behind (another worker went on meanwhile) is merely older, never wrong.

use lru::LruCache;
use std::sync::{Arc, Mutex, PoisonError};
use vaquero_core::State;
use vaquero_store::Record;
use vaquero_types::SessionId;

/// Most bytes of records behind the states that are kept.
const BYTES: usize = 16 << 20;
/// What a state takes beside its records.
const STATE_BYTES: usize = 1 << 10;

/// A state and the bytes of records it was folded from: all of them, and those that no snapshot holds yet.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) state: State,
    pub(crate) bytes: usize,
    pub(crate) loose_bytes: usize,
}

impl Folded {
    /// Folds records in.
    pub(crate) fn apply(&mut self, records: &[Record]) {
        for record in records {
            self.bytes += record.new.body.len();
            self.loose_bytes += record.new.body.len();
            self.state.apply(record);
        }
    }
}

#[derive(Debug)]
struct Inner {
    states: LruCache<SessionId, Folded>,
    bytes: usize,
}

/// The states.
#[derive(Clone, Debug)]
pub(crate) struct Kept(Arc<Mutex<Inner>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { states: LruCache::unbounded(), bytes: 0 })))
    }
}

fn weight(folded: &Folded) -> usize {
    STATE_BYTES + folded.bytes
}

impl Kept {
    /// Takes a session's state out.
    pub(crate) fn take(&self, session: &SessionId) -> Option<Folded> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let folded = inner.states.pop(session)?;
        inner.bytes -= weight(&folded);
        Some(folded)
    }

    /// Keeps a session's state; the longest unused give way.
    pub(crate) fn put(&self, session: SessionId, folded: Folded) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bytes += weight(&folded);
        if let Some(before) = inner.states.put(session, folded) {
            inner.bytes -= weight(&before);
        }
        while inner.bytes > BYTES {
            let Some((_, oldest)) = inner.states.pop_lru() else { break };
            inner.bytes -= weight(&oldest);
        }
    }

    /// Forgets a session that ended.
    pub(crate) fn forget(&self, session: &SessionId) {
        drop(self.take(session));
    }
}
