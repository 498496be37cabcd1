//! What an engine's refusals mean here.

use bollard::errors::Error;
use vaquero_sandbox::SandboxError;

/// What could not be done, and why, as far as the engine says.
pub(crate) fn failed(what: &str, error: &Error) -> SandboxError {
    let mut text = format!("{what}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    SandboxError::unavailable(text, "see that the Docker engine runs, and what it has to say")
}

fn has_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

pub(crate) fn is_missing(error: &Error) -> bool {
    has_status(error, 404)
}

pub(crate) fn is_conflict(error: &Error) -> bool {
    has_status(error, 409)
}
