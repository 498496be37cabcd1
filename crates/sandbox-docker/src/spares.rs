//! Containers that are ready before anybody asks for one: of the kind that was asked for last, each becomes the container of the next new session by a change of names.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use vaquero_sandbox::{Line, Order, SandboxKey};

/// Session ids beginning so are theirs.
pub(crate) const SPARE: &str = "spare-";

/// What a container is like; only one of the same kind will do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind(String);

impl Kind {
    /// Of the container of an order; none if it has secrets of its own, or is not a new session's first.
    pub(crate) fn of(order: &Order<'_>) -> Option<Self> {
        if order.trust.is_some() || order.generation != 1 || !order.is_a_sessions() {
            return None;
        }
        let Order { limits, env, network, layer, image, .. } = order;
        Some(Self(format!("{limits:?} {env:?} {network} {layer:?} {image:?}")))
    }
}

/// A container that nobody has yet.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) key: SandboxKey,
    pub(crate) line: Line,
    kind: Kind,
    since: Instant,
}

/// Those that are ready.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    ready: Mutex<Vec<Spare>>,
    /// Making one at a time, so that there are not more than are wanted.
    pub(crate) making: tokio::sync::Mutex<u64>,
}

impl Spares {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Spare>> {
        // Only a plain list is behind this lock, and no code panics while it holds it.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, kind: &Kind) -> usize {
        self.lock().iter().filter(|spare| spare.kind == *kind).count()
    }

    pub(crate) fn put(&self, key: SandboxKey, line: Line, kind: Kind) {
        self.lock().push(Spare { key, line, kind, since: Instant::now() });
    }

    /// One of that kind.
    pub(crate) fn take(&self, kind: &Kind) -> Option<Spare> {
        let mut ready = self.lock();
        let at = ready.iter().position(|spare| spare.kind == *kind)?;
        Some(ready.swap_remove(at))
    }

    /// Those that nobody has wanted for so long.
    pub(crate) fn stale(&self, age: Duration) -> Vec<Spare> {
        self.lock().extract_if(.., |spare| spare.since.elapsed() >= age).collect()
    }
}
