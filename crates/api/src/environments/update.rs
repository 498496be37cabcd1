//! `POST /v1/environments/{environment_id}`

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
use vaquero_types::{
    ApiError,
    environment::{Environment, EnvironmentDraft},
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
    let (document, stored) = environments::find(&app, workspace, ids.get("environment_id")).await?;
    if stored.archived_at.is_some() {
        let error = ApiError::invalid("Cannot modify archived environment");
        return Err(error.with_error_code("environment_archived").into());
    }
    let draft = EnvironmentDraft::decode_update(posted.fields()?, &stored)?;
    let mut environment = Environment {
        name: draft.name,
        description: draft.description,
        config: draft.config,
        metadata: draft.metadata,
        scope: draft.scope,
        ..stored.clone()
    };
    if environment == stored {
        return Ok(Outcome::new(Vec::new(), environments::show(&stored)));
    }
    environment.updated_at = app.now();
    let expect = Expect::Revision(document.revision);
    let writes = environments::writes(workspace, &environment, Some((&stored, expect)));
    let mut outcome = Outcome::new(writes, environments::show(&environment));
    outcome.duplicate = Some(environments::name_taken(&environment.name));
    Ok(outcome)
}
