//! The server whose queue it is, as a worker sees it.

use anyhow::Context;
use base64::{
    Engine,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig},
    },
};
use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use std::time::Duration;

const BETA: &str = "managed-agents-2026-04-01";
const VERSION: &str = "2026-10-21";
/// How long an answer may take; streams take as long as they like.
const ANSWER: Duration = Duration::from_secs(30);
/// Events read at once.
const PAGE: usize = 1_000;

/// Why something did not work out.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It will not the next time either.
    #[error("{0}: {1}")]
    Refused(u16, String),
    /// The next time it may.
    #[error("{0}")]
    Away(String),
}

/// One environment's queue.
pub(super) struct Queue {
    http: Client,
    base: String,
    environment: String,
    key: String,
}

/// The token that an item's secret holds.
pub(super) fn token(secret: &Value) -> Option<String> {
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let secret = URL_SAFE.decode(secret.as_str()?).ok()?;
    let secret: Value = serde_json::from_slice(&secret).ok()?;
    let token = secret["sessions_token"].as_str().filter(|token| !token.is_empty());
    token.map(str::to_owned)
}

impl Queue {
    pub(super) fn new(base: &str, environment: String, key: String) -> anyhow::Result<Self> {
        // An error means that there is one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .build()
            .context("no HTTP client")?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), environment, key })
    }

    /// The environment's key.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    fn request(&self, method: Method, bearer: &str, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(bearer)
            .header("anthropic-beta", BETA)
            .header("anthropic-version", VERSION)
            .header("x-stainless-helper", "environments-worker")
    }

    /// The next item; null if there is none.
    pub(super) async fn poll(&self) -> Result<Value, Trouble> {
        let path = format!("/v1/environments/{}/work/poll?block_ms=999", self.environment);
        let name = format!("vaquero-{}", std::process::id());
        let request = self.request(Method::GET, &self.key, &path);
        answer(request.header("anthropic-worker-id", name)).await
    }

    /// Does something to an item.
    pub(super) async fn act(
        &self,
        bearer: &str,
        work: &str,
        action: &str,
        body: Option<Value>,
    ) -> Result<Value, Trouble> {
        let path = format!("/v1/environments/{}/work/{work}/{action}", self.environment);
        let request = self.request(Method::POST, bearer, &path);
        answer(match body {
            Some(body) => request.json(&body),
            None => request,
        })
        .await
    }

    /// Says that an item is over.
    pub(super) async fn stop(&self, bearer: &str, work: &str) -> Result<(), Trouble> {
        match self.act(bearer, work, "stop", Some(json!({ "force": true }))).await {
            // It is already, or its token has ended with it.
            Ok(_) | Err(Trouble::Refused(401 | 409, _)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the API itself says that there is no such session: what stands before it may answer 404 to anything.
    pub(super) async fn is_gone(&self, session: &str) -> bool {
        let request = self.request(Method::GET, &self.key, &format!("/v1/sessions/{session}"));
        let Ok(response) = request.timeout(ANSWER).send().await else { return false };
        let missing = response.status() == reqwest::StatusCode::NOT_FOUND;
        let said = response.json::<Value>().await.unwrap_or_default();
        missing && said["error"]["type"] == "not_found_error"
    }

    /// All events of a session so far.
    pub(super) async fn events(&self, bearer: &str, session: &str) -> Result<Vec<Value>, Trouble> {
        let mut all = Vec::new();
        let mut page = String::new();
        loop {
            let path = format!("/v1/sessions/{session}/events?limit={PAGE}{page}");
            let mut found = answer(self.request(Method::GET, bearer, &path)).await?;
            if let Some(events) = found["data"].as_array_mut() {
                all.append(events);
            }
            let Some(next) = found["next_page"].as_str() else { return Ok(all) };
            page = format!("&page={next}");
        }
    }

    /// A session's events from now on.
    pub(super) async fn stream(
        &self,
        bearer: &str,
        session: &str,
    ) -> Result<impl Stream<Item = Value> + Unpin + use<>, Trouble> {
        let path = format!("/v1/sessions/{session}/events/stream");
        let response = sent(self.request(Method::GET, bearer, &path), None).await?;
        let events = response.bytes_stream().eventsource();
        // What breaks off ends, and what is no event is none.
        let events = events.take_while(|event| std::future::ready(event.is_ok()));
        Ok(Box::pin(events.filter_map(async |event| serde_json::from_str(&event.ok()?.data).ok())))
    }

    /// Adds an event to a session.
    pub(super) async fn send(
        &self,
        bearer: &str,
        session: &str,
        event: &Value,
    ) -> Result<(), Trouble> {
        let path = format!("/v1/sessions/{session}/events");
        let request = self.request(Method::POST, bearer, &path);
        answer(request.json(&json!({ "events": [event] }))).await.map(drop)
    }
}

async fn answer(request: RequestBuilder) -> Result<Value, Trouble> {
    let response = sent(request, Some(ANSWER)).await?;
    response.json().await.map_err(|error| Trouble::Away(error.to_string()))
}

async fn sent(request: RequestBuilder, within: Option<Duration>) -> Result<Response, Trouble> {
    let request = within.into_iter().fold(request, RequestBuilder::timeout);
    let response = request.send().await.map_err(|error| Trouble::Away(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = body["error"]["message"].as_str().map_or(text, str::to_owned);
    match status.as_u16() {
        408 | 425 | 429 | 500.. => Err(Trouble::Away(format!("{status}: {message}"))),
        refused => Err(Trouble::Refused(refused, message)),
    }
}
