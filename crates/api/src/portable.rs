//! Workspaces and sessions as text that any server can read: one JSON object a line, documented in `docs/export-format.md`. API keys stay where they are.

use crate::{agents, credentials, environments, vaults};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io::{self, BufRead, Write as Output};
use vaquero_core::fork;
use vaquero_store::{
    CommitError, Document, DocumentQuery, Expect, NewRecord, Order, Record, RecordKind, Restored,
    SessionQuery, SessionRow, Store, StoreError, Write, document::CHECKPOINT,
};
use vaquero_types::{
    AgentId, Clock, EnvironmentId, EventId, SessionId, ThreadId, Timestamp, WorkspaceId,
    checkpoint::Checkpointed,
    gate::Gate,
    sandbox::files_of,
    session::Status,
    thread::Thread,
    usage::{Activity, Usage},
};

/// The version of the format.
pub const VERSION: u32 = 1;
/// Documents and sessions read at once.
const PAGE: usize = 100;
/// Bytes of records read at once.
const READ: usize = 1 << 20;
/// The longest line that is read back.
const LINE: u64 = 256 << 20;

/// What goes into an export. Environments first: sessions name them.
const KINDS: [&str; 5] =
    [environments::KIND, agents::KIND, agents::VERSION_KIND, vaults::KIND, credentials::KIND];

/// Why an export or import ended early.
#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    /// The file could not be written or read.
    #[error("the file cannot be used")]
    File(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to export.
    #[error("there is no session `{0}` in this workspace")]
    NoSession(String),
    /// The file is not what it should be.
    #[error("line {line}: {what}")]
    Format {
        /// Which line.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A name is taken.
    #[error(
        "line {line}: the name `{key}` is taken by another {kind} of this workspace; rename that one and import again (what is there already is skipped)"
    )]
    Taken {
        /// Which line.
        line: u64,
        /// The kind of both.
        kind: String,
        /// The name.
        key: String,
    },
    /// The store refused a commit.
    #[error("line {line}: the store refuses")]
    Refused {
        /// Which line.
        line: u64,
        /// Why.
        #[source]
        source: CommitError,
    },
}

/// How much went out or came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Agents, their versions, environments.
    pub documents: u64,
    /// Sessions.
    pub sessions: u64,
    /// Records of their logs.
    pub records: u64,
    /// What was there before the import.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    VaqueroExport(Header),
    Document(PortableDocument),
    Session(Box<PortableSession>),
    Record(PortableRecord),
    End(Counts),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    workspace: WorkspaceId,
    exported_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortableDocument {
    kind: String,
    id: String,
    parent: Option<String>,
    unique_key: Option<String>,
    created_at: Timestamp,
    archived_at: Option<Timestamp>,
    body: Box<RawValue>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortableSession {
    id: SessionId,
    status: Status,
    agent: AgentId,
    agent_version: u64,
    environment: EnvironmentId,
    primary_thread: ThreadId,
    created_at: Timestamp,
    updated_at: Timestamp,
    archived_at: Option<Timestamp>,
    /// The number of records that follow.
    head: u64,
    client_head: u64,
    gate: Gate,
    usage: Usage,
    activity: Activity,
    body: Box<RawValue>,
    threads: Vec<PortableThread>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortableThread {
    id: ThreadId,
    parent: Option<ThreadId>,
    status: Status,
    created_at: Timestamp,
    updated_at: Timestamp,
    archived_at: Option<Timestamp>,
    usage: Usage,
    activity: Activity,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortableRecord {
    seq: u64,
    at: Timestamp,
    kind: PortableKind,
    event_id: EventId,
    thread: ThreadId,
    event_type: String,
    body: Box<RawValue>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PortableKind {
    Event,
    Received,
    Transcript,
}

fn raw(text: &str, what: &str) -> Result<Box<RawValue>, StoreError> {
    RawValue::from_string(text.to_owned())
        .map_err(|_| StoreError::Corrupt { what: what.to_owned() })
}

/// Writes lines and counts them.
struct Writer<'a, W> {
    out: &'a mut W,
    counts: Counts,
}

impl<W: Output> Writer<'_, W> {
    fn line(&mut self, line: &Line) -> Result<(), PortableError> {
        serde_json::to_writer(&mut *self.out, line)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(PortableError::File)
    }

    fn document(&mut self, document: Document) -> Result<(), PortableError> {
        self.counts.documents += 1;
        let body = raw(&document.body, &document.id)?;
        let Document { kind, id, parent, unique_key, created_at, archived_at, .. } = document;
        let line = PortableDocument { kind, id, parent, unique_key, created_at, archived_at, body };
        self.line(&Line::Document(line))
    }
}

/// Writes a workspace, or one session of it with the agent and environment it needs.
pub async fn export(
    store: &dyn Store,
    clock: &dyn Clock,
    workspace: &WorkspaceId,
    session: Option<&SessionId>,
    out: &mut impl Output,
) -> Result<Counts, PortableError> {
    let mut writer = Writer { out, counts: Counts::default() };
    let header =
        Header { version: VERSION, workspace: workspace.clone(), exported_at: clock.now() };
    writer.line(&Line::VaqueroExport(header))?;
    if let Some(id) = session {
        let found = store.session(id).await?.filter(|row| row.workspace == *workspace);
        let row = found.ok_or_else(|| PortableError::NoSession(id.as_str().to_owned()))?;
        for (kind, id) in
            [(environments::KIND, row.environment.as_str()), (agents::KIND, row.agent.as_str())]
        {
            if let Some(document) = store.document(workspace, kind, id).await? {
                writer.document(document)?;
            }
        }
        documents(store, workspace, agents::VERSION_KIND, Some(row.agent.as_str()), &mut writer)
            .await?;
        write_session(store, row, &mut writer).await?;
    } else {
        for kind in KINDS {
            documents(store, workspace, kind, None, &mut writer).await?;
        }
        sessions(store, workspace, &mut writer).await?;
    }
    let counts = writer.counts;
    writer.line(&Line::End(counts))?;
    writer.out.flush().map_err(PortableError::File)?;
    Ok(counts)
}

async fn documents(
    store: &dyn Store,
    workspace: &WorkspaceId,
    kind: &str,
    parent: Option<&str>,
    writer: &mut Writer<'_, impl Output>,
) -> Result<(), PortableError> {
    let mut query = DocumentQuery {
        parent: parent.map(str::to_owned),
        include_archived: true,
        ..DocumentQuery::new(workspace.clone(), kind, PAGE)
    };
    loop {
        let page = store.documents(&query).await?;
        query.cursor = page.documents.last().map(|last| (last.created_at, last.id.clone()));
        for document in page.documents {
            writer.document(document)?;
        }
        if !page.more {
            return Ok(());
        }
    }
}

async fn sessions(
    store: &dyn Store,
    workspace: &WorkspaceId,
    writer: &mut Writer<'_, impl Output>,
) -> Result<(), PortableError> {
    let mut query = SessionQuery {
        workspace: workspace.clone(),
        agent: None,
        agent_version: None,
        statuses: Vec::new(),
        after: None,
        from: None,
        before: None,
        until: None,
        include_archived: true,
        order: Order::Ascending,
        cursor: None,
        limit: PAGE,
    };
    loop {
        let page = store.sessions(&query).await?;
        query.cursor = page.sessions.last().map(|last| (last.created_at, last.id.clone()));
        for row in page.sessions {
            write_session(store, row, writer).await?;
        }
        if !page.more {
            return Ok(());
        }
    }
}

async fn write_session(
    store: &dyn Store,
    row: SessionRow,
    writer: &mut Writer<'_, impl Output>,
) -> Result<(), PortableError> {
    let threads = store.threads(&row.id).await?.into_iter().map(|thread| PortableThread {
        id: thread.id,
        parent: thread.parent,
        status: thread.status,
        created_at: thread.created_at,
        updated_at: thread.updated_at,
        archived_at: thread.archived_at,
        usage: thread.usage,
        activity: thread.activity,
    });
    writer.counts.sessions += 1;
    writer.line(&Line::Session(Box::new(PortableSession {
        id: row.id.clone(),
        status: row.status,
        agent: row.agent,
        agent_version: row.agent_version,
        environment: row.environment,
        primary_thread: row.primary_thread,
        created_at: row.created_at,
        updated_at: row.updated_at,
        archived_at: row.archived_at,
        head: row.head,
        client_head: row.client_head,
        gate: row.gate,
        usage: row.usage,
        activity: row.activity,
        body: raw(&row.body, row.id.as_str())?,
        threads: threads.collect(),
    })))?;
    // The log may have grown since its row was read; what came later is not of this moment.
    let mut seen = 0;
    while seen < row.head {
        let records = store.read(&row.id, seen, READ).await?;
        let Some(last) = records.last() else {
            return Err(StoreError::Corrupt { what: format!("log of {}", row.id) }.into());
        };
        seen = last.seq;
        for record in records.into_iter().filter(|record| record.seq <= row.head) {
            writer.counts.records += 1;
            writer.line(&Line::Record(PortableRecord {
                seq: record.seq,
                at: record.at,
                kind: match record.new.kind {
                    RecordKind::Event => PortableKind::Event,
                    RecordKind::Received => PortableKind::Received,
                    RecordKind::Transcript => PortableKind::Transcript,
                },
                body: raw(&record.new.body, record.new.event_id.as_str())?,
                event_id: record.new.event_id,
                thread: record.new.thread,
                event_type: record.new.event_type,
            }))?;
        }
    }
    Ok(())
}

/// Reads lines and knows where it is.
struct Reader<R> {
    lines: R,
    number: u64,
}

impl<R: BufRead> Reader<R> {
    fn wrong(&self, what: impl Into<String>) -> PortableError {
        PortableError::Format { line: self.number, what: what.into() }
    }

    fn next(&mut self) -> Result<Line, PortableError> {
        self.number += 1;
        let mut line = Vec::new();
        let read = io::Read::take(&mut self.lines, LINE).read_until(b'\n', &mut line);
        if read.map_err(PortableError::File)? == 0 {
            return Err(self.wrong("the file ends before its last line: it is not whole"));
        }
        serde_json::from_slice(&line)
            .map_err(|error| self.wrong(format!("not a line of an export: {error}")))
    }
}

/// Reads an export back, into the workspace it is of or another. What is there already is skipped.
pub async fn import(
    store: &dyn Store,
    clock: &dyn Clock,
    workspace: Option<&WorkspaceId>,
    from: impl BufRead,
) -> Result<Counts, PortableError> {
    let mut reader = Reader { lines: from, number: 0 };
    let Line::VaqueroExport(header) = reader.next()? else {
        return Err(reader.wrong("this is not an export"));
    };
    if header.version > VERSION {
        return Err(reader.wrong(format!(
            "the format has version {}, this release knows {VERSION}; import with a newer one",
            header.version
        )));
    }
    let workspace = workspace.unwrap_or(&header.workspace);
    let mut counts = Counts::default();
    loop {
        match reader.next()? {
            Line::Document(document) => {
                let made = put(store, clock, workspace, document, &reader).await?;
                counts.documents += u64::from(made);
                counts.skipped += u64::from(!made);
            }
            Line::Session(session) => {
                let records = records(&session, &mut reader)?;
                let count = records.len() as u64;
                let made = restore(store, clock, workspace, *session, records, &reader).await?;
                counts.sessions += u64::from(made);
                counts.records += if made { count } else { 0 };
                counts.skipped += u64::from(!made);
            }
            Line::End(_) => return Ok(counts),
            Line::Record(_) => return Err(reader.wrong("a record of no session")),
            Line::VaqueroExport(_) => return Err(reader.wrong("a second beginning")),
        }
    }
}

async fn put<R: BufRead>(
    store: &dyn Store,
    clock: &dyn Clock,
    workspace: &WorkspaceId,
    document: PortableDocument,
    reader: &Reader<R>,
) -> Result<bool, PortableError> {
    let PortableDocument { kind, id, parent, unique_key, created_at, archived_at, body } = document;
    if !KINDS.contains(&kind.as_str()) {
        return Err(reader.wrong(format!("`{kind}` is nothing that this release imports")));
    }
    let document = Document {
        workspace: workspace.clone(),
        kind: kind.clone(),
        id,
        parent,
        unique_key,
        created_at,
        archived_at,
        revision: 0,
        body: body.get().to_owned(),
    };
    let write = Write::PutDocument { document, expect: Expect::Absent };
    match store.commit(vec![write], clock.now()).await {
        Ok(_) => Ok(true),
        Err(CommitError::Changed) => Ok(false),
        Err(CommitError::Duplicate { key }) => {
            Err(PortableError::Taken { line: reader.number, kind, key })
        }
        Err(source) => Err(PortableError::Refused { line: reader.number, source }),
    }
}

/// The records of a session, which follow its line.
fn records<R: BufRead>(
    session: &PortableSession,
    reader: &mut Reader<R>,
) -> Result<Vec<Record>, PortableError> {
    let mut records = Vec::new();
    for seq in 1..=session.head {
        let Line::Record(record) = reader.next()? else {
            return Err(reader.wrong(format!("record {seq} of {} is missing", session.id)));
        };
        let later = records.last().is_none_or(|last: &Record| record.at >= last.at);
        if record.seq != seq || !later {
            return Err(reader.wrong(format!("record {seq} of {} is out of order", session.id)));
        }
        let kind = match record.kind {
            PortableKind::Event => RecordKind::Event,
            PortableKind::Received => RecordKind::Received,
            PortableKind::Transcript => RecordKind::Transcript,
        };
        let PortableRecord { at, event_id, thread, event_type, body, .. } = record;
        let new = NewRecord { kind, event_id, thread, event_type, body: body.get().into() };
        records.push(Record { seq, at, new });
    }
    Ok(records)
}

async fn restore<R: BufRead>(
    store: &dyn Store,
    clock: &dyn Clock,
    workspace: &WorkspaceId,
    session: PortableSession,
    records: Vec<Record>,
    reader: &Reader<R>,
) -> Result<bool, PortableError> {
    let owner = session.id.clone();
    let threads = session.threads.into_iter().map(|thread| Thread {
        id: thread.id,
        session: owner.clone(),
        parent: thread.parent,
        status: thread.status,
        created_at: thread.created_at,
        updated_at: thread.updated_at,
        archived_at: thread.archived_at,
        usage: thread.usage,
        activity: thread.activity,
    });
    let had = fork::sandboxes(&records);
    let ready = matches!(session.status, Status::Running | Status::Rescheduling);
    let id = session.id.clone();
    let restored = Restored {
        row: SessionRow {
            id: session.id,
            workspace: workspace.clone(),
            status: session.status,
            agent: session.agent,
            agent_version: session.agent_version,
            environment: session.environment,
            primary_thread: session.primary_thread,
            created_at: session.created_at,
            updated_at: session.updated_at,
            archived_at: session.archived_at,
            head: session.head,
            client_head: session.client_head,
            revision: 1,
            epoch: 0,
            gate: session.gate,
            usage: session.usage,
            activity: session.activity,
            body: session.body.get().to_owned(),
        },
        threads: threads.collect(),
        records,
        ready,
    };
    let mut writes = vec![Write::RestoreSession(restored)];
    writes.extend(had.iter().map(|name| Write::PutDocument {
        document: left_behind(workspace, files_of(id.as_str(), name), clock.now()),
        expect: Expect::Any,
    }));
    match store.commit(writes, clock.now()).await {
        Ok(_) => Ok(true),
        Err(CommitError::Changed) => Ok(false),
        Err(source) => Err(PortableError::Refused { line: reader.number, source }),
    }
}

/// Says that the files of a session's sandbox did not come along: the next sandbox's first result tells the model.
fn left_behind(workspace: &WorkspaceId, files: String, now: Timestamp) -> Document {
    Document {
        workspace: workspace.clone(),
        kind: CHECKPOINT.to_owned(),
        id: files,
        parent: None,
        unique_key: None,
        created_at: now,
        archived_at: None,
        revision: 0,
        body: serde_json::to_string(&Checkpointed { restore: true, ..Checkpointed::default() })
            .unwrap_or_default(),
    }
}
