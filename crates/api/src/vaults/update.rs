//! `POST /v1/vaults/{vault_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    vaults,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::Expect;
use vaquero_types::vault::{Vault, VaultDraft};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (document, stored) = vaults::find_open(&app, workspace, ids.get("vault_id")).await?;
    let VaultDraft { display_name, metadata } =
        VaultDraft::decode_update(posted.fields()?, &stored)?;
    let mut vault = Vault { display_name, metadata, ..stored.clone() };
    if vault == stored {
        return Ok(Outcome::new(Vec::new(), vaults::show(&stored)));
    }
    vault.updated_at = app.now();
    let write = vaults::write(workspace, &vault, Expect::Revision(document.revision));
    Ok(Outcome::new(vec![write], vaults::show(&vault)))
}
