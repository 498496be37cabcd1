//! `POST /v1/vaults/{vault_id}/credentials`

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
    ApiError, CredentialId,
    credential::{Credential, CredentialDraft, CredentialKind},
    vault::HttpHeaders,
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
    let (document, vault) = vaults::find_open(&app, workspace, ids.get("vault_id")).await?;
    let now = app.now();
    let for_headers = HttpHeaders::of(&vault.metadata)?.is_some();
    let draft = CredentialDraft::decode(posted.fields()?, now, for_headers)?;
    let there = credentials::of_vault(&app, workspace, &vault.id).await?;
    if there.iter().filter(|(_, one)| one.archived_at.is_none()).count() >= credentials::MOST {
        let most = credentials::MOST;
        let error = ApiError::invalid(format!("a vault holds at most {most} credentials"));
        return Err(error.into());
    }
    let credential = Credential {
        kind: CredentialKind::VaultCredential,
        id: CredentialId::new(app.new_id()),
        vault_id: vault.id.clone(),
        display_name: draft.display_name,
        metadata: draft.metadata,
        auth: draft.auth,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    let writes = vec![
        // Written as it is: two that are created at once must count each other, and none may slip into a vault that is being archived.
        vaults::write(workspace, &vault, Expect::Revision(document.revision)),
        credentials::write(workspace, &credential, Expect::Absent),
        credentials::seal(&app, workspace, &credential, &draft.secrets)?,
    ];
    let mut outcome = Outcome::new(writes, credentials::show(&credential));
    outcome.duplicate = Some(credentials::taken());
    Ok(outcome)
}
