//! `GET /v1/sessions/{session_id}`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, sessions};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (row, body) = sessions::find(&app, &caller.workspace, ids.get("session_id")).await?;
    Ok(Json(sessions::show(&row, &body, app.now())))
}
