//! Histories of concurrent appends, claims and reads, checked for linearizability: is there an order of all operations, one after the other, that explains every answer and in which
//! none comes before one that was over when it began? Answers and time both say what must come before what; such an order exists if that has no cycle.

use super::{
    fixture::{append, at, event, message, new_session, session_id},
    history::Dice,
};
use crate::{Author, CommitError, SessionChange, SharedStore};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

/// What an operation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    /// A claim: its epoch.
    Claimed(u64),
    /// An append under an epoch: its place.
    Appended { epoch: u64, seq: u64 },
    /// An append that was refused because its epoch was over.
    Fenced { epoch: u64 },
    /// A read: where the log ended.
    Read(u64),
}

/// An operation from its beginning to its end, by a clock that ticks at each of both.
#[derive(Clone, Copy, Debug)]
struct Operation {
    begun: u64,
    ended: u64,
    answered: Answered,
}

/// Lets `workers` at one session at once, each doing `each` random operations, on any of the stores (which share what they keep), and checks their history.
pub async fn linearizable(seed: u64, workers: u64, each: u64, stores: &[SharedStore]) {
    stores[0].commit(vec![new_session("s", 1)], at(1)).await.expect("created");
    message(&stores[0], "s", "m", 2).await.expect("accepted");
    let ticks = Arc::new(AtomicU64::new(0));
    // Leases last for no time at all, and time always passes: a claim always succeeds.
    let seconds = Arc::new(AtomicI64::new(10));
    let mut running = JoinSet::new();
    for worker in 0..workers {
        let place = usize::try_from(worker).unwrap_or(0) % stores.len();
        let (store, ticks, seconds) =
            (Arc::clone(&stores[place]), Arc::clone(&ticks), Arc::clone(&seconds));
        running.spawn(async move {
            let mut dice = Dice((seed * 7_919 + worker * 104_729) | 1);
            let mut history = Vec::new();
            let mut epoch = 0;
            for number in 0..each {
                let begun = ticks.fetch_add(1, Ordering::SeqCst);
                let now = at(seconds.fetch_add(1, Ordering::SeqCst));
                let answered = match dice.roll(6) {
                    0 => {
                        let name = format!("w{worker}");
                        let claimed = store.claim(&name, Duration::ZERO, now).await;
                        claimed.expect("claimable").map(|claimed| {
                            epoch = claimed.lease.epoch;
                            Answered::Claimed(epoch)
                        })
                    }
                    1 => {
                        let position = store.position(&session_id("s")).await.expect("readable");
                        position.map(|position| Answered::Read(position.seq))
                    }
                    _ if epoch == 0 => None,
                    _ => {
                        let records = vec![event("s", &format!("{worker}x{number}"))];
                        let author = Author::Worker { epoch, seen: None };
                        let write = append("s", author, records, SessionChange::default());
                        match store.commit(vec![write], now).await {
                            Ok(done) => {
                                Some(Answered::Appended { epoch, seq: done.appended[0][0].0 })
                            }
                            Err(CommitError::LeaseLost { .. }) => Some(Answered::Fenced { epoch }),
                            Err(error) => panic!("seed {seed}: {error}"),
                        }
                    }
                };
                let ended = ticks.fetch_add(1, Ordering::SeqCst);
                history.extend(answered.map(|answered| Operation { begun, ended, answered }));
            }
            history
        });
    }
    let history: Vec<Operation> = running.join_all().await.into_iter().flatten().collect();
    if let Some(cycle) = cycle(&history) {
        panic!("seed {seed}: no order explains these: {cycle:#?}");
    }
}

/// Whether `one` must come before `other`, by what both were answered.
fn precedes(one: Answered, other: Answered) -> bool {
    use Answered::{Appended, Claimed, Fenced, Read};
    match (one, other) {
        (Claimed(one), Claimed(other)) => one < other,
        (Appended { seq: one, .. }, Appended { seq: other, .. }) => one < other,
        (Claimed(claimed), Appended { epoch, .. }) => claimed <= epoch,
        (Appended { epoch, .. }, Claimed(claimed)) => epoch < claimed,
        (Claimed(claimed), Fenced { epoch }) => claimed == epoch + 1,
        (Appended { seq, .. }, Read(head)) => seq <= head,
        (Read(head), Appended { seq, .. }) => head < seq,
        (Read(one), Read(other)) => one < other,
        _ => false,
    }
}

/// Operations that would each have to come before the next, if there are any.
fn cycle(history: &[Operation]) -> Option<Vec<Operation>> {
    let count = history.len();
    let before: Vec<Vec<usize>> = (0..count)
        .map(|one| {
            let must = |other: &usize| {
                let (one, other) = (&history[one], &history[*other]);
                one.ended < other.begun || precedes(one.answered, other.answered)
            };
            (0..count).filter(|other| *other != one).filter(must).collect()
        })
        .collect();
    let mut left = vec![0_usize; count];
    for next in before.iter().flatten() {
        left[*next] += 1;
    }
    let mut free: Vec<usize> = (0..count).filter(|place| left[*place] == 0).collect();
    let mut placed = 0;
    while let Some(place) = free.pop() {
        placed += 1;
        for next in &before[place] {
            left[*next] -= 1;
            if left[*next] == 0 {
                free.push(*next);
            }
        }
    }
    (placed < count).then(|| {
        let stuck = history.iter().zip(left).filter(|(_, left)| *left > 0);
        stuck.map(|(operation, _)| *operation).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::{Answered, Operation, cycle};

    fn history(operations: &[(u64, u64, Answered)]) -> Vec<Operation> {
        let one = |(begun, ended, answered): &(u64, u64, Answered)| Operation {
            begun: *begun,
            ended: *ended,
            answered: *answered,
        };
        operations.iter().map(one).collect()
    }

    #[test]
    fn what_no_order_explains_is_found() {
        use Answered::{Appended, Claimed, Fenced, Read};
        let good = [
            (0, 1, Claimed(1)),
            (2, 9, Appended { epoch: 1, seq: 1 }),
            (3, 8, Read(0)),
            (4, 7, Claimed(2)),
            (10, 11, Fenced { epoch: 1 }),
        ];
        assert!(cycle(&history(&good)).is_none());
        let bad = [
            // A read that does not show what was there before it began.
            vec![(0, 1, Appended { epoch: 1, seq: 1 }), (2, 3, Read(0))],
            // An append under an epoch that was over.
            vec![(0, 1, Claimed(2)), (2, 3, Appended { epoch: 1, seq: 1 })],
            // Two in the wrong order.
            vec![(0, 1, Appended { epoch: 1, seq: 2 }), (2, 3, Appended { epoch: 1, seq: 1 })],
            // A refusal before there was a reason.
            vec![(0, 1, Fenced { epoch: 1 }), (2, 3, Claimed(2))],
            // An epoch given twice is found as two that were each over before the other's appends.
            vec![
                (0, 1, Claimed(1)),
                (2, 3, Appended { epoch: 1, seq: 1 }),
                (4, 5, Read(2)),
                (6, 7, Appended { epoch: 1, seq: 2 }),
            ],
        ];
        for operations in bad {
            assert!(cycle(&history(&operations)).is_some(), "{operations:?}");
        }
    }
}
