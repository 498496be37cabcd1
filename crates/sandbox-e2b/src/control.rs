//! E2B's control plane: which sandboxes there are, and what becomes of them.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::http::{Http, escaped, gone_is_fine, secret};
use vaquero_sandbox::remote::{Machine, Wanted};

use crate::E2bConfig;

/// What marks a sandbox as this server's, in its metadata.
const OWNER: &str = "vaquero";
/// How long a sandbox lives that nobody has spoken to yet, in seconds.
const BEGINNING: u64 = 300;
/// Sandboxes on a page.
const PAGE: &str = "100";

#[derive(Debug)]
pub(crate) struct Control {
    http: Http,
    url: String,
}

/// A sandbox, and how its daemon is spoken to.
#[derive(Debug, Deserialize)]
pub(crate) struct Made {
    #[serde(rename = "sandboxID")]
    pub(crate) id: String,
    #[serde(rename = "envdAccessToken")]
    pub(crate) token: Option<String>,
    pub(crate) domain: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "sandboxID")]
    id: String,
    state: String,
}

#[derive(Deserialize)]
struct Snapshot {
    #[serde(rename = "snapshotID")]
    id: String,
}

impl Control {
    pub(crate) fn new(config: &E2bConfig) -> Result<Self, SandboxError> {
        let key = (HeaderName::from_static("x-api-key"), secret(&config.api_key)?);
        let http = Http::new("E2B", HeaderMap::from_iter([key]))?;
        Ok(Self { http, url: config.api_url.trim_end_matches('/').to_owned() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.client().request(method, format!("{}{path}", self.url))
    }

    fn of(&self, method: Method, id: &str, action: &str) -> RequestBuilder {
        self.request(method, &format!("/sandboxes/{}{action}", escaped(id)))
    }

    pub(crate) async fn create(&self, wanted: &Wanted<'_>) -> Result<Made, SandboxError> {
        let body = json!({
            "templateID": wanted.snapshot.unwrap_or(wanted.image),
            "timeout": BEGINNING.max(wanted.linger.as_secs()),
            "autoPause": false,
            "allow_internet_access": false,
            "metadata": {
                OWNER: wanted.owner, "session": wanted.key.session, "sandbox": wanted.key.name,
            },
        });
        self.http.json(self.request(Method::POST, "/v2/sandboxes").json(&body)).await
    }

    pub(crate) async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let metadata = format!("{OWNER}={owner}");
            let mut query =
                vec![("metadata", metadata.as_str()), ("state", "running,paused"), ("limit", PAGE)];
            if !next.is_empty() {
                query.push(("nextToken", &next));
            }
            let request = self.request(Method::GET, "/v2/sandboxes").query(&query);
            let answer = self.http.send(request).await?;
            let token = answer.headers().get("x-next-token");
            let token = token.and_then(|token| token.to_str().ok()).unwrap_or_default().to_owned();
            let listed: Vec<Listed> = self.http.read(answer).await?;
            all.extend(
                listed.into_iter().map(|it| Machine { runs: it.state == "running", id: it.id }),
            );
            if token.is_empty() {
                return Ok(all);
            }
            next = token;
        }
    }

    /// Whether it is there, and runs.
    pub(crate) async fn look(&self, id: &str) -> Result<Option<Machine>, SandboxError> {
        match self.http.json::<Listed>(self.of(Method::GET, id, "")).await {
            Ok(it) => Ok(Some(Machine { runs: it.state == "running", id: it.id })),
            Err(SandboxError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn find(&self, id: &str) -> Result<Made, SandboxError> {
        self.http.json(self.of(Method::GET, id, "")).await
    }

    /// Keeps its files; what runs in it ends, or with its memory goes on when it is connected to.
    pub(crate) async fn pause(&self, id: &str, memory: bool) -> Result<(), SandboxError> {
        let request = self.of(Method::POST, id, "/pause").json(&json!({ "memory": memory }));
        self.http.send(request).await.map(drop)
    }

    /// Starts one that was paused.
    pub(crate) async fn connect(&self, id: &str) -> Result<Made, SandboxError> {
        let path = format!("/v2/sandboxes/{}/connect", escaped(id));
        let body = json!({ "timeout": BEGINNING });
        self.http.json(self.request(Method::POST, &path).json(&body)).await
    }

    pub(crate) async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        gone_is_fine(self.http.send(self.of(Method::DELETE, id, "")).await.map(drop))
    }

    /// It lives for that long from now.
    pub(crate) async fn keep(&self, id: &str, linger: Duration) -> Result<(), SandboxError> {
        let body = json!({ "timeout": linger.as_secs().max(1) });
        self.http.send(self.of(Method::POST, id, "/timeout").json(&body)).await.map(drop)
    }

    pub(crate) async fn snapshot(&self, id: &str) -> Result<String, SandboxError> {
        let request = self.of(Method::POST, id, "/snapshots").json(&json!({ "memory": false }));
        let made: Snapshot = self.http.json(request).await?;
        Ok(made.id)
    }

    pub(crate) async fn forget(&self, snapshot: &str) -> Result<(), SandboxError> {
        let path = format!("/templates/{}", escaped(snapshot));
        gone_is_fine(self.http.send(self.request(Method::DELETE, &path)).await.map(drop))
    }
}

/// What an answer of an unexpected kind is taken for.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
