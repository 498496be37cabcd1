//! `POST /v1/agents`

use crate::{
    agents,
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::Expect;
use vaquero_types::{
    AgentId,
    agent::{Agent, AgentDraft, AgentKind},
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, _ids: PathIds) -> Result<Outcome> {
    let draft = AgentDraft::decode(posted.fields()?)?;
    let workspace = &posted.caller.workspace;
    let now = app.now();
    let id = AgentId::new(app.new_id());
    let multiagent = agents::resolve(&app, workspace, draft.multiagent, &id, 1).await?;
    let agent = Agent {
        kind: AgentKind::Agent,
        id,
        version: 1,
        name: draft.name,
        description: draft.description,
        model: draft.model,
        system: draft.system,
        tools: draft.tools,
        mcp_servers: draft.mcp_servers,
        skills: draft.skills,
        multiagent,
        execution_identity: draft.execution_identity,
        metadata: draft.metadata,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    let writes = agents::writes(workspace, &agent, Expect::Absent, true);
    Ok(Outcome::new(writes, agents::show(&agent)))
}
