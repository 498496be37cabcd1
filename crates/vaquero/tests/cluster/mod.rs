//! Servers that share a database, the trouble they are given, and whoever watches what comes of it.

mod watched;

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use vaquero_testkit::{Database, Model, Proxy, Server};

const EXE: &str = env!("CARGO_BIN_EXE_vaquero");
/// Short, so that a server can be stopped for longer.
const LEASE: Duration = Duration::from_secs(2);

/// A small generator with a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub(crate) fn place(&mut self, sides: usize) -> usize {
        usize::try_from(self.roll(sides as u64)).unwrap_or(0)
    }
}

/// Kinds of trouble.
const KINDS: u64 = 8;

struct Node {
    server: Mutex<Server>,
    proxy: Proxy,
}

/// Which trouble.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chaos {
    kills: bool,
    stops: bool,
    network: bool,
}

impl Chaos {
    pub(crate) fn everything() -> Self {
        Self { kills: true, stops: true, network: true }
    }
}

/// What was done to the servers.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) kills: AtomicU32,
    pub(crate) stops: AtomicU32,
    pub(crate) cuts: AtomicU32,
}

/// The servers.
pub(crate) struct Cluster {
    pub(crate) seed: u64,
    pub(crate) model: Model,
    pub(crate) database: Database,
    /// Where commands leave their marks: on the host, which outlives sandboxes.
    pub(crate) marks: tempfile::TempDir,
    pub(crate) done: Done,
    nodes: Vec<Node>,
    bases: Arc<RwLock<Vec<String>>>,
}

impl Cluster {
    /// Starts `count` servers; none where there is no PostgreSQL.
    pub(crate) async fn start(count: usize, seed: u64) -> anyhow::Result<Option<Self>> {
        let Some(database) = Database::create().await? else { return Ok(None) };
        let model = Model::start().await?;
        let target = database.url.rsplit_once('@').map_or("", |(_, tail)| tail);
        let target = target.split_once('/').map_or(target, |(target, _)| target).to_owned();
        let mut nodes = Vec::new();
        let mut bases = Vec::new();
        for number in 0..count {
            let proxy = Proxy::start(&target).await?;
            let mut server = Server::new(EXE, &model.base)?;
            server.set("VAQUERO_DATABASE_URL", &proxy.through(&database.url));
            server.set("VAQUERO_LEASE_SECONDS", &LEASE.as_secs().to_string());
            server.set("VAQUERO_SANDBOX", "unsafe-host");
            server.set("VAQUERO_LOG", "error");
            let skew = [0, 7_200, -7_200][number % 3];
            server.set("VAQUERO_TEST_CLOCK_SKEW", &i64::to_string(&skew));
            server.start().await?;
            bases.push(server.client().base.clone());
            nodes.push(Node { server: Mutex::new(server), proxy });
        }
        Ok(Some(Self {
            seed,
            model,
            database,
            marks: tempfile::tempdir()?,
            done: Done::default(),
            nodes,
            bases: Arc::new(RwLock::new(bases)),
        }))
    }

    /// Where the servers are now.
    pub(crate) fn bases(&self) -> Arc<RwLock<Vec<String>>> {
        Arc::clone(&self.bases)
    }

    fn moved(&self, number: usize, base: String) {
        self.bases.write().expect("not poisoned")[number] = base;
    }

    async fn start_again(&self, number: usize, server: &mut Server) -> anyhow::Result<()> {
        server.start().await?;
        self.moved(number, server.client().base.clone());
        Ok(())
    }

    /// Gives the servers trouble, then fair weather.
    pub(crate) async fn trouble(&self, length: Duration, chaos: Chaos) -> anyhow::Result<()> {
        let mut dice = Dice::new(self.seed);
        let until = Instant::now() + length;
        let mut round = 0;
        while Instant::now() < until {
            sleep(Duration::from_millis(200 + dice.roll(600))).await;
            let number = dice.place(self.nodes.len());
            let node = &self.nodes[number];
            // Each kind of trouble once, then whatever comes.
            let kind = if round < KINDS { (round + self.seed) % KINDS } else { dice.roll(KINDS) };
            round += 1;
            match kind {
                0 if chaos.kills => {
                    self.done.kills.fetch_add(1, Ordering::Relaxed);
                    let mut server = node.server.lock().await;
                    server.kill().await?;
                    sleep(Duration::from_millis(dice.roll(3_000))).await;
                    self.start_again(number, &mut server).await?;
                }
                1 if chaos.stops => {
                    self.done.stops.fetch_add(1, Ordering::Relaxed);
                    let server = node.server.lock().await;
                    server.stand_still(true)?;
                    sleep(LEASE + Duration::from_millis(500 + dice.roll(1_500))).await;
                    server.stand_still(false)?;
                }
                2 if chaos.network => {
                    node.proxy.swallow();
                    sleep(Duration::from_millis(dice.roll(4_000))).await;
                    if dice.roll(2) == 0 {
                        node.proxy.cut();
                    }
                    node.proxy.clear();
                }
                3 if chaos.network => node.proxy.delay(Duration::from_millis(dice.roll(60))),
                4 if chaos.network => node.proxy.half_close(),
                5 if chaos.network => {
                    node.proxy.refuse();
                    sleep(Duration::from_millis(dice.roll(2_000))).await;
                    node.proxy.clear();
                }
                _ if chaos.network => {
                    self.done.cuts.fetch_add(1, Ordering::Relaxed);
                    node.proxy.cut();
                }
                _ => {}
            }
        }
        self.nodes.iter().for_each(|node| node.proxy.clear());
        Ok(())
    }

    /// Ends and starts each server in turn, as an upgrade does.
    pub(crate) async fn restart_each(&self) -> anyhow::Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            sleep(Duration::from_millis(700)).await;
            let mut server = node.server.lock().await;
            assert!(server.terminate().await?, "it ends well");
            self.start_again(number, &mut server).await?;
        }
        sleep(Duration::from_millis(700)).await;
        Ok(())
    }
}
