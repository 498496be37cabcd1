//! Time and randomness as arguments: whoever stamps or names something is handed these. The two system implementations are the only readers of the real ones.

use crate::Timestamp;

/// Where instants come from.
pub trait Clock: Send + Sync {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

/// Where ids come from.
pub trait IdGen: Send + Sync {
    /// A value no other call returns, larger for later `now`s.
    fn next(&self, now: Timestamp) -> u128;
}

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the Clock that others take")]
        let now = std::time::SystemTime::now();
        let since_epoch = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Time-ordered random ids (UUID version 7).
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomIds;

impl IdGen for RandomIds {
    fn next(&self, now: Timestamp) -> u128 {
        let micros = u64::try_from(now.as_micros()).unwrap_or(0);
        let subsec = u32::try_from(micros % 1_000_000).unwrap_or(0) * 1_000;
        let at = uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, subsec);
        uuid::Uuid::new_v7(at).as_u128()
    }
}
