//! The work queues of self-hosted environments: one item for each session that has something to do and no worker.

pub(crate) mod ack;
pub(crate) mod heartbeat;
pub(crate) mod list;
pub(crate) mod poll;
pub(crate) mod retrieve;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod update;

use crate::{app::App, environments, keys, reject::Result, scope::WorkToken};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use vaquero_core::queue;
use vaquero_store::{Document, DocumentQuery, Expect, SessionRow, StoreError, Write};
use vaquero_types::{
    ApiError, EnvironmentId, ErrorCode, Timestamp, WorkId, WorkspaceId,
    environment::{Config, Environment},
    session::SessionBody,
    work::KeptWork,
};

pub(crate) const KIND: &str = "work";
/// Items read at once.
const PAGE: usize = 200;

/// When each worker of an environment last asked for work, as far as this server was asked.
#[derive(Debug, Default)]
pub(crate) struct Pollers(Mutex<HashMap<EnvironmentId, HashMap<String, Timestamp>>>);

impl Pollers {
    /// How long a worker counts.
    const FRESH: Duration = Duration::from_secs(30);
    /// Most workers of an environment that are counted.
    const MOST: usize = 10_000;

    fn seen(&self, environment: &EnvironmentId, worker: String, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = all.entry(environment.clone()).or_default();
        workers.retain(|_, at| now.since(*at) < Self::FRESH);
        if workers.len() < Self::MOST {
            workers.insert(worker, now);
        }
    }

    fn count(&self, environment: &EnvironmentId, now: Timestamp) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: &&Timestamp| now.since(**at) < Self::FRESH;
        all.get(environment).map_or(0, |workers| workers.values().filter(fresh).count())
    }
}

pub(crate) fn show(kept: &KeptWork) -> Value {
    serde_json::to_value(&kept.work).expect("an item is plain data")
}

fn decode(document: &Document) -> std::result::Result<KeptWork, StoreError> {
    serde_json::from_str(&document.body)
        .map_err(|_| StoreError::Corrupt { what: format!("work {}", document.id) })
}

/// An environment that has a queue.
async fn environment(app: &App, workspace: &WorkspaceId, id: &str) -> Result<Environment> {
    let (_, environment) = environments::find(app, workspace, id).await?;
    if environment.config != Config::SelfHosted {
        let message =
            format!("environment `{id}` is not self_hosted: this server runs its tools itself");
        return Err(ApiError::invalid(message).into());
    }
    Ok(environment)
}

/// An item, by its own id and its environment's.
pub(crate) async fn find(
    app: &App,
    workspace: &WorkspaceId,
    environment: &str,
    id: &str,
) -> Result<(Document, KeptWork)> {
    let found = app.parts.store.document(workspace, KIND, id).await?;
    let found = found.filter(|document| document.parent.as_deref() == Some(environment));
    let document = found.ok_or_else(|| ApiError::not_found("work", id))?;
    let kept = decode(&document)?;
    Ok((document, kept))
}

/// All items of an environment that are not over, the oldest first.
async fn open(
    app: &App,
    workspace: &WorkspaceId,
    environment: &EnvironmentId,
) -> Result<Vec<(Document, KeptWork)>> {
    let mut query = DocumentQuery {
        parent: Some(environment.as_str().to_owned()),
        ..DocumentQuery::new(workspace.clone(), KIND, PAGE)
    };
    let mut all = Vec::new();
    loop {
        let page = app.parts.store.documents(&query).await?;
        query.cursor = page.documents.last().map(|last| (last.created_at, last.id.clone()));
        for document in page.documents {
            let kept = decode(&document)?;
            all.push((document, kept));
        }
        if !page.more {
            return Ok(all);
        }
    }
}

pub(crate) fn write(workspace: &WorkspaceId, kept: &KeptWork, expect: Expect) -> Write {
    let work = &kept.work;
    let document = Document {
        workspace: workspace.clone(),
        kind: KIND.to_owned(),
        id: work.id.as_str().to_owned(),
        parent: Some(work.environment_id.as_str().to_owned()),
        // A session has one worker.
        unique_key: queue::serves(work.state).then(|| work.data.session().as_str().to_owned()),
        created_at: work.created_at,
        archived_at: work.stopped_at,
        revision: 0,
        body: serde_json::to_string(kept).expect("an item is plain data"),
    };
    Write::PutDocument { document, expect }
}

/// The item that brings a worker to a session with something to do; none if one is on its way or there.
pub(crate) async fn wanted(
    app: &App,
    row: &SessionRow,
    body: &SessionBody,
) -> Result<Option<Write>> {
    if !body.self_hosted {
        return Ok(None);
    }
    let there =
        app.parts.store.document_by_key(&row.workspace, KIND, row.id.as_str()).await?.is_some();
    if there {
        return Ok(None);
    }
    let (id, now) = (WorkId::new(app.new_id()), app.now());
    let lease = app.parts.settings.work_lease;
    let kept = queue::queued(id, row.environment.clone(), row.id.clone(), lease, now);
    Ok(Some(write(&row.workspace, &kept, Expect::Absent)))
}

/// Two requests that wake the same session at the same moment.
pub(crate) fn changed() -> ApiError {
    ApiError::new(ErrorCode::Overloaded, "the session is being changed by others; try again")
}

/// Removes the token of an item that is over, or another worker's now.
fn without_token(kept: &KeptWork) -> Write {
    keys::forget_token(&WorkToken::id_of(&kept.work.id))
}
