//! Our hands for somebody else's queue: a worker of a self-hosted environment, of any server that has one, whose tools run in sandboxes of ours.
//!
//! It takes items of work, keeps each by heartbeats, follows the events of its session, runs the calls that wait, and sends their results. A sandbox belongs to a session for as long as
//! there is one: a worker that is started again goes on with the calls that run.

mod calls;
mod item;
mod queue;

use crate::{compute, config::Config, uplink::Egress, vault_keys::VaultKeys};
use anyhow::{Context, bail};
use item::Item;
use queue::{Queue, Trouble};
use serde_json::Value;
use std::{collections::BTreeSet, fs::File, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vaquero_sandbox::{ComputeProvider, Limits, Networking, Outbound, Reach};
use vaquero_store::MemoryStore;
use vaquero_types::SystemClock;

/// The longest pause after polls that failed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The pause after a poll that found nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// How often sessions that are gone are looked for.
const REAP: Duration = Duration::from_secs(300);
/// How long to wait for what runs when the worker stops.
const GRACE: Duration = Duration::from_secs(10);

/// Whose queue, and how much of it at once.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) base_url: String,
    pub(crate) environment: String,
    pub(crate) key: String,
    /// What sandboxes reach: these hosts, or the public internet.
    pub(crate) allowed_hosts: Option<Vec<String>>,
    /// Sessions served at once.
    pub(crate) sessions: usize,
    /// How long a session may rest before it is left.
    pub(crate) max_idle: Duration,
}

/// What every item is served with.
#[derive(Clone)]
struct Hands {
    compute: Arc<dyn ComputeProvider>,
    limits: Limits,
    outbound: Option<Outbound>,
    max_idle: Duration,
}

/// Works until `stop`.
pub(crate) async fn run(config: &Config, job: Job, stop: CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("{} cannot be made", config.data_dir.display()))?;
    let _lock = lock(config)?;
    let clock = Arc::new(SystemClock);
    let nothing = VaultKeys::none("a worker has no vault");
    let egress = Egress::new(config, Arc::new(MemoryStore::default()), &nothing, clock)?;
    let compute = compute::compute(config, egress).await?;
    let reach = job.allowed_hosts.map_or(Reach::Unrestricted, Reach::Limited);
    let controlled =
        matches!(compute.capabilities().networking, Networking::Controlled | Networking::Proxied);
    if !controlled && reach != Reach::Unrestricted {
        bail!("--allowed-hosts: sandbox required: nothing limits commands on this host itself");
    }
    let outbound = controlled.then_some(Outbound { reach, vaults: None });
    let limits = config.sandbox_limits();
    let hands = Hands { compute, limits, outbound, max_idle: job.max_idle };
    let queue = Arc::new(Queue::new(&job.base_url, job.environment, job.key)?);
    let (places, items) = (Arc::new(Semaphore::new(job.sessions)), TaskTracker::new());
    let outcome = tokio::select! {
        outcome = work(&queue, &hands, &places, &items, &stop) => outcome,
        () = reap(&queue, hands.compute.as_ref()) => Ok(()),
        () = stop.cancelled() => Ok(()),
    };
    stop.cancel();
    items.close();
    if tokio::time::timeout(GRACE, items.wait()).await.is_err() {
        tracing::warn!("some sessions were not left in time; their items go to the next worker");
    }
    // What runs goes on for the worker that is started next.
    hands.compute.shutdown(true).await;
    outcome
}

/// One worker for each data directory.
fn lock(config: &Config) -> anyhow::Result<File> {
    let path = config.data_dir.join("worker.lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    let taken = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    taken.with_context(|| {
        format!("another worker uses {}; --data-dir names another one", config.data_dir.display())
    })?;
    Ok(file)
}

/// Takes items, for as long as the queue lets it.
async fn work(
    queue: &Arc<Queue>,
    hands: &Hands,
    places: &Arc<Semaphore>,
    items: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = PAUSE;
    loop {
        let place = Arc::clone(places).acquire_owned().await.context("the worker stops")?;
        match next(queue).await {
            Ok(Some(item)) => {
                pause = PAUSE;
                tracing::info!(work = item.work, session = item.session, "serving a session");
                let (hands, stop) = (hands.clone(), stop.clone());
                items.spawn(async move {
                    item.serve(&hands, &stop).await;
                    drop(place);
                });
            }
            Ok(None) => {
                pause = PAUSE;
                tokio::time::sleep(PAUSE).await;
            }
            Err(Trouble::Refused(status, message)) => {
                bail!("the queue refuses: {status}: {message}")
            }
            Err(Trouble::Away(why)) => {
                tracing::warn!(why, "the queue cannot be reached; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// The next item, taken; none if there is none.
async fn next(queue: &Arc<Queue>) -> Result<Option<Item>, Trouble> {
    let found = queue.poll().await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let work = text(&found["id"]);
    if work.is_empty() {
        return Ok(None);
    }
    let bearer = queue::token(&found["secret"]).unwrap_or_else(|| queue.key().to_owned());
    match queue.act(queue.key(), &work, "ack", None).await {
        // Another worker was faster.
        Err(Trouble::Refused(409 | 412, _)) => return Ok(None),
        acknowledged => drop(acknowledged?),
    }
    if found["data"]["type"] != "session" {
        // Nothing here knows what to do with it.
        drop(queue.stop(&bearer, &work).await);
        return Ok(None);
    }
    let session = text(&found["data"]["id"]);
    Ok(Some(Item { queue: Arc::clone(queue), bearer, work, session }))
}

/// Removes what is here of sessions that are gone, when they are in two rounds: files do not come back.
async fn reap(queue: &Queue, compute: &dyn ComputeProvider) {
    let mut missing = BTreeSet::new();
    loop {
        tokio::time::sleep(REAP).await;
        let Ok(sessions) = compute.sessions().await else { continue };
        let before = std::mem::take(&mut missing);
        for session in sessions {
            if !queue.is_gone(&session).await {
                continue;
            }
            if !before.contains(&session) {
                missing.insert(session);
            } else if let Err(error) = compute.destroy(&session).await {
                tracing::warn!(session, %error, "what a session left cannot be removed");
            }
        }
    }
}
