//! The variables of a session: what its sandbox has in the place of secrets, and what the secrets are.

use crate::credentials::active;
use vaquero_store::{Store, StoreError};
use vaquero_types::{
    CredentialId, VaultId, WorkspaceId,
    credential::{Auth, Credential},
};

/// What stands for a secret in a sandbox: nothing that any text has by accident.
pub fn placeholder(credential: &CredentialId) -> String {
    let id = credential.as_str();
    format!("vaquero_placeholder_{}", id.strip_prefix(CredentialId::PREFIX).unwrap_or(id))
}

/// The active variables of some vaults by name; the first vault that has one wins.
pub async fn of_vaults(
    store: &dyn Store,
    workspace: &WorkspaceId,
    vaults: &[VaultId],
) -> Result<Vec<(String, Credential)>, StoreError> {
    let mut variables: Vec<(String, Credential)> = Vec::new();
    for vault in vaults {
        for credential in active(store, workspace, vault).await? {
            let Auth::EnvironmentVariable { secret_name, .. } = &credential.auth else { continue };
            let name = secret_name.clone();
            if !variables.iter().any(|(known, _)| *known == name) {
                variables.push((name, credential));
            }
        }
    }
    Ok(variables)
}
