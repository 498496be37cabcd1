//! `GET /v1/vaults`

use crate::{
    app::App,
    auth::Caller,
    documents,
    query::{Bounds, Query},
    reject::Result,
    vaults,
};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>> {
    let page = documents::Page {
        list: "/v1/vaults".to_owned(),
        kind: vaults::KIND,
        parent: None,
        bounds: Bounds::default(),
        include_archived: query.flag("include_archived")?,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    documents::page(&app, &caller.workspace, page).await
}
