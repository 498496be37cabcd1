//! `POST /v1/vaults`

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
use vaquero_types::{
    VaultId,
    vault::{Vault, VaultDraft, VaultKind},
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, _ids: PathIds) -> Result<Outcome> {
    let draft = VaultDraft::decode(posted.fields()?)?;
    let now = app.now();
    let vault = Vault {
        kind: VaultKind::Vault,
        id: VaultId::new(app.new_id()),
        display_name: draft.display_name,
        metadata: draft.metadata,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    let write = vaults::write(&posted.caller.workspace, &vault, Expect::Absent);
    Ok(Outcome::new(vec![write], vaults::show(&vault)))
}
