//! `GET /v1/vaults/{vault_id}/credentials`

use crate::{
    app::App,
    auth::Caller,
    body::PathIds,
    credentials, documents,
    query::{Bounds, Query},
    reject::Result,
    vaults,
};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let (_, vault) = vaults::find(&app, &caller.workspace, ids.get("vault_id")).await?;
    let page = documents::Page {
        list: format!("/v1/vaults/{}/credentials", vault.id),
        kind: credentials::KIND,
        parent: Some(vault.id.as_str().to_owned()),
        bounds: Bounds::default(),
        include_archived: query.flag("include_archived")?,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    documents::page(&app, &caller.workspace, page).await
}
