//! Asking those who offer machines over HTTP: again when they are busy, and with an error that says what to do.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::SandboxError;

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_mins(2);
/// The longest that one asks to be left alone.
const WAIT: Duration = Duration::from_secs(30);
/// The most that is repeated of what one says.
const SAID: usize = 300;

/// A client for one of them.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
    name: &'static str,
}

/// What came of asking once.
struct Trouble {
    error: SandboxError,
    again: bool,
    wait: Option<Duration>,
}

impl Trouble {
    fn last(what: &str) -> Self {
        Self { error: SandboxError::Invalid(what.to_owned()), again: false, wait: None }
    }
}

impl Http {
    /// Sends these headers with every request. `name` is for people.
    pub fn new(name: &'static str, headers: HeaderMap) -> Result<Self, SandboxError> {
        // An error means that there is one already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .user_agent(concat!("vaquero/", env!("CARGO_PKG_VERSION")))
            .build();
        let client =
            client.map_err(|e| SandboxError::io("no HTTP client", std::io::Error::other(e)))?;
        Ok(Self { client, name })
    }

    /// For making requests.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request until it is answered. [`SandboxError::Gone`] if there is no such thing.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, SandboxError> {
        let waits = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(10))
            .with_max_times(4);
        let again = || async {
            match request.try_clone() {
                Some(request) => self.once(request).await,
                None => Err(Trouble::last("the request cannot be sent twice")),
            }
        };
        let answered = again.retry(waits).when(|trouble| trouble.again);
        let answered =
            answered.adjust(|trouble, planned| planned.map(|it| trouble.wait.unwrap_or(it)));
        answered.await.map_err(|trouble| trouble.error)
    }

    /// Sends a request once: one that must not arrive twice, or cannot be repeated.
    pub async fn send_once(&self, request: RequestBuilder) -> Result<Response, SandboxError> {
        self.once(request).await.map_err(|trouble| trouble.error)
    }

    /// Sends a request until it is answered, and reads the answer.
    pub async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, SandboxError> {
        self.read(self.send(request).await?).await
    }

    /// What an answer says.
    pub async fn read<T: DeserializeOwned>(&self, answer: Response) -> Result<T, SandboxError> {
        answer.json().await.map_err(|error| {
            SandboxError::unavailable(
                format!("{} answers what is not understood: {error}", self.name),
                "see whether a newer version of this server is there",
            )
        })
    }

    async fn once(&self, request: RequestBuilder) -> Result<Response, Trouble> {
        let sent = tokio::time::timeout(ANSWER, request.send()).await;
        let answer = match sent {
            Ok(Ok(answer)) if answer.status().is_success() => return Ok(answer),
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let again = error.is_connect();
                return Err(self.unreachable(&because(&error), again));
            }
            Err(_) => return Err(self.unreachable("it does not answer", false)),
        };
        let (status, wait) = (answer.status(), wait(answer.headers()));
        let text = answer.text().await.unwrap_or_default();
        let said = message(&text);
        let name = self.name;
        let error = match status {
            StatusCode::NOT_FOUND => SandboxError::gone(format!("{name}: {said}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SandboxError::unavailable(
                format!("{name} does not accept this server's key: {said}"),
                "see that the key is right, and whose it is",
            ),
            _ => SandboxError::unavailable(
                format!("{name} answers {status}: {said}"),
                "see what it says; the next call tries again",
            ),
        };
        let again = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        Err(Trouble { error, again, wait })
    }

    fn unreachable(&self, why: &str, again: bool) -> Trouble {
        let error = SandboxError::unavailable(
            format!("{} cannot be reached: {why}", self.name),
            "see whether this server may go out, and where it was told to",
        );
        Trouble { error, again, wait: None }
    }
}

/// A header's value that no log shows.
pub fn secret(value: &str) -> Result<HeaderValue, SandboxError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        SandboxError::unavailable("the key is none", "give the key as it was given to you")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// One part of a path.
pub fn escaped(part: &str) -> String {
    url::form_urlencoded::byte_serialize(part.as_bytes()).collect()
}

/// What was to be ended may have ended by itself.
pub fn gone_is_fine(ended: Result<(), SandboxError>) -> Result<(), SandboxError> {
    match ended {
        Err(SandboxError::Gone { .. }) => Ok(()),
        other => other,
    }
}

fn because(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = source.to_string();
        next = source.source();
    }
    text
}

fn wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT))
}

/// What an error says, whatever it looks like.
fn message(text: &str) -> String {
    let said = serde_json::from_str::<Value>(text).ok().and_then(|body| {
        let message = body.get("message").or_else(|| body.get("error"))?;
        let joined = |parts: &Vec<Value>| {
            parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
        };
        message.as_str().map(str::to_owned).or_else(|| message.as_array().map(joined))
    });
    said.unwrap_or_else(|| text.trim().to_owned()).chars().take(SAID).collect()
}
