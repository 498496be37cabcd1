//! `POST /v1/sessions/{session_id}/archive`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    sessions,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::{Append, Author, SessionChange, Write, sandboxes};
use vaquero_types::{ApiError, SessionId, event::server, gate::GateChange, session::Status};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    posted.fields()?.finish()?;
    let session = SessionId::from_wire(ids.get("session_id"));
    let ended = app.parts.ended.clone();
    let response = app.change(posted, ids, decide).await?;
    // A closed channel means that the server is stopping; the next start looks for what is left.
    drop(ended.send(session));
    Ok(response)
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (mut row, body) = sessions::find(&app, workspace, ids.get("session_id")).await?;
    let now = app.now();
    if row.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), sessions::show(&row, &body, now)));
    }
    if matches!(row.status, Status::Running | Status::Rescheduling) {
        let message = "Cannot archive session while it is running. Send an interrupt event or wait for the session to complete.";
        return Err(ApiError::invalid(message).into());
    }
    let terminated = server::thread_status_terminated(&row.primary_thread, &body.agent.name);
    let records = vec![
        sessions::event(&app, &row, terminated),
        sessions::event(&app, &row, server::status_terminated()),
    ];
    let write = Write::Append(Append {
        session: row.id.clone(),
        author: Author::Client { revision: row.revision },
        records,
        change: SessionChange {
            status: Some(Status::Terminated),
            gate: vec![GateChange::Clear],
            archived_at: Some(now),
            ready: Some(false),
            ..SessionChange::default()
        },
    });
    let mut writes = sandboxes::without_checkpoints(&row);
    writes.push(write);
    row.status = Status::Terminated;
    row.archived_at = Some(now);
    row.updated_at = now;
    Ok(Outcome::new(writes, sessions::show(&row, &body, now)))
}
