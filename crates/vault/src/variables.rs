//! The variables of a session: what its sandbox has in the place of secrets, and what the secrets are.

use crate::{
    Keyring,
    secrets::{self, SecretError},
};
use vaquero_store::{DocumentQuery, Order, Store, StoreError};
use vaquero_types::{
    CredentialId, VaultId, WorkspaceId,
    credential::{Auth, Credential},
};

/// The kind of credentials' documents.
pub const CREDENTIAL: &str = "vault_credential";
/// More than a vault holds.
const PAGE: usize = 100;

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
        let query = DocumentQuery {
            workspace: workspace.clone(),
            kind: CREDENTIAL.to_owned(),
            parent: Some(vault.as_str().to_owned()),
            include_archived: false,
            from: None,
            until: None,
            order: Order::Ascending,
            cursor: None,
            limit: PAGE,
        };
        for document in store.documents(&query).await?.documents {
            let credential: Credential = serde_json::from_str(&document.body)
                .map_err(|_| StoreError::Corrupt { what: format!("credential {}", document.id) })?;
            let Auth::EnvironmentVariable { secret_name, .. } = &credential.auth else { continue };
            let name = secret_name.clone();
            if !variables.iter().any(|(known, _)| *known == name) {
                variables.push((name, credential));
            }
        }
    }
    Ok(variables)
}

/// A variable and its secret.
pub struct Opened {
    /// What it is for.
    pub credential: Credential,
    /// The secret.
    pub secret: String,
}

/// The same variables with their secrets; those without one are left out, and so is one that does not open: the others are of use without it.
pub async fn open(
    store: &dyn Store,
    ring: &Keyring,
    workspace: &WorkspaceId,
    vaults: &[VaultId],
) -> Result<Vec<Opened>, SecretError> {
    let mut opened = Vec::new();
    for (_, credential) in of_vaults(store, workspace, vaults).await? {
        let found = match secrets::read(store, ring, workspace, &credential.id).await {
            Err(SecretError::Store(error)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(credential = %credential.id, %error, "a secret does not open");
                continue;
            }
            Ok(found) => found,
        };
        let secret = found.and_then(|mut secrets| secrets.0.remove("secret_value"));
        if let Some(secret) = secret {
            opened.push(Opened { credential, secret });
        }
    }
    Ok(opened)
}
