//! Documents: resources that need no dialect of SQL of their own.

use vaquero_types::{Timestamp, WorkspaceId};

/// The kind of the documents that say where a session's workspace is, each under its session's id. They go with the session.
pub const CHECKPOINT: &str = "checkpoint";

/// The workspace of what belongs to no client.
pub const SYSTEM: &str = "wrkspc_system";

/// The kind of environments.
pub const ENVIRONMENT: &str = "environment";

/// The kind of the documents that say which environments want sandboxes kept ready: in the workspace [`SYSTEM`], each under its environment's id, with the environment's workspace as parent.
pub const WARM_POOL: &str = "warm_pool";

/// A stored resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The workspace that owns it.
    pub workspace: WorkspaceId,
    /// What it is (`agent`, `environment`, …).
    pub kind: String,
    /// Its id, unique in its workspace and kind.
    pub id: String,
    /// The resource it belongs to, to list by.
    pub parent: Option<String>,
    /// A key that no other document of the workspace and kind may hold at the same time.
    pub unique_key: Option<String>,
    /// When it was made; lists are ordered by it, then by id.
    pub created_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// Counts the writes of this document, from 1; the store sets it.
    pub revision: u64,
    /// The JSON body.
    pub body: String,
}

/// The direction of a list by creation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// Which documents a client wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentQuery {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The kind.
    pub kind: String,
    /// Only those that belong to this resource.
    pub parent: Option<String>,
    /// Also archived ones.
    pub include_archived: bool,
    /// Created at or after.
    pub from: Option<Timestamp>,
    /// Created at or before.
    pub until: Option<Timestamp>,
    /// The direction.
    pub order: Order,
    /// The creation time and id of the last document of the page before.
    pub cursor: Option<(Timestamp, String)>,
    /// Most documents on the page, at least 1.
    pub limit: usize,
}

impl DocumentQuery {
    /// All that are not archived, oldest first.
    pub fn new(workspace: WorkspaceId, kind: &str, limit: usize) -> Self {
        Self {
            workspace,
            kind: kind.to_owned(),
            parent: None,
            include_archived: false,
            from: None,
            until: None,
            order: Order::Ascending,
            cursor: None,
            limit,
        }
    }
}

/// A page of documents.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentPage {
    /// The documents.
    pub documents: Vec<Document>,
    /// Whether more follow.
    pub more: bool,
}
