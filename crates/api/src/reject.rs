//! Refusals on their way out: a handler answers with an [`ApiError`], and the edge gives it its envelope.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use vaquero_store::{CommitError, StoreError};
use vaquero_types::{ApiError, ErrorCode, Invalid};

/// An error as a handler returns it.
#[derive(Clone, Debug)]
pub(crate) struct Reject(pub(crate) ApiError);

pub(crate) type Result<T> = std::result::Result<T, Reject>;

impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ApiError> for Reject {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<Invalid> for Reject {
    fn from(invalid: Invalid) -> Self {
        Self(invalid.into())
    }
}

impl From<StoreError> for Reject {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(_) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "a request found no space");
                Self(ApiError::new(
                    ErrorCode::Overloaded,
                    "the server has no disk space left; its operator must make room",
                ))
            }
            StoreError::Away(_) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "a request could not wait for the database");
                Self(ApiError::new(
                    ErrorCode::Overloaded,
                    "the server's database cannot be reached or takes no writes at the moment; try again",
                ))
            }
            StoreError::Closed => {
                Self(ApiError::new(ErrorCode::Overloaded, "the server is stopping; try again"))
            }
            StoreError::Backend(_) | StoreError::Corrupt { .. } => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "a request failed in the store");
                Self(ApiError::new(ErrorCode::Internal, "internal server error"))
            }
        }
    }
}

impl From<CommitError> for Reject {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Store(error) => error.into(),
            CommitError::Changed | CommitError::Grown | CommitError::Answered => {
                Self(ApiError::new(
                    ErrorCode::Conflict,
                    "the resource is being changed by others too quickly; try again",
                ))
            }
            CommitError::Duplicate { key } => {
                Self(ApiError::new(ErrorCode::Conflict, format!("`{key}` exists already")))
            }
            CommitError::NotFound => Self(ApiError::new(ErrorCode::NotFound, "not found")),
            CommitError::LeaseLost { .. } => {
                Self(ApiError::new(ErrorCode::Internal, "internal server error"))
            }
        }
    }
}
