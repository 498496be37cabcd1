//! The hands of one turn: which sandbox the calls run in, made when the first call needs it, and what to tell the model when it is gone.

use crate::{
    World,
    checkpoint::{Checkpoints, Dirty, Restore},
    outbound::Origin,
    sandboxes::Sandboxes,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use vaquero_core::turn::Input;
use vaquero_sandbox::{Fence, Sandbox, SandboxError, SandboxKey, SandboxSpec, blocks};
use vaquero_store::Lease;
use vaquero_types::{EventId, SessionId};

/// What a task of a turn reports.
pub(crate) enum Happened {
    /// Something for the machine.
    Input(Input),
    /// The sandbox of that name was looked for; none if it is gone.
    Attached(String, Result<Option<Arc<dyn Sandbox>>, SandboxError>),
    /// The sandbox of that name was made; what the model is to know of it.
    Made(String, Result<(Arc<dyn Sandbox>, Option<String>), SandboxError>),
    /// A call found its sandbox gone.
    Lost(String, EventId),
}

/// A call that wants to run.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) call: EventId,
    pub(crate) name: String,
    pub(crate) input: Value,
    pub(crate) fresh: bool,
}

enum State {
    /// Nobody has looked.
    Untried,
    /// Looking for it, or making it.
    Trying,
    /// A new generation must be durable first.
    NeedsGeneration,
    /// It is there.
    Ready(Arc<dyn Sandbox>),
}

/// A call in the sandbox, or about to be.
struct Running {
    sandbox: Arc<dyn Sandbox>,
    tool: String,
    started: Arc<AtomicBool>,
    cancelled: CancellationToken,
}

pub(crate) struct Hands {
    world: World,
    sandboxes: Sandboxes,
    origin: Origin,
    /// Which of the session's sandboxes.
    name: String,
    key: SandboxKey,
    epoch: u64,
    state: State,
    /// In the order the model made them.
    waiting: Vec<Wanted>,
    running: BTreeMap<EventId, Running>,
    /// What the next result begins with.
    notice: Option<String>,
    /// Resolves when the last call of the shell so far is over: they run one after the other, in the order the model made them.
    shell: Option<oneshot::Receiver<()>>,
    /// A call of this turn that may change files has begun.
    began: bool,
    report: UnboundedSender<Happened>,
}

const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";
const UNKNOWN: &str = "The sandbox ended before the result of this call was recorded: whether it ran, and how far, is unknown. \
Files in /workspace are as it left them; running programs are gone. Check before you repeat it.";
/// The same where the workspace may be on a machine that is gone.
const UNKNOWN_ELSEWHERE: &str = "The sandbox ended before the result of this call was recorded: whether it ran, and how far, is unknown. \
If the machine it ran on is gone, files in /workspace go on from their last checkpoint, and the next call says so; running programs are gone. Check before you repeat it.";
const GONE: &str = "The sandbox ended while this call was running (it may have run out of memory, or of room for files). Files in /workspace are kept; running programs and \
everything else outside it are gone. The next call gets a fresh sandbox.";

impl Hands {
    pub(crate) fn new(
        world: World,
        sandboxes: Sandboxes,
        lease: &Lease,
        name: &str,
        origin: Origin,
        report: UnboundedSender<Happened>,
    ) -> Self {
        let epoch = lease.epoch;
        Self {
            world,
            sandboxes,
            origin: Origin { sandbox: name.to_owned(), ..origin },
            name: name.to_owned(),
            key: SandboxKey::of(lease.session.as_str(), name),
            epoch,
            state: State::Untried,
            waiting: Vec::new(),
            running: BTreeMap::new(),
            notice: None,
            shell: None,
            began: false,
            report,
        }
    }

    /// Whose hands they are.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whose files they are: the session's, or those of one of its other sandboxes.
    pub(crate) fn files(&self) -> SessionId {
        SessionId::from_wire(self.key.session.clone())
    }

    /// Wants a call to run in the sandbox of `generation`.
    pub(crate) fn want(&mut self, wanted: Wanted, generation: u64, tasks: &mut JoinSet<()>) {
        if matches!(&self.state, State::Ready(sandbox) if sandbox.generation() != generation) {
            // Another brain has begun a newer one: what is here is no longer the session's.
            self.state = State::Untried;
        }
        match &self.state {
            State::Ready(sandbox) => {
                let sandbox = Arc::clone(sandbox);
                self.start(wanted, &sandbox, tasks);
                return;
            }
            State::Untried if generation == 0 => self.need_generation(),
            State::Untried => {
                self.state = State::Trying;
                let (world, key, spec) =
                    (self.world.clone(), self.key.clone(), self.spec(generation));
                let (report, origin) = (self.report.clone(), self.origin.clone());
                let name = self.name.clone();
                tasks.spawn(async move {
                    let found = attach(&world, &origin, &key, spec).await;
                    drop(report.send(Happened::Attached(name, found)));
                });
            }
            State::Trying | State::NeedsGeneration => {}
        }
        self.waiting.push(wanted);
    }

    /// A sandbox of this session; what it may reach is still to be found out.
    fn spec(&self, generation: u64) -> SandboxSpec {
        SandboxSpec::new(generation, self.epoch, self.world.limits)
    }

    /// Begins with what the first sandbox will need.
    pub(crate) fn prepare(&self, tasks: &mut JoinSet<()>) {
        let (world, origin, mut spec) = (self.world.clone(), self.origin.clone(), self.spec(1));
        tasks.spawn(async move {
            // If it fails, the first call says why.
            if origin.complete(&world, &mut spec).await.is_ok() {
                world.compute.prepare(&spec);
            }
        });
    }

    fn need_generation(&mut self) {
        self.state = State::NeedsGeneration;
        let gone = Input::HandsGone { sandbox: self.name.clone() };
        drop(self.report.send(Happened::Input(gone)));
    }

    /// A generation is durable: the sandbox may be made.
    pub(crate) fn generation_is_durable(
        &mut self,
        generation: u64,
        restore: Option<Restore>,
        tasks: &mut JoinSet<()>,
    ) {
        if !matches!(self.state, State::NeedsGeneration) {
            return;
        }
        self.state = State::Trying;
        let spec = self.spec(generation);
        let (world, key, report) = (self.world.clone(), self.key.clone(), self.report.clone());
        let (origin, name) = (self.origin.clone(), self.name.clone());
        tasks.spawn(async move {
            let made = make(&world, &origin, &key, spec, restore).await;
            drop(report.send(Happened::Made(name, made)));
        });
    }

    pub(crate) fn attached(
        &mut self,
        found: Result<Option<Arc<dyn Sandbox>>, SandboxError>,
        tasks: &mut JoinSet<()>,
    ) {
        match found {
            Ok(Some(sandbox)) => self.ready(sandbox, tasks),
            Ok(None) => {
                let waiting = std::mem::take(&mut self.waiting).into_iter();
                let (fresh, unknown): (Vec<_>, Vec<_>) = waiting.partition(|wanted| wanted.fresh);
                let text =
                    if self.world.checkpoints.is_some() { UNKNOWN_ELSEWHERE } else { UNKNOWN };
                for wanted in unknown {
                    self.fail(&wanted.call, text);
                }
                self.waiting = fresh;
                if self.waiting.is_empty() {
                    self.state = State::Untried;
                } else {
                    self.need_generation();
                }
            }
            Err(error) => self.unavailable(&error),
        }
    }

    pub(crate) fn made(
        &mut self,
        made: Result<(Arc<dyn Sandbox>, Option<String>), SandboxError>,
        tasks: &mut JoinSet<()>,
    ) {
        match made {
            Ok((sandbox, notice)) => {
                self.notice = notice;
                self.ready(sandbox, tasks);
            }
            Err(error) => self.unavailable(&error),
        }
    }

    fn ready(&mut self, sandbox: Arc<dyn Sandbox>, tasks: &mut JoinSet<()>) {
        self.state = State::Ready(Arc::clone(&sandbox));
        self.sandboxes.found(&self.key, &sandbox);
        for wanted in std::mem::take(&mut self.waiting) {
            self.start(wanted, &sandbox, tasks);
        }
    }

    fn unavailable(&mut self, error: &SandboxError) {
        tracing::error!(session = %self.key.session, %error, "no sandbox");
        self.state = State::Untried;
        if let SandboxError::Provision(_) = error {
            if !std::mem::take(&mut self.waiting).is_empty() {
                let failed = Input::HandsFailed { message: error.to_string() };
                drop(self.report.send(Happened::Input(failed)));
            }
            return;
        }
        let text = format!("The sandbox could not be started: {error}");
        for wanted in std::mem::take(&mut self.waiting) {
            self.fail(&wanted.call, &text);
        }
    }

    fn fail(&self, call: &EventId, text: &str) {
        drop(self.report.send(failed(call.clone(), text)));
    }

    fn start(&mut self, wanted: Wanted, sandbox: &Arc<dyn Sandbox>, tasks: &mut JoinSet<()>) {
        let (started, cancelled) = (Arc::<AtomicBool>::default(), CancellationToken::new());
        let running = Running {
            sandbox: Arc::clone(sandbox),
            tool: wanted.name.clone(),
            started: Arc::clone(&started),
            cancelled: cancelled.clone(),
        };
        self.running.insert(wanted.call.clone(), running);
        let (over, next) = oneshot::channel::<()>();
        let before = if wanted.name == "bash" { self.shell.replace(next) } else { None };
        let (sandbox, report, epoch) = (Arc::clone(sandbox), self.report.clone(), self.epoch);
        let notice = self.notice.take();
        metrics::counter!("vaquero_tool_calls_total", "tool" => wanted.name.clone()).increment(1);
        // What the turn before left is kept before this one changes it, so that a fork can begin there.
        let first = !self.began && Checkpoints::may_change(&wanted.name);
        self.began |= first;
        let before_it = self.world.checkpoints.clone().filter(|_| first);
        let (session, place) = (self.files(), self.name.clone());
        tasks.spawn(async move {
            let Wanted { call, name, input, .. } = wanted;
            let _over = over;
            if let Some(before) = before {
                tokio::select! {
                    biased;
                    () = cancelled.cancelled() => {}
                    _ = before => {}
                }
            }
            if let Some(checkpoints) = before_it {
                tokio::select! {
                    biased;
                    () = cancelled.cancelled() => {}
                    () = checkpoints.caught_up(&session) => {}
                }
            }
            started.store(true, Ordering::SeqCst);
            if cancelled.is_cancelled() {
                drop(report.send(failed(call, INTERRUPTED)));
                return;
            }
            let fence = Fence { epoch, generation: sandbox.generation() };
            let result = sandbox.run(call.as_str(), fence, &name, &input, None).await;
            let happened = match result {
                Ok(result) => {
                    let is_error = result.is_error;
                    let notice = notice.map(|text| json!({ "type": "text", "text": text }));
                    let content = notice.into_iter().chain(blocks(result)).collect();
                    Happened::Input(Input::ToolDone { call, content, is_error })
                }
                Err(SandboxError::Gone { .. }) => Happened::Lost(place, call),
                Err(error) => {
                    failed(call, &format!("The sandbox could not run this call: {error}"))
                }
            };
            drop(report.send(happened));
        });
    }

    /// The turn has ended.
    pub(crate) fn close(&self) {
        if let State::Ready(_) = self.state {
            self.sandboxes.used(&self.key);
        }
    }

    /// A call found its sandbox gone: it failed, and the next one looks again.
    pub(crate) fn lost(&mut self, call: &EventId) -> Input {
        self.running.remove(call);
        self.state = State::Untried;
        let content = vec![json!({ "type": "text", "text": GONE })];
        Input::ToolDone { call: call.clone(), content, is_error: true }
    }

    /// Stops a call.
    pub(crate) fn cancel(&mut self, call: &EventId, tasks: &mut JoinSet<()>) {
        if let Some(at) = self.waiting.iter().position(|wanted| wanted.call == *call) {
            self.waiting.remove(at);
            self.fail(call, INTERRUPTED);
            if self.waiting.is_empty() && matches!(self.state, State::NeedsGeneration) {
                self.state = State::Untried;
            }
        } else if let Some(running) = self.running.get(call) {
            running.cancelled.cancel();
            if !running.started.load(Ordering::SeqCst) {
                return;
            }
            let (sandbox, call, epoch) = (Arc::clone(&running.sandbox), call.clone(), self.epoch);
            tasks.spawn(async move {
                let fence = Fence { epoch, generation: sandbox.generation() };
                if let Err(error) = sandbox.cancel(call.as_str(), fence).await {
                    tracing::warn!(%call, %error, "a call could not be stopped");
                }
            });
        }
    }

    /// A call's result is durable: the sandbox may forget it.
    pub(crate) fn settled(&mut self, call: &EventId, tasks: &mut JoinSet<()>) {
        if let Some(Running { sandbox, tool, .. }) = self.running.remove(call) {
            if let Some(checkpoints) = &self.world.checkpoints {
                let dirty = Dirty {
                    workspace: self.origin.workspace.clone(),
                    sandbox: Arc::clone(&sandbox),
                    epoch: self.epoch,
                    covers: call.clone(),
                };
                checkpoints.changed(self.files(), dirty, &tool);
            }
            let (call, epoch) = (call.clone(), self.epoch);
            tasks.spawn(async move {
                let fence = Fence { epoch, generation: sandbox.generation() };
                // Nothing hangs on it: a result that is kept too long goes with its sandbox.
                drop(sandbox.ack(call.as_str(), fence).await);
            });
        }
    }
}

/// The sandbox of a generation, if it lives here and its workspace is whole.
async fn attach(
    world: &World,
    origin: &Origin,
    key: &SandboxKey,
    mut spec: SandboxSpec,
) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
    origin.complete(world, &mut spec).await?;
    let found = world.compute.attach(key, &spec).await?;
    let (Some(_), Some(checkpoints)) = (&found, &world.checkpoints) else { return Ok(found) };
    let session = SessionId::from_wire(key.session.clone());
    match checkpoints.is_whole(&origin.workspace, &session).await {
        Ok(whole) => Ok(found.filter(|_| whole)),
        Err(error) => Err(unusable("its workspace cannot be checked", &error)),
    }
}

/// A fresh sandbox, with the workspace brought here if it is not.
async fn make(
    world: &World,
    origin: &Origin,
    key: &SandboxKey,
    mut spec: SandboxSpec,
    restore: Option<Restore>,
) -> Result<(Arc<dyn Sandbox>, Option<String>), SandboxError> {
    origin.complete(world, &mut spec).await?;
    let (Some(restore), Some(checkpoints)) = (restore, &world.checkpoints) else {
        let made = world.compute.ensure(key, &spec).await;
        if made.is_err() && !world.compute.has_workspace(&key.session).await {
            never_made(world, origin, key, spec.generation).await;
        }
        return Ok((made?, None));
    };
    // What is here is of an older generation, or only a part.
    world.compute.destroy(&key.session).await?;
    spec.restored = true;
    let sandbox = world.compute.ensure(key, &spec).await?;
    let session = SessionId::from_wire(key.session.clone());
    let fence = Fence { epoch: spec.epoch, generation: spec.generation };
    match checkpoints.restore(&origin.workspace, &session, restore, sandbox.as_ref(), fence).await {
        Ok(notice) => Ok((sandbox, Some(notice))),
        Err(error) => {
            world.compute.destroy(&key.session).await?;
            Err(unusable("its workspace cannot be brought back", &error))
        }
    }
}

async fn never_made(world: &World, origin: &Origin, key: &SandboxKey, generation: u64) {
    let Some(checkpoints) = &world.checkpoints else { return };
    let session = SessionId::from_wire(key.session.clone());
    let noted = checkpoints.never_made(&origin.workspace, &session, generation).await;
    if let Err(error) = noted {
        tracing::warn!(%session, %error, "a sandbox that was never made counts as one that is gone");
    }
}

fn unusable(what: &str, error: &(dyn std::error::Error + 'static)) -> SandboxError {
    let mut text = format!("{what}: {error}");
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    SandboxError::Unavailable { what: text, fix: "the next call tries again".to_owned() }
}

/// A call that came to nothing.
fn failed(call: EventId, text: &str) -> Happened {
    let content = vec![json!({ "type": "text", "text": text })];
    Happened::Input(Input::ToolDone { call, content, is_error: true })
}
