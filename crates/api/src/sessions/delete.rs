//! `DELETE /v1/sessions/{session_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    sessions,
};
use axum::{extract::State, response::Response};
use serde_json::json;
use std::sync::Arc;
use vaquero_store::{Write, sandboxes};
use vaquero_types::{ApiError, SessionId, event::server, session::Status};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    let session = SessionId::from_wire(ids.get("session_id"));
    let ended = app.parts.ended.clone();
    let response = app.change(posted, ids, decide).await?;
    // A closed channel means that the server is stopping; the next start looks for what is left.
    drop(ended.send(session));
    Ok(response)
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (row, _) = sessions::find(&app, workspace, ids.get("session_id")).await?;
    if matches!(row.status, Status::Running | Status::Rescheduling) {
        let message = "Cannot delete session while it is running. Send an interrupt event or wait for the session to complete.";
        return Err(ApiError::invalid(message).into());
    }
    let write = Write::DeleteSession {
        session: row.id.clone(),
        revision: row.revision,
        record: sessions::event(&app, &row, server::session_deleted()),
    };
    let mut writes = sandboxes::without_checkpoints(&row);
    writes.push(write);
    Ok(Outcome::new(writes, json!({ "id": row.id, "type": "session_deleted" })))
}
