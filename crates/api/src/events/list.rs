//! `GET /v1/sessions/{session_id}/events`

use crate::{
    app::App,
    auth::Caller,
    body::PathIds,
    cursor,
    query::{Bounds, Query},
    reject::{Reject, Result},
    sessions,
};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use vaquero_store::{EventQuery, Order, record::EventCursor};
use vaquero_types::{SessionId, ThreadId, Timestamp};

/// Most events on a page, and as many as there are unless the request says otherwise.
const MOST: usize = 1_000;

/// Where a page ended.
#[derive(Serialize, Deserialize)]
struct Place {
    cursor: EventCursor,
    descending: bool,
    /// When the last event of the page was processed; none if it is queued.
    at: Option<i64>,
}

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Response> {
    let types = query.many("types");
    let bounds = query.bounds("created_at", &["gt", "gte", "lt", "lte"])?;
    let order = query.order(Order::Ascending)?;
    let limit = query.limit(MOST, MOST)?;
    let page = query.one("page")?;
    query.finish()?;
    let (row, _) = sessions::find(&app, &caller.workspace, ids.get("session_id")).await?;
    let wanted = Wanted { session: row.id, thread: None, types, bounds, order, limit, page };
    show(&app, wanted).await
}

/// A request for a page of events.
pub(crate) struct Wanted {
    pub(crate) session: SessionId,
    pub(crate) thread: Option<ThreadId>,
    pub(crate) types: Vec<String>,
    pub(crate) bounds: Bounds,
    pub(crate) order: Order,
    pub(crate) limit: usize,
    pub(crate) page: Option<String>,
}

pub(crate) async fn show(app: &App, wanted: Wanted) -> Result<Response> {
    let list = match &wanted.thread {
        None => format!("/v1/sessions/{}/events", wanted.session),
        Some(thread) => format!("/v1/sessions/{}/threads/{thread}/events", wanted.session),
    };
    let place: Option<Place> =
        wanted.page.as_deref().map(|text| cursor::decode(&list, text)).transpose()?;
    if let Some(place) = &place {
        cursor::same_order(place.descending, wanted.order)?;
        if let Some(at) = place.at {
            wanted.bounds.admit(Timestamp::from_micros(at))?;
        }
    }
    let descending = wanted.order == Order::Descending;
    let query = EventQuery {
        session: wanted.session,
        thread: wanted.thread,
        types: wanted.types,
        after: wanted.bounds.after,
        from: wanted.bounds.from,
        before: wanted.bounds.before,
        until: wanted.bounds.until,
        descending,
        cursor: place.map(|place| place.cursor),
        limit: wanted.limit,
    };
    let page = app.parts.store.events(&query).await?;
    let next = page.next.map(|cursor| {
        let last = page.records.last();
        let at = last.filter(|_| cursor.queued == 0).map(|record| record.at.as_micros());
        cursor::encode(&list, &Place { cursor, descending, at })
    });
    let next = serde_json::to_string(&next).map_err(|_| {
        Reject(vaquero_types::ApiError::new(
            vaquero_types::ErrorCode::Internal,
            "internal server error",
        ))
    })?;
    let events: Vec<String> = page.records.iter().map(vaquero_store::Record::render).collect();
    let body = format!("{{\"data\":[{}],\"next_page\":{next}}}", events.join(","));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
