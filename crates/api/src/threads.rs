//! Threads of a session.

pub(crate) mod archive;
pub(crate) mod events;
pub(crate) mod list;
pub(crate) mod retrieve;
pub(crate) mod stream;

use crate::{app::App, reject::Result, sessions};
use serde_json::{Value, json};
use vaquero_store::SessionRow;
use vaquero_types::{
    ApiError, Timestamp, WorkspaceId, session::SessionBody, thread::Thread, usage::seconds,
};

/// A thread of a session of this workspace.
pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    session: &str,
    thread: &str,
) -> Result<(SessionRow, SessionBody, Thread)> {
    let (row, body) = sessions::find(app, workspace, session).await?;
    let threads = app.parts.store.threads(&row.id).await?;
    let found = threads.into_iter().find(|candidate| candidate.id.as_str() == thread);
    let found = found.ok_or_else(|| ApiError::not_found("thread", thread))?;
    Ok((row, body, found))
}

/// The thread as the API shows it. Its agent is the session's without what concerns only the session.
pub(crate) fn show(thread: &Thread, body: &SessionBody, now: Timestamp) -> Value {
    let active = thread.activity.active(now);
    let mut agent = json!(body.agent);
    if let Some(fields) = agent.as_object_mut() {
        fields.shift_remove("multiagent");
    }
    let end = thread.archived_at.unwrap_or(now);
    json!({
        "type": "session_thread",
        "id": thread.id,
        "session_id": thread.session,
        "parent_thread_id": thread.parent,
        "agent": agent,
        "status": thread.status,
        "stats": {
            "active_seconds": seconds(active),
            "duration_seconds": seconds(end.since(thread.created_at)),
            "startup_seconds": 0.0,
        },
        "usage": thread.usage.to_wire(active),
        "workflow_run_id": null,
        "created_at": thread.created_at,
        "updated_at": thread.updated_at,
        "archived_at": thread.archived_at,
    })
}
