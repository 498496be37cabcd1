//! The one error every endpoint answers with. `ErrorCode` alone decides status, wire type and whether a client should retry.

use crate::Invalid;
use serde::Serialize;
use serde_json::{Value, json};

/// What went wrong, from the caller's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request cannot be understood or the resource is in the wrong state for it.
    InvalidRequest,
    /// No key, an unknown key, or two keys that differ.
    Authentication,
    /// A key that may not do this.
    Permission,
    /// No such route, or no such resource in the key's workspace.
    NotFound,
    /// The method is not one this route has.
    MethodNotAllowed,
    /// The resource changed, exists already, or the idempotency key was used for something else.
    Conflict,
    /// The caller knows less than has happened: read again before going on.
    PreconditionFailed,
    /// The body is larger than the limit.
    TooLarge,
    /// Too many requests; `retry-after` says when to come back.
    RateLimited,
    /// The request took longer than the server allows.
    Timeout,
    /// The server is stopping or has no room for the request right now.
    Overloaded,
    /// The server failed; the request id finds the reason in its log.
    Internal,
}

impl ErrorCode {
    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Permission => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Timeout => 504,
            Self::Overloaded => 529,
            Self::Internal => 500,
        }
    }

    /// `error.type` on the wire.
    pub const fn wire(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::MethodNotAllowed | Self::PreconditionFailed => {
                "invalid_request_error"
            }
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Conflict => "conflict_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimited => "rate_limit_error",
            Self::Timeout => "timeout_error",
            Self::Overloaded => "overloaded_error",
            Self::Internal => "api_error",
        }
    }

    /// Whether sending the same request again can help (`x-should-retry`).
    pub const fn retryable(self) -> bool {
        match self {
            Self::InvalidRequest
            | Self::Authentication
            | Self::Permission
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::PreconditionFailed
            | Self::TooLarge => false,
            Self::RateLimited | Self::Timeout | Self::Overloaded | Self::Internal => true,
        }
    }
}

/// An answer that is not the one the caller hoped for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What the caller reads; says what to do next where that is not obvious.
    pub message: String,
    /// `error.details.error_code`, for clients that pick a typed exception by it.
    pub error_code: Option<&'static str>,
    /// `error.details.current_state`: what has happened, if that is what the refusal is about.
    pub current_state: Option<Box<Value>>,
    /// Seconds for `retry-after`.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// Every `error_code` a refusal may carry.
    pub const CODES: [&str; 11] = [
        "agent_model_required",
        "budget_create_only",
        "environment_archived",
        "environment_not_found",
        "heartbeat_precondition_failed",
        "invalid_config_type_change",
        "invalid_metadata",
        "model_does_not_support_mid_conversation_system",
        "request_body_encoding_unsupported",
        "request_body_timeout",
        "unsupported_charset",
    ];

    /// An error with a message and nothing else.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            error_code: None,
            current_state: None,
            retry_after: None,
        }
    }

    /// A 400 with this message.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// A 404 that names what was looked for.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("{what} `{id}` not found"))
    }

    /// The same error with an `error_code` for typed exceptions.
    #[must_use]
    pub fn with_error_code(mut self, error_code: &'static str) -> Self {
        debug_assert!(Self::CODES.contains(&error_code), "{error_code} is not listed");
        self.error_code = Some(error_code);
        self
    }

    /// The response body.
    pub fn body(&self, request_id: &str) -> Value {
        let mut error = json!({ "type": self.code.wire(), "message": self.message });
        if let Some(error_code) = self.error_code {
            error["details"] = json!({ "error_code": error_code });
        }
        if let Some(current_state) = &self.current_state {
            error["details"]["current_state"] = Value::clone(current_state);
        }
        json!({ "type": "error", "error": error, "request_id": request_id })
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self { error_code: invalid.error_code, ..Self::invalid(invalid.to_string()) }
    }
}
