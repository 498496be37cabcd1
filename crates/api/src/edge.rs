//! The outermost layer: every response gets its request id, and every refusal its envelope, whatever refused it.

use crate::{app::App, auth::CallerWorkspace, reject::Reject};
use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use std::{panic::AssertUnwindSafe, time::Instant};
use vaquero_types::{ApiError, ErrorCode, RequestId};

/// The organization every response names: a server of one's own has one.
const ORGANIZATION: &str = "00000000-0000-0000-0000-000000000000";

pub(crate) async fn envelope(
    State(app): State<App>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let id = RequestId::new(app.new_id());
    #[expect(clippy::disallowed_methods, reason = "a duration for the metrics")]
    let start = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = response.unwrap_or_else(|_| {
        tracing::error!(request_id = %id, %method, path, "a handler panicked");
        Reject(ApiError::new(ErrorCode::Internal, "internal server error")).into_response()
    });
    if let Some(Reject(error)) = response.extensions_mut().remove() {
        if error.code == ErrorCode::Internal {
            tracing::error!(request_id = %id, %method, path, "answered with an internal error");
        }
        response = refuse(response, &error, id.as_str());
    }
    count(Some(&method), route.as_ref().map_or("none", MatchedPath::as_str), response.status());
    metrics::histogram!("vaquero_http_request_seconds").record(start.elapsed().as_secs_f64());
    let workspace = response.extensions().get::<CallerWorkspace>().cloned();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert("request-id", value);
    }
    headers.insert("anthropic-organization-id", HeaderValue::from_static(ORGANIZATION));
    if let Some(CallerWorkspace(workspace)) = workspace
        && let Ok(value) = HeaderValue::from_str(workspace.as_str())
    {
        headers.insert("anthropic-workspace-id", value);
    }
    response
}

fn count(method: Option<&Method>, route: &str, status: StatusCode) {
    // A client may make methods up; each label would be kept for good.
    let method = match method {
        Some(&Method::GET) => "GET",
        Some(&Method::POST) => "POST",
        Some(&Method::DELETE) => "DELETE",
        _ => "other",
    };
    let labels = [
        ("method", method.to_owned()),
        ("route", route.to_owned()),
        ("status", status.as_u16().to_string()),
    ];
    metrics::counter!("vaquero_http_requests_total", &labels).increment(1);
}

/// The answer to what could not be read as a request, such as a head that is too large: its status is the HTTP layer's.
pub fn unreadable(app: &App, status: StatusCode) -> Response<String> {
    let id = RequestId::new(app.new_id());
    let message = match status {
        StatusCode::URI_TOO_LONG => "the URL is too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "the headers are too large, or too many",
        _ => "this is not a valid HTTP/1.1 request",
    };
    let body = ApiError::invalid(message).body(id.as_str()).to_string();
    count(None, "none", status);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert("x-should-retry", HeaderValue::from_static("false"));
    headers.insert("anthropic-organization-id", HeaderValue::from_static(ORGANIZATION));
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert("request-id", value);
    }
    response
}

fn refuse(from: Response, error: &ApiError, id: &str) -> Response {
    let body = error.body(id).to_string();
    let (mut parts, _) = from.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let retry = if error.code.retryable() { "true" } else { "false" };
    parts.headers.insert("x-should-retry", HeaderValue::from_static(retry));
    if let Some(seconds) = error.retry_after {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == ErrorCode::TooLarge {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Response::from_parts(parts, Body::from(body))
}

pub(crate) async fn only_a_worker() -> Reject {
    let message = "this server runs turns (role `worker`) and does not answer clients; ask one with role `api` or `all`";
    Reject(ApiError::new(ErrorCode::NotFound, message))
}

pub(crate) async fn unknown_path(request: Request) -> Reject {
    let message = format!("there is no `{} {}`", request.method(), request.uri().path());
    Reject(ApiError::new(ErrorCode::NotFound, message))
}
