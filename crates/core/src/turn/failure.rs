//! What becomes of a failed model request: another attempt after a pause, a smaller context, or the end of the turn.

use super::{Answer, Batch, Desk, Ending, Machine, Step};
use crate::{context, transcript::Transcript};
use std::time::Duration;
use vaquero_types::{
    Timestamp,
    event::server::{self, RetryStatus, SessionErrorKind},
    session::Status,
    usage::Usage,
};

/// How a model request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The provider is overloaded.
    Overloaded,
    /// The provider limits our rate.
    RateLimited,
    /// The provider failed, or the connection to it.
    Failed,
    /// The request itself is refused; another attempt would be too.
    Invalid,
    /// The context does not fit the model's window.
    ContextTooLong,
    /// The model cannot take an image or a document of the context.
    Media,
    /// The provider wants to be paid.
    Billing,
    /// No provider is configured, or it does not take our key.
    NotConfigured,
}

/// A failed model request.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// How.
    pub kind: FailureKind,
    /// For a person to read; holds no secret.
    pub message: String,
    /// The provider's wish.
    pub retry_after: Option<Duration>,
}

impl FailureKind {
    const fn retryable(self) -> bool {
        match self {
            Self::Overloaded | Self::RateLimited | Self::Failed => true,
            Self::Invalid
            | Self::ContextTooLong
            | Self::Media
            | Self::Billing
            | Self::NotConfigured => false,
        }
    }

    const fn error_kind(self) -> SessionErrorKind {
        match self {
            Self::Overloaded => SessionErrorKind::ModelOverloaded,
            Self::RateLimited => SessionErrorKind::ModelRateLimited,
            Self::Failed | Self::Invalid | Self::Media | Self::NotConfigured => {
                SessionErrorKind::ModelRequestFailed
            }
            Self::ContextTooLong => SessionErrorKind::CompactionLimitReached,
            Self::Billing => SessionErrorKind::Billing,
        }
    }
}

impl Machine {
    pub(super) fn failed(&mut self, failure: &Failure, desk: &mut Desk<'_>) -> Vec<Step> {
        let mut batch = Batch::default();
        let nothing = Answer {
            blocks: Vec::new(),
            ending: Ending::Cancelled,
            usage: Usage::default(),
            speed: None,
        };
        self.end_span(&mut batch, true, &nothing, desk);
        let attempt = self.state.progress.attempt + 1;
        if failure.kind == FailureKind::ContextTooLong
            && self.state.progress.compactions < self.limits.compactions
        {
            self.flight.compact = true;
            return self.append(batch);
        }
        if failure.kind == FailureKind::Media && context::has_media(&self.state.messages) {
            self.withhold_media(&mut batch, failure, desk);
            return self.append(batch);
        }
        if failure.kind.retryable() && attempt < self.limits.attempts {
            self.reschedule(&mut batch, failure, attempt, desk);
        } else {
            self.give_up(&mut batch, failure.kind.error_kind(), &failure.message, desk);
        }
        self.append(batch)
    }

    /// One bad picture must not end a session: the request is repeated without it.
    fn withhold_media(&self, batch: &mut Batch, failure: &Failure, desk: &mut Desk<'_>) {
        let thread = self.facts.thread.clone();
        let kind = failure.kind.error_kind();
        let message = format!("{}; it goes on without", failure.message);
        let error = server::session_error(kind, &message, RetryStatus::Retrying);
        batch.push(desk.event_id(), &thread, error);
        let reason = failure.message.clone();
        batch.records.push(Transcript::MediaWithheld { reason }.record(desk.event_id(), &thread));
        batch.progress = true;
    }

    fn reschedule(&self, batch: &mut Batch, failure: &Failure, attempt: u32, desk: &mut Desk<'_>) {
        let (thread, name) = (self.facts.thread.clone(), &self.facts.agent.name);
        let at = self.retry_at(attempt, failure.retry_after, desk);
        let kind = failure.kind.error_kind();
        let error = server::session_error(kind, &failure.message, RetryStatus::Retrying);
        batch.push(desk.event_id(), &thread, error);
        batch.push(desk.event_id(), &thread, server::thread_status_rescheduled(&thread, name));
        batch.push(desk.event_id(), &thread, server::status_rescheduled());
        batch.records.push(Transcript::Retry { attempt, at }.record(desk.event_id(), &thread));
        let mut activity = self.facts.activity;
        activity.stop(desk.now);
        batch.activity = Some(activity);
        batch.status = Some(Status::Rescheduling);
        batch.progress = true;
    }

    /// Twice the pause before, somewhere in its upper half, and no shorter than the provider asks (within reason).
    fn retry_at(&self, attempt: u32, asked: Option<Duration>, desk: &mut Desk<'_>) -> Timestamp {
        let doubled = self.limits.backoff.saturating_mul(1 << (attempt - 1).min(16));
        let pause = doubled.min(self.limits.backoff_max);
        let jittered = pause.mul_f64(0.5 + desk.fraction() / 2.0);
        let asked = asked.unwrap_or_default().min(self.limits.backoff_max.saturating_mul(10));
        desk.now.plus(jittered.max(asked))
    }
}
