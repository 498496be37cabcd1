//! A bad network between a server and its database: connections are cut, delayed, half-closed or swallowed at a word.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What the network does to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Nothing passes, and nobody is told.
    Swallows,
    /// No new connection is made.
    Refuses,
}

struct State {
    target: String,
    delay: AtomicU64,
    weather: watch::Sender<Weather>,
    /// Counts cuts: a connection made before the newest one is dropped.
    cuts: watch::Sender<u64>,
    /// The same for answers that no longer come.
    halves: watch::Sender<u64>,
}

/// A proxy on a port of its own, for as long as the value lives.
pub struct Proxy {
    /// Its port on 127.0.0.1.
    pub port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one in front of `target` (`host:port`).
    pub async fn start(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            target: target.to_owned(),
            delay: AtomicU64::new(0),
            weather: watch::Sender::new(Weather::Fair),
            cuts: watch::Sender::new(0),
            halves: watch::Sender::new(0),
        });
        let serving = Arc::clone(&state);
        #[expect(clippy::disallowed_methods, reason = "aborted when the value is dropped")]
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        connections.spawn(pass(client, Arc::clone(&serving)));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { port, state, task })
    }

    /// The URL of a database, through this proxy. `url` names a host and a port.
    pub fn through(&self, url: &str) -> String {
        let (head, tail) = url.rsplit_once('@').unwrap_or(("", url));
        let path = tail.split_once('/').map_or("", |(_, path)| path);
        format!("{head}@127.0.0.1:{}/{path}", self.port)
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends the database's half of all connections: what is asked arrives, no answer comes back.
    pub fn half_close(&self) {
        self.state.halves.send_modify(|halves| *halves += 1);
    }

    /// Holds each piece up by as long as this, at most.
    pub fn delay(&self, longest: Duration) {
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        self.state.delay.store(millis, Ordering::Relaxed);
    }

    /// Lets nothing pass until the weather is fair again.
    pub fn swallow(&self) {
        self.state.weather.send_replace(Weather::Swallows);
    }

    /// Cuts all connections and makes none until the weather is fair again.
    pub fn refuse(&self) {
        self.state.weather.send_replace(Weather::Refuses);
        self.cut();
    }

    /// Fair weather.
    pub fn clear(&self) {
        self.delay(Duration::ZERO);
        self.state.weather.send_replace(Weather::Fair);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    cuts.mark_unchanged();
    if *state.weather.borrow() == Weather::Refuses {
        return;
    }
    let Ok(server) = TcpStream::connect(&state.target).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut halves = state.halves.subscribe();
    halves.mark_unchanged();
    let down = async {
        tokio::select! {
            () = pump(server_read, client_write, &state) => {}
            // The client's reading half ends; what it writes still arrives.
            _ = halves.changed() => std::future::pending().await,
        }
    };
    tokio::select! {
        () = pump(client_read, server_write, &state) => {}
        () = down => {}
        _ = cuts.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: &State,
) {
    let mut weather = state.weather.subscribe();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if read == 0 {
            return;
        }
        let longest = state.delay.load(Ordering::Relaxed);
        if longest > 0 {
            tokio::time::sleep(Duration::from_millis(read as u64 * 7_919 % longest)).await;
        }
        if weather.wait_for(|weather| *weather != Weather::Swallows).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
