//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate`

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
use vaquero_types::{ApiError, credential::Auth};

/// This server has no MCP client yet: whether the token works is unknown, and says so.
pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    posted.fields()?.finish()?;
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (vault, id) = (ids.get("vault_id"), ids.get("credential_id"));
    let (_, credential) = credentials::find(&app, workspace, vault, id).await?;
    let Auth::McpOauth { refresh, .. } = &credential.auth else {
        let error = ApiError::invalid(format!("credential `{id}` is not of type `mcp_oauth`"));
        return Err(error.into());
    };
    if credential.archived_at.is_some() {
        let error = ApiError::invalid(format!("credential `{id}` is archived"));
        return Err(error.into());
    }
    let body = json!({
        "type": "vault_credential_validation",
        "credential_id": credential.id,
        "vault_id": credential.vault_id,
        "validated_at": app.now(),
        "has_refresh_token": refresh.is_some(),
        "status": "unknown",
        "mcp_probe": null,
        "refresh": null,
    });
    Ok(Outcome::new(Vec::new(), body))
}
