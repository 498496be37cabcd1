//! `GET /v1/environments/{environment_id}/work/{work_id}`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, work};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (environment, id) = (ids.get("environment_id"), ids.get("work_id"));
    let (_, kept) = work::find(&app, &caller.workspace, environment, id).await?;
    Ok(Json(work::show(&kept)))
}
