//! `GET /v1/environments/{environment_id}/work/poll`: hands out the next item, or waits a moment for one.

use crate::{
    app::App, auth::Caller, body::PathIds, keys, query::Query, reject::Result, scope::WorkToken,
    work,
};
use axum::{Json, extract::State, http::HeaderMap};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use vaquero_core::queue;
use vaquero_store::{CommitError, Document, Expect};
use vaquero_types::{
    ApiError, ErrorCode, Timestamp, WorkspaceId,
    session::Status,
    work::{KeptWork, WorkState},
};

/// Longest wait, in milliseconds.
const BLOCK_MAX: u64 = 999;
/// How often a poll that waits looks again.
const AGAIN: Duration = Duration::from_millis(100);

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    ids: PathIds,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Json<Value>> {
    let block = query.number("block_ms")?.unwrap_or(0);
    if block > BLOCK_MAX {
        return Err(ApiError::invalid(format!("block_ms: at most {BLOCK_MAX}")).into());
    }
    let reclaim = query.number("reclaim_older_than_ms")?.map(Duration::from_millis);
    query.finish()?;
    let workspace = &caller.workspace;
    let environment = work::environment(&app, workspace, ids.get("environment_id")).await?;
    let worker = headers.get("anthropic-worker-id").and_then(|id| id.to_str().ok());
    app.pollers.seen(&environment.id, worker.unwrap_or("unnamed").to_owned(), app.now());
    let until = Instant::now() + Duration::from_millis(block);
    loop {
        let looked = Instant::now();
        for (document, kept) in work::open(&app, workspace, &environment.id).await? {
            let now = app.now();
            if queue::is_abandoned(&kept, now) {
                end(&app, workspace, &document, kept, now).await?;
            } else if queue::waits(&kept, reclaim.unwrap_or(queue::RECLAIM), now)
                && let Some(handed) = claim(&app, workspace, &document, kept, now).await?
            {
                return Ok(Json(handed));
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || app.parts.drain.is_cancelled() {
            return Ok(Json(Value::Null));
        }
        // Looking at a long queue takes its time, and must not become all that the server does.
        tokio::time::sleep(left.min(AGAIN.max(looked.elapsed() * 5))).await;
    }
}

/// The item with a fresh token for its worker; none if another worker was faster, or if it is of no use any more.
async fn claim(
    app: &App,
    workspace: &WorkspaceId,
    document: &Document,
    mut kept: KeptWork,
    now: Timestamp,
) -> Result<Option<Value>> {
    let session = app.parts.store.session(kept.work.data.session()).await?;
    let over = |row: &vaquero_store::SessionRow| {
        row.archived_at.is_some() || row.status == Status::Terminated
    };
    if session.as_ref().is_none_or(over) {
        end(app, workspace, document, kept, now).await?;
        return Ok(None);
    }
    queue::hand_out(&mut kept, now);
    let token = keys::random_token().map_err(|error| {
        tracing::error!(%error, "no token for a worker");
        ApiError::new(ErrorCode::Internal, "internal server error")
    })?;
    let record = WorkToken {
        workspace: workspace.clone(),
        environment: kept.work.environment_id.clone(),
        work: kept.work.id.clone(),
        session: kept.work.data.session().clone(),
    };
    let writes = vec![
        work::write(workspace, &kept, Expect::Revision(document.revision)),
        keys::put_token(&record, &token, now),
    ];
    if !won(app.parts.store.commit(writes, now).await)? {
        return Ok(None);
    }
    // The worker before this one is a stranger from now on.
    app.keys.clear();
    let secret = URL_SAFE_NO_PAD.encode(json!({ "sessions_token": token }).to_string());
    kept.work.secret = Some(secret);
    Ok(Some(work::show(&kept)))
}

/// Nobody is there to serve it, or to be served.
async fn end(
    app: &App,
    workspace: &WorkspaceId,
    document: &Document,
    mut kept: KeptWork,
    now: Timestamp,
) -> Result<()> {
    kept.work.state = WorkState::Stopped;
    kept.work.stopped_at = Some(now);
    let writes = vec![
        work::write(workspace, &kept, Expect::Revision(document.revision)),
        work::without_token(&kept),
    ];
    won(app.parts.store.commit(writes, now).await)?;
    Ok(())
}

/// Whether nobody else was faster.
fn won<T>(committed: std::result::Result<T, CommitError>) -> Result<bool> {
    match committed {
        Ok(_) => Ok(true),
        Err(CommitError::Changed | CommitError::NotFound | CommitError::Duplicate { .. }) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
