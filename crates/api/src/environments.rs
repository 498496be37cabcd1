//! Environments.

pub(crate) mod archive;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod update;

use crate::{app::App, reject::Result};
use serde_json::Value;
use vaquero_store::{
    Document, Expect, StoreError, Write,
    document::{SYSTEM, WARM_POOL},
};
use vaquero_types::{
    ApiError, ErrorCode, WorkspaceId,
    environment::{Config, Environment},
};

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

/// What is to be written of an environment that was another `before`.
pub(crate) fn writes(
    workspace: &WorkspaceId,
    environment: &Environment,
    before: Option<(&Environment, Expect)>,
) -> Vec<Write> {
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
    let (before, expect) = before.unzip();
    let expect = expect.unwrap_or(Expect::Absent);
    let mut writes = vec![Write::PutDocument { document, expect }];
    match (before.is_some_and(is_kept_warm), is_kept_warm(environment)) {
        (false, true) => writes.push(keep_warm(workspace, environment)),
        (true, false) => writes.push(keep_cold(environment)),
        _ => {}
    }
    writes
}

/// Whether sandboxes are to be ready for its next session.
pub(crate) fn is_kept_warm(environment: &Environment) -> bool {
    let wanted = matches!(&environment.config, Config::Cloud(cloud) if cloud.warm_pool.is_some());
    wanted && environment.archived_at.is_none()
}

fn keep_warm(workspace: &WorkspaceId, environment: &Environment) -> Write {
    let document = Document {
        workspace: WorkspaceId::from_wire(SYSTEM),
        kind: WARM_POOL.to_owned(),
        id: environment.id.as_str().to_owned(),
        parent: Some(workspace.as_str().to_owned()),
        unique_key: None,
        created_at: environment.created_at,
        archived_at: None,
        revision: 0,
        body: "{}".to_owned(),
    };
    Write::PutDocument { document, expect: Expect::Any }
}

pub(crate) fn keep_cold(environment: &Environment) -> Write {
    Write::DeleteDocument {
        workspace: WorkspaceId::from_wire(SYSTEM),
        kind: WARM_POOL.to_owned(),
        id: environment.id.as_str().to_owned(),
        expect: Expect::Any,
    }
}

pub(crate) fn name_taken(name: &str) -> ApiError {
    let message = format!("an environment named `{name}` exists already in this workspace");
    ApiError::new(ErrorCode::Conflict, message)
}
