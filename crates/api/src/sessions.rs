//! Sessions.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod fork;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod sandbox;
pub(crate) mod update;

use crate::{app::App, reject::Result};
use serde_json::{Value, json};
use vaquero_core::admission::{Admitted, Standing};
use vaquero_store::{
    Append, Author, NewRecord, RecordKind, SessionChange, SessionRow, StoreError, Write,
};
use vaquero_types::{
    ApiError, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId,
    agent::{Multiagent, Tool},
    event::server::EventBody,
    gate::Gate,
    session::{SessionBody, Status},
    thread::Thread,
    usage::{Activity, Usage, seconds},
};

/// A session of this workspace.
pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
) -> Result<(SessionRow, SessionBody)> {
    let row = app.parts.store.session(&SessionId::from_wire(id)).await?;
    let row = row.filter(|row| row.workspace == *workspace);
    let row = row.ok_or_else(|| ApiError::not_found("session", id))?;
    let body = serde_json::from_str(&row.body)
        .map_err(|_| StoreError::Corrupt { what: format!("session {id}") })?;
    Ok((row, body))
}

/// A new session at rest, and its thread.
pub(crate) fn fresh(
    workspace: &WorkspaceId,
    environment: EnvironmentId,
    body: &SessionBody,
    id: SessionId,
    thread: ThreadId,
    now: Timestamp,
) -> (SessionRow, Thread) {
    let row = SessionRow {
        id: id.clone(),
        workspace: workspace.clone(),
        status: Status::Idle,
        agent: body.agent.id.clone(),
        agent_version: body.agent.version,
        environment,
        primary_thread: thread.clone(),
        created_at: now,
        updated_at: now,
        archived_at: None,
        head: 0,
        client_head: 0,
        revision: 1,
        epoch: 0,
        gate: Gate::default(),
        usage: Usage::default(),
        activity: Activity::default(),
        body: serde_json::to_string(body).expect("a session body is plain data"),
    };
    let thread = Thread {
        id: thread,
        session: id,
        parent: None,
        status: Status::Idle,
        created_at: now,
        updated_at: now,
        archived_at: None,
        usage: Usage::default(),
        activity: Activity::default(),
    };
    (row, thread)
}

/// The session as the API shows it.
pub(crate) fn show(row: &SessionRow, body: &SessionBody, now: Timestamp) -> Value {
    let active = row.activity.active(now);
    let end = row.archived_at.unwrap_or(now);
    json!({
        "type": "session",
        "id": row.id,
        "status": row.status,
        "title": body.title,
        "agent": body.agent,
        "environment_id": row.environment,
        "deployment_id": null,
        "metadata": body.metadata,
        "resources": [],
        "vault_ids": body.vault_ids,
        "budget": null,
        "outcome_evaluations": [],
        "usage": row.usage.to_wire(active),
        "stats": {
            "active_seconds": seconds(active),
            "duration_seconds": seconds(end.since(row.created_at)),
        },
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "archived_at": row.archived_at,
    })
}

/// The session as admission judges it.
pub(crate) fn standing<'a>(row: &'a SessionRow, body: &'a SessionBody) -> Standing<'a> {
    Standing {
        session: &row.id,
        status: row.status,
        archived: row.archived_at.is_some(),
        gate: &row.gate,
        thread: &row.primary_thread,
        agent: &body.agent,
        self_hosted: body.self_hosted,
        usage: row.usage,
        activity: row.activity,
    }
}

/// The append that admitting a client's events makes.
pub(crate) fn append(row: &SessionRow, admitted: Admitted) -> Write {
    Write::Append(Append {
        session: row.id.clone(),
        author: Author::Client { revision: row.revision },
        records: admitted.records,
        change: SessionChange {
            status: admitted.status,
            gate: admitted.gate,
            activity: admitted.activity,
            ready: admitted.ready.then_some(true),
            ..SessionChange::default()
        },
    })
}

/// A public event the API itself writes.
pub(crate) fn event(app: &App, row: &SessionRow, event: EventBody) -> NewRecord {
    NewRecord {
        kind: RecordKind::Event,
        event_id: EventId::new(app.new_id()),
        thread: row.primary_thread.clone(),
        event_type: event.event_type.to_owned(),
        body: event.body.into(),
    }
}

/// Refuses an agent whose session would need what this server cannot do yet.
pub(crate) fn refuse_unavailable(
    tools: &[Tool],
    has_mcp_servers: bool,
    has_skills: bool,
    multiagent: Option<&Multiagent>,
) -> Result<()> {
    let refuse = |what: &str| -> Result<()> {
        Err(ApiError::invalid(format!("{what} not available on this server yet")).into())
    };
    if has_mcp_servers {
        return refuse("agent.mcp_servers: MCP servers are");
    }
    if has_skills {
        return refuse("agent.skills: skills are");
    }
    for tool in tools {
        if let Tool::AgentToolset(toolset) = tool
            && let Some(name) = toolset.explicitly_enabled_web_tools().first()
        {
            return refuse(&format!(
                "agent.tools: the tool `{name}`, which a config of its own enables, is"
            ));
        }
    }
    if let Some(Multiagent(value)) = multiagent {
        let enabled = |name: &str| value[name]["type"] == "enabled";
        if value["type"] == "coordinator"
            || ["advisor", "subagents", "workflows"].iter().any(|name| enabled(name))
        {
            return refuse("agent.multiagent: working with other agents is");
        }
    }
    Ok(())
}
