//! Clients, who talk to any server and ask again until one answers, and followers, who go from one to the next.

use crate::{
    Accepted, Shared,
    dice::Dice,
    lock,
    servers::{KEY, Server},
};
use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;
use vaquero_store::{Record, Store};
use vaquero_types::{EventId, SessionId, session::Status};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// A stream that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(15);
const MESSAGES: usize = 6;

/// What a follower saw: position, event and whether it was processed.
pub(crate) type Followed = BTreeMap<SessionId, Vec<(u64, String, bool)>>;

pub(crate) struct Watched {
    shared: Arc<Shared>,
    sessions: Vec<SessionId>,
    clients: JoinSet<()>,
    accepted: Arc<Mutex<Accepted>>,
    followers: JoinSet<()>,
    followed: Arc<Mutex<Followed>>,
    over: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Anyone {
    shared: Arc<Shared>,
    servers: Vec<Arc<Server>>,
}

impl Anyone {
    /// One request to one server: status and body, or nothing at all.
    async fn ask(&self, dice: &mut Dice, request: Request<Body>) -> Option<(StatusCode, Value)> {
        let server = &self.servers[dice.place(self.servers.len())];
        let router = server.router()?;
        let (answer, answered) = oneshot::channel();
        server.spawn(async move {
            let Ok(response) = router.oneshot(request).await;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes);
            let value = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            drop(answer.send((parts.status, value.unwrap_or_default())));
        });
        timeout(PATIENCE, answered).await.ok()?.ok()
    }

    /// The same request until somebody answers it.
    async fn post(&self, dice: &mut Dice, path: &str, body: &Value) -> Value {
        let key = format!("{:016x}", dice.roll(u64::MAX));
        loop {
            let request = Request::post(path)
                .header("x-api-key", KEY)
                .header("idempotency-key", &key)
                .header("content-type", "application/json")
                .body(Body::from(body.to_string()))
                .expect("a request");
            match self.ask(dice, request).await {
                Some((status, value)) if status.is_success() => return value,
                Some((status, value)) if !status.is_server_error() && status != 409 => {
                    self.shared.complain(format!("{path}: {status}: {value}"));
                    return Value::Null;
                }
                _ => sleep(Duration::from_millis(50 + dice.roll(200))).await,
            }
        }
    }
}

impl Watched {
    pub(crate) async fn start(shared: &Arc<Shared>, servers: &[Arc<Server>], count: usize) -> Self {
        let anyone = Anyone { shared: Arc::clone(shared), servers: servers.to_vec() };
        let mut dice = Dice::of(shared.seed, "setup");
        let tools = json!([{ "type": "agent_toolset_20260401" }]);
        let agent = json!({ "name": "a", "model": "m", "tools": tools });
        let agent = anyone.post(&mut dice, "/v1/agents", &agent).await;
        let environment = anyone.post(&mut dice, "/v1/environments", &json!({ "name": "e" })).await;
        let mut watched = Self {
            shared: Arc::clone(shared),
            sessions: Vec::new(),
            clients: JoinSet::new(),
            accepted: Arc::default(),
            followers: JoinSet::new(),
            followed: Arc::default(),
            over: Arc::default(),
        };
        for number in 0..count {
            let body = json!({ "agent": agent["id"], "environment_id": environment["id"] });
            let made = anyone.post(&mut dice, "/v1/sessions", &body).await;
            let session = SessionId::from_wire(made["id"].as_str().expect("an id"));
            watched.sessions.push(session.clone());
            lock(&watched.accepted).insert(session.clone(), BTreeSet::new());
            lock(&watched.followed).insert(session.clone(), Vec::new());
            watched.clients.spawn(talk(
                anyone.clone(),
                session.clone(),
                Dice::of(shared.seed, ("client", number)),
                Arc::clone(&watched.accepted),
            ));
            watched.followers.spawn(follow(
                anyone.clone(),
                session,
                Dice::of(shared.seed, ("follower", number)),
                Arc::clone(&watched.followed),
                Arc::clone(&watched.over),
            ));
        }
        watched
    }

    /// Waits until nothing is left to do; what is still undone by then.
    pub(crate) async fn rest(&self, longest: Duration) -> Vec<String> {
        let deadline = Instant::now() + longest;
        loop {
            let mut undone = Vec::new();
            for session in &self.sessions {
                let row = self.shared.store.session(session).await.ok().flatten();
                let log = self.log(session).await;
                let processed = |id: &EventId| {
                    log.iter().any(|record| {
                        record.new.event_id == *id
                            && record.new.kind == vaquero_store::RecordKind::Event
                    })
                };
                let waiting = log.iter().any(|record| {
                    record.new.kind == vaquero_store::RecordKind::Received
                        && !processed(&record.new.event_id)
                });
                if waiting || row.is_none_or(|row| row.status != Status::Idle) {
                    undone.push(format!("{session} does not come to rest"));
                }
            }
            let talking = !self.clients.is_empty()
                && lock(&self.accepted).values().any(|ids| ids.len() < MESSAGES);
            if undone.is_empty() && !talking {
                return undone;
            }
            if Instant::now() > deadline {
                if talking {
                    undone.push("a client is never answered".to_owned());
                }
                return undone;
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn log(&self, session: &SessionId) -> Vec<Record> {
        self.shared.store.read(session, 0, usize::MAX).await.unwrap_or_default()
    }

    /// Everything that was seen: the logs, what clients were told, what followers read.
    pub(crate) async fn gather(mut self) -> (BTreeMap<SessionId, Vec<Record>>, Accepted, Followed) {
        // Followers get the time to be told of the end.
        sleep(Duration::from_secs(20)).await;
        self.over.store(true, Ordering::Relaxed);
        self.clients.shutdown().await;
        self.followers.shutdown().await;
        let mut logs = BTreeMap::new();
        for session in &self.sessions {
            logs.insert(session.clone(), self.log(session).await);
        }
        let (accepted, followed) = (lock(&self.accepted).clone(), lock(&self.followed).clone());
        (logs, accepted, followed)
    }
}

async fn talk(anyone: Anyone, session: SessionId, mut dice: Dice, accepted: Arc<Mutex<Accepted>>) {
    let path = format!("/v1/sessions/{session}/events");
    for _ in 0..MESSAGES {
        sleep(Duration::from_millis(dice.roll(5_000))).await;
        let text = format!("calls {}", dice.roll(4));
        let message =
            json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] });
        let answer = anyone.post(&mut dice, &path, &json!({ "events": [message] })).await;
        let id = answer["data"][0]["id"].as_str().unwrap_or_default();
        anyone.shared.note(format_args!("a client is told of {id}"));
        lock(&accepted).entry(session.clone()).or_default().insert(EventId::from_wire(id));
    }
}

async fn follow(
    anyone: Anyone,
    session: SessionId,
    mut dice: Dice,
    followed: Arc<Mutex<Followed>>,
    over: Arc<AtomicBool>,
) {
    let path = format!("/v1/sessions/{session}/events/stream");
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(20)).await;
        let server = &anyone.servers[dice.place(anyone.servers.len())];
        let Some(router) = server.router() else { continue };
        let last = lock(&followed)[&session].last().map_or(0, |(position, ..)| *position);
        let request = Request::get(&path)
            .header("x-api-key", KEY)
            .header("last-event-id", last.to_string())
            .body(Body::empty())
            .expect("a request");
        let Ok(Ok(response)) = timeout(PATIENCE, router.oneshot(request)).await else { continue };
        if !response.status().is_success() {
            continue;
        }
        let mut frames = response.into_body().into_data_stream();
        let mut text = String::new();
        while let Ok(Some(Ok(piece))) = timeout(SILENCE, frames.next()).await {
            text.push_str(&String::from_utf8_lossy(&piece));
            while let Some(end) = text.find("\n\n") {
                let frame: String = text.drain(..end + 2).collect();
                if let Some(record) = read(&frame) {
                    lock(&followed).entry(session.clone()).or_default().push(record);
                }
            }
            // Followers move on now and then.
            if dice.rarely(20) {
                break;
            }
        }
    }
}

fn read(frame: &str) -> Option<(u64, String, bool)> {
    let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let position = field("id:")?.parse().ok()?;
    let data: Value = serde_json::from_str(field("data:")?).ok()?;
    Some((position, data["id"].as_str()?.to_owned(), !data["processed_at"].is_null()))
}
