//! Credentials of vaults. What is secret about them goes to the vault's own documents, sealed, and nowhere else.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod update;
pub(crate) mod validate;

use crate::{app::App, reject::Result};
use serde_json::Value;
use std::sync::Arc;
use vaquero_store::{Document, DocumentQuery, Expect, StoreError, Write};
use vaquero_types::{
    ApiError, ErrorCode, Timestamp, VaultId, WorkspaceId,
    credential::{Credential, Secrets},
};
use vaquero_vault::{Keyring, secrets};

pub(crate) const KIND: &str = vaquero_vault::credentials::CREDENTIAL;
/// Most active credentials of a vault.
pub(crate) const MOST: usize = 20;

pub(crate) fn show(credential: &Credential) -> Value {
    serde_json::to_value(credential).expect("a credential is plain data")
}

fn decode(document: &Document) -> Result<Credential> {
    let what = || StoreError::Corrupt { what: format!("credential {}", document.id) };
    Ok(serde_json::from_str(&document.body).map_err(|_| what())?)
}

/// A credential, by its own id and its vault's.
pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    vault: &str,
    id: &str,
) -> Result<(Document, Credential)> {
    let found = app.parts.store.document(workspace, KIND, id).await?;
    let found = found.filter(|document| document.parent.as_deref() == Some(vault));
    let document = found.ok_or_else(|| ApiError::not_found("credential", id))?;
    let credential = decode(&document)?;
    Ok((document, credential))
}

/// All credentials of a vault, archived ones too.
pub(crate) async fn of_vault(
    app: &App,
    workspace: &WorkspaceId,
    vault: &VaultId,
) -> Result<Vec<(Document, Credential)>> {
    let mut query = DocumentQuery {
        parent: Some(vault.as_str().to_owned()),
        include_archived: true,
        ..DocumentQuery::new(workspace.clone(), KIND, 100)
    };
    let mut all = Vec::new();
    loop {
        let page = app.parts.store.documents(&query).await?;
        query.cursor = page.documents.last().map(|last| (last.created_at, last.id.clone()));
        for document in page.documents {
            let credential = decode(&document)?;
            all.push((document, credential));
        }
        if !page.more {
            return Ok(all);
        }
    }
}

pub(crate) fn write(workspace: &WorkspaceId, credential: &Credential, expect: Expect) -> Write {
    let active = credential.archived_at.is_none();
    let document = Document {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: credential.id.as_str().to_owned(),
        parent: Some(credential.vault_id.as_str().to_owned()),
        unique_key: active.then(|| format!("{} {}", credential.vault_id, credential.auth.key())),
        created_at: credential.created_at,
        archived_at: credential.archived_at,
        revision: 0,
        body: show(credential).to_string(),
    };
    Write::PutDocument { document, expect }
}

/// Archives a credential and purges its secrets.
pub(crate) fn archive(
    writes: &mut Vec<Write>,
    workspace: &WorkspaceId,
    document: &Document,
    credential: &mut Credential,
    now: Timestamp,
) {
    credential.archived_at = Some(now);
    credential.updated_at = now;
    writes.push(write(workspace, credential, Expect::Revision(document.revision)));
    writes.push(secrets::purge(workspace, &credential.id));
}

/// Removes a credential and its secrets.
pub(crate) fn delete(
    writes: &mut Vec<Write>,
    workspace: &WorkspaceId,
    document: &Document,
    credential: &Credential,
) {
    writes.push(Write::DeleteDocument {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: document.id.clone(),
        expect: Expect::Revision(document.revision),
    });
    writes.push(secrets::purge(workspace, &credential.id));
}

/// The keys that secrets are sealed with, if this server has any.
fn keyring(app: &App) -> Result<Arc<Keyring>> {
    let unavailable = |reason: String| {
        tracing::error!(reason, "a credential cannot be sealed");
        ApiError::new(
            ErrorCode::Internal,
            "this server has no vault key; its operator must set VAQUERO_VAULT_KEY",
        )
    };
    Ok(app.parts.keys.get().map_err(unavailable)?)
}

/// Seals secrets, to be stored.
pub(crate) fn seal(
    app: &App,
    workspace: &WorkspaceId,
    credential: &Credential,
    secret: &Secrets,
) -> Result<Write> {
    let ring = keyring(app)?;
    let sealed = secrets::put(&ring, workspace, &credential.id, secret, app.now());
    let failed = |error| {
        tracing::error!(%error, "a secret cannot be sealed");
        ApiError::new(ErrorCode::Internal, "internal server error")
    };
    Ok(sealed.map_err(failed)?)
}

/// The secrets of a credential, opened.
pub(crate) async fn open(
    app: &App,
    workspace: &WorkspaceId,
    credential: &Credential,
) -> Result<Secrets> {
    let (store, ring) = (app.parts.store.as_ref(), keyring(app)?);
    let opened = secrets::read(store, &ring, workspace, &credential.id).await;
    let failed = |error: secrets::SecretError| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, source, "a secret cannot be opened");
        ApiError::new(
            ErrorCode::Internal,
            "the stored secret cannot be opened with this server's vault keys; its operator must set the key it was sealed with",
        )
    };
    Ok(opened.map_err(failed)?.unwrap_or_default())
}

pub(crate) fn taken() -> ApiError {
    let message = "an active credential for the same server, variable or headers exists already in this vault; archive it first";
    ApiError::new(ErrorCode::Conflict, message)
}
