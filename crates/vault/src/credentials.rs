//! What is known of credentials without their secrets.

use vaquero_store::{DocumentQuery, Store, StoreError};
use vaquero_types::{VaultId, WorkspaceId, credential::Credential};

/// The kind of vaults' documents.
pub const VAULT: &str = "vault";
/// The kind of credentials' documents.
pub const CREDENTIAL: &str = "vault_credential";
/// More than a vault holds.
const PAGE: usize = 100;

/// The active credentials of a vault.
pub(crate) async fn active(
    store: &dyn Store,
    workspace: &WorkspaceId,
    vault: &VaultId,
) -> Result<Vec<Credential>, StoreError> {
    let query = DocumentQuery {
        parent: Some(vault.as_str().to_owned()),
        ..DocumentQuery::new(workspace.clone(), CREDENTIAL, PAGE)
    };
    let found = store.documents(&query).await?.documents;
    let decode = |document: &vaquero_store::Document| {
        serde_json::from_str(&document.body)
            .map_err(|_| StoreError::Corrupt { what: format!("credential {}", document.id) })
    };
    found.iter().map(decode).collect()
}
