//! The writer thread: everything that changes the database, in groups that share one flush to disk.

use crate::{OpenError, commit, rows::failed, tails::Tails};
use rusqlite::{Connection, TransactionBehavior};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::oneshot;
use vaquero_store::{
    Claimed, CommitError, Committed, Lease, Record, Seq, StoreError, WorkerName, Write,
    notify::Wakes,
};
use vaquero_types::{SessionId, Timestamp};

/// Most jobs in one transaction.
const GROUP: usize = 256;

/// Whom to wake once a transaction is durable.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Sessions that grew, where their logs end now, and by what.
    pub(crate) grown: Vec<(SessionId, Seq, Vec<Record>)>,
    pub(crate) ready: bool,
}

enum Job {
    Commit {
        writes: Vec<Write>,
        now: Timestamp,
        reply: oneshot::Sender<Result<Committed, CommitError>>,
    },
    Heartbeat {
        worker: WorkerName,
        ttl: Duration,
        now: Timestamp,
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
    Claim {
        worker: WorkerName,
        ttl: Duration,
        now: Timestamp,
        reply: oneshot::Sender<Result<Option<Claimed>, StoreError>>,
    },
    Renew {
        lease: Lease,
        ttl: Duration,
        now: Timestamp,
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
    Release {
        lease: Lease,
        handover: bool,
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
    Close,
}

/// The way to the writer thread.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        wakes: Arc<Wakes>,
        tails: Arc<Tails>,
    ) -> Result<Self, OpenError> {
        let (jobs, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("vaquero-store".to_owned())
            .spawn(move || Thread { connection, flushes: None, wakes, tails }.run(&inbox))
            .map_err(OpenError::Thread)?;
        Ok(Self { jobs, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn close(&self) {
        let sent = self.jobs.send(Job::Close).is_ok();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && (thread.join().is_err() || !sent)
        {
            tracing::error!("the store's writer ended early");
        }
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)
    }

    pub(crate) async fn commit(
        &self,
        writes: Vec<Write>,
        now: Timestamp,
    ) -> Result<Committed, CommitError> {
        self.ask(|reply| Job::Commit { writes, now, reply }).await?
    }

    pub(crate) async fn heartbeat(
        &self,
        worker: WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match self.ask(|reply| Job::Heartbeat { worker, ttl, now, reply }).await? {
            Err(CommitError::Store(error)) => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn claim(
        &self,
        worker: WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        self.ask(|reply| Job::Claim { worker, ttl, now, reply }).await?
    }

    pub(crate) async fn renew(
        &self,
        lease: Lease,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), CommitError> {
        self.ask(|reply| Job::Renew { lease, ttl, now, reply }).await?
    }

    pub(crate) async fn release(&self, lease: Lease, handover: bool) -> Result<(), CommitError> {
        self.ask(|reply| Job::Release { lease, handover, reply }).await?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// An answer that is given once its transaction is durable.
type Reply = Box<dyn FnOnce(Option<StoreError>) + Send>;

/// What the writer thread works with.
struct Thread {
    connection: Connection,
    /// Whether a transaction flushes, as the connection is set now.
    flushes: Option<bool>,
    wakes: Arc<Wakes>,
    tails: Arc<Tails>,
}

impl Thread {
    fn run(mut self, inbox: &Receiver<Job>) {
        let mut closing = false;
        while !closing {
            let Ok(first) = inbox.recv() else { break };
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = inbox.try_recv()
            {
                group.push(job);
            }
            closing = group.iter().any(|job| matches!(job, Job::Close));
            self.perform(group);
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the write-ahead log stays until the next start");
        }
    }

    /// One transaction for a group of jobs. Claims, renewals and releases alone need no flush: if the machine loses them, nothing that was written under them is
    /// there either (the first commit under a lease flushes the claim with it), and opening the store voids all leases anyway.
    fn perform(&mut self, group: Vec<Job>) {
        let durable = group.iter().any(|job| matches!(job, Job::Commit { .. }));
        let mut replies: Vec<Reply> = Vec::new();
        let mut effects = Effects::default();
        let level = if durable { "FULL" } else { "NORMAL" };
        let level = (self.flushes != Some(durable)).then_some(level);
        let outcome = transact(&mut self.connection, level, group, &mut replies, &mut effects);
        self.flushes = outcome.is_ok().then_some(durable);
        let error = outcome.err();
        if error.is_none() {
            for (session, head, records) in &mut effects.grown {
                if *head == Seq::MAX {
                    self.tails.forget(session);
                } else if !records.is_empty() {
                    self.tails.grow(session, std::mem::take(records));
                }
            }
        }
        for reply in replies {
            reply(error.as_ref().map(again));
        }
        if error.is_none() {
            for (session, head, _) in &effects.grown {
                self.wakes.grown(session, *head);
            }
            if effects.ready {
                self.wakes.ready();
            }
        }
    }
}

/// The same failure for every job of a group.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full(_) => StoreError::Full("the transaction could not be written".into()),
        StoreError::Away(_) | StoreError::Backend(_) | StoreError::Corrupt { .. } => {
            StoreError::Backend("the transaction failed".into())
        }
        StoreError::Closed => StoreError::Closed,
    }
}

fn transact(
    connection: &mut Connection,
    level: Option<&str>,
    group: Vec<Job>,
    replies: &mut Vec<Reply>,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let prepared = level.map_or(Ok(()), |level| {
        connection.pragma_update(None, "synchronous", level).map_err(failed)
    });
    let begun = prepared.and_then(|()| {
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)
    });
    let transaction = match begun {
        Ok(transaction) => transaction,
        Err(error) => {
            tracing::error!(%error, "the store cannot begin a transaction");
            for job in group {
                refuse(job, &error);
            }
            return Err(error);
        }
    };
    for job in group {
        let mut own = Effects::default();
        let reply = catch_unwind(AssertUnwindSafe(|| step(&transaction, job, &mut own)));
        if let Ok(reply) = reply {
            replies.extend(reply);
            effects.grown.append(&mut own.grown);
            effects.ready |= own.ready;
        } else {
            tracing::error!("a commit panicked; its caller is told that the store failed");
        }
    }
    let committed = transaction.commit().map_err(failed);
    if let Err(error) = &committed {
        tracing::error!(%error, "the store cannot commit");
    }
    committed
}

fn refuse(job: Job, error: &StoreError) {
    let error = again(error);
    match job {
        Job::Commit { reply, .. } => drop(reply.send(Err(error.into()))),
        Job::Claim { reply, .. } => drop(reply.send(Err(error))),
        Job::Heartbeat { reply, .. } | Job::Renew { reply, .. } | Job::Release { reply, .. } => {
            drop(reply.send(Err(error.into())));
        }
        Job::Close => {}
    }
}

/// Performs one job inside a savepoint of its own, so that a refusal undoes that job alone.
fn step(db: &Connection, job: Job, effects: &mut Effects) -> Option<Reply> {
    match job {
        Job::Commit { writes, now, reply } => {
            let result = guarded(db, effects, |effects| commit::apply(db, writes, now, effects));
            Some(Box::new(move |error| drop(reply.send(settle(result, error)))))
        }
        Job::Claim { worker, ttl, now, reply } => {
            let result = commit::claim(db, &worker, ttl, now, effects);
            Some(Box::new(move |error| {
                drop(reply.send(error.map_or(result, Err)));
            }))
        }
        Job::Heartbeat { worker, ttl, now, reply } => {
            let result = commit::heartbeat(db, &worker, ttl, now);
            Some(Box::new(move |error| drop(reply.send(settle(result, error)))))
        }
        Job::Renew { lease, ttl, now, reply } => {
            let result = commit::renew(db, &lease, ttl, now);
            Some(Box::new(move |error| drop(reply.send(settle(result, error)))))
        }
        Job::Release { lease, handover, reply } => {
            let result = commit::release(db, &lease, handover);
            effects.ready = true;
            Some(Box::new(move |error| drop(reply.send(settle(result, error)))))
        }
        Job::Close => None,
    }
}

fn settle<T>(result: Result<T, CommitError>, error: Option<StoreError>) -> Result<T, CommitError> {
    match error {
        Some(error) => Err(error.into()),
        None => result,
    }
}

fn guarded<T>(
    db: &Connection,
    effects: &mut Effects,
    apply: impl FnOnce(&mut Effects) -> Result<T, CommitError>,
) -> Result<T, CommitError> {
    run_sql(db, "SAVEPOINT job")?;
    let mut own = Effects::default();
    let result = catch_unwind(AssertUnwindSafe(|| apply(&mut own)))
        .unwrap_or_else(|_| Err(StoreError::Backend("the commit panicked".into()).into()));
    if result.is_ok() {
        run_sql(db, "RELEASE job")?;
        effects.grown.append(&mut own.grown);
        effects.ready |= own.ready;
    } else {
        run_sql(db, "ROLLBACK TO job")?;
        run_sql(db, "RELEASE job")?;
    }
    result
}

fn run_sql(db: &Connection, sql: &str) -> Result<(), CommitError> {
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    statement.execute([]).map_err(failed)?;
    Ok(())
}
