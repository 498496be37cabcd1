//! Agents and their versions.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod update;
pub(crate) mod versions;

use crate::{app::App, reject::Result};
use serde_json::Value;
use vaquero_store::{Document, Expect, StoreError, Write};
use vaquero_types::{
    AgentId, ApiError, ErrorCode, Invalid, WorkspaceId,
    agent::{Agent, Multiagent, MultiagentDraft, RosterEntry},
};

pub(crate) const KIND: &str = "agent";
pub(crate) const VERSION_KIND: &str = "agent_version";

pub(crate) fn decode(document: &Document) -> Result<Agent> {
    let agent = serde_json::from_str(&document.body);
    Ok(agent.map_err(|_| StoreError::Corrupt { what: format!("agent {}", document.id) })?)
}

pub(crate) fn show(agent: &Agent) -> Value {
    serde_json::to_value(agent).expect("an agent is plain data")
}

/// The newest version of an agent, with its document.
pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
) -> Result<(Document, Agent)> {
    let found = app.parts.store.document(workspace, KIND, id).await?;
    let document = found.ok_or_else(|| ApiError::not_found("agent", id))?;
    let agent = decode(&document)?;
    Ok((document, agent))
}

/// One version of an agent.
pub(crate) async fn find_version(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
    version: u64,
) -> Result<Agent> {
    let found = app.parts.store.document(workspace, VERSION_KIND, &version_id(id, version)).await?;
    let Some(document) = found else {
        let message = format!("Agent version not found: `{id}` has no version {version}");
        return Err(ApiError::new(ErrorCode::NotFound, message).into());
    };
    decode(&document)
}

fn version_id(id: &str, version: u64) -> String {
    format!("{id}.{version:012}")
}

/// The writes that make `agent` the newest version.
pub(crate) fn writes(
    workspace: &WorkspaceId,
    agent: &Agent,
    expect: Expect,
    new_version: bool,
) -> Vec<Write> {
    let body = show(agent).to_string();
    let document = Document {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: agent.id.as_str().to_owned(),
        parent: None,
        unique_key: None,
        created_at: agent.created_at,
        archived_at: agent.archived_at,
        revision: 0,
        body: body.clone(),
    };
    let version = Document {
        kind: VERSION_KIND.to_owned(),
        id: version_id(agent.id.as_str(), agent.version),
        parent: Some(agent.id.as_str().to_owned()),
        created_at: agent.updated_at,
        archived_at: None,
        body,
        ..document.clone()
    };
    let mut writes = vec![Write::PutDocument { document, expect }];
    if new_version {
        writes.push(Write::PutDocument { document: version, expect: Expect::Any });
    }
    writes
}

/// Pins every agent of a multiagent configuration to a version; `id` and `version` are what `self` means.
pub(crate) async fn resolve(
    app: &App,
    workspace: &WorkspaceId,
    draft: Option<MultiagentDraft>,
    id: &AgentId,
    version: u64,
) -> Result<Option<Multiagent>> {
    let Some(draft) = draft else { return Ok(None) };
    let mut pinned = Vec::new();
    for entry in draft.entries() {
        match entry {
            RosterEntry::Itself { .. } => pinned.push((id.clone(), version)),
            RosterEntry::Agent { path, id, version } => {
                let refuse = |reason: &str| Invalid::new(path.clone(), reason);
                let found = app.parts.store.document(workspace, KIND, id.as_str()).await?;
                let found = found.ok_or_else(|| refuse(&format!("agent `{id}` not found")))?;
                let mut agent = decode(&found)?;
                if agent.archived_at.is_some() {
                    return Err(refuse(&format!("agent `{id}` is archived")).into());
                }
                if let Some(version) = version {
                    agent = find_version(app, workspace, id.as_str(), *version).await?;
                }
                if agent.multiagent.is_some() {
                    return Err(refuse(&format!(
                        "agent `{id}` has a multiagent configuration of its own"
                    ))
                    .into());
                }
                pinned.push((agent.id, agent.version));
            }
        }
    }
    Ok(Some(draft.resolve(&pinned)?))
}
