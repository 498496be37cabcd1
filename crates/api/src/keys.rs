//! API keys: made once, shown once, kept as a hash.

use crate::{app::App, scope::WorkToken};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vaquero_store::{
    CommitError, Document, DocumentQuery, Expect, Order, Store, StoreError, Write,
    document::{ENVIRONMENT, SYSTEM},
};
use vaquero_types::{
    ApiKeyId, Clock, EnvironmentId, IdGen, Timestamp, WorkspaceId,
    environment::{Config, Environment},
    id::{hex, render},
};

/// What a key of this server starts with.
pub const PREFIX: &str = "vq_";
/// What the key of an environment's workers starts with.
const WORKERS: &str = "vq_env_";
/// What the token of an item of work starts with.
const TOKEN: &str = "vq_work_";
/// The kind of such tokens' documents.
const TOKEN_KIND: &str = "work_token";
/// The workspace keys open unless another is named.
pub const DEFAULT_WORKSPACE: &str = "wrkspc_default";
const KIND: &str = "api_key";

/// A key's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// The workspace it opens.
    pub workspace: WorkspaceId,
    /// The environment whose workers it is for, and nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
    /// Its first characters, to recognise it by.
    pub hint: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Why a key could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The store refused.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The store refused a change.
    #[error("the key could not be stored")]
    Commit(#[from] CommitError),
    /// The system gives no randomness.
    #[error("the system gives no random numbers: {0}")]
    Randomness(getrandom::Error),
    /// The key is too short to be one.
    #[error("an API key needs at least 16 characters, of visible ASCII")]
    Weak,
    /// No environment of the workspace has workers by that id.
    #[error(
        "there is no self_hosted environment `{0}` in this workspace; --workspace names another one"
    )]
    Environment(EnvironmentId),
    /// The name cannot be a workspace's.
    #[error("a workspace name has 1 to 48 letters, digits, `-` or `_`")]
    Workspace,
}

/// The workspace a name stands for.
pub fn workspace(name: &str) -> Result<WorkspaceId, KeyError> {
    let name = name.strip_prefix(WorkspaceId::PREFIX).unwrap_or(name);
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 48 || !name.chars().all(allowed) || name == "system" {
        return Err(KeyError::Workspace);
    }
    Ok(WorkspaceId::from_wire(format!("{}{name}", WorkspaceId::PREFIX)))
}

/// The digest a key is kept and found by.
pub fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

fn system() -> WorkspaceId {
    WorkspaceId::from_wire(SYSTEM)
}

/// Text that nobody guesses.
fn random(prefix: &str) -> Result<String, KeyError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(KeyError::Randomness)?;
    let (high, low) = random.split_at(16);
    let number = |half: &[u8]| u128::from_be_bytes(half.try_into().unwrap_or_default());
    Ok(format!("{prefix}{}{}", render("", number(high)), render("", number(low))))
}

/// Makes a key for a workspace; the returned text is the only copy.
pub async fn create(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    workspace: &WorkspaceId,
) -> Result<(String, ApiKey), KeyError> {
    let key = random(PREFIX)?;
    let record = put(store, clock, ids, workspace, None, &key).await?;
    Ok((key, record))
}

/// Makes a key for the workers of a self-hosted environment; the returned text is the only copy.
pub async fn create_for_workers(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    workspace: &WorkspaceId,
    environment: &EnvironmentId,
) -> Result<(String, ApiKey), KeyError> {
    let found = store.document(workspace, ENVIRONMENT, environment.as_str()).await?;
    let found = found.and_then(|found| serde_json::from_str::<Environment>(&found.body).ok());
    if found.is_none_or(|found| found.config != Config::SelfHosted) {
        return Err(KeyError::Environment(environment.clone()));
    }
    let key = random(WORKERS)?;
    let record = put(store, clock, ids, workspace, Some(environment.clone()), &key).await?;
    Ok((key, record))
}

/// A new token, not yet anybody's.
pub(crate) fn random_token() -> Result<String, KeyError> {
    random(TOKEN)
}

/// Makes a token an item's, in the place of the last one.
pub(crate) fn put_token(owner: &WorkToken, token: &str, now: Timestamp) -> Write {
    let document = Document {
        workspace: system(),
        kind: TOKEN_KIND.to_owned(),
        id: WorkToken::id_of(&owner.work),
        parent: None,
        unique_key: Some(hash(token)),
        created_at: now,
        archived_at: None,
        revision: 0,
        body: serde_json::to_string(owner).expect("a token's record is plain data"),
    };
    Write::PutDocument { document, expect: Expect::Any }
}

/// Ends an item's token.
pub(crate) fn forget_token(id: &str) -> Write {
    let (workspace, kind, id) = (system(), TOKEN_KIND.to_owned(), id.to_owned());
    Write::DeleteDocument { workspace, kind, id, expect: Expect::Any }
}

/// Whose token it is; none if it is no token, or an ended one.
pub(crate) async fn find_token(
    store: &dyn Store,
    token: &str,
) -> Result<Option<WorkToken>, StoreError> {
    if !token.starts_with(TOKEN) {
        return Ok(None);
    }
    let found = store.document_by_key(&system(), TOKEN_KIND, &hash(token)).await?;
    let decode = |document: Document| {
        serde_json::from_str(&document.body)
            .map_err(|_| StoreError::Corrupt { what: document.id.clone() })
    };
    found.map(decode).transpose()
}

/// Accepts a key that the operator chose; accepting it again changes nothing.
pub async fn accept(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    key: &str,
) -> Result<(), KeyError> {
    if key.len() < 16 || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(KeyError::Weak);
    }
    if find(store, &hash(key)).await?.is_none() {
        let workspace = WorkspaceId::from_wire(DEFAULT_WORKSPACE);
        put(store, clock, ids, &workspace, None, key).await?;
    }
    Ok(())
}

async fn put(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    workspace: &WorkspaceId,
    environment: Option<EnvironmentId>,
    key: &str,
) -> Result<ApiKey, KeyError> {
    let now = clock.now();
    let record = ApiKey {
        id: ApiKeyId::new(ids.next(now)),
        workspace: workspace.clone(),
        environment,
        hint: format!("{}…", key.chars().take(7).collect::<String>()),
        created_at: now,
        revoked_at: None,
    };
    let document = document(&record, Some(hash(key)));
    store.commit(vec![Write::PutDocument { document, expect: Expect::Absent }], now).await?;
    Ok(record)
}

fn document(record: &ApiKey, unique_key: Option<String>) -> Document {
    Document {
        workspace: system(),
        kind: KIND.to_owned(),
        id: record.id.as_str().to_owned(),
        parent: None,
        unique_key,
        created_at: record.created_at,
        archived_at: record.revoked_at,
        revision: 0,
        body: serde_json::to_string(record).expect("a key record is plain data"),
    }
}

fn decode(document: &Document) -> Result<ApiKey, StoreError> {
    serde_json::from_str(&document.body)
        .map_err(|_| StoreError::Corrupt { what: format!("API key {}", document.id) })
}

/// The key with this digest, unless it is revoked.
pub async fn find(store: &dyn Store, hash: &str) -> Result<Option<ApiKey>, StoreError> {
    let found = store.document_by_key(&system(), KIND, hash).await?;
    let key = found.as_ref().map(decode).transpose()?;
    Ok(key.filter(|key| key.revoked_at.is_none()))
}

/// All keys, newest first, revoked ones too.
pub async fn list(store: &dyn Store) -> Result<Vec<ApiKey>, StoreError> {
    let query = DocumentQuery {
        include_archived: true,
        order: Order::Descending,
        ..DocumentQuery::new(system(), KIND, 10_000)
    };
    store.documents(&query).await?.documents.iter().map(decode).collect()
}

impl App {
    /// Makes a key for the workspace of this name.
    pub async fn create_key(&self, name: &str) -> Result<String, KeyError> {
        let parts = &self.parts;
        let workspace = workspace(name)?;
        let made =
            create(parts.store.as_ref(), parts.clock.as_ref(), parts.ids.as_ref(), &workspace);
        Ok(made.await?.0)
    }

    /// All keys, newest first.
    pub async fn list_keys(&self) -> Result<Vec<ApiKey>, KeyError> {
        Ok(list(self.parts.store.as_ref()).await?)
    }
}

/// Revokes a key by its id, from the next request on; false if there is no such key.
pub async fn revoke(app: &App, id: &str) -> Result<bool, KeyError> {
    let store = app.parts.store.as_ref();
    let revoked = revoke_in(store, app.parts.clock.as_ref(), id).await?;
    app.keys.clear();
    Ok(revoked)
}

/// Revokes a key in a store that no server has open.
pub async fn revoke_in(store: &dyn Store, clock: &dyn Clock, id: &str) -> Result<bool, KeyError> {
    let Some(found) = store.document(&system(), KIND, id).await? else { return Ok(false) };
    let mut key = decode(&found)?;
    let now = clock.now();
    key.revoked_at.get_or_insert(now);
    let document = Document { body: String::new(), ..found };
    let body = serde_json::to_string(&key).expect("a key record is plain data");
    let document = Document { archived_at: key.revoked_at, body, ..document };
    let expect = Expect::Revision(document.revision);
    store.commit(vec![Write::PutDocument { document, expect }], now).await?;
    Ok(true)
}
