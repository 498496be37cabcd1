//! `GET /v1/vaults/{vault_id}`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, vaults};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (_, vault) = vaults::find(&app, &caller.workspace, ids.get("vault_id")).await?;
    Ok(Json(vaults::show(&vault)))
}
