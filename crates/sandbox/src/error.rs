//! What can go wrong with a sandbox, named for what the caller can do about it.

use std::io;

/// Why a sandbox did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The sandbox, or the way to it, is gone. What was running has an unknown outcome unless
    /// [`attach`](crate::ComputeProvider::attach) still finds the generation; then ask it.
    #[error("the sandbox is gone: {what}")]
    Gone {
        /// What was noticed.
        what: String,
    },
    /// A newer epoch or generation has spoken: stop, the session belongs to someone else.
    #[error("a newer lease or generation owns this sandbox")]
    StaleFence,
    /// The call was acknowledged before and its result is forgotten: take it from the log.
    #[error("the call was already acknowledged")]
    Acked,
    /// No sandbox can be made here until the operator changes something.
    #[error("sandbox unavailable: {what}. Fix: {fix}")]
    Unavailable {
        /// What failed.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// What the environment wants installed could not be: there is no half-ready sandbox.
    #[error("the environment could not be set up: {0}")]
    Provision(String),
    /// The caller asked for something that can never work; asking again will not help.
    #[error("{0}")]
    Invalid(String),
    /// The sandbox answered that it could not do it (a missing file, one that is too large).
    #[error("the sandbox refused: {0}")]
    Refused(String),
    /// The sandbox said something no honest one says. It has been cut off.
    #[error("the sandbox broke the protocol: {0}")]
    Protocol(String),
    /// The host failed while working for the sandbox.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SandboxError {
    /// The sandbox is gone.
    pub fn gone(what: impl Into<String>) -> Self {
        Self::Gone { what: what.into() }
    }

    /// The host failed while doing something.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// Whose sandboxes cannot be paused.
    pub(crate) fn cannot_pause(provider: &str) -> Self {
        Self::Refused(format!("sandboxes of `{provider}` cannot be paused"))
    }

    /// Nothing can be had until somebody changes something.
    pub fn unavailable(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Unavailable { what: what.into(), fix: fix.into() }
    }
}
