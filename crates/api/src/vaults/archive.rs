//! `POST /v1/vaults/{vault_id}/archive`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    credentials,
    reject::Result,
    vaults,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::Expect;

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
    let (document, mut vault) = vaults::find(&app, workspace, ids.get("vault_id")).await?;
    if vault.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), vaults::show(&vault)));
    }
    let now = app.now();
    vault.archived_at = Some(now);
    vault.updated_at = now;
    let mut writes = vec![vaults::write(workspace, &vault, Expect::Revision(document.revision))];
    for (document, mut credential) in credentials::of_vault(&app, workspace, &vault.id).await? {
        if credential.archived_at.is_none() {
            credentials::archive(&mut writes, workspace, &document, &mut credential, now);
        }
    }
    Ok(Outcome::new(writes, vaults::show(&vault)))
}
