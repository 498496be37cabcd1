//! A server: the real API and the real worker on the simulated world. It dies and is started again on the same machine, or with a new one.

use crate::{
    Ids, LEASE, Sabotage, Shared, SimulatedClock,
    dice::Dice,
    hands::{Hands, Machine},
    lock,
    model::Model,
    network::{Fate, Wire},
};
use axum::Router;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc::unbounded_channel, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use vaquero_api::{App, ModelList, Parts, Settings, keys};
use vaquero_store::LocalLive;
use vaquero_vault::Keys;
use vaquero_worker::{Config, Worker, World};

pub(crate) const KEY: &str = "simulation-key-0123456789";

pub(crate) struct Server {
    number: usize,
    shared: Arc<Shared>,
    machine: Arc<Machine>,
    life: Mutex<Option<Life>>,
    /// What happens to it in its own time.
    fates: Mutex<JoinSet<()>>,
    lives: Mutex<u64>,
}

/// A server between its start and its death.
struct Life {
    wire: Arc<Wire>,
    router: Router,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Server {
    pub(crate) fn new(number: usize, shared: &Arc<Shared>) -> Self {
        Self {
            number,
            shared: Arc::clone(shared),
            machine: Arc::default(),
            life: Mutex::default(),
            fates: Mutex::default(),
            lives: Mutex::default(),
        }
    }

    pub(crate) async fn accept_key(&self) {
        let clock = SimulatedClock(Arc::clone(&self.shared));
        let ids = Ids(Mutex::new(Dice::of(self.shared.seed, "key")));
        let accepted = keys::accept(&self.shared.store, &clock, &ids, KEY).await;
        accepted.expect("the store takes it");
    }

    pub(crate) fn start(&self) {
        let shared = &self.shared;
        let life = {
            let mut lives = lock(&self.lives);
            *lives += 1;
            *lives
        };
        shared.note(format_args!("server {} starts", self.number));
        let wire = Arc::new(Wire::new(
            self.number + 10 * usize::try_from(life).unwrap_or(0),
            Arc::clone(shared),
        ));
        let clock = Arc::new(SimulatedClock(Arc::clone(shared)));
        let ids = Arc::new(Ids(Mutex::new(Dice::of(shared.seed, ("ids", self.number, life)))));
        let models = Arc::new(Model(Arc::clone(&wire)));
        let live = Arc::new(LocalLive::default());
        let (ended, inbox) = unbounded_channel();
        let stop = CancellationToken::new();
        let app = App::new(Parts {
            store: Arc::clone(&wire) as _,
            live: Arc::clone(&live) as _,
            clock: Arc::clone(&clock) as _,
            ids: Arc::clone(&ids) as _,
            keys: Arc::new(Keys::new(Err("no vaults here".to_owned()))),
            models: ModelList::new(Arc::clone(&models) as _, Vec::new()),
            ended,
            metrics: Arc::new(String::new),
            drain: stop.clone(),
            settings: Settings::default(),
        });
        let world = World {
            store: Arc::clone(&wire) as _,
            live,
            models,
            compute: Arc::new(Hands {
                wire: Arc::clone(&wire),
                machine: Arc::clone(&self.machine),
            }),
            checkpoints: None,
            registries: vaquero_worker::no_registries(),
            limits: vaquero_sandbox::Limits::default(),
            clock,
            ids,
        };
        let far = Duration::from_secs(100_000);
        let sweep =
            if shared.sabotage == Sabotage::LostWakeUp { far } else { Duration::from_secs(5) };
        let config = Config {
            name: format!("server-{}", self.number),
            lease: LEASE,
            sweep,
            ..Config::default()
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Worker::new(world, config).run(stop.clone(), inbox));
        let router = vaquero_api::router(app);
        *lock(&self.life) = Some(Life { wire, router, tasks, stop });
    }

    /// What answers requests, if it lives. One that stands still takes them and does not answer.
    pub(crate) fn router(&self) -> Option<Router> {
        lock(&self.life).as_ref().map(|life| life.router.clone())
    }

    /// Runs a request on the server: it dies with it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(life) = lock(&self.life).as_mut() {
            while life.tasks.try_join_next().is_some() {}
            life.tasks.spawn(task);
        }
    }

    /// Dies, perhaps with its machine, and is started again after a while.
    pub(crate) fn dies(self: &Arc<Self>, with_machine: bool, length: Duration) {
        let Some(mut life) = lock(&self.life).take() else { return };
        self.shared.note(format_args!("server {} dies, machine {with_machine}", self.number));
        life.tasks.abort_all();
        life.wire.dies();
        drop(life);
        if with_machine {
            self.machine.dies();
        }
        let server = Arc::clone(self);
        lock(&self.fates).spawn(async move {
            sleep(length).await;
            server.start();
        });
    }

    /// Stands still or is cut off for a while.
    pub(crate) fn suffers(self: &Arc<Self>, fate: Fate, length: Duration) {
        let Some(wire) = lock(&self.life).as_ref().map(|life| Arc::clone(&life.wire)) else {
            return;
        };
        self.shared.note(format_args!("server {}: {fate:?}", self.number));
        wire.turn(fate);
        lock(&self.fates).spawn(async move {
            sleep(length).await;
            wire.turn(Fate::Well);
        });
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
