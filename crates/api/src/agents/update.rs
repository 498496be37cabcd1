//! `POST /v1/agents/{agent_id}`

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
    ApiError, ErrorCode,
    agent::{Agent, AgentDraft},
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (document, stored) = agents::find(&app, workspace, ids.get("agent_id")).await?;
    let (draft, expected) = AgentDraft::decode_update(posted.fields()?, &stored)?;
    if stored.archived_at.is_some() {
        return Err(ApiError::invalid("Cannot modify archived agent").into());
    }
    if let Some(expected) = expected.filter(|expected| *expected != stored.version) {
        let message = format!(
            "Concurrent modification detected: the agent is at version {}, the request expects {expected}. Please fetch the latest version and retry.",
            stored.version
        );
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    let version = stored.version;
    let multiagent =
        agents::resolve(&app, workspace, draft.multiagent, &stored.id, version).await?;
    let mut agent = Agent {
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
        ..stored.clone()
    };
    if agent == stored {
        return Ok(Outcome::new(Vec::new(), agents::show(&stored)));
    }
    agent.version += 1;
    agent.updated_at = app.now().max(stored.updated_at);
    if let Some(multiagent) = &mut agent.multiagent {
        multiagent.pin(&agent.id, agent.version);
    }
    let writes = agents::writes(workspace, &agent, Expect::Revision(document.revision), true);
    Ok(Outcome::new(writes, agents::show(&agent)))
}
