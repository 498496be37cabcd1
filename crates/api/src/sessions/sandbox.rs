//! `GET /v1/sessions/{session_id}/sandbox`: what runs for a session, where, since when, and what it has used. An extension.

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, sessions};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use vaquero_store::sandboxes;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (row, _) = sessions::find(&app, &caller.workspace, ids.get("session_id")).await?;
    let records = sandboxes::list(app.parts.store.as_ref(), Some(&row.id), true).await?;
    let now = app.now();
    let data: Vec<_> = records.into_iter().map(|record| record.shown(now)).collect();
    Ok(Json(json!({ "type": "session_sandboxes", "session_id": row.id, "data": data })))
}
