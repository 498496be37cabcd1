//! `GET /v1/models`

use crate::{app::App, auth::Caller, query::Query, reject::Result};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use vaquero_types::ApiError;

pub(crate) async fn handler(
    State(app): State<App>,
    _caller: Caller,
    mut query: Query,
) -> Result<Json<Value>> {
    let (after, before) = (query.one("after_id")?, query.one("before_id")?);
    let limit = query.limit(20, 1_000)?;
    let lifecycles = query.many("lifecycle");
    query.finish()?;
    if after.is_some() && before.is_some() {
        return Err(ApiError::invalid("before_id: may not be given together with after_id").into());
    }
    let mut models = app.parts.models.all(app.now()).await;
    if !lifecycles.is_empty() {
        models.retain(|model| {
            let lifecycle = model.rest.get("lifecycle").and_then(Value::as_str);
            lifecycle.is_some_and(|lifecycle| lifecycles.iter().any(|wanted| wanted == lifecycle))
        });
    }
    let position = |name: &str, id: &str| {
        models
            .iter()
            .position(|model| model.id == id)
            .ok_or_else(|| ApiError::invalid(format!("{name}: there is no model `{id}`")))
    };
    let (start, end) = match (&after, &before) {
        (Some(id), _) => {
            let start = position("after_id", id)? + 1;
            (start, (start + limit).min(models.len()))
        }
        (None, Some(id)) => {
            let end = position("before_id", id)?;
            (end.saturating_sub(limit), end)
        }
        (None, None) => (0, limit.min(models.len())),
    };
    let has_more = if before.is_some() { start > 0 } else { end < models.len() };
    let data = &models[start..end];
    Ok(Json(json!({
        "data": data,
        "has_more": has_more,
        "first_id": data.first().map(|model| &model.id),
        "last_id": data.last().map(|model| &model.id),
    })))
}
