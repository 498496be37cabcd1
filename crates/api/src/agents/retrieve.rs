//! `GET /v1/agents/{agent_id}`

use crate::{agents, app::App, auth::Caller, body::PathIds, query::Query, reject::Result};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let version = query.number("version")?;
    query.finish()?;
    let id = ids.get("agent_id");
    let (_, mut agent) = agents::find(&app, &caller.workspace, id).await?;
    if let Some(version) = version {
        let archived_at = agent.archived_at;
        agent = agents::find_version(&app, &caller.workspace, id, version).await?;
        agent.archived_at = archived_at;
    }
    Ok(Json(agents::show(&agent)))
}
