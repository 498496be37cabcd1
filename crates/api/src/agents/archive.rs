//! `POST /v1/agents/{agent_id}/archive`

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

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    posted.fields()?.finish()?;
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (document, mut agent) = agents::find(&app, workspace, ids.get("agent_id")).await?;
    if agent.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), agents::show(&agent)));
    }
    let now = app.now();
    agent.archived_at = Some(now);
    agent.updated_at = now;
    let writes = agents::writes(workspace, &agent, Expect::Revision(document.revision), false);
    Ok(Outcome::new(writes, agents::show(&agent)))
}
