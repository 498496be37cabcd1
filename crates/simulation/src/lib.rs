//! Servers, clients and a bad network in one thread on a clock of its own, by seed: the same seed does the same things in the same order, however fast the machine is. Workers and
//! the API are the real ones; the database is the in-memory store behind a wire that cuts, delays and loses (`network`); hands and model are stand-ins that keep count.
//!
//! What must hold is checked at the end (`check`). To prove that the check can fail, a run can be sabotaged: one promise is broken on purpose.

mod check;
mod clients;
mod dice;
mod hands;
mod model;
mod network;
mod servers;

use clients::Watched;
use dice::Dice;
use network::Fate;
use servers::Server;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use vaquero_store::{MemoryStore, Seq};
use vaquero_types::{Clock, EventId, IdGen, SessionId, Timestamp, WorkspaceId};

/// How long leases last: servers stand still for longer.
const LEASE: Duration = Duration::from_secs(2);
/// How long the trouble lasts.
const TROUBLE: Duration = Duration::from_secs(20);
/// How long everything may take to come to rest afterwards.
const REST: Duration = Duration::from_secs(120);
const SERVERS: usize = 3;
const SESSIONS: usize = 3;

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// None is.
    #[default]
    None,
    /// Appends and leases are not fenced: whoever believes to hold a lease is believed.
    NoFence,
    /// Clients are answered before their messages are durable.
    EarlyReply,
    /// A session that is leased is given to a second worker under the same epoch.
    DoubleClaim,
    /// Notifications are lost and nobody looks again.
    LostWakeUp,
    /// Hands that lost a sandbox say that they have it, and run its calls again.
    ToolTwice,
}

impl Sabotage {
    /// All of them, with their names.
    pub const ALL: [(&str, Self); 5] = [
        ("no-fence", Self::NoFence),
        ("early-reply", Self::EarlyReply),
        ("double-claim", Self::DoubleClaim),
        ("lost-wake-up", Self::LostWakeUp),
        ("tool-twice", Self::ToolTwice),
    ];
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Everything that happened, in order, each with its time.
    pub trace: Vec<String>,
    /// What does not hold.
    pub broken: Vec<String>,
    /// How much there was to check.
    pub counts: Counts,
}

/// How much there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that clients were told are accepted.
    pub accepted: usize,
    /// Records in the logs.
    pub records: usize,
    /// Calls in the logs.
    pub calls: usize,
    /// Calls that hands carried out.
    pub executed: usize,
    /// Servers that died, stood still or were cut off.
    pub troubles: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, records, calls, executed, troubles } = self;
        write!(
            f,
            "{accepted} messages, {records} records, {calls} calls ({executed} carried out), {troubles} troubles"
        )
    }
}

/// What all parts of a run share.
struct Shared {
    seed: u64,
    sabotage: Sabotage,
    store: MemoryStore,
    start: Instant,
    workspace: WorkspaceId,
    troubled: AtomicBool,
    seen: Mutex<Seen>,
}

/// What was seen from outside.
#[derive(Default)]
struct Seen {
    trace: Vec<String>,
    complaints: Vec<String>,
    /// Under which epoch each record was written.
    epochs: BTreeMap<SessionId, BTreeMap<Seq, u64>>,
    /// How often each call was carried out.
    executed: BTreeMap<String, usize>,
    troubles: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000).plus(self.start.elapsed())
    }

    fn troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        let at = self.start.elapsed().as_micros();
        lock(&self.seen).trace.push(format!("{at:>10} {what}"));
    }

    fn complain(&self, what: String) {
        lock(&self.seen).complaints.push(what);
    }

    /// A commit took effect.
    fn wrote(
        &self,
        server: usize,
        session: &SessionId,
        epoch: Option<u64>,
        placed: &[(Seq, Timestamp)],
    ) {
        self.note(format_args!("server {server} wrote {session} {placed:?} epoch {epoch:?}"));
        let Some(epoch) = epoch else { return };
        let mut seen = lock(&self.seen);
        let epochs = seen.epochs.entry(session.clone()).or_default();
        for (seq, _) in placed {
            // A repetition finds the records of the first time.
            epochs.entry(*seq).or_insert(epoch);
        }
    }

    fn executed(&self, server: usize, call: &str) {
        self.note(format_args!("server {server} carries out {call}"));
        *lock(&self.seen).executed.entry(call.to_owned()).or_default() += 1;
    }
}

struct SimulatedClock(Arc<Shared>);

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

/// Ids in the order they were asked for.
struct Ids(Mutex<Dice>);

impl IdGen for Ids {
    fn next(&self, now: Timestamp) -> u128 {
        let micros = u128::try_from(now.as_micros()).unwrap_or(0);
        (micros << 64) | u128::from(lock(&self.0).roll(u64::MAX))
    }
}

/// Runs a seed to its end.
pub fn run(seed: u64, sabotage: Sabotage) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with nothing but a clock");
    runtime.block_on(simulate(seed, sabotage))
}

async fn simulate(seed: u64, sabotage: Sabotage) -> Report {
    let shared = Arc::new(Shared {
        seed,
        sabotage,
        store: MemoryStore::new(),
        start: Instant::now(),
        workspace: WorkspaceId::from_wire("wrkspc_default"),
        troubled: AtomicBool::new(false),
        seen: Mutex::default(),
    });
    let servers: Vec<Arc<Server>> =
        (0..SERVERS).map(|number| Arc::new(Server::new(number, &shared))).collect();
    servers[0].accept_key().await;
    for server in &servers {
        server.start();
    }
    let watched = Watched::start(&shared, &servers, SESSIONS).await;
    shared.troubled.store(true, Ordering::Relaxed);
    trouble(&shared, &servers).await;
    shared.troubled.store(false, Ordering::Relaxed);
    let mut broken = watched.rest(REST).await;
    let (logs, accepted, followed) = watched.gather().await;
    broken.extend(check::check(&shared, &logs, &accepted, &followed));
    let seen = lock(&shared.seen);
    let counts = Counts {
        accepted: accepted.values().map(BTreeSet::len).sum(),
        records: logs.values().map(Vec::len).sum(),
        calls: check::calls(&logs),
        executed: seen.executed.len(),
        troubles: seen.troubles,
    };
    Report { trace: seen.trace.clone(), broken, counts }
}

/// What clients were told, by session.
type Accepted = BTreeMap<SessionId, BTreeSet<EventId>>;

/// Lets servers die, stand still and be cut off, one after the other and at once.
async fn trouble(shared: &Arc<Shared>, servers: &[Arc<Server>]) {
    let mut dice = Dice::of(shared.seed, "trouble");
    let until = Instant::now() + TROUBLE;
    while Instant::now() < until {
        sleep(Duration::from_millis(100 + dice.roll(1_200))).await;
        let server = &servers[dice.place(servers.len())];
        let length = Duration::from_millis(200 + dice.roll(5_000));
        lock(&shared.seen).troubles += 1;
        match dice.roll(4) {
            0 => server.dies(false, length),
            1 => server.dies(true, length),
            2 => server.suffers(Fate::Still, length),
            _ => server.suffers(Fate::CutOff, length),
        }
    }
    sleep(Duration::from_secs(6)).await;
}
