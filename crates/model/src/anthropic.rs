//! The Anthropic Messages API, streamed. Any server that speaks it will do as upstream.

use crate::{
    Message, ModelError, ModelEvent, ModelInfo, ModelProvider, ModelRequest, ModelStream, Role,
    assemble::{Assembler, clip, from_error_body},
};
use async_trait::async_trait;
use eventsource_stream::Eventsource;
use futures::{StreamExt, stream};
use reqwest::{
    Client, Response,
    header::{HeaderMap, HeaderValue},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// What our own API keys start with; such a key is never sent upstream.
pub const KEY_PREFIX_OF_OURS: &str = "vq_";

/// Where and how to reach the upstream.
#[derive(Clone)]
pub struct AnthropicConfig {
    /// `https://api.anthropic.com`, or wherever the Messages API is spoken.
    pub base_url: String,
    /// Its key.
    pub api_key: String,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a stream may be silent.
    pub idle_timeout: Duration,
}

impl fmt::Debug for AnthropicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnthropicConfig").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// Why the upstream cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// One of our own keys was given.
    #[error(
        "the upstream key is one of this server's own (`vq_…`): set VAQUERO_ANTHROPIC_API_KEY to a key of the upstream model"
    )]
    OwnKey,
    /// The key cannot be sent in a header.
    #[error("the upstream key holds characters that no key has")]
    BadKey,
    /// The address is not one.
    #[error("the upstream address `{0}` is not an http or https URL")]
    BadUrl(String),
    /// TLS or the resolver could not be set up.
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// The provider.
#[derive(Clone)]
pub struct Anthropic {
    client: Client,
    base_url: String,
    idle_timeout: Duration,
}

impl fmt::Debug for Anthropic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anthropic").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

impl Anthropic {
    /// A provider with a connection pool of its own.
    pub fn new(config: AnthropicConfig) -> Result<Self, ConfigError> {
        if config.api_key.starts_with(KEY_PREFIX_OF_OURS) {
            return Err(ConfigError::OwnKey);
        }
        if !(config.base_url.starts_with("https://") || config.base_url.starts_with("http://")) {
            return Err(ConfigError::BadUrl(config.base_url));
        }
        let mut headers = HeaderMap::new();
        let mut key = HeaderValue::from_str(&config.api_key).map_err(|_| ConfigError::BadKey)?;
        key.set_sensitive(true);
        headers.insert("x-api-key", key);
        headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
        choose_crypto();
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("vaquero/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ConfigError::Client)?;
        let base_url = config.base_url.trim_end_matches('/').to_owned();
        Ok(Self { client, base_url, idle_timeout: config.idle_timeout })
    }
}

/// Chooses the process's TLS implementation; every HTTP client needs that before it is made.
pub fn choose_crypto() {
    // Another crate of the process may have chosen already; either choice is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
}

#[async_trait]
impl ModelProvider for Anthropic {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        let url = format!("{}/v1/messages", self.base_url);
        let mut post = self.client.post(url).json(&body(&request));
        if request.fast {
            post = post.header("anthropic-beta", "fast-mode-2026-02-01");
        }
        let sent = tokio::time::timeout(self.idle_timeout, post.send()).await;
        let response = sent
            .map_err(|_| {
                ModelError::Failed("the model's provider did not answer in time".to_owned())
            })?
            .map_err(|error| network(&error))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let idle = self.idle_timeout;
        let state = (response.bytes_stream().eventsource(), Assembler::default(), false);
        let events = stream::unfold(state, move |(mut source, mut assembler, failed)| async move {
            if failed || assembler.finished() {
                return None;
            }
            let next = match tokio::time::timeout(idle, source.next()).await {
                Err(_) => Err(ModelError::Failed("the model's stream went silent".to_owned())),
                Ok(None) => Err(ModelError::Failed("the model's stream ended early".to_owned())),
                Ok(Some(Err(_))) => Err(ModelError::Failed("the model's stream broke".to_owned())),
                Ok(Some(Ok(event))) => assembler.take(&event.data),
            };
            let failed = next.is_err();
            let batch: Vec<Result<ModelEvent, ModelError>> = match next {
                Ok(events) => events.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(batch), (source, assembler, failed)))
        });
        Ok(events.flatten().boxed())
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, ModelError> {
        let mut models = Vec::new();
        let mut after = String::new();
        for _ in 0..20 {
            let url = format!("{}/v1/models?limit=1000{after}", self.base_url);
            let sent = tokio::time::timeout(Duration::from_secs(20), self.client.get(url).send());
            let response = sent
                .await
                .map_err(|_| {
                    ModelError::Failed("the model's provider did not answer in time".to_owned())
                })?
                .map_err(|error| network(&error))?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let page: Value = response.json().await.map_err(|error| network(&error))?;
            let found: Vec<ModelInfo> =
                serde_json::from_value(page["data"].clone()).map_err(|_| {
                    ModelError::Failed("the provider's list of models cannot be read".to_owned())
                })?;
            let last = found.last().map(|model| model.id.clone());
            models.extend(found);
            match last {
                Some(id) if page["has_more"] == true => after = format!("&after_id={id}"),
                _ => break,
            }
        }
        Ok(models)
    }
}

fn network(error: &reqwest::Error) -> ModelError {
    let what = if error.is_connect() {
        "the model's provider cannot be reached"
    } else if error.is_timeout() {
        "the model's provider did not answer in time"
    } else {
        "the connection to the model's provider failed"
    };
    ModelError::Failed(what.to_owned())
}

async fn refusal(response: Response) -> ModelError {
    let status = response.status().as_u16();
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
    };
    let retry_after = header("retry-after-ms")
        .map(Duration::from_millis)
        .or_else(|| header("retry-after").map(Duration::from_secs));
    let mut text = Vec::new();
    let mut chunks = response.bytes_stream();
    while text.len() < 64 << 10
        && let Some(Ok(chunk)) = chunks.next().await
    {
        text.extend_from_slice(&chunk);
    }
    let body: Value = serde_json::from_slice(&text).unwrap_or_else(|_| {
        let text = clip(&String::from_utf8_lossy(&text));
        json!({ "error": { "message": format!("the model's provider answered {status}: {text}") } })
    });
    from_error_body(&body["error"], Some((status, retry_after)))
}

/// Text that the provider is asked to cache.
#[derive(Serialize)]
struct CachedText<'a> {
    r#type: &'static str,
    text: &'a str,
    cache_control: Value,
}

/// A request's body. The conversation is serialized where it lies: it may be long, and it is sent again with every request.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    messages: Vec<Cow<'a, Message>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<[CachedText<'a>; 1]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_geo: Option<&'a str>,
}

fn cached() -> Value {
    json!({ "type": "ephemeral" })
}

/// A message whose last block ends a prefix to cache.
fn marked(message: &Message) -> Message {
    let mut marked = message.clone();
    if let Some(block) = Arc::make_mut(&mut marked.content).last_mut()
        && block.is_object()
        && block["type"] != "thinking"
        && block["type"] != "redacted_thinking"
    {
        block["cache_control"] = cached();
    }
    marked
}

/// Cache breakpoints stand after the tools, the system prompt and the last two user messages, so that each request of a turn finds what the one before wrote.
fn body(request: &ModelRequest) -> Body<'_> {
    let mut messages: Vec<Cow<'_, Message>> = request.messages.iter().map(Cow::Borrowed).collect();
    let users = messages.iter_mut().rev().filter(|message| message.role == Role::User);
    for message in users.take(2) {
        *message = Cow::Owned(marked(message));
    }
    let mut tools: Vec<Value> = request.tools.iter().map(|tool| json!(tool)).collect();
    if let Some(last) = tools.last_mut() {
        last["cache_control"] = cached();
    }
    Body {
        model: &request.model,
        max_tokens: request.max_tokens,
        stream: true,
        messages,
        system: request
            .system
            .as_deref()
            .map(|text| [CachedText { r#type: "text", text, cache_control: cached() }]),
        tools,
        output_config: request.effort.as_ref().map(|effort| json!({ "effort": effort })),
        speed: request.fast.then_some("fast"),
        inference_geo: request.inference_geo.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_a_request_is_marked_at_most_four_times() {
        let text = |text: &str| Arc::new(vec![json!({ "type": "text", "text": text })]);
        let message = |role, content| Message { role, content };
        let request = ModelRequest {
            model: "m".to_owned(),
            max_tokens: 10,
            system: Some("s".to_owned()),
            tools: vec![crate::ToolDef {
                name: "t".to_owned(),
                description: "d".to_owned(),
                input_schema: json!({ "type": "object" }),
            }],
            messages: vec![
                message(Role::User, text("1")),
                message(Role::Assistant, text("2")),
                message(Role::User, text("3")),
                message(Role::Assistant, text("4")),
                message(Role::User, text("5")),
            ],
            effort: None,
            fast: false,
            inference_geo: None,
        };
        let marks = json!(body(&request)).to_string().matches("cache_control").count();
        assert_eq!(marks, 4);
    }

    #[test]
    fn our_own_keys_are_not_sent_upstream() {
        let config = AnthropicConfig {
            base_url: "https://example.com".to_owned(),
            api_key: "vq_secret".to_owned(),
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
        };
        assert!(!format!("{config:?}").contains("vq_secret"));
        assert!(matches!(Anthropic::new(config), Err(ConfigError::OwnKey)));
    }
}
