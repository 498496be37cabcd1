//! `POST /v1/environments/{environment_id}/work/{work_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    reject::Result,
    work,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_store::Expect;

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (environment, id) = (ids.get("environment_id"), ids.get("work_id"));
    let (document, mut kept) = work::find(&app, workspace, environment, id).await?;
    let mut fields = posted.fields()?;
    kept.work.metadata = fields.patch_metadata("metadata", &kept.work.metadata, false)?;
    fields.finish()?;
    let write = work::write(workspace, &kept, Expect::Revision(document.revision));
    Ok(Outcome::new(vec![write], work::show(&kept)))
}
