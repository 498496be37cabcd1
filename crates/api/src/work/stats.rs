//! `GET /v1/environments/{environment_id}/work/stats`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result, work};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use vaquero_types::work::WorkState;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<Value>> {
    query.finish()?;
    let id = ids.get("environment_id");
    let environment = work::environment(&app, &caller.workspace, id).await?;
    let open = work::open(&app, &caller.workspace, &environment.id).await?;
    let queued: Vec<_> =
        open.iter().filter(|(_, kept)| kept.work.state == WorkState::Queued).collect();
    let pending = queued.iter().filter(|(_, kept)| kept.lease.polled_at.is_some()).count();
    Ok(Json(json!({
        "type": "work_queue_stats",
        "depth": queued.len() - pending,
        "pending": pending,
        "oldest_queued_at": queued.first().map(|(_, kept)| kept.work.created_at),
        "workers_polling": app.pollers.count(&environment.id, app.now()),
    })))
}
