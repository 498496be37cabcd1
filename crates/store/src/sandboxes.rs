//! Records of sandboxes: a document for each, under its session, in a workspace that no client has, so that they are no part of what is exported.

use crate::{
    CommitError, Document, DocumentQuery, Expect, SessionRow, Store, StoreError, Write,
    document::CHECKPOINT,
};
use vaquero_types::{
    SessionId, Timestamp, WorkspaceId,
    environment::DEFAULT_SANDBOX,
    sandbox::{SandboxRecord, files_of},
    session::SessionBody,
};

const KIND: &str = "sandbox";
/// Documents read at once.
const PAGE: usize = 200;

fn system() -> WorkspaceId {
    WorkspaceId::from_wire(crate::document::SYSTEM)
}

/// Writes a record over the last one.
pub async fn put(
    store: &dyn Store,
    record: &SandboxRecord,
    now: Timestamp,
) -> Result<(), CommitError> {
    let document = Document {
        workspace: system(),
        kind: KIND.to_owned(),
        id: format!("{}.{}", record.session_id, record.name),
        parent: Some(record.session_id.as_str().to_owned()),
        unique_key: None,
        created_at: record.started_at,
        archived_at: record.ended_at,
        revision: 0,
        body: serde_json::to_string(record).unwrap_or_default(),
    };
    let write = Write::PutDocument { document, expect: Expect::Any };
    store.commit(vec![write], now).await.map(drop)
}

/// The records of a session; of all sessions without one. Those that have `ended` only if they are asked for. The oldest first.
pub async fn list(
    store: &dyn Store,
    session: Option<&SessionId>,
    ended: bool,
) -> Result<Vec<SandboxRecord>, StoreError> {
    let mut query = DocumentQuery {
        parent: session.map(|session| session.as_str().to_owned()),
        include_archived: ended,
        ..DocumentQuery::new(system(), KIND, PAGE)
    };
    let mut all = Vec::new();
    loop {
        let page = store.documents(&query).await?;
        query.cursor = page.documents.last().map(|last| (last.created_at, last.id.clone()));
        for document in page.documents {
            all.push(
                serde_json::from_str(&document.body).map_err(|_| StoreError::Corrupt {
                    what: format!("sandbox {}", document.id),
                })?,
            );
        }
        if !page.more {
            return Ok(all);
        }
    }
}

/// Removes the records of a session.
pub async fn remove(
    store: &dyn Store,
    session: &SessionId,
    now: Timestamp,
) -> Result<(), CommitError> {
    let records = list(store, Some(session), true).await.map_err(CommitError::Store)?;
    let writes: Vec<Write> = records
        .iter()
        .map(|record| Write::DeleteDocument {
            workspace: system(),
            kind: KIND.to_owned(),
            id: format!("{session}.{}", record.name),
            expect: Expect::Any,
        })
        .collect();
    if writes.is_empty() {
        return Ok(());
    }
    store.commit(writes, now).await.map(drop)
}

/// Nobody needs the workspaces of a session any more.
pub fn without_checkpoints(row: &SessionRow) -> Vec<Write> {
    let body: Option<SessionBody> = serde_json::from_str(&row.body).ok();
    let others = body.map(|body| body.sandboxes).unwrap_or_default();
    let names = others.iter().map(|sandbox| sandbox.name.as_str());
    let all = std::iter::once(DEFAULT_SANDBOX).chain(names);
    let without = |name| Write::DeleteDocument {
        workspace: row.workspace.clone(),
        kind: CHECKPOINT.to_owned(),
        id: files_of(row.id.as_str(), name),
        expect: Expect::Any,
    };
    all.map(without).collect()
}
