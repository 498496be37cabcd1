//! Environments.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod update;

use crate::{app::App, reject::Result};
use serde_json::Value;
use vaquero_store::{Document, Expect, StoreError, Write};
use vaquero_types::{ApiError, ErrorCode, WorkspaceId, environment::Environment};

pub(crate) const KIND: &str = vaquero_store::document::ENVIRONMENT;

pub(crate) fn show(environment: &Environment) -> Value {
    serde_json::to_value(environment).expect("an environment is plain data")
}

pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    id: &str,
) -> Result<(Document, Environment)> {
    let found = app.parts.store.document(workspace, KIND, id).await?;
    let document = found.ok_or_else(|| {
        ApiError::not_found("environment", id).with_error_code("environment_not_found")
    })?;
    let environment = serde_json::from_str(&document.body)
        .map_err(|_| StoreError::Corrupt { what: format!("environment {id}") })?;
    Ok((document, environment))
}

pub(crate) fn write(workspace: &WorkspaceId, environment: &Environment, expect: Expect) -> Write {
    let document = Document {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: environment.id.as_str().to_owned(),
        parent: None,
        unique_key: Some(environment.name.clone()),
        created_at: environment.created_at,
        archived_at: environment.archived_at,
        revision: 0,
        body: show(environment).to_string(),
    };
    Write::PutDocument { document, expect }
}

pub(crate) fn name_taken(name: &str) -> ApiError {
    let message = format!("an environment named `{name}` exists already in this workspace");
    ApiError::new(ErrorCode::Conflict, message)
}
