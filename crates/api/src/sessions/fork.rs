//! `POST /v1/sessions/{session_id}/fork` (an extension): a new session that begins with the log of another one up to an event, and with its files as they were then.

use crate::{
    app::App,
    body::{PathIds, Posted},
    change::Outcome,
    environments,
    reject::Result,
    sessions, vaults,
};
use axum::{extract::State, response::Response};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};
use vaquero_core::{fork, turn::Facts};
use vaquero_store::{
    Document, Expect, NewRecord, Record, RecordKind, Restored, SessionRow, StoreError, Write,
    document::CHECKPOINT,
};
use vaquero_types::{
    ApiError, EventId, SessionId, ThreadId, WorkspaceId,
    checkpoint::{Checkpointed, Source},
    sandbox::files_of,
    session::{SessionBody, Status, TITLE_MAX},
    usage::{Activity, Usage},
};

/// Bytes of records read at once.
const READ: usize = 1 << 20;
/// Most bytes of a log that is forked: all of it is held.
const LOG_MAX: usize = 256 << 20;

pub(crate) async fn handler(
    State(app): State<App>,
    ids: PathIds,
    posted: Posted,
) -> Result<Response> {
    app.change(posted, ids, decide).await
}

async fn decide(app: App, posted: Arc<Posted>, ids: PathIds) -> Result<Outcome> {
    let (app, workspace) = (&app, &posted.caller.workspace);
    let (source, mut body) = sessions::find(app, workspace, ids.get("session_id")).await?;
    let mut fields = posted.fields()?;
    let event = fields.string("event_id")?.map(EventId::from_wire);
    body.title = fields.text("title", 0, TITLE_MAX)?.or(body.title);
    body.metadata = fields.patch_metadata("metadata", &body.metadata, true)?;
    fields.finish()?;
    let mut writes = checks(app, workspace, &source, &body).await?;
    let mut records = log(app, &source).await?;
    if let Some(event) = &event {
        let taken = fork::cut(&records, event)
            .ok_or_else(|| ApiError::not_found("event", event.as_str()))?;
        records.truncate(taken);
    }
    let now = app.now();
    let (id, thread) = (SessionId::new(app.new_id()), ThreadId::new(app.new_id()));
    for name in fork::sandboxes(&records) {
        let from = SessionId::from_wire(files_of(source.id.as_str(), &name));
        let to = files_of(id.as_str(), &name);
        writes.push(files(app, workspace, &from, to, &records).await?);
    }
    let mut records = renamed(app, records, &source, &id, &thread);
    let facts = Facts {
        thread: thread.clone(),
        agent: body.agent.clone(),
        self_hosted: body.self_hosted,
        sandboxes: body.sandboxes.clone(),
        status: Status::Running,
        usage: Usage::default(),
        activity: Activity::default(),
    };
    if let Some(batch) = fork::rest(&records, facts, now, app.parts.ids.as_ref()) {
        let last = records.last().map_or(0, |record| record.seq);
        let added = batch.records.into_iter().zip(last + 1..);
        records.extend(added.map(|(new, seq)| Record { seq, at: now, new }));
    }
    let head = records.last().map_or(0, |record| record.seq);
    let by_client = |record: &&Record| {
        record.new.kind == RecordKind::Received || record.new.event_type.starts_with("user.")
    };
    let client_head = records.iter().rev().find(by_client).map_or(0, |record| record.seq);
    let environment = source.environment;
    let (fresh, thread) = sessions::fresh(workspace, environment, &body, id, thread, now);
    let row = SessionRow { head, client_head, ..fresh };
    let shown = sessions::show(&row, &body, now);
    let restored = Restored { row, threads: vec![thread], records, ready: false };
    writes.push(Write::RestoreSession(restored));
    Ok(Outcome::new(writes, shown))
}

/// What a new session would need as well: an environment that can be used, and open vaults.
async fn checks(
    app: &App,
    workspace: &WorkspaceId,
    source: &SessionRow,
    body: &SessionBody,
) -> Result<Vec<Write>> {
    let (document, environment) =
        environments::find(app, workspace, source.environment.as_str()).await?;
    let sandboxes = &app.parts.settings.sandboxes;
    sessions::create::check_environment(&environment, sandboxes, !body.vault_ids.is_empty())?;
    let mut found = vec![(environments::KIND, document)];
    for vault in &body.vault_ids {
        found.push((vaults::KIND, vaults::find_open(app, workspace, vault.as_str()).await?.0));
    }
    let checks = found.into_iter().map(|(kind, document)| Write::CheckDocument {
        workspace: workspace.clone(),
        kind: kind.to_owned(),
        id: document.id,
        expect: Expect::Revision(document.revision),
    });
    Ok(checks.collect())
}

/// The whole log, as far as its row knows it.
async fn log(app: &App, source: &SessionRow) -> Result<Vec<Record>> {
    let (mut records, mut size): (Vec<Record>, usize) = (Vec::new(), 0);
    loop {
        let seen = records.last().map_or(0, |record| record.seq);
        if seen >= source.head {
            break;
        }
        let page = app.parts.store.read(&source.id, seen, READ).await?;
        if page.is_empty() {
            return Err(StoreError::Corrupt { what: format!("log of {}", source.id) }.into());
        }
        size += page.iter().map(|record| record.new.body.len()).sum::<usize>();
        if size > LOG_MAX {
            let message = format!(
                "the session's log is larger than {} MB, which cannot be forked",
                LOG_MAX >> 20
            );
            return Err(ApiError::invalid(message).into());
        }
        records.extend(page);
    }
    records.retain(|record| record.seq <= source.head);
    Ok(records)
}

/// Says where the files of a sandbox of the new session are: at the checkpoint after the last call that its log knows.
async fn files(
    app: &App,
    workspace: &WorkspaceId,
    source: &SessionId,
    id: String,
    records: &[Record],
) -> Result<Write> {
    let calls = fork::settled(records);
    let found = app.parts.store.document(workspace, CHECKPOINT, source.as_str()).await?;
    let known: Checkpointed = match found {
        Some(document) => serde_json::from_str(&document.body)
            .map_err(|_| StoreError::Corrupt { what: format!("checkpoint of {source}") })?,
        None => Checkpointed::default(),
    };
    // What the source itself began with may be all there is, and in both logs the same calls have the same places.
    let older = known.sources.into_iter().map(|mut older| {
        older.calls.truncate(calls.len());
        older
    });
    let mut sources = vec![Source { session: source.clone(), calls: calls.clone() }];
    sources.extend(older);
    let checkpoint = Checkpointed { restore: true, sources, ..Checkpointed::default() };
    let document = Document {
        workspace: workspace.clone(),
        kind: CHECKPOINT.to_owned(),
        id,
        parent: Some(source.as_str().to_owned()),
        unique_key: None,
        created_at: app.now(),
        archived_at: None,
        revision: 0,
        body: serde_json::to_string(&checkpoint).expect("a checkpoint is plain data"),
    };
    Ok(Write::PutDocument { document, expect: Expect::Absent })
}

/// The records as another session's: events, threads and the session under new names, wherever they are named.
fn renamed(
    app: &App,
    records: Vec<Record>,
    source: &SessionRow,
    id: &SessionId,
    thread: &ThreadId,
) -> Vec<Record> {
    let mut names: HashMap<String, String> = HashMap::from([
        (source.id.as_str().to_owned(), id.as_str().to_owned()),
        (source.primary_thread.as_str().to_owned(), thread.as_str().to_owned()),
    ]);
    for record in &records {
        let name = record.new.event_id.as_str().to_owned();
        let new = || EventId::new(app.new_id()).as_str().to_owned();
        names.entry(name).or_insert_with(new);
    }
    let rename = |record: Record| -> Record {
        let NewRecord { kind, event_id, event_type, body, .. } = record.new;
        let body = match serde_json::from_str::<Value>(&body) {
            Ok(mut value) => {
                replace(&mut value, &names);
                value.to_string().into()
            }
            Err(_) => body,
        };
        let event_id = names.get(event_id.as_str()).map_or(event_id, EventId::from_wire);
        let new = NewRecord { kind, event_id, thread: thread.clone(), event_type, body };
        Record { new, ..record }
    };
    records.into_iter().map(rename).collect()
}

fn replace(value: &mut Value, names: &HashMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = names.get(text.as_str()) {
                text.clone_from(new);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, names)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
