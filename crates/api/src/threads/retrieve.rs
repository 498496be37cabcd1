//! `GET /v1/sessions/{session_id}/threads/{thread_id}`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, threads};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (session, thread) = (ids.get("session_id"), ids.get("thread_id"));
    let (_, body, thread) = threads::find(&app, &caller.workspace, session, thread).await?;
    Ok(Json(threads::show(&thread, &body, app.now())))
}
