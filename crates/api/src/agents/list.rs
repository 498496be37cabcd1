//! `GET /v1/agents`

use crate::{agents, app::App, auth::Caller, documents, query::Query, reject::Result};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>> {
    let page = documents::Page {
        list: "/v1/agents".to_owned(),
        kind: agents::KIND,
        parent: None,
        bounds: query.bounds("created_at", &["gte", "lte"])?,
        include_archived: query.flag("include_archived")?,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    documents::page(&app, &caller.workspace, page).await
}
