//! Request bodies: read up to the limit, decoded as JSON, with a digest for idempotency.

use crate::{
    app::App,
    auth::Caller,
    reject::{Reject, Result},
};
use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::PathRejection},
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use vaquero_types::{ApiError, ErrorCode, Fields, id::hex};

/// Bodies above this are taken in on a thread of their own.
const LARGE: usize = 256 << 10;

/// Path parameters by name.
#[derive(Clone, Debug)]
pub(crate) struct PathIds(HashMap<String, String>);

impl PathIds {
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl FromRequestParts<App> for PathIds {
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Self> {
        let path = axum::extract::Path::<HashMap<String, String>>::from_request_parts(parts, app);
        match path.await {
            Ok(axum::extract::Path(ids)) => Ok(Self(ids)),
            Err(PathRejection::MissingPathParams(_)) => Ok(Self(HashMap::new())),
            Err(_) => Err(ApiError::invalid("the path is not valid UTF-8").into()),
        }
    }
}

/// A request that changes something: who, what, and the key that makes it safe to repeat.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    pub(crate) caller: Caller,
    /// Method and path.
    pub(crate) operation: String,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) digest: String,
    /// A body that is no JSON object is refused where it is needed: a repeated request is answered first.
    value: std::result::Result<Value, ApiError>,
}

impl Posted {
    /// The body as an object; nothing at all counts as an empty one.
    pub(crate) fn fields(&self) -> Result<Fields> {
        Ok(Fields::new(self.value.clone()?, "")?)
    }
}

impl FromRequest<App> for Posted {
    type Rejection = Reject;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let caller = request.extensions().get::<Caller>().cloned().ok_or_else(|| {
            Reject(ApiError::new(ErrorCode::Authentication, "Authentication failed"))
        })?;
        let operation = format!("{} {}", request.method(), request.uri().path());
        let idempotency_key = idempotency_key(request.headers())?;
        check_encoding(request.headers())?;
        let bytes = read(request, app).await?;
        let large = bytes.len() > LARGE;
        let take_in = move || (hex(&Sha256::digest(&bytes)), decode(&bytes));
        let (digest, value) = if large {
            let done = tokio::task::spawn_blocking(take_in).await;
            done.map_err(|_| Reject(ApiError::new(ErrorCode::Internal, "internal server error")))?
        } else {
            take_in()
        };
        Ok(Self { caller, operation, idempotency_key, digest, value })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key)
            if (1..=255).contains(&key.len())
                && key.chars().all(|c| c.is_ascii_graphic() || c == ' ') =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => {
            Err(ApiError::invalid("idempotency-key: expected 1 to 255 visible ASCII characters")
                .into())
        }
    }
}

fn too_large(limit: usize) -> Reject {
    let message = format!("the request body is larger than {} MB", limit >> 20);
    Reject(ApiError::new(ErrorCode::TooLarge, message))
}

async fn read(request: Request, app: &App) -> Result<Bytes> {
    let limit = app.parts.settings.body_max;
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(app.parts.settings.body_idle, body.frame()).await;
        let frame = frame.map_err(|_| {
            Reject(
                ApiError::invalid("the request body stopped coming")
                    .with_error_code("request_body_timeout"),
            )
        })?;
        let Some(frame) = frame else { return Ok(bytes.freeze()) };
        let frame = frame.map_err(|_| Reject(ApiError::invalid("the request body broke off")))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                return Err(too_large(limit));
            }
            bytes.extend_from_slice(data);
        }
    }
}

/// Bodies travel plain and in UTF-8.
fn check_encoding(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let encoding = text(header::CONTENT_ENCODING).trim().to_ascii_lowercase();
    if !encoding.is_empty() && encoding != "identity" {
        let message =
            format!("content-encoding: `{encoding}` is not supported; send the body as it is");
        let error = ApiError::invalid(message).with_error_code("request_body_encoding_unsupported");
        return Err(error.into());
    }
    let kind = text(header::CONTENT_TYPE).to_ascii_lowercase();
    let charset = kind.split(';').find_map(|part| part.trim().strip_prefix("charset="));
    match charset.map(|name| name.trim_matches('"')) {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(()),
        Some(other) => {
            let message = format!("content-type: charset `{other}` is not supported; send UTF-8");
            Err(ApiError::invalid(message).with_error_code("unsupported_charset").into())
        }
    }
}

fn decode(bytes: &[u8]) -> std::result::Result<Value, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    if std::str::from_utf8(bytes).is_err() {
        let message = "the request body is not valid UTF-8";
        return Err(ApiError::invalid(message).with_error_code("unsupported_charset"));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::invalid(format!("the request body is not valid JSON: {error}"))
    })?;
    if value.is_object() {
        Ok(value)
    } else {
        let kind = vaquero_types::fields::kind(&value);
        Err(ApiError::invalid(format!("the request body must be a JSON object, got {kind}")))
    }
}
