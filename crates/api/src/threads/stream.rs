//! `GET /v1/sessions/{session_id}/threads/{thread_id}/stream`

use crate::{
    app::App, auth::Caller, body::PathIds, events::stream::open, query::Query, reject::Result,
    threads,
};
use axum::{extract::State, http::HeaderMap, response::Response};

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    headers: HeaderMap,
    query: Query,
) -> Result<Response> {
    let (session, thread) = (ids.get("session_id"), ids.get("thread_id"));
    let (row, _, thread) = threads::find(&app, &caller.workspace, session, thread).await?;
    open(&app, row.id, Some(thread.id), &headers, query).await
}
