//! Vaults of a session whose credential goes into headers.

use crate::credentials::{VAULT, active};
use vaquero_store::{Store, StoreError};
use vaquero_types::{
    VaultId, WorkspaceId,
    credential::Credential,
    vault::{HttpHeaders, Vault},
};

/// Which headers, and the credential, if there is one.
pub type InHeaders = (HttpHeaders, Option<Credential>);

/// Those of some vaults, in their order.
pub async fn of_vaults(
    store: &dyn Store,
    workspace: &WorkspaceId,
    vaults: &[VaultId],
) -> Result<Vec<InHeaders>, StoreError> {
    let mut found = Vec::new();
    for id in vaults {
        let Some(document) = store.document(workspace, VAULT, id.as_str()).await? else { continue };
        let vault: Vault = serde_json::from_str(&document.body)
            .map_err(|_| StoreError::Corrupt { what: format!("vault {id}") })?;
        match HttpHeaders::of(&vault.metadata) {
            Ok(None) => {}
            Ok(Some(headers)) => {
                let credential = active(store, workspace, id).await?.into_iter().next();
                found.push((headers, credential));
            }
            // It came by an import, unchecked.
            Err(error) => tracing::error!(vault = %id, %error, "a vault's metadata makes no sense"),
        }
    }
    Ok(found)
}
