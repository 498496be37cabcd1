//! `GET /v1/sessions/{session_id}/threads`

use crate::{
    app::App,
    auth::Caller,
    body::PathIds,
    cursor::{self, Place},
    query::Query,
    reject::Result,
    sessions, threads,
};
use axum::{Json, extract::State};
use serde_json::{Value, json};

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Json<Value>> {
    let statuses = sessions::list::statuses(&query.many("statuses"))?;
    let limit = query.limit(1_000, 1_000)?;
    let page = query.one("page")?;
    query.finish()?;
    let (row, body) = sessions::find(&app, &caller.workspace, ids.get("session_id")).await?;
    let list = format!("/v1/sessions/{}/threads", row.id);
    let place: Option<Place> =
        page.as_deref().map(|text| cursor::decode(&list, text)).transpose()?;
    let found = app.parts.store.threads(&row.id).await?;
    let after = match &place {
        None => 0,
        Some(place) => found
            .iter()
            .position(|thread| thread.id.as_str() == place.id)
            .map_or(found.len(), |index| index + 1),
    };
    let wanted = |status| statuses.is_empty() || statuses.contains(&status);
    let mut rest = found[after..].iter().filter(|thread| wanted(thread.status));
    let shown: Vec<_> = rest.by_ref().take(limit).collect();
    let next = shown.last().filter(|_| rest.next().is_some()).map(|thread| {
        let place = Place {
            at: thread.created_at.as_micros(),
            id: thread.id.as_str().to_owned(),
            descending: false,
            back: false,
        };
        cursor::encode(&list, &place)
    });
    let now = app.now();
    let data: Vec<Value> = shown.iter().map(|thread| threads::show(thread, &body, now)).collect();
    Ok(Json(json!({ "data": data, "next_page": next })))
}
