//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}/archive`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    credentials,
    reject::Result,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;

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
    let (document, mut credential) = credentials::find(&app, workspace, vault, id).await?;
    let mut writes = Vec::new();
    if credential.archived_at.is_none() {
        credentials::archive(&mut writes, workspace, &document, &mut credential, app.now());
    }
    Ok(Outcome::new(writes, credentials::show(&credential)))
}
