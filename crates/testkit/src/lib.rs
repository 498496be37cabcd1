//! What black-box tests are made of: the real server as a process that can be killed, a scripted model that outlives it, and a client. Never part of the product.

mod database;
mod fake;
mod proxy;

pub use database::Database;
pub use fake::Fake;
pub use proxy::Proxy;

use anyhow::{Context, bail, ensure};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, timeout},
};
use vaquero_model::scripted::Scripted;

/// The key every test server accepts.
pub const KEY: &str = "test-key-0123456789";
/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A scripted model on a port of its own, for as long as the value lives.
pub struct Model {
    /// Where it listens.
    pub base: String,
    /// The model itself.
    pub scripted: Scripted,
    task: JoinHandle<()>,
}

impl Model {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let scripted = Scripted::new();
        let serving = scripted.clone();
        #[expect(clippy::disallowed_methods, reason = "aborted when the value is dropped")]
        let task = tokio::spawn(async move {
            drop(serving.serve(listener).await);
        });
        Ok(Self { base, scripted, task })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server process and its data directory; the directory outlives kills and restarts.
pub struct Server {
    exe: PathBuf,
    model: String,
    data: TempDir,
    variables: Vec<(String, String)>,
    log: Option<PathBuf>,
    /// Made at the first start, if the tests are to run on PostgreSQL.
    database: Option<Database>,
    child: Option<Child>,
    client: Client,
}

/// Which provider makes the sandboxes of the tests' servers, unless a test chooses another.
pub fn sandbox() -> String {
    std::env::var("VAQUERO_TEST_SANDBOX").unwrap_or_else(|_| "local".to_owned())
}

impl Server {
    /// A server that is not started yet, with the model that listens at `model`.
    pub fn new(exe: impl Into<PathBuf>, model: &str) -> anyhow::Result<Self> {
        Ok(Self {
            exe: exe.into(),
            model: model.to_owned(),
            data: tempfile::Builder::new().prefix("vaquero-test-").tempdir()?,
            variables: Vec::new(),
            log: None,
            database: None,
            child: None,
            client: Client::new(String::new())?,
        })
    }

    /// Sets a variable for the next starts.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// What a variable is set to.
    pub fn variable(&self, name: &str) -> Option<String> {
        let found = self.variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }

    /// Tells it which Docker engine to use, with the tests' image.
    pub fn set_docker(&mut self, host: &str) {
        self.set("VAQUERO_DOCKER_HOST", host);
        self.set("VAQUERO_DOCKER_IMAGE", "vaquero-test:latest");
    }

    /// Gives it the embedded store, whatever the tests run on.
    pub fn set_embedded(&mut self) {
        self.set("VAQUERO_DATABASE_URL", "");
    }

    /// Has it write its log to a file beside the data directory, which is returned.
    pub fn log_to_file(&mut self) -> PathBuf {
        self.log.insert(self.data.path().join("server.log")).clone()
    }

    /// Takes a variable back.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A client of the running server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The process id of the running server.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts it and waits until it is healthy.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.prepare().await?;
        let mut child = self.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let base = loop {
            let line =
                timeout(PATIENCE, lines.next_line()).await.context("the server says nothing")??;
            let Some(line) = line else { bail!("the server ended at its start") };
            if let Some((_, base)) = line.split_once("listens on ") {
                break base.trim().to_owned();
            }
        };
        self.child = Some(child);
        self.client = Client::new(base)?;
        let client = self.client.clone();
        eventually("healthy", || async { client.get("/health").await.is_ok().then_some(()) }).await
    }

    /// Starts it with a crash point armed and waits for its end, without asking anything of it.
    pub async fn start_doomed(&mut self) -> anyhow::Result<()> {
        self.prepare().await?;
        let mut child = self.spawn()?;
        timeout(PATIENCE, child.wait()).await.context("it does not end")??;
        Ok(())
    }

    /// With `VAQUERO_TEST_STORE=postgres` every server of the tests gets a database of its own, with `VAQUERO_TEST_SANDBOX=docker` it makes containers.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        if sandbox() == "docker" && self.variable("VAQUERO_SANDBOX").is_none() {
            self.set("VAQUERO_SANDBOX", "docker");
            self.set_docker(&std::env::var("VAQUERO_TEST_DOCKER").context("VAQUERO_TEST_DOCKER")?);
        }
        let wanted = std::env::var("VAQUERO_TEST_STORE").is_ok_and(|store| store == "postgres");
        let named = self.variables.iter().any(|(name, _)| name == "VAQUERO_DATABASE_URL");
        if wanted && !named {
            let database = Database::create().await?.context("a database server")?;
            self.set("VAQUERO_DATABASE_URL", &database.url);
            self.database = Some(database);
        }
        Ok(())
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = match &self.log {
            Some(file) => {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
                Stdio::from(file)
            }
            None => Stdio::inherit(),
        };
        Command::new(&self.exe)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--sandbox-limits",
                "degraded",
                "--data-dir",
            ])
            .arg(self.data.path().join("data"))
            .env("VAQUERO_API_KEY", KEY)
            .env("VAQUERO_ANTHROPIC_BASE_URL", &self.model)
            .env("VAQUERO_ANTHROPIC_API_KEY", "scripted")
            .env("VAQUERO_MODEL_BACKOFF_MS", "20")
            .env("VAQUERO_LOG", "warn")
            .env_remove("ANTHROPIC_API_KEY")
            .envs(self.variables.iter().cloned())
            .current_dir(self.data.path())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("the server cannot be started")
    }

    /// Kills it as `kill -9` does.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Kills it together with its sandboxes, as a machine that is gone does.
    pub async fn kill_with_hands(&mut self) -> anyhow::Result<()> {
        self.kill().await?;
        end_processes(&self.data.path().join("data/launcher").display().to_string());
        Ok(())
    }

    /// Asks it to end and waits until it has; whether it ended well.
    pub async fn terminate(&mut self) -> anyhow::Result<bool> {
        let Some(mut child) = self.child.take() else { bail!("it is not running") };
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("it has a pid")?, Signal::TERM)?;
        Ok(timeout(PATIENCE, child.wait()).await.context("it does not end")??.success())
    }

    /// Stops it where it stands, as `kill -STOP` does, or lets it go on.
    pub fn stand_still(&self, still: bool) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(rustix::process::Pid::from_raw).context("it is running")?;
        let signal = if still { Signal::STOP } else { Signal::CONT };
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { bail!("it is not running") };
        timeout(PATIENCE, child.wait()).await.context("it does not end")??;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The launcher lingers for the next server; after a test there is none.
        end_processes(&self.data.path().join("data/launcher").display().to_string());
    }
}

/// Kills every process whose command line names `mark`.
fn end_processes(mark: &str) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(mark.len()).any(|part| part == mark.as_bytes()) {
            rustix::process::kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
}

/// A client of the API.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// The server's address.
    pub base: String,
}

impl Client {
    /// A client of what listens at `base`.
    pub fn new(base: String) -> anyhow::Result<Self> {
        vaquero_model::choose_crypto();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { http, base })
    }

    /// A request with the usual headers.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(KEY)
            .header("anthropic-version", "2023-06-01")
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let response = request.send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        if status != StatusCode::OK {
            bail!("{status}: {body}");
        }
        Ok(body)
    }

    /// `GET`, which must succeed.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST`, which must succeed.
    pub async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    /// `DELETE`, which must succeed.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// A session of a new agent with these tools.
    pub async fn session(&self, tools: Value) -> anyhow::Result<String> {
        let agent = self
            .post("/v1/agents", json!({ "name": "test", "model": "scripted", "tools": tools }))
            .await?;
        let name = format!("env for {}", agent["id"]);
        let environment = self.post("/v1/environments", json!({ "name": name })).await?;
        let body = json!({ "agent": agent["id"], "environment_id": environment["id"] });
        let session = self.post("/v1/sessions", body).await?;
        Ok(session["id"].as_str().context("an id")?.to_owned())
    }

    /// A session of an agent with the built-in tools.
    pub async fn tool_session(&self) -> anyhow::Result<String> {
        self.session(json!([{ "type": "agent_toolset_20260401" }])).await
    }

    /// A session of an agent with the built-in tools, in an environment of its own that is configured so.
    pub async fn session_in(&self, config: Value) -> anyhow::Result<String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("env {}", NEXT.fetch_add(1, Ordering::Relaxed));
        let body = json!({ "name": name, "config": config });
        let environment = self.post("/v1/environments", body).await?;
        self.session_of(environment["id"].as_str().context("an id")?).await
    }

    /// A session of such an agent in an environment.
    pub async fn session_of(&self, environment: &str) -> anyhow::Result<String> {
        let tools = json!([{ "type": "agent_toolset_20260401" }]);
        let agent = json!({ "name": "test", "model": "scripted", "tools": tools });
        let agent = self.post("/v1/agents", agent).await?;
        let body = json!({ "agent": agent["id"], "environment_id": environment });
        let session = self.post("/v1/sessions", body).await?;
        Ok(session["id"].as_str().context("an id")?.to_owned())
    }

    /// What `/metrics` says of a metric with all of these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<String> {
        let text = self.request(Method::GET, "/metrics").send().await.ok()?.text().await.ok()?;
        let line = text.lines().find(|line| {
            let its = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            its && labels.iter().all(|label| line.contains(label))
        })?;
        line.rsplit_once(' ').map(|(_, value)| value.to_owned())
    }

    /// What a command prints in the session's sandbox.
    pub async fn sh(&self, session: &str, command: &str) -> anyhow::Result<String> {
        let before = of_type(&self.events(session).await?, "agent.tool_result").len();
        self.say(session, &format!("!bash {command}")).await?;
        let events = self.idle(session).await?;
        let results = of_type(&events, "agent.tool_result");
        let [.., last] = results.as_slice() else { bail!("no result") };
        ensure!(results.len() == before + 1, "one command has one result");
        Ok(text_of(last))
    }

    /// Sends a message.
    pub async fn say(&self, session: &str, text: &str) -> anyhow::Result<Value> {
        let message =
            json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] });
        self.post(&format!("/v1/sessions/{session}/events"), json!({ "events": [message] })).await
    }

    /// All events, as listed.
    pub async fn events(&self, session: &str) -> anyhow::Result<Vec<Value>> {
        let page = self.get(&format!("/v1/sessions/{session}/events?limit=1000")).await?;
        Ok(page["data"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until the session is idle.
    pub async fn idle_row(&self, session: &str) -> anyhow::Result<()> {
        let path = format!("/v1/sessions/{session}");
        eventually("idle", || async {
            let found = self.get(&path).await.ok()?;
            (found["status"] == "idle").then_some(())
        })
        .await
    }

    /// Waits until the session is idle and answers with its events.
    pub async fn idle(&self, session: &str) -> anyhow::Result<Vec<Value>> {
        self.idle_row(session).await?;
        self.events(session).await
    }
}

/// The events of a type.
pub fn of_type<'a>(events: &'a [Value], event_type: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == event_type).collect()
}

/// The text of an event's blocks.
pub fn text_of(event: &Value) -> String {
    let blocks = event["content"].as_array().into_iter().flatten();
    blocks.filter_map(|block| block["text"].as_str()).collect()
}

/// Asks again until there is an answer, or patience ends.
pub async fn eventually<T, F, Fut>(what: &str, ask: F) -> anyhow::Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("not {what} within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
