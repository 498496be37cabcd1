//! Every step of a turn is performed twice: each commit's outcome is hidden once and the commit repeated, each call of the hands is made two times at once. What a client
//! sees, and what happens in the sandbox, is as if each had been performed once.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

use async_trait::async_trait;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc::unbounded_channel, task::JoinSet};
use tokio_util::sync::CancellationToken;
use vaquero_api::{App, ModelList, Parts, Settings, keys};
use vaquero_model::{Anthropic, AnthropicConfig, choose_crypto};
use vaquero_sandbox::{
    CallState, Capabilities, ComputeProvider, Fence, LimitsMode, LocalConfig, LocalProvider, Piece,
    Sandbox, SandboxError, SandboxKey, SandboxSpec, ToolResult, Traffic,
};
use vaquero_store::{
    Answer, AnswerKey, Claimed, CommitError, Committed, Document, DocumentPage, DocumentQuery,
    EventPage, EventQuery, Lease, LocalLive, MemoryStore, Position, Record, Seq, SessionPage,
    SessionQuery, SessionRow, Snapshot, Store, StoreError, WorkerName, Write,
};
use vaquero_testkit::{Client, KEY, Model, of_type, text_of};
use vaquero_types::{
    EventId, RandomIds, SessionId, SystemClock, Timestamp, WorkspaceId, thread::Thread,
};
use vaquero_vault::Keys;
use vaquero_worker::{Worker, World};

/// Makes every commit durable and says that it failed, the first time it is asked.
struct Doubtful {
    store: Arc<MemoryStore>,
    commits: AtomicUsize,
}

#[async_trait]
impl Store for Doubtful {
    async fn commit(&self, writes: Vec<Write>, now: Timestamp) -> Result<Committed, CommitError> {
        let committed = self.store.commit(writes, now).await?;
        if self.commits.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let hidden = std::io::Error::other("the connection was cut");
            return Err(CommitError::Store(StoreError::Backend(Box::new(hidden))));
        }
        Ok(committed)
    }

    async fn document(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        id: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.store.document(workspace, kind, id).await
    }

    async fn document_by_key(
        &self,
        workspace: &WorkspaceId,
        kind: &str,
        unique_key: &str,
    ) -> Result<Option<Document>, StoreError> {
        self.store.document_by_key(workspace, kind, unique_key).await
    }

    async fn documents(&self, query: &DocumentQuery) -> Result<DocumentPage, StoreError> {
        self.store.documents(query).await
    }

    async fn answer(
        &self,
        key: &AnswerKey,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<Option<Answer>, StoreError> {
        self.store.answer(key, now, max_age).await
    }

    async fn session(&self, id: &SessionId) -> Result<Option<SessionRow>, StoreError> {
        self.store.session(id).await
    }

    async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, StoreError> {
        self.store.sessions(query).await
    }

    async fn kept_by(
        &self,
        worker: &WorkerName,
        ids: &[SessionId],
    ) -> Result<Vec<SessionId>, StoreError> {
        self.store.kept_by(worker, ids).await
    }

    async fn heartbeat(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.store.heartbeat(worker, ttl, now).await
    }

    async fn outdated(
        &self,
        archived: bool,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.store.outdated(archived, before, limit).await
    }

    async fn threads(&self, session: &SessionId) -> Result<Vec<Thread>, StoreError> {
        self.store.threads(session).await
    }

    async fn read(
        &self,
        session: &SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.store.read(session, after, max_bytes).await
    }

    async fn position(&self, session: &SessionId) -> Result<Option<Position>, StoreError> {
        self.store.position(session).await
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.store.events(query).await
    }

    async fn event(
        &self,
        session: &SessionId,
        event: &EventId,
    ) -> Result<Option<Record>, StoreError> {
        self.store.event(session, event).await
    }

    async fn wait_past(&self, session: &SessionId, seen: Seq) -> Result<(), StoreError> {
        self.store.wait_past(session, seen).await
    }

    async fn wait_ready(&self) -> Result<(), StoreError> {
        self.store.wait_ready().await
    }

    async fn claim(
        &self,
        worker: &WorkerName,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        self.store.claim(worker, ttl, now).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<(), CommitError> {
        self.store.renew(lease, ttl, now).await?;
        self.store.renew(lease, ttl, now).await
    }

    async fn release(&self, lease: &Lease, handover: bool) -> Result<(), CommitError> {
        self.store.release(lease, handover).await
    }

    async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        self.store.snapshot(session).await
    }
}

/// Asks the hands for everything two times at once.
struct Doubled<T>(T);

#[async_trait]
impl ComputeProvider for Doubled<LocalProvider> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        self.0.check(spec)
    }

    fn prepare(&self, spec: &SandboxSpec) {
        self.0.prepare(spec);
    }

    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let (one, two) = tokio::join!(self.0.ensure(key, spec), self.0.ensure(key, spec));
        one?;
        Ok(Arc::new(Doubled(two?)))
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        let found = self.0.attach(key, spec).await?;
        Ok(found.map(|sandbox| Arc::new(Doubled(sandbox)) as Arc<dyn Sandbox>))
    }

    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        self.0.stop(key).await
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        self.0.destroy(session).await?;
        self.0.destroy(session).await
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        self.0.living().await
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        self.0.sessions().await
    }

    async fn has_workspace(&self, session: &str) -> bool {
        self.0.has_workspace(session).await
    }

    async fn shutdown(&self, linger: bool) {
        self.0.shutdown(linger).await;
    }
}

#[async_trait]
impl Sandbox for Doubled<Arc<dyn Sandbox>> {
    fn traffic(&self) -> Traffic {
        self.0.traffic()
    }

    fn provider(&self) -> &'static str {
        self.0.provider()
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }

    async fn run(
        &self,
        call_id: &str,
        fence: Fence,
        tool: &str,
        input: &Value,
        timeout: Option<Duration>,
    ) -> Result<ToolResult, SandboxError> {
        let run = || self.0.run(call_id, fence, tool, input, timeout);
        let (one, two) = tokio::join!(run(), run());
        let (one, two) = (one?, two?);
        assert_eq!(one, two, "one call, one result");
        Ok(one)
    }

    async fn status(&self, call_id: &str, fence: Fence) -> Result<CallState, SandboxError> {
        self.0.status(call_id, fence).await
    }

    async fn ack(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        self.0.ack(call_id, fence).await?;
        self.0.ack(call_id, fence).await
    }

    async fn cancel(&self, call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        self.0.cancel(call_id, fence).await?;
        self.0.cancel(call_id, fence).await
    }

    async fn pack(&self, fence: Fence) -> Result<Vec<Piece>, SandboxError> {
        self.0.pack(fence).await?;
        self.0.pack(fence).await
    }

    async fn page(&self, index: usize, fence: Fence) -> Result<Vec<u8>, SandboxError> {
        self.0.page(index, fence).await
    }

    async fn part(&self, path: &[u8], offset: u64, fence: Fence) -> Result<Vec<u8>, SandboxError> {
        self.0.part(path, offset, fence).await
    }

    async fn put_part(
        &self,
        path: &[u8],
        first: bool,
        bytes: &[u8],
        fence: Fence,
    ) -> Result<(), SandboxError> {
        self.0.put_part(path, first, bytes, fence).await
    }

    async fn unpack(&self, page: &[u8], fence: Fence) -> Result<(), SandboxError> {
        self.0.unpack(page, fence).await
    }

    async fn read_file(
        &self,
        path: &str,
        max_bytes: u64,
        fence: Fence,
    ) -> Result<Vec<u8>, SandboxError> {
        self.0.read_file(path, max_bytes, fence).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_performed_twice_is_performed_once() -> anyhow::Result<()> {
    choose_crypto();
    let (model, data) = (Model::start().await?, tempfile::tempdir()?);
    let mut local = LocalConfig::new(data.path());
    local.launcher_exe = PathBuf::from(env!("CARGO_BIN_EXE_vaquero"));
    local.limits_mode = LimitsMode::Degraded;
    let compute = Arc::new(Doubled(LocalProvider::start(local, None).await?));
    let store = Arc::new(MemoryStore::new());
    let (clock, ids) = (Arc::new(SystemClock), Arc::new(RandomIds));
    keys::accept(store.as_ref(), clock.as_ref(), ids.as_ref(), KEY).await?;
    let models = Arc::new(Anthropic::new(AnthropicConfig {
        base_url: model.base.clone(),
        api_key: "scripted".to_owned(),
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
    })?);
    let live = Arc::new(LocalLive::default());
    let (ended, ended_inbox) = unbounded_channel();
    let doubtful = Arc::new(Doubtful { store: Arc::clone(&store), commits: AtomicUsize::new(0) });
    let world = World {
        store: Arc::clone(&doubtful) as _,
        live: Arc::clone(&live) as _,
        models: Arc::clone(&models) as _,
        compute: Arc::clone(&compute) as _,
        checkpoints: None,
        registries: vaquero_worker::no_registries(),
        limits: vaquero_sandbox::Limits::default(),
        clock: Arc::clone(&clock) as _,
        ids: Arc::clone(&ids) as _,
    };
    let stop = CancellationToken::new();
    let app = App::new(Parts {
        store,
        live,
        clock,
        ids,
        keys: Arc::new(Keys::new(Err("no vaults here".to_owned()))),
        models: ModelList::new(models, Vec::new()),
        ended,
        metrics: Arc::new(String::new),
        drain: stop.clone(),
        settings: Settings::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = Client::new(format!("http://{}", listener.local_addr()?))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(axum::serve(listener, vaquero_api::router(app)).await) });
    let worker = Worker::new(world, vaquero_worker::Config::default());
    tasks.spawn(worker.run(stop.clone(), ended_inbox));

    let session = client.tool_session().await?;
    let script =
        "!bash echo a >> marks\n!bash echo b >> marks\n!next\n!bash cat marks\n!next\n!say one";
    client.say(&session, script).await?;
    client.idle(&session).await?;
    client.say(&session, "!fail 529\n!say two").await?;
    let events = client.idle(&session).await?;
    let results: Vec<String> =
        of_type(&events, "agent.tool_result").into_iter().map(text_of).collect();
    assert_eq!(results, ["(no output)", "(no output)", "a\nb\n"]);
    let said: Vec<String> = of_type(&events, "agent.message").into_iter().map(text_of).collect();
    assert_eq!(said, ["one", "two"]);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &events {
        *seen.entry(event["id"].as_str().unwrap_or_default()).or_default() += 1;
    }
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    let count = |kind: &str| of_type(&events, kind).len();
    assert_eq!(count("session.status_idle"), 2);
    assert_eq!(count("span.model_request_start"), count("span.model_request_end"));
    let shown = client.get(&format!("/v1/sessions/{session}")).await?;
    let sum = |field: &str| {
        let ends = of_type(&events, "span.model_request_end").into_iter();
        ends.filter_map(|end| end["model_usage"][field].as_u64()).sum::<u64>()
    };
    assert_eq!(shown["usage"]["output_tokens"], json!(sum("output_tokens")), "paid once");
    assert!(doubtful.commits.load(Ordering::SeqCst) > 10);
    assert_eq!(model.scripted.violations(), Vec::<String>::new());
    stop.cancel();
    compute.shutdown(false).await;
    Ok(())
}
