//! Checkpoints: the workspace of a session, kept in the blob store so that it can go on elsewhere when its machine is gone. Taken in the background after calls that may
//! have changed it; only what is not there yet is stored. A document says whose hands hold the workspace, in which generation, and what the newest checkpoint is: whoever
//! writes it must have read it, and must not be of an older generation.

mod pieces;

use lru::LruCache;
use pieces::Known;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vaquero_blob::{BlobError, Blobs};
use vaquero_sandbox::{Fence, Piece, Sandbox, SandboxError};
use vaquero_store::{
    CommitError, Document, DocumentQuery, EventQuery, Expect, SharedStore, StoreError, WorkerName,
    Write, document::CHECKPOINT,
};
use vaquero_types::{
    Clock, EventId, SessionId, Timestamp, WorkspaceId, checkpoint::Source, sandbox::owner_of,
};

/// How long after a call its workspace is packed; calls that follow by then share the checkpoint.
const DEBOUNCE: Duration = Duration::from_millis(700);
/// Sessions whose state is remembered; of others it is read again.
const WHOLE: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");
const KNOWN: NonZeroUsize = NonZeroUsize::new(512).expect("it is not zero");
/// How often packing begins anew because files change under it.
const ATTEMPTS: u32 = 4;
/// How long a call waits for the checkpoint of what came before it.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Tools that leave the workspace as it is.
const READERS: [&str; 3] = ["read", "glob", "grep"];

/// Why a workspace could not be kept or brought back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// A newer generation holds the workspace.
    #[error("a newer sandbox holds the workspace")]
    Superseded,
    /// Files changed while they were read, again and again.
    #[error("files change faster than they can be read")]
    Restless,
    /// A stored piece is not what its name says, or cannot be read.
    #[error("a piece of the checkpoint is damaged: {0}")]
    Damaged(String),
    /// More than a checkpoint may hold.
    #[error("the workspace is larger than a checkpoint may be")]
    TooLarge,
    #[error("the sandbox failed")]
    Sandbox(#[from] SandboxError),
    #[error("the blob store failed")]
    Blob(#[from] BlobError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the checkpoint could not be written down")]
    Commit(#[source] CommitError),
}

/// What is written down of a workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    /// The sandbox generation that holds the workspace.
    generation: u64,
    /// The worker it is with.
    holder: WorkerName,
    /// The workspace is still to be brought to the holder.
    #[serde(default)]
    restore: bool,
    /// The newest checkpoint.
    #[serde(default)]
    kept: Option<Kept>,
    /// What a fork began with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sources: Vec<Source>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    pages: Vec<Piece>,
    at: Timestamp,
    /// The newest call that was over when it was taken.
    covers: Option<EventId>,
}

/// A checkpoint with the revision it was read at.
struct Read {
    revision: Option<u64>,
    checkpoint: Checkpoint,
}

/// A workspace that has to be brought here before its sandbox is used.
#[derive(Clone, Debug)]
pub(crate) struct Restore {
    kept: Option<Kept>,
    /// The session is a fork that has no checkpoint of its own yet.
    sources: Vec<Source>,
}

/// A session with calls that no checkpoint holds yet.
#[derive(Clone)]
pub(crate) struct Dirty {
    pub(crate) workspace: WorkspaceId,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    pub(crate) epoch: u64,
    /// The call that is over.
    pub(crate) covers: EventId,
}

/// A task that is at work on a session.
#[derive(Clone)]
struct Busy {
    hurry: Arc<Notify>,
    /// Cancelled when it is done.
    done: CancellationToken,
}

/// Keeps and brings back workspaces.
pub struct Checkpoints {
    store: SharedStore,
    /// None: workspaces are not kept, and what is lost is only said.
    blobs: Option<Blobs>,
    clock: Arc<dyn Clock>,
    name: WorkerName,
    dirty: Mutex<HashMap<SessionId, Dirty>>,
    /// Sessions that a task is at work on, and how to have it work at once.
    busy: Mutex<HashMap<SessionId, Busy>>,
    /// Sessions whose workspace is known to be whole here.
    whole: Mutex<LruCache<SessionId, ()>>,
    known: Mutex<LruCache<SessionId, Known>>,
    tasks: TaskTracker,
    hurry: CancellationToken,
    /// Checkpoints of a session that are kept for forks.
    moments_kept: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checkpoints {
    /// For a worker of this name.
    pub fn new(
        store: SharedStore,
        blobs: Option<Blobs>,
        clock: Arc<dyn Clock>,
        name: WorkerName,
        moments_kept: usize,
    ) -> Self {
        Self {
            store,
            blobs,
            clock,
            name,
            dirty: Mutex::default(),
            busy: Mutex::default(),
            whole: Mutex::new(LruCache::new(WHOLE)),
            known: Mutex::new(LruCache::new(KNOWN)),
            tasks: TaskTracker::new(),
            hurry: CancellationToken::new(),
            moments_kept,
        }
    }

    async fn read(&self, workspace: &WorkspaceId, session: &SessionId) -> Result<Read, StoreError> {
        let document = self.store.document(workspace, CHECKPOINT, session.as_str()).await?;
        let Some(document) = document else {
            return Ok(Read { revision: None, checkpoint: Checkpoint::default() });
        };
        let checkpoint = serde_json::from_str(&document.body)
            .map_err(|_| StoreError::Corrupt { what: format!("checkpoint of {session}") })?;
        Ok(Read { revision: Some(document.revision), checkpoint })
    }

    fn write(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        revision: Option<u64>,
        checkpoint: &Checkpoint,
    ) -> Write {
        let document = Document {
            workspace: workspace.clone(),
            kind: CHECKPOINT.to_owned(),
            id: session.as_str().to_owned(),
            // By which a session's own files are kept for those that were forked from it.
            parent: checkpoint.sources.first().map(|source| source.session.as_str().to_owned()),
            unique_key: None,
            created_at: self.clock.now(),
            archived_at: None,
            revision: 0,
            body: serde_json::to_string(checkpoint).unwrap_or_default(),
        };
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        Write::PutDocument { document, expect }
    }

    /// What is to be written together with a new generation, and what is to be brought here for it. `here`: the session has files on this machine.
    pub(crate) async fn begin(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        generation: u64,
        here: bool,
    ) -> Result<(Write, Option<Restore>), StoreError> {
        let Read { revision, mut checkpoint } = self.read(workspace, session).await?;
        let known = revision.is_some();
        let restore = known && (checkpoint.holder != self.name || checkpoint.restore || !here);
        checkpoint.generation = generation;
        checkpoint.holder.clone_from(&self.name);
        checkpoint.restore = restore;
        let write = self.write(workspace, session, revision, &checkpoint);
        lock(&self.whole).pop(session);
        let Checkpoint { kept, sources, .. } = checkpoint;
        Ok((write, restore.then_some(Restore { kept, sources })))
    }

    /// The first sandbox of a session could not be made, and there are no files: nothing is lost with it, so nothing is to be brought back for the next.
    pub(crate) async fn never_made(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        generation: u64,
    ) -> Result<(), StoreError> {
        let Read { revision, checkpoint } = self.read(workspace, session).await?;
        let Checkpoint { kept, sources, restore, .. } = &checkpoint;
        let (Some(revision), None, false) = (revision, kept, *restore) else { return Ok(()) };
        let ours = checkpoint.holder == self.name && checkpoint.generation == generation;
        if !ours || !sources.is_empty() {
            return Ok(());
        }
        let forget = Write::DeleteDocument {
            workspace: workspace.clone(),
            kind: CHECKPOINT.to_owned(),
            id: session.as_str().to_owned(),
            expect: Expect::Revision(revision),
        };
        match self.store.commit(vec![forget], self.clock.now()).await {
            Err(CommitError::Store(error)) => Err(error),
            // Another brain has it by now.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether the workspace here is all there: bringing it may have been cut short.
    pub(crate) async fn is_whole(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
    ) -> Result<bool, StoreError> {
        if lock(&self.whole).contains(session) {
            return Ok(true);
        }
        let read = self.read(workspace, session).await?;
        let whole = read.revision.is_none()
            || (read.checkpoint.holder == self.name && !read.checkpoint.restore);
        if whole {
            lock(&self.whole).put(session.clone(), ());
        }
        Ok(whole)
    }

    /// Brings a workspace into a fresh sandbox; what the model is to know of it.
    pub(crate) async fn restore(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        restore: Restore,
        sandbox: &dyn Sandbox,
        fence: Fence,
    ) -> Result<String, CheckpointError> {
        let told = match &restore.kept {
            None if !restore.sources.is_empty() => {
                let told = self.restore_fork(workspace, &restore.sources, sandbox, fence).await?;
                self.settle(workspace, session, fence.generation).await?;
                return Ok(told);
            }
            None => "There is no checkpoint of /workspace: its files are lost.".to_owned(),
            Some(kept) => {
                match self.unpack(workspace, session, &kept.pages, sandbox, fence).await {
                    Ok(()) => {
                        let last = self.last_result(session).await?;
                        let complete = last.is_none() || last == kept.covers;
                        let what = if complete {
                            "everything up to the last finished call is there"
                        } else {
                            "changes made after that are lost"
                        };
                        format!("/workspace is as of its checkpoint of {}: {what}.", kept.at)
                    }
                    Err(
                        error @ (CheckpointError::Damaged(_)
                        | CheckpointError::Blob(BlobError::NotFound(_))),
                    ) => {
                        tracing::error!(%session, %error, "a checkpoint is damaged");
                        "The checkpoint of /workspace is damaged: what could be read of it is there, the rest is lost.".to_owned()
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.settle(workspace, session, fence.generation).await?;
        Ok(format!(
            "The machine that held this session's sandbox is gone. {told} Running programs and everything outside /workspace are gone."
        ))
    }

    /// Brings what a fork began with into its first sandbox.
    async fn restore_fork(
        &self,
        workspace: &WorkspaceId,
        sources: &[Source],
        sandbox: &dyn Sandbox,
        fence: Fence,
    ) -> Result<String, CheckpointError> {
        const FORKED: &str =
            "This session was forked from another one, and has a sandbox of its own:";
        for source in sources {
            self.caught_up(&source.session).await;
            let Some((moment, behind)) = self.moment(workspace, source).await? else { continue };
            self.unpack(workspace, &source.session, &moment.pages, sandbox, fence).await?;
            let what = match behind {
                0 => "as they were then".to_owned(),
                1 => "as they were one call before".to_owned(),
                behind => format!("as they were {behind} calls before"),
            };
            return Ok(format!(
                "{FORKED} the files of /workspace are {what}. Running programs and everything outside /workspace are not there."
            ));
        }
        Ok(format!("{FORKED} no checkpoint of its files was kept, and /workspace is empty."))
    }

    /// Waits for what is still to be kept of a session here, but not for long.
    pub(crate) async fn caught_up(&self, session: &SessionId) {
        let busy = lock(&self.busy).get(session).cloned();
        let Some(Busy { hurry, done }) = busy else { return };
        hurry.notify_one();
        drop(timeout(CATCH_UP, done.cancelled()).await);
    }

    /// Writes down that the workspace is whole.
    async fn settle(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        generation: u64,
    ) -> Result<(), CheckpointError> {
        let Read { revision, mut checkpoint } = self.read(workspace, session).await?;
        if checkpoint.generation != generation {
            return Err(CheckpointError::Superseded);
        }
        checkpoint.restore = false;
        let write = self.write(workspace, session, revision, &checkpoint);
        let committed = self.store.commit(vec![write], self.clock.now()).await;
        committed.map_err(CheckpointError::Commit)?;
        lock(&self.whole).put(session.clone(), ());
        Ok(())
    }

    /// The call of the newest result in the log.
    async fn last_result(&self, session: &SessionId) -> Result<Option<EventId>, StoreError> {
        let query = EventQuery {
            session: owner(session),
            thread: None,
            types: vec!["agent.tool_result".to_owned()],
            after: None,
            from: None,
            before: None,
            until: None,
            descending: true,
            cursor: None,
            limit: 1,
        };
        let page = self.store.events(&query).await?;
        let call = page.records.first().and_then(|record| {
            let body: serde_json::Value = serde_json::from_str(&record.new.body).ok()?;
            body["tool_use_id"].as_str().map(EventId::from_wire)
        });
        Ok(call)
    }

    /// A call of this tool is over and its result durable: the workspace is packed soon.
    pub(crate) fn changed(self: &Arc<Self>, session: SessionId, dirty: Dirty, tool: &str) {
        if self.blobs.is_none() || !Self::may_change(tool) {
            return;
        }
        lock(&self.dirty).insert(session.clone(), dirty);
        let mut all = lock(&self.busy);
        if !all.contains_key(&session) {
            let busy = Busy { hurry: Arc::default(), done: CancellationToken::new() };
            all.insert(session.clone(), busy.clone());
            self.tasks.spawn(Arc::clone(self).keep(session, busy));
        }
    }

    /// Whether a tool may change the workspace.
    pub(crate) fn may_change(tool: &str) -> bool {
        !READERS.contains(&tool)
    }

    /// Takes checkpoints of a session for as long as there is something to keep.
    async fn keep(self: Arc<Self>, session: SessionId, busy: Busy) {
        let _done = busy.done.drop_guard();
        loop {
            tokio::select! {
                () = sleep(DEBOUNCE) => {}
                () = busy.hurry.notified() => {}
                () = self.hurry.cancelled() => {}
            }
            let taken = lock(&self.dirty).remove(&session);
            if let Some(dirty) = taken {
                self.save_or_say(&session, &dirty).await;
            }
            if self.is_over(&session) {
                return;
            }
        }
    }

    async fn save_or_say(&self, session: &SessionId, dirty: &Dirty) {
        match self.save(session, dirty).await {
            Ok(()) => metrics::counter!("vaquero_checkpoints_total").increment(1),
            Err(CheckpointError::Superseded) => {}
            Err(CheckpointError::Sandbox(SandboxError::StaleFence | SandboxError::Gone { .. })) => {
            }
            Err(error) => {
                metrics::counter!("vaquero_checkpoint_failures_total").increment(1);
                tracing::warn!(%session, %error, "no checkpoint could be taken; the next call tries again");
            }
        }
    }

    /// Whether the task of a session has nothing left to do; it is over then.
    fn is_over(&self, session: &SessionId) -> bool {
        // Under both locks: whoever marks it next either is seen here or starts another task.
        let (dirty, mut busy) = (lock(&self.dirty), lock(&self.busy));
        let over = !dirty.contains_key(session);
        if over {
            busy.remove(session);
        }
        over
    }

    async fn save(&self, session: &SessionId, dirty: &Dirty) -> Result<(), CheckpointError> {
        let generation = dirty.sandbox.generation();
        for _ in 0..ATTEMPTS {
            let Read { revision, mut checkpoint } = self.read(&dirty.workspace, session).await?;
            if revision.is_none() || checkpoint.generation != generation || checkpoint.restore {
                return Err(CheckpointError::Superseded);
            }
            let fence = Fence { epoch: dirty.epoch, generation };
            let before = checkpoint.kept.as_ref().map_or(&[][..], |kept| &kept.pages);
            let Some(pages) = self.store_pieces(session, dirty, before, fence).await? else {
                continue;
            };
            self.keep_moment(session, dirty, &pages).await?;
            let covers = Some(dirty.covers.clone());
            checkpoint.kept = Some(Kept { pages, at: self.clock.now(), covers });
            let write = self.write(&dirty.workspace, session, revision, &checkpoint);
            match self.store.commit(vec![write], self.clock.now()).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Changed) => {}
                Err(CommitError::NotFound) => return Err(CheckpointError::Superseded),
                Err(error) => return Err(CheckpointError::Commit(error)),
            }
        }
        Err(CheckpointError::Restless)
    }

    /// Takes what is due at once, and waits for it.
    pub(crate) async fn flush(&self) {
        self.hurry.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether a fork began with the files of a session.
    async fn is_needed(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
    ) -> Result<bool, StoreError> {
        let query = DocumentQuery {
            parent: Some(session.as_str().to_owned()),
            include_archived: true,
            ..DocumentQuery::new(workspace.clone(), CHECKPOINT, 1)
        };
        Ok(!self.store.documents(&query).await?.documents.is_empty())
    }

    /// Forgets a session that ended here.
    pub(crate) fn forget(&self, session: &SessionId) {
        lock(&self.dirty).remove(session);
        lock(&self.whole).pop(session);
        lock(&self.known).pop(session);
    }

    /// Removes the blobs of sessions that no longer exist; how many sessions they were of.
    pub(crate) async fn sweep(&self) -> Result<usize, CheckpointError> {
        let Some(blobs) = &self.blobs else { return Ok(0) };
        let mut swept = 0;
        for workspace in blobs.folders(pieces::ROOT).await? {
            for session in blobs.folders(&format!("{}/{workspace}", pieces::ROOT)).await? {
                let workspace = WorkspaceId::from_wire(workspace.clone());
                let removed = self.discard(&workspace, &SessionId::from_wire(session)).await?;
                swept += usize::from(removed);
            }
        }
        Ok(swept)
    }

    /// Removes the blobs of a session that ended here, in whichever workspace it was.
    pub(crate) async fn discard_ended(&self, session: &SessionId) -> Result<(), CheckpointError> {
        let Some(blobs) = &self.blobs else { return Ok(()) };
        for workspace in blobs.folders(pieces::ROOT).await? {
            self.discard(&WorkspaceId::from_wire(workspace), session).await?;
        }
        Ok(())
    }

    /// Removes the blobs of a session or of one of its other sandboxes, if it is gone and no fork began with its files.
    async fn discard(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
    ) -> Result<bool, CheckpointError> {
        let owner = owner(session);
        let gone = self.store.session(&owner).await?.is_none_or(|row| row.archived_at.is_some());
        if !gone || self.is_needed(workspace, session).await? {
            return Ok(false);
        }
        let place = format!("{}/{workspace}/{session}", pieces::ROOT);
        Ok(match &self.blobs {
            Some(blobs) => blobs.remove_all(&place).await? > 0,
            None => false,
        })
    }
}

/// The session whose files these are: its own, or those of one of its other sandboxes.
fn owner(files: &SessionId) -> SessionId {
    SessionId::from_wire(owner_of(files.as_str()).0)
}
