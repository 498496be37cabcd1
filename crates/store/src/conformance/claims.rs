//! Cases of claims and leases: who may work on a session, and who no longer.

use super::fixture::{
    PATIENCE, TTL, append, at, by, claimed, event, message, new_session, session_id,
};
use crate::{Author, CommitError, SessionChange, SharedStore, Write};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};

pub(super) async fn workers_are_fenced_by_epoch(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    let old = claimed(&store, 3).await;
    let new = claimed(&store, 3 + 60).await;
    let write = |lease| append("s", by(lease), vec![event("s", "1")], SessionChange::default());
    let refused = store.commit(vec![write(&old)], at(70)).await;
    assert!(matches!(refused, Err(CommitError::LeaseLost { .. })));
    assert!(matches!(store.renew(&old, TTL, at(70)).await, Err(CommitError::LeaseLost { .. })));
    assert!(matches!(store.release(&old, false).await, Err(CommitError::LeaseLost { .. })));
    store.commit(vec![write(&new)], at(70)).await.expect("the new holder writes");
}

pub(super) async fn the_last_append_sees_what_clients_wrote(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m1", 2).await.expect("accepted");
    let lease = claimed(&store, 3).await;
    message(&store, "s", "m2", 4).await.expect("accepted");
    let idle = |seen| {
        let author = Author::Worker { epoch: lease.epoch, seen: Some(seen) };
        let change = SessionChange { ready: Some(false), ..SessionChange::default() };
        append("s", author, vec![event("s", "idle")], change)
    };
    assert!(matches!(store.commit(vec![idle(1)], at(5)).await, Err(CommitError::Grown)));
    store.commit(vec![idle(2)], at(6)).await.expect("nothing unseen");
    let nothing = store.claim(&"w".to_owned(), TTL, at(7)).await.expect("claimable");
    assert_eq!(nothing, None, "the turn ended and gave up its lease");
}

pub(super) async fn the_oldest_ready_session_is_claimed_once(store: SharedStore) {
    for (name, second) in [("a", 30), ("b", 20), ("c", 40)] {
        store.commit(vec![new_session(name, 1)], at(1)).await.expect("created");
        message(&store, name, &format!("m{name}"), second).await.expect("accepted");
    }
    let mut claims = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        claims.spawn(
            async move { store.claim(&"w".to_owned(), TTL, at(50)).await.expect("claimable") },
        );
    }
    let found: Vec<_> =
        claims.join_all().await.into_iter().flatten().map(|found| found.lease.session).collect();
    assert_eq!(found.len(), 3);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 3);
    let again = claimed(&store, 50 + 31).await;
    assert_eq!(again.session, session_id("b"), "the one that was ready first comes back first");
}

pub(super) async fn leases_expire_renew_and_are_handed_over(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    let lease = claimed(&store, 10).await;
    store.renew(&lease, TTL, at(30)).await.expect("renewed");
    let early = store.claim(&"w".to_owned(), TTL, at(50)).await.expect("claimable");
    assert_eq!(early, None, "the renewal counts");
    store.release(&lease, true).await.expect("released");
    let next = claimed(&store, 51).await;
    assert_eq!(next.claims, 1, "a handover is no failure");
    assert!(next.epoch > lease.epoch);
}

pub(super) async fn claims_without_progress_are_counted(store: SharedStore) {
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    for round in 1..=3 {
        assert_eq!(claimed(&store, i64::from(round) * 100).await.claims, round);
    }
    let lease = claimed(&store, 400).await;
    let change = SessionChange { progress: true, ..SessionChange::default() };
    store
        .commit(vec![append("s", by(&lease), vec![event("s", "1")], change)], at(401))
        .await
        .expect("appended");
    assert_eq!(claimed(&store, 500).await.claims, 1);
}

pub(super) async fn nobody_waiting_for_work_is_missed(store: SharedStore) {
    const SESSIONS: usize = 30;
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        workers.spawn(async move {
            let mut done = 0;
            loop {
                match store.claim(&"w".to_owned(), TTL, at(10)).await.expect("claimable") {
                    Some(crate::Claimed { lease, .. }) => {
                        let change =
                            SessionChange { ready: Some(false), ..SessionChange::default() };
                        let author = Author::Worker { epoch: lease.epoch, seen: None };
                        let write = Write::Append(crate::Append {
                            session: lease.session,
                            author,
                            records: Vec::new(),
                            change,
                        });
                        store.commit(vec![write], at(11)).await.expect("finished");
                        done += 1;
                    }
                    // The end of the case is the only time that nothing is ready for so long.
                    None => {
                        if timeout(Duration::from_millis(1_500), store.wait_ready()).await.is_err()
                        {
                            return done;
                        }
                    }
                }
            }
        });
    }
    for number in 0..SESSIONS {
        let name = format!("w{number}");
        store.commit(vec![new_session(&name, 1)], at(1)).await.expect("created");
        message(&store, &name, &format!("m{number}"), 2).await.expect("accepted");
    }
    let done: usize =
        timeout(PATIENCE, workers.join_all()).await.expect("all end").into_iter().sum();
    assert_eq!(done, SESSIONS);
}

pub(super) async fn the_hands_worker_claims_first(store: SharedStore) {
    let (here, there) = ("here".to_owned(), "there".to_owned());
    store.commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&store, "s", "m", 2).await.expect("accepted");
    store.heartbeat(&there, TTL, at(3)).await.expect("beaten");
    let lease = claimed(&store, 3).await;
    let change = SessionChange { hands: Some(there.clone()), ..SessionChange::default() };
    store
        .commit(vec![append("s", by(&lease), vec![event("s", "1")], change)], at(4))
        .await
        .expect("appended");
    store.release(&lease, true).await.expect("released");
    let others = store.claim(&here, TTL, at(5)).await.expect("claimable");
    assert_eq!(others, None, "its hands are with a worker that lives");
    let ids = [session_id("s"), session_id("none")];
    assert!(store.kept_by(&here, &ids).await.expect("readable").is_empty());
    assert_eq!(store.kept_by(&there, &ids).await.expect("readable"), [session_id("s")]);
    let own = store.claim(&there, TTL, at(6)).await.expect("claimable").expect("it is there");
    store.release(&own.lease, true).await.expect("released");
    let late = store.claim(&here, TTL, at(3 + 31)).await.expect("claimable");
    assert!(late.is_some(), "a worker that no longer says that it lives has no claim");
}
