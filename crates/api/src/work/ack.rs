//! `POST /v1/environments/{environment_id}/work/{work_id}/ack`

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
use vaquero_store::Expect;
use vaquero_types::{ApiError, ErrorCode};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    posted.fields()?.finish()?;
    let workspace = &posted.caller.workspace;
    let (environment, id) = (ids.get("environment_id"), ids.get("work_id"));
    let (document, mut kept) = work::find(&app, workspace, environment, id).await?;
    if !queue::acknowledge(&mut kept, app.now()) {
        let state = kept.work.state.as_str();
        let message = format!("work `{id}` is {state}: only an item that is queued can be taken");
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    let write = work::write(workspace, &kept, Expect::Revision(document.revision));
    Ok(Outcome::new(vec![write], work::show(&kept)))
}
