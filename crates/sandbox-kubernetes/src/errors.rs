//! What a cluster's refusals mean.

use kube::Error;
use vaquero_sandbox::SandboxError;

/// Why the cluster did not do something. [`SandboxError::Gone`] if there is no such thing.
pub(crate) fn failed(what: &str, error: &Error) -> SandboxError {
    match error {
        Error::Api(status) if status.code == 404 => {
            SandboxError::gone(format!("{what}: {}", status.message))
        }
        Error::Api(status) if matches!(status.code, 401 | 403) => SandboxError::unavailable(
            format!("{what}: {}", status.message),
            "give this server's account the role in docs/providers.md",
        ),
        _ => SandboxError::unavailable(
            format!("{what}: {error}"),
            "see whether the cluster's API can be reached from this server",
        ),
    }
}
