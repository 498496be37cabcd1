//! `POST /v1/environments/{environment_id}/work/{work_id}/heartbeat`

use crate::{
    app::App, auth::Caller, body::PathIds, change::ATTEMPTS, query::Query, reject::Result, work,
};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use vaquero_core::queue::{self, Beat};
use vaquero_store::{CommitError, Expect};
use vaquero_types::{ApiError, ErrorCode, work::KeptWork};

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let expected = query.one("expected_last_heartbeat")?;
    // Without it, a beat is a first one.
    let expected = expected.as_deref().unwrap_or(queue::NO_HEARTBEAT);
    let ttl = query.number("desired_ttl_seconds")?;
    query.finish()?;
    let (environment, id) = (ids.get("environment_id"), ids.get("work_id"));
    for _ in 0..ATTEMPTS {
        let (document, mut kept) = work::find(&app, &caller.workspace, environment, id).await?;
        match queue::beat(&mut kept, expected, ttl, app.now()) {
            Beat::Over => return Ok(Json(shown(&kept, false))),
            Beat::Lost => {
                let message = "expected_last_heartbeat: the item is another worker's, or waits for one; this worker must leave it";
                let mut error = ApiError::new(ErrorCode::PreconditionFailed, message)
                    .with_error_code("heartbeat_precondition_failed");
                error.current_state = Some(Box::new(shown(&kept, false)));
                return Err(error.into());
            }
            Beat::Extended => {}
        }
        let expect = Expect::Revision(document.revision);
        let write = work::write(&caller.workspace, &kept, expect);
        match app.parts.store.commit(vec![write], app.now()).await {
            Ok(_) => return Ok(Json(shown(&kept, true))),
            Err(CommitError::Changed | CommitError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(CommitError::Changed.into())
}

fn shown(kept: &KeptWork, extended: bool) -> Value {
    json!({
        "type": "work_heartbeat",
        "last_heartbeat": kept.work.latest_heartbeat_at,
        "lease_extended": extended,
        "state": kept.work.state,
        "ttl_seconds": kept.lease.ttl_seconds,
    })
}
