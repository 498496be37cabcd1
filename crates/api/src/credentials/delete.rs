//! `DELETE /v1/vaults/{vault_id}/credentials/{credential_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    credentials,
    reject::Result,
};
use axum::{extract::State, response::Response};
use serde_json::json;
use std::sync::Arc;

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (vault, id) = (ids.get("vault_id"), ids.get("credential_id"));
    let (document, credential) = credentials::find(&app, workspace, vault, id).await?;
    let mut writes = Vec::new();
    credentials::delete(&mut writes, workspace, &document, &credential);
    let body = json!({ "id": credential.id, "type": "vault_credential_deleted" });
    Ok(Outcome::new(writes, body))
}
