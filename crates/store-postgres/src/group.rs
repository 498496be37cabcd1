//! One transaction for a group of jobs: read and lock what they need, decide in memory, write the outcome. Two round trips, whatever the size of the group.

mod load;
mod save;

use crate::{
    rows::{Columns, session},
    statements::Statements,
};
use futures::{FutureExt, TryFutureExt};
use std::{future::Future, pin::Pin, time::Duration};
use tokio_postgres::{Client, Error, types::ToSql};
use vaquero_store::{
    Claimed, CommitError, Committed, Lease, Seq, StoreError, WorkerName, Write,
    workset::{Needs, WorkSet},
};
use vaquero_types::{SessionId, Timestamp};

/// What a caller wants done.
#[derive(Debug)]
pub(crate) enum Work {
    Commit { writes: Vec<Write>, now: Timestamp },
    Claim { worker: WorkerName, ttl: Duration, now: Timestamp },
    Renew { lease: Lease, ttl: Duration, now: Timestamp },
    Release { lease: Lease, handover: bool },
    Heartbeat { worker: WorkerName, ttl: Duration, now: Timestamp },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Commit(Result<Committed, CommitError>),
    Claim(Option<Box<Claimed>>),
    Unit(Result<(), CommitError>),
}

/// Whose clock counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The database's: servers whose clocks differ agree on leases and on the order of events.
    #[default]
    Database,
    /// The caller's, for tests that make their own time.
    Caller,
}

/// A group's outcome, and whom to wake.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) done: Vec<Done>,
    pub(crate) grown: Vec<(SessionId, Seq)>,
    pub(crate) ready: bool,
    /// As much was claimed as was asked for: there may be more.
    pub(crate) more: bool,
}

/// Where a group failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Before it could have been committed.
    Before(Error),
    /// When it may have been; its transaction's id, if it had one, and its outcome if it was.
    Unknown { error: Error, transaction: Option<String>, outcome: Outcome },
    /// A row could not be understood.
    Store(StoreError),
}

/// A parameter of a statement.
type Param<'a> = &'a (dyn ToSql + Sync);
type Query<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

pub(crate) async fn perform(
    client: &Client,
    statements: &Statements,
    clock: Clock,
    works: &[&Work],
) -> Result<Outcome, Failure> {
    let mut needs = Needs::default();
    for work in works {
        match work {
            Work::Commit { writes, .. } => needs.add(writes),
            Work::Renew { lease, .. } | Work::Release { lease, .. } => {
                needs.sessions.insert(lease.session.clone());
            }
            Work::Claim { .. } | Work::Heartbeat { .. } => {}
        }
    }
    let decides = works.iter().any(|work| {
        matches!(work, Work::Commit { .. } | Work::Renew { .. } | Work::Release { .. })
    });
    let (loaded, begun) = if decides {
        let loaded = load::load(client, statements, &needs, works).await?;
        (loaded, true)
    } else {
        (load::Loaded::default(), false)
    };
    let load::Loaded { mut set, numbers, transaction, stored, now } = loaded;
    let mut outcome = Outcome::default();
    for work in works {
        outcome.done.push(decide(&mut set, work, clock, now));
    }
    for (id, session) in &set.sessions {
        if session.changed {
            let head = if session.state.deleted { Seq::MAX } else { session.state.head };
            outcome.grown.push((id.clone(), head));
        }
    }
    outcome.ready = set.ready;
    let writes = save::Writes::of(set, numbers, &stored);
    let claims = Claims::of(works, clock);
    let mut queries: Vec<Query<'_, ()>> = Vec::new();
    if !begun {
        queries.push(client.batch_execute(BEGIN).boxed());
    }
    writes.queue(client, statements, &mut queries);
    for work in works {
        if let Work::Heartbeat { worker, ttl, now } = work {
            let beat = heartbeat(client, statements, worker, *ttl, clock, *now);
            queries.push(beat.boxed());
        }
    }
    let claiming = claims.iter().map(|claim| claim.run(client, statements));
    let finished = futures::future::join3(
        futures::future::try_join_all(queries),
        futures::future::try_join_all(claiming),
        client.batch_execute("COMMIT"),
    );
    let (written, claimed, committed) = finished.await;
    // The first statement that failed says why; those after it only say that the transaction is over.
    let claimed = match written.and(claimed).and_then(|rows| committed.map(|()| rows)) {
        Ok(claimed) => claimed,
        Err(error) if error.as_db_error().is_some() => return Err(Failure::Before(error)),
        Err(error) => return Err(Failure::Unknown { error, transaction, outcome }),
    };
    for (claim, rows) in claims.iter().zip(claimed) {
        claim.hand_out(rows, &mut outcome).map_err(Failure::Store)?;
    }
    Ok(outcome)
}

pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

fn decide(set: &mut WorkSet, work: &Work, clock: Clock, database: Timestamp) -> Done {
    let at = |now: &Timestamp| if clock == Clock::Database { database } else { *now };
    match work {
        Work::Commit { writes, now } => Done::Commit(set.commit(writes.clone(), at(now))),
        Work::Renew { lease, ttl, now } => Done::Unit(set.renew(lease, *ttl, at(now))),
        Work::Release { lease, handover } => Done::Unit(set.release(lease, *handover)),
        Work::Claim { .. } => Done::Claim(None),
        Work::Heartbeat { .. } => Done::Unit(Ok(())),
    }
}

fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX / 4)
}

/// The instant a statement is to take for now; none for the database's own.
fn instant(clock: Clock, now: Timestamp) -> Option<i64> {
    (clock == Clock::Caller).then(|| now.as_micros())
}

async fn heartbeat(
    client: &Client,
    statements: &Statements,
    worker: &str,
    ttl: Duration,
    clock: Clock,
    now: Timestamp,
) -> Result<(), Error> {
    let (now, ttl) = (instant(clock, now), micros(ttl));
    client.execute(&statements.heartbeat, &[&worker, &now, &ttl]).map_ok(drop).await
}

/// Claims that one statement makes: those of the same worker at the same instant.
struct Claims<'a> {
    worker: &'a WorkerName,
    now: Option<i64>,
    ttl: i64,
    /// Which of the group's works they are.
    places: Vec<usize>,
}

impl<'a> Claims<'a> {
    fn of(works: &[&'a Work], clock: Clock) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (place, work) in works.iter().enumerate() {
            let Work::Claim { worker, ttl, now } = work else { continue };
            let (now, ttl) = (instant(clock, *now), micros(*ttl));
            let same = |claims: &&mut Self| {
                claims.worker == worker && claims.now == now && claims.ttl == ttl
            };
            match all.iter_mut().find(same) {
                Some(claims) => claims.places.push(place),
                None => all.push(Self { worker, now, ttl, places: vec![place] }),
            }
        }
        all
    }

    async fn run(
        &self,
        client: &Client,
        statements: &Statements,
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        let count = i64::try_from(self.places.len()).unwrap_or(1);
        client.query(&statements.claim, &[self.worker, &self.now, &self.ttl, &count]).await
    }

    /// Gives what was claimed to those who asked, the longest ready first.
    fn hand_out(
        &self,
        rows: Vec<tokio_postgres::Row>,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut columns = Columns::of(row);
            let row = session(&mut columns)?;
            let claims: i32 = columns.get()?;
            let order = (columns.get::<Option<i64>>()?, columns.get::<i64>()?);
            let lease = Lease {
                session: row.id.clone(),
                workspace: row.workspace.clone(),
                epoch: row.epoch,
                claims: u32::try_from(claims).unwrap_or(0),
            };
            found.push((order, Claimed { lease, row }));
        }
        found.sort_by_key(|(order, _)| *order);
        outcome.more |= found.len() == self.places.len();
        for (place, (_, claimed)) in self.places.iter().zip(found) {
            outcome.done[*place] = Done::Claim(Some(Box::new(claimed)));
        }
        Ok(())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
