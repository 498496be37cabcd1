//! Everything that changes the database, in groups on few connections. A group whose connection breaks is tried again, once it is known not to have been committed: a commit
//! whose outcome a cut connection hid is looked up by its transaction's id, so callers never see doubt while the database comes back within their patience.

use crate::{
    connect::Database,
    group::{self, Clock, Done, Failure, Outcome, Work},
    hub::Hub,
    read::{Param, passing},
    rows::said,
    statements::Statements,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, Error, error::SqlState};
use tokio_util::task::TaskTracker;
use vaquero_store::{CommitError, StoreError, Write};

/// Most jobs, and about how many bytes, in one transaction.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;
/// How long a job may wait for a database that is away.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one transaction may take.
const ATTEMPT: Duration = Duration::from_secs(25);
/// How often a group that others got in the way of is tried as a whole, before each of its jobs is tried alone.
const TOGETHER: u32 = 3;

/// What every connection that writes is told: rows are found by their keys, whatever the planner thinks of tables it has never looked at.
const SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

struct Job {
    work: Work,
    reply: oneshot::Sender<Result<Done, StoreError>>,
    by: Instant,
}

/// The way to the writers.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    tasks: TaskTracker,
}

impl Writer {
    pub(crate) fn start(database: &Database, writers: usize, clock: Clock, hub: &Arc<Hub>) -> Self {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let inbox = Arc::new(Mutex::new(inbox));
        let tasks = TaskTracker::new();
        for _ in 0..writers {
            let link = Link { database: database.clone(), open: None, last: None };
            let writer =
                Connection { inbox: Arc::clone(&inbox), link, clock, hub: Arc::clone(hub) };
            tasks.spawn(writer.run());
        }
        tasks.close();
        Self { jobs, tasks }
    }

    pub(crate) async fn ask(&self, work: Work) -> Result<Done, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { work, reply, by: Instant::now() + PATIENCE };
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Finishes what is queued.
    pub(crate) async fn close(self) {
        drop(self.jobs);
        self.tasks.wait().await;
    }
}

/// One connection that writes.
struct Connection {
    inbox: Arc<Mutex<mpsc::UnboundedReceiver<Job>>>,
    link: Link,
    clock: Clock,
    hub: Arc<Hub>,
}

fn weight(work: &Work) -> usize {
    let Work::Commit { writes, .. } = work else { return 0 };
    let of = |write: &Write| match write {
        Write::Append(append) => {
            append.records.iter().map(|record| record.body.len()).sum::<usize>()
                + append.change.body.as_ref().map_or(0, String::len)
        }
        Write::PutDocument { document, .. } => document.body.len(),
        Write::CreateSession { row, .. } => row.body.len(),
        Write::PutSnapshot { snapshot, .. } => snapshot.body.len(),
        _ => 0,
    };
    writes.iter().map(of).sum()
}

impl Connection {
    async fn run(mut self) {
        while let Some(group) = self.next().await {
            self.perform(group).await;
        }
    }

    /// What waits, up to a group; none once nobody can ask any more.
    async fn next(&self) -> Option<Vec<Job>> {
        let mut inbox = self.inbox.lock().await;
        let first = inbox.recv().await?;
        let mut bytes = weight(&first.work);
        let mut group = vec![first];
        while group.len() < GROUP && bytes < GROUP_BYTES {
            let Ok(job) = inbox.try_recv() else { break };
            bytes += weight(&job.work);
            group.push(job);
        }
        Some(group)
    }

    /// Tries a group until it is done, refused or out of patience. A group that fails for no passing reason is tried job by job, so that one cannot spoil the others.
    async fn perform(&mut self, group: Vec<Job>) {
        let mut together = true;
        let mut left = group;
        let mut tries = 0;
        let mut reason = String::new();
        while !left.is_empty() {
            let now = Instant::now();
            let (due, late): (Vec<Job>, Vec<Job>) = left.into_iter().partition(|job| job.by > now);
            for job in late {
                answer(job, Err(self.link.away(&reason)));
            }
            if due.is_empty() {
                return;
            }
            let alone = if together { due.len() } else { 1 };
            let mut attempted = due;
            left = attempted.split_off(alone);
            tries += 1;
            match self.attempt(&attempted).await {
                Ok(outcome) => self.finish(attempted, outcome),
                Err(Retry::Refused(_)) if attempted.len() > 1 => {
                    together = false;
                    attempted.extend(left);
                    left = attempted;
                }
                Err(Retry::Refused(error)) => {
                    tracing::error!(%error, "the database refused a commit");
                    for job in attempted {
                        answer(job, Err(again(&error)));
                    }
                }
                Err(Retry::Later(why)) => {
                    reason = why.to_string();
                    tracing::warn!(error = reason, place = %self.link.database.place, "a transaction failed; trying again");
                    metrics::counter!("vaquero_store_retries_total").increment(1);
                    together &= tries < TOGETHER;
                    attempted.extend(left);
                    left = attempted;
                    sleep(pause(tries)).await;
                }
            }
        }
    }

    fn finish(&self, jobs: Vec<Job>, outcome: Outcome) {
        // First those who asked: what wakes others takes time.
        for (job, done) in jobs.into_iter().zip(outcome.done) {
            answer(job, Ok(done));
        }
        self.hub.grown(outcome.grown);
        if outcome.ready {
            self.hub.ready();
        } else if outcome.more {
            // Whoever is next in line here looks as well; other servers were told when it became ready.
            self.hub.wakes.ready();
        }
    }

    async fn attempt(&mut self, jobs: &[Job]) -> Result<Outcome, Retry> {
        let works: Vec<&Work> = jobs.iter().map(|job| &job.work).collect();
        let open = self.link.open().await?;
        let performed = group::perform(&open.client, &open.statements, self.clock, &works);
        let failure = match timeout(ATTEMPT, performed).await {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(failure)) => failure,
            Err(_) => {
                // Nothing is known of it; the transaction goes with its connection, unless it was committed: the jobs are told that the store failed.
                self.link.break_off();
                return Err(Retry::Refused(StoreError::Backend(
                    "the database does not answer".into(),
                )));
            }
        };
        match failure {
            Failure::Before(error) => Err(self.before(error).await),
            Failure::Store(error) => {
                self.link.break_off();
                Err(Retry::Refused(error))
            }
            Failure::Unknown { error, transaction, outcome } => {
                self.link.break_off();
                match transaction {
                    Some(id) => self.look_up(&id, error, outcome).await,
                    // Claims alone: whatever was claimed comes back when its lease is over.
                    None => Err(Retry::Later(said(&error))),
                }
            }
        }
    }

    /// A failure of a transaction that was certainly not committed.
    async fn before(&mut self, error: Error) -> Retry {
        let raced = [SqlState::UNIQUE_VIOLATION];
        let refused = error.as_db_error().is_some();
        let usable = refused
            && !self.link.open.as_ref().is_none_or(|open| open.client.is_closed())
            && error.code() != Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        let rolled_back = match &self.link.open {
            Some(open) if usable => {
                let rolling = open.client.batch_execute("ROLLBACK");
                timeout(Duration::from_secs(5), rolling).await.is_ok_and(|done| done.is_ok())
            }
            _ => false,
        };
        if !rolled_back {
            self.link.break_off();
        }
        if passing(&error) || error.code().is_some_and(|code| raced.contains(code)) {
            Retry::Later(said(&error))
        } else {
            Retry::Refused(crate::rows::failed(error))
        }
    }

    /// Asks what became of a transaction whose connection broke.
    async fn look_up(
        &mut self,
        id: &str,
        error: Error,
        outcome: Outcome,
    ) -> Result<Outcome, Retry> {
        let deadline = Instant::now() + PATIENCE;
        let mut tries = 0;
        while Instant::now() < deadline {
            tries += 1;
            let asked = match self.link.open().await {
                Ok(open) => {
                    let sql = "SELECT pg_xact_status($1::text::xid8)";
                    let ids: [Param<'_>; 1] = [&id];
                    timeout(Duration::from_secs(5), open.client.query_one(sql, &ids)).await.ok()
                }
                Err(_) => None,
            };
            match asked {
                Some(Ok(row)) => match row.get::<_, Option<&str>>(0) {
                    Some("committed") => return Ok(outcome),
                    Some("aborted") => return Err(Retry::Later(said(&error))),
                    Some(_) => {}
                    None => break,
                },
                Some(Err(_)) | None => self.link.break_off(),
            }
            sleep(pause(tries)).await;
        }
        Err(Retry::Refused(StoreError::Backend(said(&error))))
    }
}

/// What to do with a group that failed.
enum Retry {
    /// Try again.
    Later(Box<dyn std::error::Error + Send + Sync>),
    /// It would fail again.
    Refused(StoreError),
}

fn answer(job: Job, done: Result<Done, StoreError>) {
    // Whoever asked may have gone.
    drop(job.reply.send(done));
}

/// The same failure for another job.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full(source) => StoreError::Full(source.to_string().into()),
        StoreError::Away(source) => StoreError::Away(source.to_string().into()),
        StoreError::Backend(source) => StoreError::Backend(source.to_string().into()),
        StoreError::Corrupt { what } => StoreError::Corrupt { what: what.clone() },
        StoreError::Closed => StoreError::Closed,
    }
}

/// Twice as long each time, with a random part so that servers do not come back all at once.
fn pause(tries: u32) -> Duration {
    let longest = Duration::from_millis(10 << tries.min(6));
    longest.mul_f64(0.5 + crate::hub::random() / 2.0)
}

/// A connection that writes, remade when it breaks.
struct Link {
    database: Database,
    open: Option<Open>,
    /// The process at the database's end of a connection that broke, and since when it runs.
    last: Option<(i32, String)>,
}

struct Open {
    client: Client,
    statements: Statements,
    backend: (i32, String),
}

impl Link {
    fn away(&self, reason: &str) -> StoreError {
        let reason = if reason.is_empty() { "it is busy" } else { reason };
        StoreError::Away(format!("the database {}: {reason}", self.database.place).into())
    }

    fn break_off(&mut self) {
        self.last = self.open.take().map(|open| open.backend).or_else(|| self.last.take());
    }

    async fn open(&mut self) -> Result<&Open, Retry> {
        if self.open.as_ref().is_some_and(|open| open.client.is_closed()) {
            self.break_off();
        }
        if self.open.is_none() {
            let made = timeout(Duration::from_secs(10), self.make()).await;
            let open = match made {
                Ok(Ok(open)) => open,
                Ok(Err(error)) => return Err(Retry::Later(said(&error))),
                Err(_) => return Err(Retry::Later("the database does not answer".into())),
            };
            self.open = Some(open);
        }
        self.open.as_ref().ok_or_else(|| Retry::Refused(self.away("no connection")))
    }

    async fn make(&mut self) -> Result<Open, Error> {
        let client = self.database.connect().await?;
        client.batch_execute(SETTINGS).await?;
        let row = client
            .query_one("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()", &[])
            .await?;
        let backend = (row.get(0), row.get(1));
        if let Some((pid, since)) = self.last.take() {
            // It may still hold the locks of a transaction that nobody will end.
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
            client.execute(sql, &[&pid, &since]).await?;
        }
        let statements = Box::pin(Statements::prepare(&client)).await?;
        Ok(Open { client, statements, backend })
    }
}

impl From<CommitError> for Retry {
    fn from(error: CommitError) -> Self {
        Self::Refused(StoreError::Backend(Box::new(error)))
    }
}
