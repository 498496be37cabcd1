//! `POST /v1/sessions/{session_id}/threads/{thread_id}/archive`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    threads,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_types::{ApiError, session::Status};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    posted.fields()?.finish()?;
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let (session, thread) = (ids.get("session_id"), ids.get("thread_id"));
    let (_, body, thread) = threads::find(&app, &posted.caller.workspace, session, thread).await?;
    if thread.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), threads::show(&thread, &body, app.now())));
    }
    if matches!(thread.status, Status::Running | Status::Rescheduling) {
        let message = "Cannot archive thread while it is running. Send an interrupt event or wait for it to become idle.";
        return Err(ApiError::invalid(message).into());
    }
    let message = "The primary thread lives as long as its session; archive the session instead.";
    Err(ApiError::invalid(message).into())
}
