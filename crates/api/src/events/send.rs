//! `POST /v1/sessions/{session_id}/events`

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::{Outcome, Reply},
    reject::Result,
    sessions, work,
};
use axum::{extract::State, response::Response};
use std::collections::BTreeMap;
use std::sync::Arc;
use vaquero_core::admission::{self, Past};
use vaquero_store::SessionRow;
use vaquero_types::{ApiError, EventId, event::ClientEvent};

/// Most events in one request.
const MOST: usize = 1_000;

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

/// The logged events of calls that are answered but do not wait.
async fn past(
    app: &App,
    row: &SessionRow,
    events: &[ClientEvent],
) -> Result<BTreeMap<EventId, Past>> {
    let mut past = BTreeMap::new();
    for call in events.iter().filter_map(ClientEvent::answers) {
        if row.gate.find(call).is_none()
            && let Some(record) = app.parts.store.event(&row.id, call).await?
        {
            let body = serde_json::from_str(&record.new.body).unwrap_or_default();
            past.insert(call.clone(), Past { event_type: record.new.event_type, body });
        }
    }
    Ok(past)
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let mut fields = posted.fields()?;
    let events = fields.list("events", MOST, ClientEvent::decode)?;
    let events = events.ok_or_else(|| fields.invalid("events", "field required"))?;
    fields.finish()?;
    if events.is_empty() {
        return Err(ApiError::invalid("events: at least one event is required").into());
    }
    let workspace = &posted.caller.workspace;
    let (row, body) = sessions::find(&app, workspace, ids.get("session_id")).await?;
    let past = past(&app, &row, &events).await?;
    let standing = sessions::standing(&row, &body);
    let admitted = admission::admit(&standing, &events, &past, app.now(), app.parts.ids.as_ref())?;
    let reply = Reply::Events(row.id.clone(), admitted.ids.clone());
    let work = if admitted.ready { work::wanted(&app, &row, &body).await? } else { None };
    let writes = std::iter::once(sessions::append(&row, admitted)).chain(work).collect();
    Ok(Outcome { writes, reply, duplicate: Some(work::changed()) })
}
