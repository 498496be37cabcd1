//! `POST /v1/sessions/stop_all` (an extension): interrupts every running session of the caller's workspace. The same for the command line.

use crate::{app::App, auth::Caller, body::Posted, reject::Result, sessions};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vaquero_core::admission;
use vaquero_store::{CommitError, Order, SessionQuery, Store, StoreError};
use vaquero_types::{Clock, IdGen, SessionId, WorkspaceId, event::ClientEvent, session::Status};

/// Sessions read at once.
const PAGE: usize = 100;
/// How often an interrupt is decided anew when others change the session.
const ATTEMPTS: usize = 32;

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    posted: Posted,
) -> Result<Json<Value>> {
    posted.fields()?.finish()?;
    let parts = &app.parts;
    let stopped =
        stop_all(parts.store.as_ref(), parts.clock.as_ref(), parts.ids.as_ref(), &caller.workspace)
            .await?;
    Ok(Json(json!({ "type": "sessions_stopped", "data": stopped })))
}

/// Interrupts every running session of a workspace; which they were.
pub async fn stop_all(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    workspace: &WorkspaceId,
) -> std::result::Result<Vec<SessionId>, StoreError> {
    let mut query = SessionQuery {
        workspace: workspace.clone(),
        agent: None,
        agent_version: None,
        statuses: vec![Status::Running, Status::Rescheduling],
        after: None,
        from: None,
        before: None,
        until: None,
        include_archived: false,
        order: Order::Ascending,
        cursor: None,
        limit: PAGE,
    };
    let mut stopped = Vec::new();
    loop {
        let page = store.sessions(&query).await?;
        query.cursor = page.sessions.last().map(|last| (last.created_at, last.id.clone()));
        for row in page.sessions {
            if interrupt(store, clock, ids, &row.id).await? {
                stopped.push(row.id);
            }
        }
        if !page.more {
            return Ok(stopped);
        }
    }
}

/// Interrupts a session if it is running.
async fn interrupt(
    store: &dyn Store,
    clock: &dyn Clock,
    ids: &dyn IdGen,
    session: &SessionId,
) -> std::result::Result<bool, StoreError> {
    for _ in 0..ATTEMPTS {
        let Some(row) = store.session(session).await? else { return Ok(false) };
        if !matches!(row.status, Status::Running | Status::Rescheduling) {
            return Ok(false);
        }
        let body = serde_json::from_str(&row.body)
            .map_err(|_| StoreError::Corrupt { what: format!("session {session}") })?;
        let standing = sessions::standing(&row, &body);
        let events = [ClientEvent::Interrupt { thread: None }];
        let Ok(admitted) = admission::admit(&standing, &events, &BTreeMap::new(), clock.now(), ids)
        else {
            return Ok(false);
        };
        match store.commit(vec![sessions::append(&row, admitted)], clock.now()).await {
            Ok(_) => return Ok(true),
            Err(CommitError::Store(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Err(StoreError::Backend(format!("{session} changes too quickly to be interrupted").into()))
}
