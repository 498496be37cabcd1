//! `GET /v1/sessions/{session_id}/threads/{thread_id}/events`

use crate::{
    app::App,
    auth::Caller,
    body::PathIds,
    events::list::{Wanted, show},
    query::{Bounds, Query},
    reject::Result,
    threads,
};
use axum::{extract::State, response::Response};
use vaquero_store::Order;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    mut query: Query,
) -> Result<Response> {
    let limit = query.limit(1_000, 1_000)?;
    let page = query.one("page")?;
    query.finish()?;
    let (session, thread) = (ids.get("session_id"), ids.get("thread_id"));
    let (row, _, thread) = threads::find(&app, &caller.workspace, session, thread).await?;
    let wanted = Wanted {
        session: row.id,
        thread: Some(thread.id),
        types: Vec::new(),
        bounds: Bounds::default(),
        order: Order::Ascending,
        limit,
        page,
    };
    show(&app, wanted).await
}
