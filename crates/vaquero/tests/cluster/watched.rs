//! Sessions with clients that talk to any server, followers that move from one to another, and the check at the end.

use super::{Cluster, Dice};
use anyhow::{Context, bail};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use vaquero_testkit::{Client, KEY, PATIENCE, eventually, of_type};

/// How long one request may take before another server is asked.
const REQUEST: Duration = Duration::from_secs(6);
/// A stream says that it lives every ten seconds.
const SILENCE: Duration = Duration::from_secs(13);

/// Where to find a server that answers.
#[derive(Clone)]
struct Anyone {
    bases: Arc<RwLock<Vec<String>>>,
    http: reqwest::Client,
}

impl Anyone {
    fn base(&self, dice: &mut Dice) -> String {
        let bases = self.bases.read().expect("not poisoned");
        bases[dice.place(bases.len())].clone()
    }

    /// Sends until somebody answers; the key makes it one request.
    async fn post(&self, dice: &mut Dice, path: &str, body: &Value) -> anyhow::Result<Value> {
        let key = format!("key-{:016x}{:016x}", dice.roll(u64::MAX), dice.roll(u64::MAX));
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            let request = self.http.post(format!("{}{path}", self.base(dice)));
            let request = request.bearer_auth(KEY).header("idempotency-key", &key).json(body);
            match request.timeout(REQUEST).send().await {
                Ok(response) => {
                    let status = response.status();
                    let text = response.text().await.unwrap_or_default();
                    if status.is_success()
                        && let Ok(value) = serde_json::from_str(&text)
                    {
                        return Ok(value);
                    }
                    if !status.is_success() && !status.is_server_error() && status != 409 {
                        bail!("{path}: {status}: {text}");
                    }
                    last = format!("{status}: {text}");
                }
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("{path}: nobody answered: {last}")
    }
}

/// What a follower saw, in order: position, and event id with whether it was processed.
type Seen = Vec<(u64, String, bool)>;

/// Sessions under watch.
pub(crate) struct Watched {
    sessions: Vec<String>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<(String, Vec<String>)>>,
    followers: JoinSet<()>,
    /// What each follower has seen so far.
    seen: Vec<(String, Arc<Mutex<Seen>>)>,
    followed: Arc<AtomicBool>,
}

/// What there was.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) accepted: usize,
    pub(crate) records: usize,
    pub(crate) calls: usize,
    pub(crate) unknown: usize,
    pub(crate) kills: u32,
    pub(crate) stops: u32,
    pub(crate) cuts: u32,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages, {} records, {} tool calls ({} with unknown outcome); {} kills, {} stops, {} cuts",
            self.accepted,
            self.records,
            self.calls,
            self.unknown,
            self.kills,
            self.stops,
            self.cuts
        )
    }
}

impl Cluster {
    /// Starts `count` sessions, each with a client and two followers.
    pub(crate) async fn watch(&self, count: usize) -> anyhow::Result<Watched> {
        let anyone =
            Anyone { bases: self.bases(), http: reqwest::Client::builder().no_proxy().build()? };
        let mut watched = Watched {
            sessions: Vec::new(),
            stop: Arc::default(),
            clients: JoinSet::new(),
            followers: JoinSet::new(),
            seen: Vec::new(),
            followed: Arc::default(),
        };
        for number in 0..count {
            let base = self.bases.read().expect("not poisoned")[0].clone();
            let session = Client::new(base)?.tool_session().await?;
            let seed = self.seed ^ (number as u64 + 1);
            for follower in 0..2 {
                let dice = Dice::new(seed * 31 + follower);
                let (ready, is_ready) = oneshot::channel();
                let follower = Follower {
                    anyone: anyone.clone(),
                    session: session.clone(),
                    seen: Arc::default(),
                    over: Arc::clone(&watched.followed),
                };
                watched.seen.push((session.clone(), Arc::clone(&follower.seen)));
                watched.followers.spawn(follower.run(dice, ready));
                timeout(PATIENCE, is_ready).await?.context("the follower is gone")?;
            }
            let marks = self.marks.path().display().to_string();
            watched.clients.spawn(talk(
                anyone.clone(),
                session.clone(),
                Dice::new(seed),
                marks,
                Arc::clone(&watched.stop),
            ));
            watched.sessions.push(session);
        }
        Ok(watched)
    }
}

/// Sends messages until told to stop; the ids of those that were accepted.
async fn talk(
    anyone: Anyone,
    session: String,
    mut dice: Dice,
    marks: String,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<(String, Vec<String>)> {
    let path = format!("/v1/sessions/{session}/events");
    let mut accepted = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mark = format!("{marks}/{:016x}", dice.roll(u64::MAX));
        let once = |mark: &str| format!("mkdir {mark} || touch {mark}.twice");
        let (command, other) = (once(&mark), once(&format!("{mark}-2")));
        let script = match dice.roll(5) {
            0 => "!say hello".to_owned(),
            1 => format!("!bash {command}; sleep 0.{}\n!next\n!say done", dice.roll(9)),
            2 => format!("!bash {command}\n!next\n!bash {other}\n!next\n!say both"),
            3 => format!("!delay {}\n!say late", dice.roll(600)),
            _ => format!("!think hm\n!bash {command}\n!bash sleep 0.1\n!next\n!say two at once"),
        };
        let event = if dice.roll(8) == 0 {
            json!({ "type": "user.interrupt" })
        } else {
            // The model knows conversations apart by their first message.
            let text = format!("{mark}\n{script}");
            json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] })
        };
        let answer = anyone.post(&mut dice, &path, &json!({ "events": [event] })).await?;
        let ids = answer["data"].as_array().into_iter().flatten();
        accepted.extend(ids.filter_map(|event| event["id"].as_str().map(str::to_owned)));
        sleep(Duration::from_millis(dice.roll(900))).await;
    }
    Ok((session, accepted))
}

/// Follows a session from one server to the next, each time from where the last one ended.
struct Follower {
    anyone: Anyone,
    session: String,
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
}

impl Follower {
    async fn run(self, mut dice: Dice, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        while !self.over.load(Ordering::Relaxed) {
            let base = self.anyone.base(&mut dice);
            let url = format!("{base}/v1/sessions/{}/events/stream", self.session);
            let last = self.seen.lock().expect("not poisoned").last().map(|(last, ..)| *last);
            let mut request = self.anyone.http.get(url).bearer_auth(KEY);
            if let Some(last) = last.or_else(|| ready.is_none().then_some(0)) {
                request = request.header("last-event-id", last.to_string());
            }
            let Ok(Ok(response)) = timeout(REQUEST, request.send()).await else { continue };
            if !response.status().is_success() {
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            if ready.take().is_some_and(|ready| ready.send(()).is_err()) {
                return;
            }
            self.listen(response).await;
        }
    }

    /// Reads frames until the stream ends or falls silent.
    async fn listen(&self, response: reqwest::Response) {
        let mut bytes = response.bytes_stream();
        let mut text = String::new();
        let mut silent_since = Instant::now();
        while !self.over.load(Ordering::Relaxed) && silent_since.elapsed() < SILENCE {
            match timeout(Duration::from_millis(250), bytes.next()).await {
                Ok(Some(Ok(piece))) => {
                    silent_since = Instant::now();
                    text.push_str(&String::from_utf8_lossy(&piece));
                    while let Some(end) = text.find("\n\n") {
                        let frame: String = text.drain(..end + 2).collect();
                        note(&frame, &mut self.seen.lock().expect("not poisoned"));
                    }
                }
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }
}

fn note(frame: &str, seen: &mut Seen) {
    let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (Some(position), Some(data)) = (field("id:"), field("data:")) else { return };
    let (Ok(position), Ok(data)) = (position.parse(), serde_json::from_str::<Value>(data)) else {
        return;
    };
    let id = data["id"].as_str().unwrap_or_default().to_owned();
    seen.push((position, id, !data["processed_at"].is_null()));
}

/// A record as the database has it.
struct Logged {
    seq: u64,
    kind: i16,
    event: String,
    epoch: Option<i64>,
}

async fn logged(cluster: &Cluster, session: &str) -> anyhow::Result<Vec<Logged>> {
    let sql = "SELECT l.seq, l.kind, l.event_id, l.epoch FROM sessions s JOIN log l ON l.session = s.n WHERE s.id = $1 ORDER BY l.seq";
    let rows = cluster.database.connect().await?.query(sql, &[&session]).await?;
    let record = |row: &tokio_postgres::Row| Logged {
        seq: u64::try_from(row.get::<_, i64>(0)).unwrap_or(0),
        kind: row.get(1),
        event: row.get(2),
        epoch: row.get(3),
    };
    Ok(rows.iter().map(record).collect())
}

impl Watched {
    /// Lets everything come to rest, then compares what everybody saw.
    pub(crate) async fn finish(mut self, cluster: &Cluster) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut accepted: HashMap<String, Vec<String>> = HashMap::new();
        while let Some(client) = self.clients.join_next().await {
            let (session, ids) = client??;
            accepted.insert(session, ids);
        }
        let mut report = Report {
            accepted: accepted.values().map(Vec::len).sum(),
            kills: cluster.done.kills.load(Ordering::Relaxed),
            stops: cluster.done.stops.load(Ordering::Relaxed),
            cuts: cluster.done.cuts.load(Ordering::Relaxed),
            ..Report::default()
        };
        let mut logs = HashMap::new();
        for session in &self.sessions {
            let events = self.at_rest(cluster, session).await?;
            check_events(&events, &accepted[session], session);
            report.calls += of_type(&events, "agent.tool_use").len();
            let unknown = |event: &&&Value| event.to_string().contains("is unknown");
            report.unknown += of_type(&events, "agent.tool_result").iter().filter(unknown).count();
            let log = logged(cluster, session).await?;
            check_log(&log, session);
            report.records += log.len();
            logs.insert(session.clone(), log);
        }
        let twice = std::fs::read_dir(cluster.marks.path())?.flatten();
        let twice: Vec<_> = twice
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.contains("twice"))
            .collect();
        assert!(twice.is_empty(), "commands ran twice: {twice:?}");
        self.check_followers(&logs).await?;
        assert_eq!(cluster.model.scripted.violations(), Vec::<String>::new());
        Ok(report)
    }

    /// Waits until a session is idle with nothing queued; its events, the same on every server.
    async fn at_rest(&self, cluster: &Cluster, session: &str) -> anyhow::Result<Vec<Value>> {
        let clients: Vec<Client> = {
            let bases = cluster.bases.read().expect("not poisoned").clone();
            bases.into_iter().map(Client::new).collect::<anyhow::Result<_>>()?
        };
        let path = format!("/v1/sessions/{session}");
        let resting = eventually("at rest", || async {
            let row = clients[0].get(&path).await.ok()?;
            let events = list(&clients[0], session).await.ok()?;
            let queued =
                events.iter().any(|event| event.get("processed_at").is_some_and(Value::is_null));
            (row["status"] == "idle" && !queued).then_some(())
        });
        if let Err(error) = resting.await {
            let events = list(&clients[0], session).await?;
            let tail = &events[events.len().saturating_sub(12)..];
            bail!("{session}: {error}: {tail:#?}");
        }
        let events = list(&clients[0], session).await?;
        for client in &clients[1..] {
            assert_eq!(list(client, session).await?, events, "every server shows the same");
        }
        Ok(events)
    }

    async fn check_followers(&mut self, logs: &HashMap<String, Vec<Logged>>) -> anyhow::Result<()> {
        for (session, seen) in &self.seen {
            let public: Seen = logs[session]
                .iter()
                .filter(|record| record.kind < 2)
                .map(|record| (record.seq, record.event.clone(), record.kind == 0))
                .collect();
            let end = public.last().map(|(end, ..)| *end);
            let caught_up = || async {
                let last = seen.lock().expect("not poisoned").last().map(|(last, ..)| *last);
                (last >= end).then_some(())
            };
            eventually("at the end of the log", caught_up).await?;
            let seen = seen.lock().expect("not poisoned");
            let begin = seen.first().map_or(0, |(position, ..)| *position);
            let expected: Seen =
                public.into_iter().filter(|(position, ..)| *position >= begin).collect();
            assert_eq!(*seen, expected, "{session}: a follower sees exactly the log");
        }
        self.followed.store(true, Ordering::Relaxed);
        while self.followers.join_next().await.is_some() {}
        Ok(())
    }
}

async fn list(client: &Client, session: &str) -> anyhow::Result<Vec<Value>> {
    let mut events = Vec::new();
    let mut path = format!("/v1/sessions/{session}/events?limit=1000");
    loop {
        let request = client.request(Method::GET, &path).timeout(Duration::from_secs(20));
        let page: Value = request.send().await?.error_for_status()?.json().await?;
        events.extend(page["data"].as_array().cloned().unwrap_or_default());
        let Some(next) = page["next_page"].as_str() else { return Ok(events) };
        path = format!("/v1/sessions/{session}/events?limit=1000&page={next}");
    }
}

/// Each accepted message is there once, each call is settled once, every span ends.
fn check_events(events: &[Value], accepted: &[String], session: &str) {
    let ids: Vec<&str> = events.iter().filter_map(|event| event["id"].as_str()).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "{session}: no event twice");
    for id in accepted {
        assert!(unique.contains(id.as_str()), "{session}: {id} was accepted and is lost");
    }
    let from_clients = events
        .iter()
        .filter(|event| event["type"].as_str().is_some_and(|name| name.starts_with("user.")));
    assert_eq!(from_clients.count(), accepted.len(), "{session}: nothing that nobody sent");
    let mut results: BTreeMap<&str, usize> = BTreeMap::new();
    for result in of_type(events, "agent.tool_result") {
        *results.entry(result["tool_use_id"].as_str().unwrap_or_default()).or_default() += 1;
    }
    for call in of_type(events, "agent.tool_use") {
        let id = call["id"].as_str().unwrap_or_default();
        assert_eq!(results.remove(id), Some(1), "{session}: {id} is settled once");
    }
    assert!(results.is_empty(), "{session}: results of no call: {results:?}");
    let count = |name: &str| of_type(events, name).len();
    assert_eq!(
        count("span.model_request_start"),
        count("span.model_request_end"),
        "{session}: every span ends"
    );
}

/// The log has no gap, and a brain that was replaced writes nothing more.
fn check_log(log: &[Logged], session: &str) {
    for (place, record) in log.iter().enumerate() {
        assert_eq!(record.seq, place as u64 + 1, "{session}: the log has no gap");
    }
    let epochs: Vec<i64> = log.iter().filter_map(|record| record.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] <= pair[1]), "{session}: epochs never interleave");
}
