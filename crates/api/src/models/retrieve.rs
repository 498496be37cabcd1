//! `GET /v1/models/{model_id}`

use crate::{app::App, auth::Caller, body::PathIds, query::Query, reject::Result};
use axum::{Json, extract::State};
use vaquero_model::ModelInfo;
use vaquero_types::ApiError;

pub(crate) async fn handler(
    State(app): State<App>,
    _caller: Caller,
    ids: PathIds,
    query: Query,
) -> Result<Json<ModelInfo>> {
    query.finish()?;
    let id = ids.get("model_id");
    let models = app.parts.models.all(app.now()).await;
    let model = models.into_iter().find(|model| model.id == id);
    Ok(Json(model.ok_or_else(|| ApiError::not_found("model", id))?))
}
