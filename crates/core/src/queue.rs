//! The work queue of a self-hosted environment: who may take an item, for how long it is theirs, and how it ends. Pure: the caller commits what comes of it against the revision it
//! read, so that of two workers one gets an item.

use std::time::Duration;
use vaquero_types::{
    EnvironmentId, SessionId, Timestamp, WorkId,
    work::{KeptWork, Work, WorkData, WorkKind, WorkLease, WorkState},
};

/// The shortest and the longest time, in seconds, for which a worker may ask to keep an item without a heartbeat.
pub const LEASES: (u64, u64) = (5, 3_600);
/// How long an item that was handed out waits for its worker to take it, unless the next worker says otherwise.
pub const RECLAIM: Duration = Duration::from_secs(5);
/// What a first heartbeat expects.
pub const NO_HEARTBEAT: &str = "NO_HEARTBEAT";

/// What a heartbeat comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease goes on.
    Extended,
    /// The worker is to leave.
    Over,
    /// Another worker has the item, or nobody: what this one knows of it is old.
    Lost,
}

/// A new item. Its workers keep it for `lease` after each heartbeat, and have as long for the first.
pub fn queued(
    id: WorkId,
    environment: EnvironmentId,
    session: SessionId,
    lease: Duration,
    now: Timestamp,
) -> KeptWork {
    let work = Work {
        kind: WorkKind::Work,
        id,
        environment_id: environment,
        data: WorkData::Session { id: session },
        state: WorkState::Queued,
        metadata: std::collections::BTreeMap::new(),
        secret: None,
        created_at: now,
        acknowledged_at: None,
        started_at: None,
        latest_heartbeat_at: None,
        stop_requested_at: None,
        stopped_at: None,
    };
    KeptWork { work, lease: WorkLease { ttl_seconds: lease.as_secs(), ..WorkLease::default() } }
}

/// Whether a worker can be sent to the item's session: the others of a session are over, or about to be.
pub const fn serves(state: WorkState) -> bool {
    matches!(state, WorkState::Queued | WorkState::Starting | WorkState::Active)
}

/// Whether the item waits for a worker: it never had one, or that one has not been heard of for too long. Items that were handed out and not taken wait for `reclaim`.
pub fn waits(kept: &KeptWork, reclaim: Duration, now: Timestamp) -> bool {
    match kept.work.state {
        WorkState::Queued => kept.lease.polled_at.is_none_or(|at| now.since(at) >= reclaim),
        WorkState::Starting | WorkState::Active => is_past(kept, now),
        WorkState::Stopping | WorkState::Stopped => false,
    }
}

/// Whether nobody will ever confirm that the item is over.
pub fn is_abandoned(kept: &KeptWork, now: Timestamp) -> bool {
    kept.work.state == WorkState::Stopping && is_past(kept, now)
}

fn is_past(kept: &KeptWork, now: Timestamp) -> bool {
    kept.lease.until.is_none_or(|until| now >= until)
}

/// Hands the item out.
pub fn hand_out(kept: &mut KeptWork, now: Timestamp) {
    let Work { state, acknowledged_at, started_at, latest_heartbeat_at, .. } = &mut kept.work;
    *state = WorkState::Queued;
    (*acknowledged_at, *started_at, *latest_heartbeat_at) = (None, None, None);
    kept.lease.polled_at = Some(now);
    kept.lease.until = None;
}

/// A worker takes the item; false if it is not there to be taken.
pub fn acknowledge(kept: &mut KeptWork, now: Timestamp) -> bool {
    if kept.work.state != WorkState::Queued {
        return false;
    }
    kept.work.state = WorkState::Starting;
    kept.work.acknowledged_at = Some(now);
    kept.lease.until = Some(now.plus(Duration::from_secs(kept.lease.ttl_seconds)));
    true
}

/// A worker says that it is at the item. `expected` is what it was last told.
pub fn beat(kept: &mut KeptWork, expected: &str, ttl: Option<u64>, now: Timestamp) -> Beat {
    match kept.work.state {
        WorkState::Stopping | WorkState::Stopped => return Beat::Over,
        WorkState::Queued => return Beat::Lost,
        WorkState::Starting | WorkState::Active => {}
    }
    let known = kept.work.latest_heartbeat_at.map(|at| at.to_string());
    if known.as_deref().unwrap_or(NO_HEARTBEAT) != expected {
        return Beat::Lost;
    }
    if let Some(ttl) = ttl {
        kept.lease.ttl_seconds = ttl.clamp(LEASES.0, LEASES.1);
    }
    // Never the same instant twice: it is what the next beat is known by.
    let last = kept.work.latest_heartbeat_at;
    let at = last.map_or(now, |last| now.max(last.plus(Duration::from_micros(1))));
    kept.work.state = WorkState::Active;
    kept.work.started_at.get_or_insert(at);
    kept.work.latest_heartbeat_at = Some(at);
    kept.lease.until = Some(at.plus(Duration::from_secs(kept.lease.ttl_seconds)));
    Beat::Extended
}

/// Wants the item to end: at once, or when its worker knows; false if it has ended.
pub fn stop(kept: &mut KeptWork, force: bool, now: Timestamp) -> bool {
    let state = kept.work.state;
    if state == WorkState::Stopped {
        return false;
    }
    kept.work.stop_requested_at.get_or_insert(now);
    // Nobody is at it, or whoever is has heard.
    if force || matches!(state, WorkState::Queued | WorkState::Stopping) {
        kept.work.state = WorkState::Stopped;
        kept.work.stopped_at = Some(now);
    } else {
        kept.work.state = WorkState::Stopping;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn item() -> KeptWork {
        queued(
            WorkId::new(1),
            EnvironmentId::new(2),
            SessionId::new(3),
            Duration::from_secs(60),
            at(0),
        )
    }

    #[test]
    fn an_item_is_taken_kept_and_lost() {
        let mut kept = item();
        assert!(waits(&kept, RECLAIM, at(0)) && !is_abandoned(&kept, at(0)));
        hand_out(&mut kept, at(1));
        assert!(!waits(&kept, RECLAIM, at(5)), "it has just been handed out");
        assert!(waits(&kept, RECLAIM, at(6)), "and was not taken");
        assert_eq!(
            beat(&mut kept, NO_HEARTBEAT, None, at(2)),
            Beat::Lost,
            "not before it is taken"
        );
        assert!(acknowledge(&mut kept, at(2)) && !acknowledge(&mut kept, at(2)));
        assert!(!waits(&kept, RECLAIM, at(61)) && waits(&kept, RECLAIM, at(62)), "no heartbeat");
        assert_eq!(beat(&mut kept, NO_HEARTBEAT, Some(10), at(3)), Beat::Extended);
        assert_eq!(kept.work.state, WorkState::Active);
        let first = kept.work.latest_heartbeat_at.expect("a beat").to_string();
        assert_eq!(beat(&mut kept, NO_HEARTBEAT, None, at(4)), Beat::Lost, "a second worker");
        assert_eq!(beat(&mut kept, &first, None, at(3)), Beat::Extended);
        let second = kept.work.latest_heartbeat_at.expect("a beat").to_string();
        assert_ne!(first, second, "even in the same instant");
        assert!(!waits(&kept, RECLAIM, at(12)) && waits(&kept, RECLAIM, at(14)));
        hand_out(&mut kept, at(14));
        assert_eq!(
            beat(&mut kept, &second, None, at(15)),
            Beat::Lost,
            "it is another worker's now"
        );
    }

    #[test]
    fn an_item_ends_when_its_worker_knows() {
        let mut kept = item();
        hand_out(&mut kept, at(1));
        acknowledge(&mut kept, at(1));
        beat(&mut kept, NO_HEARTBEAT, None, at(2));
        assert!(stop(&mut kept, false, at(3)));
        assert_eq!(kept.work.state, WorkState::Stopping);
        assert_eq!(beat(&mut kept, "anything", None, at(4)), Beat::Over);
        assert!(!waits(&kept, RECLAIM, at(9_999)) && is_abandoned(&kept, at(9_999)));
        assert!(stop(&mut kept, false, at(5)), "the worker confirms");
        assert_eq!((kept.work.state, kept.work.stopped_at), (WorkState::Stopped, Some(at(5))));
        assert_eq!(kept.work.stop_requested_at, Some(at(3)));
        assert!(!stop(&mut kept, true, at(6)));
        let mut waiting = item();
        assert!(stop(&mut waiting, false, at(1)));
        assert_eq!(waiting.work.state, WorkState::Stopped, "nobody is there to be told");
        assert!(serves(WorkState::Active) && !serves(WorkState::Stopping));
    }
}
