//! Vaults.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod update;

use crate::{app::App, reject::Result};
use serde_json::Value;
use vaquero_store::{Document, Expect, StoreError, Write};
use vaquero_types::{ApiError, WorkspaceId, vault::Vault};

pub(crate) const KIND: &str = vaquero_vault::credentials::VAULT;

pub(crate) fn show(vault: &Vault) -> Value {
    serde_json::to_value(vault).expect("a vault is plain data")
}

pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
) -> Result<(Document, Vault)> {
    let found = app.parts.store.document(workspace, KIND, id).await?;
    let document = found.ok_or_else(|| ApiError::not_found("vault", id))?;
    let vault = serde_json::from_str(&document.body)
        .map_err(|_| StoreError::Corrupt { what: format!("vault {id}") })?;
    Ok((document, vault))
}

/// The vault, if it can be changed.
pub(crate) async fn find_open(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
) -> Result<(Document, Vault)> {
    let (document, vault) = find(app, workspace, id).await?;
    if vault.archived_at.is_some() {
        let error = ApiError::invalid(format!("vault `{id}` is archived and cannot be changed"));
        return Err(error.into());
    }
    Ok((document, vault))
}

pub(crate) fn write(workspace: &WorkspaceId, vault: &Vault, expect: Expect) -> Write {
    let document = Document {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: vault.id.as_str().to_owned(),
        parent: None,
        unique_key: None,
        created_at: vault.created_at,
        archived_at: vault.archived_at,
        revision: 0,
        body: show(vault).to_string(),
    };
    Write::PutDocument { document, expect }
}
