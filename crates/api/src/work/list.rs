//! `GET /v1/environments/{environment_id}/work`

use crate::{
    app::App,
    auth::Caller,
    body::PathIds,
    documents,
    query::{Bounds, Query},
    reject::Result,
    work,
};
use axum::{Json, extract::State};
use serde_json::Value;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let id = ids.get("environment_id");
    let environment = work::environment(&app, &caller.workspace, id).await?;
    let page = documents::Page {
        list: format!("/v1/environments/{}/work", environment.id),
        kind: work::KIND,
        parent: Some(environment.id.as_str().to_owned()),
        bounds: Bounds::default(),
        include_archived: true,
        limit: query.limit(20, 100)?,
        cursor: query.one("page")?,
    };
    query.finish()?;
    let Json(mut page) = documents::page(&app, &caller.workspace, page).await?;
    for item in page["data"].as_array_mut().into_iter().flatten() {
        if let Some(item) = item.as_object_mut() {
            item.remove("lease");
        }
    }
    Ok(Json(page))
}
