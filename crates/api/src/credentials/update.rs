//! `POST /v1/vaults/{vault_id}/credentials/{credential_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    credentials,
    reject::Result,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::Expect;
use vaquero_types::{
    ApiError,
    credential::{Credential, CredentialDraft},
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
    let (vault, id) = (ids.get("vault_id"), ids.get("credential_id"));
    let (document, stored) = credentials::find(&app, workspace, vault, id).await?;
    if stored.archived_at.is_some() {
        let error =
            ApiError::invalid(format!("credential `{id}` is archived and cannot be changed"));
        return Err(error.into());
    }
    let now = app.now();
    let draft = CredentialDraft::decode_update(posted.fields()?, &stored, now)?;
    let mut credential = Credential {
        display_name: draft.display_name,
        metadata: draft.metadata,
        auth: draft.auth,
        ..stored.clone()
    };
    if credential == stored && draft.secrets.0.is_empty() {
        return Ok(Outcome::new(Vec::new(), credentials::show(&stored)));
    }
    credential.updated_at = now;
    let expect = Expect::Revision(document.revision);
    let mut writes = vec![credentials::write(workspace, &credential, expect)];
    if !draft.secrets.0.is_empty() {
        let mut secrets = credentials::open(&app, workspace, &stored).await?;
        secrets.0.extend(draft.secrets.0);
        writes.push(credentials::seal(&app, workspace, &credential, &secrets)?);
    }
    Ok(Outcome::new(writes, credentials::show(&credential)))
}
