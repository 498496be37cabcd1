//! `GET /v1/vaults/{vault_id}/credentials/{credential_id}`

use crate::{app::App, auth::Caller, body::PathIds, credentials, query::Query, reject::Result};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let (vault, id) = (ids.get("vault_id"), ids.get("credential_id"));
    let (_, credential) = credentials::find(&app, &caller.workspace, vault, id).await?;
    Ok(Json(credentials::show(&credential)))
}
