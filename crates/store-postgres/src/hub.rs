//! What servers tell each other through the database: which sessions grew, that work is ready, who follows a session live, and what is being written in it. All of it may
//! be lost without harm: a jittered poll stands behind the wake-ups, and deltas are provisional.

mod notes;

use crate::{clock::DatabaseClock, connect::Database, read::Readers};
use notes::{Heard, Notes, Telling};
use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::AsyncMessage;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vaquero_store::{Delta, Live, LocalLive, Seq, StoreError, notify::Wakes};
use vaquero_types::SessionId;

/// Notifications that may wait to be sent.
const BACKLOG: usize = 4_096;
/// How often interest in a session is told again, and for how long it counts.
const INTEREST: Duration = Duration::from_secs(5);
const INTEREST_LASTS: Duration = Duration::from_secs(15);
/// How often to look for work that no notification announced, on average.
const READY_POLL: Duration = Duration::from_millis(500);
/// How many of those polls also look for sessions that grew.
const GROWN_EVERY: u32 = 3;
/// How often the listening connection is asked for the time, and how long anything may take on it.
const SILENCE: Duration = Duration::from_secs(5);

/// A number from 0 to 1.
pub(crate) fn random() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

/// Wake-ups and deltas, here and on other servers.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) wakes: Wakes,
    live: LocalLive,
    telling: mpsc::Sender<Telling>,
    notes: Mutex<Notes>,
    /// Sessions that other servers follow live, and until when that counts.
    followed: Mutex<HashMap<SessionId, Instant>>,
    followed_count: AtomicUsize,
    /// Who waits for work here.
    waiting: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn start(
        database: &Database,
        readers: &Arc<Readers>,
        clock: &Arc<DatabaseClock>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let (telling, told) = mpsc::channel(BACKLOG);
        let hub = Arc::new(Self {
            wakes: Wakes::default(),
            live: LocalLive::default(),
            telling,
            notes: Mutex::new(Notes::new()),
            followed: Mutex::default(),
            followed_count: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        });
        let spawn = |task: futures::future::BoxFuture<'static, ()>| {
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.run_until_cancelled(task).await;
            });
        };
        spawn(Box::pin(Arc::clone(&hub).tell(database.clone(), told)));
        spawn(Box::pin(Arc::clone(&hub).listen(
            database.clone(),
            Arc::clone(readers),
            Arc::clone(clock),
        )));
        spawn(Box::pin(Arc::clone(&hub).poll(Arc::clone(readers))));
        hub
    }

    /// Sessions grew; here they are woken at once.
    pub(crate) fn grown(&self, sessions: Vec<(SessionId, Seq)>) {
        for (session, head) in &sessions {
            self.wakes.grown(session, *head);
        }
        if !sessions.is_empty() {
            drop(self.telling.try_send(Telling::Grown(sessions)));
        }
    }

    /// Work is ready.
    pub(crate) fn ready(&self) {
        self.wakes.ready();
        drop(self.telling.try_send(Telling::Ready));
    }

    pub(crate) async fn wait_ready(&self) {
        /// Counts who waits, however the wait ends.
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.wakes.wait_ready().await;
    }

    /// Sends what there is to tell, as much at once as has gathered.
    async fn tell(self: Arc<Self>, database: Database, mut told: mpsc::Receiver<Telling>) {
        let mut client = None;
        loop {
            let mut all = Vec::new();
            if told.recv_many(&mut all, BACKLOG).await == 0 {
                return;
            }
            let payloads = lock(&self.notes).write(all);
            if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                let Ok(Ok(made)) = timeout(SILENCE, database.connect()).await else {
                    // What could not be told is found by the others' polls.
                    sleep(READY_POLL).await;
                    continue;
                };
                client = Some(made);
            }
            let Some(open) = &client else { continue };
            let sql = "SELECT pg_notify('vaquero', note) FROM unnest($1::text[]) AS note";
            match timeout(SILENCE, open.execute(sql, &[&payloads])).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a notification could not be sent");
                    client = None;
                }
                Err(_) => client = None,
            }
        }
    }

    /// Hears what others tell, on a connection that is remade when it breaks.
    async fn listen(
        self: Arc<Self>,
        database: Database,
        readers: Arc<Readers>,
        clock: Arc<DatabaseClock>,
    ) {
        loop {
            if let Err(error) = self.hear(&database, &readers, &clock).await {
                tracing::warn!(%error, place = %database.place, "notifications are interrupted; polling meanwhile");
            }
            sleep(READY_POLL.mul_f64(0.5 + random())).await;
        }
    }

    async fn hear(
        &self,
        database: &Database,
        readers: &Readers,
        clock: &DatabaseClock,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (client, mut connection) = timeout(SILENCE, database.connect_raw()).await??;
        let (heard, mut inbox) = mpsc::unbounded_channel();
        let pump = async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    Ok(AsyncMessage::Notification(note)) => {
                        if heard.send(note.payload().to_owned()).is_err() {
                            return Ok(());
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let act = async {
            timeout(SILENCE, client.batch_execute("LISTEN vaquero")).await??;
            // What was told before this was heard by nobody here.
            self.look(readers, true).await;
            let mut asked = Instant::now();
            loop {
                match timeout(SILENCE, inbox.recv()).await {
                    Ok(Some(note)) => self.heard(&note),
                    Ok(None) => return Ok(()),
                    Err(_) => {}
                }
                if asked.elapsed() >= SILENCE {
                    // Asks for the time, and with it whether the connection still stands.
                    timeout(SILENCE, clock.set(&client)).await??;
                    asked = Instant::now();
                }
            }
        };
        tokio::select! {
            ended = pump => Ok(ended?),
            ended = act => ended,
        }
    }

    fn heard(&self, note: &str) {
        let heard = lock(&self.notes).read(note);
        for heard in heard {
            match heard {
                Heard::Grown(session, head) => self.wakes.grown(&session, head),
                Heard::Ready => self.wakes.ready(),
                Heard::Followed(sessions) => {
                    let mut followed = lock(&self.followed);
                    let until = Instant::now() + INTEREST_LASTS;
                    followed.extend(sessions.into_iter().map(|session| (session, until)));
                    self.followed_count.store(followed.len(), Ordering::Relaxed);
                }
                Heard::Delta(session, delta) => self.live.publish(&session, delta),
            }
        }
    }

    /// Looks from time to time for what no notification announced.
    async fn poll(self: Arc<Self>, readers: Arc<Readers>) {
        let mut round = 0_u32;
        let mut told = Instant::now();
        loop {
            sleep(READY_POLL.mul_f64(0.5 + random())).await;
            round = round.wrapping_add(1);
            self.look(&readers, round.is_multiple_of(GROWN_EVERY)).await;
            if told.elapsed() >= INTEREST {
                told = Instant::now();
                let followed = self.live.followed();
                if !followed.is_empty() {
                    drop(self.telling.try_send(Telling::Following(followed)));
                }
                let now = Instant::now();
                let mut others = lock(&self.followed);
                others.retain(|_, until| *until > now);
                self.followed_count.store(others.len(), Ordering::Relaxed);
            }
        }
    }

    async fn look(&self, readers: &Readers, grown: bool) {
        let looked = async {
            if self.waiting.load(Ordering::Relaxed) > 0 && readers.any_ready().await? {
                self.wakes.ready();
            }
            let watched = if grown { self.wakes.watched() } else { Vec::new() };
            for sessions in watched.chunks(1_000) {
                for (session, head) in readers.heads(sessions).await? {
                    self.wakes.grown(&session, head);
                }
            }
            Ok::<(), StoreError>(())
        };
        if let Err(error) = looked.await {
            tracing::warn!(%error, "cannot look for what changed; will look again");
        }
    }
}

impl Live for Hub {
    fn publish(&self, session: &SessionId, delta: Delta) {
        if self.followed_count.load(Ordering::Relaxed) > 0 {
            let now = Instant::now();
            let followed = lock(&self.followed).get(session).is_some_and(|until| *until > now);
            // One that does not fit is missed at the other end by its number.
            let telling = lock(&self.notes).telling(session, &delta, followed);
            if let Some(telling) = telling {
                drop(self.telling.try_send(telling));
            }
        }
        self.live.publish(session, delta);
    }

    fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Delta> {
        drop(self.telling.try_send(Telling::Following(vec![session.clone()])));
        self.live.subscribe(session)
    }
}
