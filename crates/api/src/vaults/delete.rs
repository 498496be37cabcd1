//! `DELETE /v1/vaults/{vault_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    credentials,
    reject::Result,
    vaults,
};
use axum::{extract::State, response::Response};
use serde_json::json;
use std::sync::Arc;
use vaquero_store::{Expect, Write};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (document, vault) = vaults::find(&app, workspace, ids.get("vault_id")).await?;
    let mut writes = vec![Write::DeleteDocument {
        workspace: workspace.clone(),
        kind: vaults::KIND.to_owned(),
        id: document.id,
        expect: Expect::Revision(document.revision),
    }];
    for (document, credential) in credentials::of_vault(&app, workspace, &vault.id).await? {
        credentials::delete(&mut writes, workspace, &document, &credential);
    }
    Ok(Outcome::new(writes, json!({ "id": vault.id, "type": "vault_deleted" })))
}
