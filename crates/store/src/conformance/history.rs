//! One random history fed to two stores, which must answer alike at every step.

use super::fixture::{TTL, append, at, event, log, new_session, record, session_id};
use crate::{Author, EventQuery, Lease, RecordKind, SessionChange, SharedStore, Write};
use vaquero_types::session::Status;

/// A small generator with a seed: the same seed gives the same history.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Feeds `steps` random steps of this seed to both stores and compares everything they answer.
pub async fn agree(seed: u64, steps: u32, one: SharedStore, other: SharedStore) {
    let mut dice = Dice(seed | 1);
    let mut leases: Vec<Lease> = Vec::new();
    for step in 0..steps {
        let second = i64::from(step) + i64::try_from(dice.roll(40)).unwrap_or(0);
        let name = format!("s{}", dice.roll(4));
        match dice.roll(10) {
            0 => {
                let (first, second_store) = (
                    one.commit(vec![new_session(&name, second)], at(second)).await,
                    other.commit(vec![new_session(&name, second)], at(second)).await,
                );
                assert_eq!(
                    format!("{first:?}"),
                    format!("{second_store:?}"),
                    "seed {seed}, step {step}"
                );
            }
            1 | 2 => {
                let worker = "w".to_owned();
                let first = one.claim(&worker, TTL, at(second)).await.expect("claimable");
                let second_store = other.claim(&worker, TTL, at(second)).await.expect("claimable");
                assert_eq!(first, second_store, "seed {seed}, step {step}");
                leases.extend(first.map(|found| found.lease));
            }
            3 => {
                let revision = one
                    .session(&session_id(&name))
                    .await
                    .expect("readable")
                    .map_or(1, |row| row.revision);
                let write = Write::DeleteSession {
                    session: session_id(&name),
                    revision: revision + u64::from(dice.roll(3) == 0),
                    record: record(
                        &name,
                        RecordKind::Event,
                        &format!("gone{step}"),
                        "session.deleted",
                    ),
                };
                if dice.roll(4) == 0 {
                    both(&one, &other, write, second, seed, step).await;
                }
            }
            4..=6 => {
                let revision = one
                    .session(&session_id(&name))
                    .await
                    .expect("readable")
                    .map_or(1, |row| row.revision);
                let author = Author::Client { revision: revision + u64::from(dice.roll(5) == 0) };
                let kind = if dice.roll(2) == 0 { RecordKind::Received } else { RecordKind::Event };
                let records =
                    vec![record(&name, kind, &format!("c{}", dice.roll(60)), "user.message")];
                let change = SessionChange {
                    ready: Some(true),
                    status: (dice.roll(2) == 0).then_some(Status::Running),
                    ..SessionChange::default()
                };
                both(&one, &other, append(&name, author, records, change), second, seed, step)
                    .await;
            }
            _ => {
                let Some(lease) =
                    leases.get(usize::try_from(dice.roll(leases.len().max(1) as u64)).unwrap_or(0))
                else {
                    continue;
                };
                let name = lease.session.as_str().trim_start_matches("sesn_").to_owned();
                let seen = (dice.roll(2) == 0).then(|| dice.roll(20));
                let author = Author::Worker { epoch: lease.epoch, seen };
                let records = vec![event(&name, &format!("w{}", dice.roll(60)))];
                let change = SessionChange {
                    ready: (dice.roll(3) == 0).then_some(false),
                    progress: dice.roll(2) == 0,
                    ..SessionChange::default()
                };
                both(&one, &other, append(&name, author, records, change), second, seed, step)
                    .await;
            }
        }
        compare(&one, &other, &name, seed, step).await;
    }
}

async fn both(
    one: &SharedStore,
    other: &SharedStore,
    write: Write,
    second: i64,
    seed: u64,
    step: u32,
) {
    let first = one.commit(vec![write.clone()], at(second)).await;
    let second_store = other.commit(vec![write], at(second)).await;
    assert_eq!(format!("{first:?}"), format!("{second_store:?}"), "seed {seed}, step {step}");
}

async fn compare(one: &SharedStore, other: &SharedStore, name: &str, seed: u64, step: u32) {
    let place = format!("seed {seed}, step {step}, session {name}");
    assert_eq!(log(one, name).await, log(other, name).await, "{place}");
    let id = session_id(name);
    let rows =
        (one.session(&id).await.expect("readable"), other.session(&id).await.expect("readable"));
    assert_eq!(rows.0, rows.1, "{place}");
    let threads =
        (one.threads(&id).await.expect("readable"), other.threads(&id).await.expect("readable"));
    assert_eq!(threads.0, threads.1, "{place}");
    for descending in [false, true] {
        let query = EventQuery {
            session: id.clone(),
            thread: None,
            types: Vec::new(),
            after: None,
            from: None,
            before: None,
            until: None,
            descending,
            cursor: None,
            limit: 5,
        };
        let pages = (
            one.events(&query).await.expect("readable"),
            other.events(&query).await.expect("readable"),
        );
        assert_eq!(pages.0, pages.1, "{place}");
    }
}
