//! `POST /v1/sessions/{session_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    sessions,
};
use axum::{extract::State, response::Response};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use vaquero_store::{Append, Author, SessionChange, Write};
use vaquero_types::{
    ApiError, Fields, Patch, agent,
    event::server,
    session::{SessionBody, Status, TITLE_MAX},
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

fn decode(mut fields: Fields, stored: &SessionBody, status: Status) -> Result<SessionBody> {
    let mut body = stored.clone();
    if fields.has("title") {
        body.title = fields.text("title", 0, TITLE_MAX)?;
    }
    body.metadata = fields.patch_metadata("metadata", &stored.metadata, false)?;
    if let Some(agent) = fields.object("agent")? {
        if status != Status::Idle {
            return Err(fields
                .invalid(
                    "agent",
                    "can only be changed while the session is idle; interrupt it first",
                )
                .into());
        }
        update_agent(agent, &mut body)?;
    }
    match fields.patch("vault_ids") {
        Patch::Absent => {}
        Patch::Null | Patch::Set(_) => {
            return Err(fields
                .invalid("vault_ids", "updating vault_ids is not yet supported")
                .into());
        }
    }
    match fields.patch("budget") {
        Patch::Absent | Patch::Null => {}
        Patch::Set(_) => {
            let refusal =
                fields.invalid("budget", "a budget can only be given when the session is created");
            return Err(refusal.with_error_code("budget_create_only").into());
        }
    }
    fields.finish()?;
    Ok(body)
}

fn update_agent(mut fields: Fields, body: &mut SessionBody) -> Result<()> {
    if let Some(tools) = agent::decode_tools(fields.patch("tools"), &fields.at("tools"))? {
        body.agent.tools = tools;
    }
    let at = fields.at("mcp_servers");
    if let Some(servers) = agent::decode_mcp_servers(fields.patch("mcp_servers"), &at)? {
        body.agent.mcp_servers = servers;
    }
    fields.finish().map_err(|mut invalid| {
        "only `tools` and `mcp_servers` of a session's agent can be updated"
            .clone_into(&mut invalid.reason);
        invalid
    })?;
    let agent = &body.agent;
    agent::check(&agent.tools, &agent.mcp_servers, &agent.skills)?;
    sessions::refuse_unavailable(&agent.tools, !agent.mcp_servers.is_empty(), false, None)
}

/// Only what changed, each field whole.
fn changes(before: &SessionBody, after: &SessionBody) -> Map<String, Value> {
    let mut changed = Map::new();
    if before.title != after.title {
        changed.insert("title".to_owned(), json!(after.title));
    }
    if before.metadata != after.metadata && !after.metadata.is_empty() {
        changed.insert("metadata".to_owned(), json!(after.metadata));
    }
    if before.agent != after.agent {
        changed.insert("agent".to_owned(), json!(after.agent));
    }
    changed
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (mut row, stored) = sessions::find(&app, workspace, ids.get("session_id")).await?;
    let body = decode(posted.fields()?, &stored, row.status)?;
    if row.archived_at.is_some() {
        return Err(ApiError::invalid(format!("Cannot modify archived session: {}", row.id)).into());
    }
    let now = app.now();
    if body == stored {
        return Ok(Outcome::new(Vec::new(), sessions::show(&row, &stored, now)));
    }
    let record = sessions::event(&app, &row, server::session_updated(changes(&stored, &body)));
    let write = Write::Append(Append {
        session: row.id.clone(),
        author: Author::Client { revision: row.revision },
        records: vec![record],
        change: SessionChange {
            body: Some(serde_json::to_string(&body).expect("a session body is plain data")),
            ..SessionChange::default()
        },
    });
    row.updated_at = now;
    Ok(Outcome::new(vec![write], sessions::show(&row, &body, now)))
}
