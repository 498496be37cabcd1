//! `POST /v1/vaults/{vault_id}`

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
use vaquero_types::{
    ApiError,
    vault::{HttpHeaders, Vault, VaultDraft},
};

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
    let for_headers = |vault: &Vault| HttpHeaders::of(&vault.metadata).is_ok_and(|of| of.is_some());
    if for_headers(&vault) != for_headers(&stored) {
        let there = credentials::of_vault(&app, workspace, &vault.id).await?;
        if there.iter().any(|(_, one)| one.archived_at.is_none()) {
            let error = ApiError::invalid(
                "this change of metadata changes what the vault's credentials are for; archive them first",
            );
            return Err(error.into());
        }
    }
    vault.updated_at = app.now();
    let write = vaults::write(workspace, &vault, Expect::Revision(document.revision));
    Ok(Outcome::new(vec![write], vaults::show(&vault)))
}
