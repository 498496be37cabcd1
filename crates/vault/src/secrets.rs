//! Where sealed secrets are: a document for each credential, apart from what is shown of it and in a workspace that no client has, so that no list and no export comes near.

use crate::{KeyError, Keyring, OpenError, Sealed};
use serde::{Deserialize, Serialize};
use vaquero_store::{
    CommitError, Document, DocumentQuery, Expect, Store, StoreError, Write, document::SYSTEM,
};
use vaquero_types::{CredentialId, Timestamp, WorkspaceId, credential::Secrets};

const KIND: &str = "secret";
/// Documents read at once.
const PAGE: usize = 200;

/// Why secrets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The store refused a change.
    #[error("a secret could not be stored")]
    Commit(#[source] CommitError),
    /// It does not open.
    #[error("the secret of {0} does not open")]
    Open(CredentialId, #[source] OpenError),
    /// It cannot be sealed.
    #[error("a secret cannot be sealed")]
    Seal(#[from] KeyError),
}

/// The body of such a document.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// The workspace of its credential.
    workspace: WorkspaceId,
    credential: CredentialId,
    sealed: Sealed,
}

fn place(workspace: &WorkspaceId, credential: &CredentialId) -> String {
    format!("secret\0{workspace}\0{credential}")
}

fn system() -> WorkspaceId {
    WorkspaceId::from_wire(SYSTEM)
}

/// The id of a credential's document. An import can bring the same credential into several workspaces; none may touch the secret of another.
fn id_of(workspace: &WorkspaceId, credential: &CredentialId) -> String {
    format!("{workspace}.{credential}")
}

fn document(kept: &Kept, now: Timestamp) -> Document {
    Document {
        workspace: system(),
        kind: KIND.to_owned(),
        id: id_of(&kept.workspace, &kept.credential),
        parent: None,
        unique_key: None,
        created_at: now,
        archived_at: None,
        revision: 0,
        body: serde_json::to_string(kept).unwrap_or_default(),
    }
}

/// Seals the secrets of a credential, to be stored.
pub fn put(
    ring: &Keyring,
    workspace: &WorkspaceId,
    credential: &CredentialId,
    secrets: &Secrets,
    now: Timestamp,
) -> Result<Write, KeyError> {
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(secrets).unwrap_or_default());
    let sealed = ring.seal(&place(workspace, credential), &plain)?;
    let (workspace, credential) = (workspace.clone(), credential.clone());
    let kept = Kept { workspace, credential, sealed };
    Ok(Write::PutDocument { document: document(&kept, now), expect: Expect::Any })
}

/// Removes the secrets of a credential.
pub fn purge(workspace: &WorkspaceId, credential: &CredentialId) -> Write {
    let id = id_of(workspace, credential);
    let (workspace, kind) = (system(), KIND.to_owned());
    Write::DeleteDocument { workspace, kind, id, expect: Expect::Any }
}

/// The secrets of a credential; none if they were purged or never came here.
pub async fn read(
    store: &dyn Store,
    ring: &Keyring,
    workspace: &WorkspaceId,
    credential: &CredentialId,
) -> Result<Option<Secrets>, SecretError> {
    let id = id_of(workspace, credential);
    let Some(found) = store.document(&system(), KIND, &id).await? else {
        return Ok(None);
    };
    let damaged = || SecretError::Open(credential.clone(), OpenError::Damaged);
    let kept: Kept = serde_json::from_str(&found.body).map_err(|_| damaged())?;
    let plain = ring
        .open(&place(workspace, credential), &kept.sealed)
        .map_err(|error| SecretError::Open(credential.clone(), error))?;
    serde_json::from_slice(&plain).map(Some).map_err(|_| damaged())
}

/// The secret of a credential by its field's name. One that does not open is missing, and the log says why: others are of use without it.
pub async fn open(
    store: &dyn Store,
    ring: &Keyring,
    workspace: &WorkspaceId,
    credential: &CredentialId,
    field: &str,
) -> Result<Option<String>, StoreError> {
    match read(store, ring, workspace, credential).await {
        Err(SecretError::Store(error)) => Err(error),
        Err(error) => {
            tracing::error!(%credential, %error, "a secret does not open");
            Ok(None)
        }
        Ok(found) => Ok(found.and_then(|mut secrets| secrets.0.remove(field))),
    }
}

/// Seals everything anew that is not sealed with the current key; how many that were. Servers that know the current key go on meanwhile.
pub async fn reseal(
    store: &dyn Store,
    ring: &Keyring,
    now: Timestamp,
) -> Result<usize, SecretError> {
    let mut resealed = 0;
    let mut query =
        DocumentQuery { include_archived: true, ..DocumentQuery::new(system(), KIND, PAGE) };
    loop {
        let page = store.documents(&query).await?;
        query.cursor = page.documents.last().map(|last| (last.created_at, last.id.clone()));
        for found in page.documents {
            let id = CredentialId::from_wire(found.id.clone());
            let failed = |error| SecretError::Open(id.clone(), error);
            let kept: Kept =
                serde_json::from_str(&found.body).map_err(|_| failed(OpenError::Damaged))?;
            if kept.sealed.key == ring.current() {
                continue;
            }
            let place = place(&kept.workspace, &kept.credential);
            let plain = ring.open(&place, &kept.sealed).map_err(failed)?;
            let kept = Kept { sealed: ring.seal(&place, &plain)?, ..kept };
            let document = Document { created_at: found.created_at, ..document(&kept, now) };
            let write = Write::PutDocument { document, expect: Expect::Revision(found.revision) };
            match store.commit(vec![write], now).await {
                Ok(_) => resealed += 1,
                // Replaced or removed meanwhile: with the current key, or for good.
                Err(CommitError::Changed | CommitError::NotFound) => {}
                Err(error) => return Err(SecretError::Commit(error)),
            }
        }
        if !page.more {
            return Ok(resealed);
        }
    }
}
