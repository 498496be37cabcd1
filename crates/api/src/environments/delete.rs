//! `DELETE /v1/environments/{environment_id}`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    environments,
    reject::Result,
};
use axum::{extract::State, response::Response};
use serde_json::json;
use std::sync::Arc;
use vaquero_store::{Expect, Write};

/// Sessions that run in it go on: they keep what they took from it.
pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let workspace = &posted.caller.workspace;
    let (document, environment) =
        environments::find(&app, workspace, ids.get("environment_id")).await?;
    let mut writes = vec![Write::DeleteDocument {
        workspace: workspace.clone(),
        kind: environments::KIND.to_owned(),
        id: document.id,
        expect: Expect::Revision(document.revision),
    }];
    if environments::is_kept_warm(&environment) {
        writes.push(environments::keep_cold(&environment));
    }
    let body = json!({ "id": environment.id, "type": "environment_deleted" });
    Ok(Outcome::new(writes, body))
}
