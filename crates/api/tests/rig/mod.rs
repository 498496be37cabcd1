//! The API on the in-memory store, or on PostgreSQL with `VAQUERO_TEST_STORE=postgres`, with time and ids that repeat: requests go through the real router, nothing listens.
#![allow(dead_code, reason = "each test file uses its own part of the rig")]

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use vaquero_api::{App, ModelList, Parts, Rates, Settings, keys};
use vaquero_model::Unconfigured;
use vaquero_store::{LocalLive, MemoryStore, SharedStore};
use vaquero_store_postgres::{PostgresConfig, PostgresStore};
use vaquero_testkit::Database;
use vaquero_types::{Clock, IdGen, SessionId, Timestamp};
use vaquero_vault::{Keyring, Keys, new_key};

pub(crate) const KEY: &str = "test-key-0123456789";

/// 2026-01-01, and a millisecond later each time it is asked.
#[derive(Debug)]
struct Ticking(AtomicI64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000 + self.0.fetch_add(1_000, Ordering::Relaxed))
    }
}

#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl IdGen for Counting {
    fn next(&self, _now: Timestamp) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) struct Rig {
    pub(crate) store: SharedStore,
    pub(crate) live: Arc<LocalLive>,
    _database: Option<Database>,
    pub(crate) ended: mpsc::UnboundedReceiver<SessionId>,
    pub(crate) app: App,
    router: Router,
}

/// An answer, taken in whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// Status, type and message of a refusal.
    pub(crate) fn refusal(&self) -> (u16, &str, &str) {
        let error = &self.body["error"];
        let text = |name: &str| error[name].as_str().unwrap_or_default();
        (self.status.as_u16(), text("type"), text("message"))
    }

    /// The message of a 400.
    #[track_caller]
    pub(crate) fn invalid(&self) -> &str {
        let (status, kind, message) = self.refusal();
        assert_eq!((status, kind), (400, "invalid_request_error"), "{}", self.body);
        message
    }

    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// The store under test.
async fn store() -> (SharedStore, Option<Database>) {
    if std::env::var("VAQUERO_TEST_STORE").is_ok_and(|store| store == "postgres") {
        let database = Database::create().await.expect("a server").expect("it is there");
        let config = PostgresConfig {
            clock: vaquero_store_postgres::Clock::Caller,
            connections: 6,
            ..PostgresConfig::new(&database.url)
        };
        let store = PostgresStore::open(&config, "rig").await.expect("it opens");
        return (Arc::new(store), Some(database));
    }
    (Arc::new(MemoryStore::default()), None)
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn limited(rates: Rates) -> Self {
        Self::with(Settings { rates, ..Settings::default() }).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let (store, database) = store().await;
        let (clock, ids) = (Arc::new(Ticking(AtomicI64::new(0))), Arc::new(Counting::default()));
        keys::accept(store.as_ref(), clock.as_ref(), ids.as_ref(), KEY).await.expect("accepted");
        let live = Arc::new(LocalLive::default());
        let (sender, ended) = mpsc::unbounded_channel();
        let app = App::new(Parts {
            store: Arc::clone(&store),
            live: Arc::clone(&live) as _,
            clock,
            ids,
            keys: Arc::new(Keys::new(Ok(
                Keyring::parse(&new_key().expect("randomness")).expect("a key")
            ))),
            models: ModelList::new(Arc::new(Unconfigured), Vec::new()),
            ended: sender,
            metrics: Arc::new(String::new),
            drain: CancellationToken::new(),
            settings,
        });
        let router = vaquero_api::router(app.clone());
        Self { store, live, _database: database, ended, app, router }
    }

    /// Whether the store holds a secret of this credential.
    pub(crate) async fn secret(&self, credential: &str) -> bool {
        let system = vaquero_types::WorkspaceId::from_wire("wrkspc_system");
        let id = format!("{}.{credential}", keys::DEFAULT_WORKSPACE);
        self.store.document(&system, "secret", &id).await.expect("a store").is_some()
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// A request with a key and a body.
    pub(crate) fn request(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization" || *name == "x-api-key") {
            request = request.header("x-api-key", KEY);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.header(header::CONTENT_TYPE, "application/json").body(body).expect("a request")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Self::request("GET", path, &[], Body::empty())).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub(crate) async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        self.send(Self::request("POST", path, headers, Body::from(body.to_string()))).await
    }

    /// An action: no body at all.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        self.send(Self::request("POST", path, &[], Body::empty())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Self::request("DELETE", path, &[], Body::empty())).await
    }

    pub(crate) async fn agent(&self, more: Value) -> Value {
        let mut body = json!({ "name": "a", "model": "claude-opus-5-5" });
        merge(&mut body, more);
        self.post("/v1/agents", body).await.ok()
    }

    pub(crate) async fn environment(&self, name: &str) -> Value {
        self.post("/v1/environments", json!({ "name": name })).await.ok()
    }

    /// The id of a session of an agent with these tools.
    pub(crate) async fn session(&self, tools: Value) -> String {
        let agent = self.agent(json!({ "tools": tools })).await;
        let environment = self.environment(&format!("e of {}", agent["id"])).await;
        let body = json!({ "agent": agent["id"], "environment_id": environment["id"] });
        id(&self.post("/v1/sessions", body).await.ok())
    }

    /// Opens a stream; the first frames are read with [`Frames::next`].
    pub(crate) async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> (HeaderMap, Frames) {
        let request = Self::request("GET", path, headers, Body::empty());
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        let (parts, body) = response.into_parts();
        (parts.headers, Frames { body: body.into_data_stream(), text: String::new() })
    }
}

pub(crate) struct Frames {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Frames {
    /// The next frame that is no comment; none at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let frame = self.text[..end].to_owned();
                self.text.drain(..end + 2);
                if frame.starts_with(':') {
                    continue;
                }
                return Some(frame);
            }
            let chunk = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.next());
            let chunk = chunk.await.expect("a frame in time")?.expect("a chunk");
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// The event of the next frame.
    pub(crate) async fn event(&mut self) -> Value {
        let frame = self.next().await.expect("a frame");
        let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
        serde_json::from_str(data).expect("JSON")
    }
}

pub(crate) fn merge(body: &mut Value, more: Value) {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
}

pub(crate) fn id(resource: &Value) -> String {
    resource["id"].as_str().expect("an id").to_owned()
}

pub(crate) fn message(text: &str) -> Value {
    json!({ "type": "user.message", "content": [{ "type": "text", "text": text }] })
}

pub(crate) fn names<'a>(page: &'a Value, field: &str) -> Vec<&'a str> {
    let items = page["data"].as_array().expect("a list");
    items.iter().map(|item| item[field].as_str().unwrap_or_default()).collect()
}
