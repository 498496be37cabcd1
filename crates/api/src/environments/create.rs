//! `POST /v1/environments`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    environments,
    reject::Result,
};
use axum::{extract::State, response::Response};
use std::sync::Arc;
use vaquero_types::{
    EnvironmentId,
    environment::{Environment, EnvironmentDraft, EnvironmentKind},
};

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, _ids: PathIds) -> Result<Outcome> {
    let draft = EnvironmentDraft::decode(posted.fields()?)?;
    let now = app.now();
    let environment = Environment {
        kind: EnvironmentKind::Environment,
        id: EnvironmentId::new(app.new_id()),
        name: draft.name,
        description: draft.description,
        config: draft.config,
        metadata: draft.metadata,
        scope: draft.scope,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    let writes = environments::writes(&posted.caller.workspace, &environment, None);
    let mut outcome = Outcome::new(writes, environments::show(&environment));
    outcome.duplicate = Some(environments::name_taken(&environment.name));
    Ok(outcome)
}
