//! `GET /v1/environments/{environment_id}`

use crate::{app::App, auth::Caller, body::PathIds, environments, query::Query, reject::Result};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (_, environment) =
        environments::find(&app, &caller.workspace, ids.get("environment_id")).await?;
    Ok(Json(environments::show(&environment)))
}
