//! Daytona's API: which sandboxes there are, and what becomes of them. Everything is asked for first, and has then to be waited for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::http::{Http, escaped, gone_is_fine, secret};
use vaquero_sandbox::remote::{Machine, Wanted, unique};

use crate::DaytonaConfig;
use crate::toolbox::Toolbox;

/// What marks a sandbox as this server's, among its labels.
const OWNER: &str = "vaquero";
/// Between two looks at a sandbox that changes, and for how long.
const PAUSE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_mins(5);

const STARTED: &str = "started";
const STOPPED: &str = "stopped";
const PAUSED: &str = "paused";
/// States from which nothing follows by itself.
const DEAD: [&str; 4] = ["error", "build_failed", "destroyed", "destroying"];

#[derive(Debug)]
pub(crate) struct Control {
    http: Http,
    key: String,
    url: String,
    target: Option<String>,
    /// Where toolboxes are, of machines that were spoken to.
    places: Mutex<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    #[serde(default)]
    state: String,
    error_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    items: Vec<Shown>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Place {
    url: String,
}

#[derive(Deserialize)]
struct Snapshot {
    id: String,
}

impl Control {
    pub(crate) fn new(config: &DaytonaConfig) -> Result<Self, SandboxError> {
        let key = format!("Bearer {}", config.api_key);
        let http = Http::new("Daytona", HeaderMap::from_iter([(AUTHORIZATION, secret(&key)?)]))?;
        Ok(Self {
            http,
            key,
            url: config.api_url.trim_end_matches('/').to_owned(),
            target: config.target.clone(),
            places: Mutex::default(),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.client().request(method, format!("{}{path}", self.url))
    }

    fn of(&self, method: Method, id: &str, action: &str) -> RequestBuilder {
        self.request(method, &format!("/sandbox/{}{action}", escaped(id)))
    }

    /// Makes a sandbox, and waits until it runs.
    pub(crate) async fn create(
        &self,
        wanted: &Wanted<'_>,
        default: &str,
    ) -> Result<String, SandboxError> {
        let minutes = wanted.linger.as_secs().div_ceil(60).max(1);
        let mut body = json!({
            "user": "root",
            "labels": {
                OWNER: wanted.owner, "session": wanted.key.session, "sandbox": wanted.key.name,
            },
            "networkBlockAll": true,
            "public": false,
            "autoStopInterval": minutes,
        });
        if let Some(target) = &self.target {
            body["target"] = json!(target);
        }
        match wanted.snapshot {
            Some(snapshot) => body["snapshot"] = json!(snapshot),
            None if wanted.image != default => {
                let gigabytes = |bytes: u64| bytes.div_ceil(1 << 30).max(1);
                body["buildInfo"] =
                    json!({ "dockerfileContent": format!("FROM {}\n", wanted.image) });
                body["cpu"] = json!(wanted.limits.cpu_millis.div_ceil(1000));
                body["memory"] = json!(gigabytes(wanted.limits.memory_bytes));
                body["disk"] = json!(gigabytes(wanted.limits.workspace_bytes));
            }
            None if default.is_empty() => {}
            None => body["snapshot"] = json!(default),
        }
        let made: Shown =
            self.http.json(self.request(Method::POST, "/sandbox").json(&body)).await?;
        match self.until(&made.id, STARTED).await {
            Ok(()) => Ok(made.id),
            Err(error) => {
                self.delete(&made.id).await?;
                Err(error)
            }
        }
    }

    async fn until(&self, id: &str, state: &str) -> Result<(), SandboxError> {
        let wait = async {
            loop {
                let shown: Shown = self.http.json(self.of(Method::GET, id, "")).await?;
                if shown.state == state {
                    return Ok(());
                }
                if DEAD.contains(&shown.state.as_str()) {
                    let why = shown.error_reason.unwrap_or_default();
                    return Err(SandboxError::unavailable(
                        format!("Daytona's sandbox is {} and not {state}: {why}", shown.state),
                        "see what it says; the next call tries again",
                    ));
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| {
            Err(SandboxError::unavailable(
                format!(
                    "Daytona's sandbox is not {state} after {} minutes",
                    PATIENCE.as_secs() / 60
                ),
                "see what Daytona's own pages say of it; the next call tries again",
            ))
        })
    }

    pub(crate) async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        let labels = json!({ OWNER: owner }).to_string();
        let (mut all, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("labels", labels.as_str())];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Page =
                self.http.json(self.request(Method::GET, "/sandbox").query(&query)).await?;
            for shown in page.items {
                all.extend(self.use_of(shown).await?);
            }
            cursor = page.next_cursor.filter(|cursor| !cursor.is_empty());
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// Whether it is there, and runs.
    pub(crate) async fn look(&self, id: &str) -> Result<Option<Machine>, SandboxError> {
        match self.http.json(self.of(Method::GET, id, "")).await {
            Ok(shown) => self.use_of(shown).await,
            Err(SandboxError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A machine that is of use. From some states none comes back: such a one is removed, and its session's checkpoint brings the files.
    async fn use_of(&self, shown: Shown) -> Result<Option<Machine>, SandboxError> {
        match shown.state.as_str() {
            "destroyed" | "destroying" => Ok(None),
            state if DEAD.contains(&state) => self.delete(&shown.id).await.map(|()| None),
            state => Ok(Some(Machine { runs: state == STARTED, id: shown.id })),
        }
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), SandboxError> {
        self.http.send(self.of(Method::POST, id, "/start")).await?;
        self.until(id, STARTED).await
    }

    /// Keeps its memory as well.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), SandboxError> {
        self.http.send(self.of(Method::POST, id, "/pause")).await?;
        self.until(id, PAUSED).await
    }

    pub(crate) async fn stop(&self, id: &str) -> Result<(), SandboxError> {
        self.http.send(self.of(Method::POST, id, "/stop")).await?;
        self.until(id, STOPPED).await
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), SandboxError> {
        self.lock().remove(id);
        gone_is_fine(self.http.send(self.of(Method::DELETE, id, "")).await.map(drop))
    }

    /// It is in use.
    pub(crate) async fn refresh(&self, id: &str) -> Result<(), SandboxError> {
        self.http.send(self.of(Method::POST, id, "/last-activity")).await.map(drop)
    }

    /// Keeps a sandbox's files under a name of their own.
    pub(crate) async fn keep(&self, id: &str) -> Result<String, SandboxError> {
        let name = format!("vaquero-{}", unique());
        let request = self.of(Method::POST, id, "/snapshot").json(&json!({ "name": name }));
        self.http.send(request).await?;
        self.until(id, STARTED).await?;
        Ok(name)
    }

    pub(crate) async fn forget(&self, snapshot: &str) -> Result<(), SandboxError> {
        let path = |part: &str| format!("/snapshots/{}", escaped(part));
        let found = self.http.json(self.request(Method::GET, &path(snapshot))).await;
        let found: Snapshot = match found {
            Err(SandboxError::Gone { .. }) => return Ok(()),
            other => other?,
        };
        let request = self.request(Method::DELETE, &path(&found.id));
        gone_is_fine(self.http.send(request).await.map(drop))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        // Only a plain map is behind this lock, and no code panics while it holds it.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What answers in a sandbox.
    pub(crate) async fn toolbox(&self, id: &str) -> Result<Toolbox, SandboxError> {
        let known = self.lock().get(id).cloned();
        let base = if let Some(base) = known {
            base
        } else {
            let request = self.of(Method::GET, id, "/toolbox-proxy-url");
            let place: Place = self.http.json(request).await?;
            let base = format!("{}/{}", place.url.trim_end_matches('/'), escaped(id));
            self.lock().insert(id.to_owned(), base.clone());
            base
        };
        Ok(Toolbox::new(self.http.clone(), base, self.key.clone()))
    }
}
