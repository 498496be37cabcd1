//! `POST /v1/environments/{environment_id}/archive`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    environments,
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
    let (document, mut environment) =
        environments::find(&app, workspace, ids.get("environment_id")).await?;
    if environment.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), environments::show(&environment)));
    }
    let now = app.now();
    environment.archived_at = Some(now);
    environment.updated_at = now;
    let expect = Expect::Revision(document.revision);
    let write = environments::write(workspace, &environment, expect);
    Ok(Outcome::new(vec![write], environments::show(&environment)))
}
