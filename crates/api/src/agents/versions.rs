//! `GET /v1/agents/{agent_id}/versions`

use crate::{
    agents,
    app::App,
    auth::Caller,
    body::PathIds,
    documents,
    query::{Bounds, Query},
    reject::Result,
};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let id = ids.get("agent_id");
    let page = documents::Page {
        list: format!("/v1/agents/{id}/versions"),
        kind: agents::VERSION_KIND,
        parent: Some(id.to_owned()),
        bounds: Bounds::default(),
        include_archived: true,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    agents::find(&app, &caller.workspace, id).await?;
    documents::page(&app, &caller.workspace, page).await
}
