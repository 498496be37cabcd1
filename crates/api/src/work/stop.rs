//! `POST /v1/environments/{environment_id}/work/{work_id}/stop`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    work,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_core::queue;
use vaquero_store::{Expect, StoreError};
use vaquero_types::{
    ApiError, ErrorCode, WorkId,
    session::{SessionBody, Status},
    work::WorkState,
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let mut fields = posted.fields()?;
    let force = fields.boolean("force")?.unwrap_or(false);
    fields.finish()?;
    let workspace = &posted.caller.workspace;
    let (environment, id) = (ids.get("environment_id"), ids.get("work_id"));
    let (document, mut kept) = work::find(&app, workspace, environment, id).await?;
    let served = queue::serves(kept.work.state);
    let now = app.now();
    if !queue::stop(&mut kept, force, now) {
        let message = format!("work `{id}` is stopped already");
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    let mut writes = vec![work::write(workspace, &kept, Expect::Revision(document.revision))];
    if kept.work.state == WorkState::Stopped {
        writes.push(work::without_token(&kept));
        app.keys.clear();
    }
    // What a client sent while its worker was leaving is for the next one.
    let session = app.parts.store.session(kept.work.data.session()).await?;
    if let Some(row) = session.filter(|row| served && row.status == Status::Running) {
        let body: SessionBody = serde_json::from_str(&row.body)
            .map_err(|_| StoreError::Corrupt { what: format!("session {}", row.id) })?;
        if body.self_hosted && row.archived_at.is_none() {
            let next = queue::queued(
                WorkId::new(app.new_id()),
                kept.work.environment_id.clone(),
                row.id,
                app.parts.settings.work_lease,
                now,
            );
            writes.push(work::write(workspace, &next, Expect::Absent));
        }
    }
    Ok(Outcome::new(writes, work::show(&kept)))
}
