//! `GET /v1/environments`

use crate::{
    app::App,
    auth::Caller,
    documents, environments,
    query::{Bounds, Query},
    reject::Result,
};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>> {
    let page = documents::Page {
        list: "/v1/environments".to_owned(),
        kind: environments::KIND,
        parent: None,
        bounds: Bounds::default(),
        include_archived: query.flag("include_archived")?,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    documents::page(&app, &caller.workspace, page).await
}
