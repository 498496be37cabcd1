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
use vaquero_types::environment::Environment;

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
    let (document, stored) = environments::find(&app, workspace, ids.get("environment_id")).await?;
    if stored.archived_at.is_some() {
        return Ok(Outcome::new(Vec::new(), environments::show(&stored)));
    }
    let now = app.now();
    let environment = Environment { archived_at: Some(now), updated_at: now, ..stored.clone() };
    let expect = Expect::Revision(document.revision);
    let writes = environments::writes(workspace, &environment, Some((&stored, expect)));
    Ok(Outcome::new(writes, environments::show(&environment)))
}
