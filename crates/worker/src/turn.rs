//! One claimed session: folds its log, hands inputs to the machine and performs its steps, renewing the lease all the while. Losing the lease ends it at once.

use crate::{
    World,
    ask::{self, Ask},
    checkpoint::Restore,
    crash,
    hands::{Hands, Happened, Wanted},
    kept::{Folded, Kept},
    outbound::{Origin, mcp_hosts},
    run::Config,
    sandboxes::Sandboxes,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use vaquero_core::{
    Input, Machine, State, Step,
    tools::{self, has_sandbox},
    turn::{Batch, Facts, Purpose},
};
use vaquero_sandbox::SandboxKey;
use vaquero_store::{
    Append, Author, CommitError, Lease, NewRecord, Record, RecordKind, Seq, SessionChange,
    SessionRow, Snapshot, StoreError, Write,
};
use vaquero_types::{
    EventId, SessionId, Timestamp, environment::DEFAULT_SANDBOX, session::SessionBody,
};

/// Most bytes of records read at once.
const READ: usize = 1 << 20;
/// A snapshot is written once this many bytes of records had to be folded.
const SNAPSHOT_EVERY: usize = 256 << 10;
/// The first and the longest pause before a commit that the store failed is repeated.
const COMMIT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a turn ended before its end.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("the lease is lost")]
    LeaseLost,
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the session cannot be read: {0}")]
    Unreadable(String),
}

pub(crate) struct Turn {
    world: World,
    config: Config,
    kept: Kept,
    sandboxes: Sandboxes,
    lease: Lease,
    stop: CancellationToken,
}

/// What a turn holds while it runs.
struct Run {
    machine: Machine,
    hands: BTreeMap<String, Hands>,
    inbox: UnboundedReceiver<Happened>,
    report: tokio::sync::mpsc::UnboundedSender<Happened>,
    tasks: JoinSet<()>,
    model: Option<CancellationToken>,
    wake: Option<Timestamp>,
    bytes: usize,
    loose_bytes: usize,
    settled: Vec<EventId>,
    /// What the generation that is being made durable has to bring here.
    restore: Option<Restore>,
}

impl Turn {
    pub(crate) fn new(
        world: World,
        config: Config,
        kept: Kept,
        sandboxes: Sandboxes,
        lease: Lease,
        stop: CancellationToken,
    ) -> Self {
        Self { world, config, kept, sandboxes, lease, stop }
    }

    pub(crate) async fn run(self, row: SessionRow) {
        let outcome = self.perform(row).await;
        match outcome {
            Ok(()) => metrics::counter!("vaquero_turns_total").increment(1),
            Err(Stopped::LeaseLost) => {
                tracing::info!(session = %self.lease.session, "lost the lease; another brain goes on");
            }
            Err(error) => {
                let source = std::error::Error::source(&error).and_then(std::error::Error::source);
                let source = source.map(ToString::to_string);
                tracing::error!(session = %self.lease.session, %error, source, "a turn stopped; it will be claimed again");
                drop(self.world.store.release(&self.lease, false).await);
            }
        }
    }

    async fn perform(&self, row: SessionRow) -> Result<(), Stopped> {
        let mut run = self.open(row).await?;
        let mut renewal = tokio::time::interval(self.config.lease / 3);
        renewal.tick().await;
        let mut steps = self.handle(&mut run, Input::Start { claims: self.lease.claims });
        loop {
            if self.perform_steps(&mut run, &mut steps).await? {
                run.hands.values().for_each(Hands::close);
                let Run { machine, bytes, loose_bytes, .. } = run;
                let folded = Folded { state: machine.into_state(), bytes, loose_bytes };
                self.kept.put(self.lease.session.clone(), folded);
                return Ok(());
            }
            let seen = run.machine.state().seq;
            let wake = run.wake.map(|at| self.deadline(at));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    run.tasks.abort_all();
                    drop(self.world.store.release(&self.lease, true).await);
                    return Ok(());
                }
                _ = renewal.tick() => self.renew().await?,
                Some(happened) = run.inbox.recv() => steps = self.happened(&mut run, happened),
                grown = self.world.store.wait_past(&self.lease.session, seen) => {
                    grown?;
                    let records = self.read_after(seen).await?;
                    if records.iter().any(by_another) {
                        return Err(Stopped::LeaseLost);
                    }
                    steps = self.handle(&mut run, Input::Grown(records));
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    steps = self.handle(&mut run, Input::Tick);
                }
            }
            while let Some(done) = run.tasks.try_join_next() {
                if let Err(error) = done
                    && error.is_panic()
                {
                    return Err(Stopped::Unreadable("a task of the turn panicked".to_owned()));
                }
            }
        }
    }

    fn deadline(&self, at: Timestamp) -> Instant {
        Instant::now() + at.since(self.world.clock.now()) + Duration::from_millis(1)
    }

    /// Folds the log from the newest snapshot.
    async fn open(&self, row: SessionRow) -> Result<Run, Stopped> {
        let session = &self.lease.session;
        let body: SessionBody = serde_json::from_str(&row.body)
            .map_err(|error| Stopped::Unreadable(error.to_string()))?;
        let mut folded = match self.kept.take(session) {
            Some(folded) => folded,
            None => self.snapshot().await?,
        };
        while folded.state.seq < row.head {
            let records = self.world.store.read(session, folded.state.seq, READ).await?;
            if records.is_empty() {
                break;
            }
            folded.apply(&records);
        }
        let Folded { state, bytes, loose_bytes } = folded;
        let facts = Facts {
            thread: row.primary_thread,
            agent: body.agent,
            self_hosted: body.self_hosted,
            sandboxes: body.sandboxes,
            status: row.status,
            usage: row.usage,
            activity: row.activity,
        };
        let (report, inbox) = unbounded_channel();
        let origin = Origin {
            workspace: self.lease.workspace.clone(),
            environment: row.environment,
            mcp_hosts: mcp_hosts(&facts.agent),
            vaults: body.vault_ids,
            sandbox: DEFAULT_SANDBOX.to_owned(),
        };
        let others = facts.sandboxes.iter().map(|sandbox| sandbox.name.as_str());
        let hands = [DEFAULT_SANDBOX].into_iter().chain(others).map(|name| {
            let (world, sandboxes) = (self.world.clone(), self.sandboxes.clone());
            let (origin, report) = (origin.clone(), report.clone());
            let hands = Hands::new(world, sandboxes, &self.lease, name, origin, report);
            (name.to_owned(), hands)
        });
        let hands: BTreeMap<String, Hands> = hands.collect();
        let mut tasks = JoinSet::new();
        if !facts.self_hosted && has_sandbox(&facts.agent) {
            let first = hands.iter().filter(|(name, _)| state.generation(name) == 0);
            first.for_each(|(_, hands)| hands.prepare(&mut tasks));
        }
        Ok(Run {
            machine: Machine::new(state, facts, self.config.limits.clone()),
            hands,
            inbox,
            report,
            tasks,
            model: None,
            wake: None,
            bytes,
            loose_bytes,
            settled: Vec::new(),
            restore: None,
        })
    }

    /// Where folding starts when no state was kept.
    async fn snapshot(&self) -> Result<Folded, Stopped> {
        let found = self.world.store.snapshot(&self.lease.session).await?;
        let folded = found.and_then(|kept| {
            let state = State::from_snapshot(kept.version, &kept.body)?;
            Some(Folded { state, bytes: kept.body.len(), loose_bytes: 0 })
        });
        Ok(folded.unwrap_or_default())
    }

    fn handle(&self, run: &mut Run, input: Input) -> VecDeque<Step> {
        run.wake = None;
        if let Input::ToolDone { call, .. } = &input {
            run.settled.push(call.clone());
        }
        let now = self.world.clock.now();
        run.machine.handle(input, now, self.world.ids.as_ref()).into()
    }

    fn happened(&self, run: &mut Run, happened: Happened) -> VecDeque<Step> {
        match happened {
            Happened::Input(input) => {
                if let Input::Answered(_) | Input::Failed(_) = &input {
                    run.model = None;
                }
                self.handle(run, input)
            }
            Happened::Attached(name, found) => {
                if let Some(hands) = run.hands.get_mut(&name) {
                    hands.attached(found, &mut run.tasks);
                }
                VecDeque::new()
            }
            Happened::Made(name, made) => {
                if let Some(hands) = run.hands.get_mut(&name) {
                    hands.made(made, &mut run.tasks);
                }
                VecDeque::new()
            }
            Happened::Lost(name, call) => {
                let lost = run.hands.get_mut(&name).map(|hands| hands.lost(&call));
                lost.map(|input| self.handle(run, input)).unwrap_or_default()
            }
        }
    }

    /// Performs steps until none is left; true once the turn has ended.
    async fn perform_steps(
        &self,
        run: &mut Run,
        steps: &mut VecDeque<Step>,
    ) -> Result<bool, Stopped> {
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Append(batch) => {
                    let (ends, new_hands) = (batch.ends, batch.new_hands.clone());
                    let input = self.commit(run, batch).await?;
                    if ends && matches!(input, Input::Committed(_)) {
                        return Ok(true);
                    }
                    let name = new_hands.unwrap_or_default();
                    let before = run.machine.state().generation(&name);
                    steps.extend(self.handle(run, input));
                    let generation = run.machine.state().generation(&name);
                    if generation > before
                        && let Some(hands) = run.hands.get_mut(&name)
                    {
                        crash::point("after-generation");
                        let restore = run.restore.take();
                        hands.generation_is_durable(generation, restore, &mut run.tasks);
                    }
                    for call in std::mem::take(&mut run.settled) {
                        run.hands.values_mut().for_each(|it| it.settled(&call, &mut run.tasks));
                    }
                }
                Step::CallModel { purpose, messages } => {
                    crash::point("after-turn-start");
                    self.ask(run, purpose, messages);
                }
                Step::CancelModel => {
                    if let Some(model) = &run.model {
                        model.cancel();
                    }
                }
                Step::RunTool { call, name, input, fresh } => {
                    crash::point("after-answer");
                    let (place, name) = tools::place(&name);
                    let generation = run.machine.state().generation(place);
                    let wanted = Wanted { call, name: name.to_owned(), input, fresh };
                    // What was judged is of a sandbox that the session has.
                    if let Some(hands) = run.hands.get_mut(place) {
                        hands.want(wanted, generation, &mut run.tasks);
                    }
                    crash::point("tool-running");
                }
                Step::CancelTool { call } => {
                    run.hands.values_mut().for_each(|it| it.cancel(&call, &mut run.tasks));
                }
                Step::WakeAt(at) => run.wake = Some(run.wake.map_or(at, |wake| wake.min(at))),
            }
        }
        Ok(false)
    }

    fn ask(&self, run: &mut Run, purpose: Purpose, messages: Vec<vaquero_core::Message>) {
        metrics::counter!("vaquero_model_requests_total").increment(1);
        let facts = run.machine.facts();
        let cancel = CancellationToken::new();
        run.model = Some(cancel.clone());
        let ask = Ask {
            world: self.world.clone(),
            session: self.lease.session.clone(),
            thread: facts.thread.clone(),
            request: ask::request(facts, messages, self.config.max_tokens),
            quiet: purpose == Purpose::Compaction,
            cancel,
        };
        let report = run.report.clone();
        run.tasks.spawn(async move {
            let input = match ask.perform().await {
                Ok(answer) => Input::Answered(answer),
                Err(failure) => Input::Failed(failure),
            };
            drop(report.send(Happened::Input(input)));
        });
    }

    /// Makes a batch durable; answers with what the machine is to be told.
    async fn commit(&self, run: &mut Run, mut batch: Batch) -> Result<Input, Stopped> {
        if batch.new_hands.as_deref() == Some(DEFAULT_SANDBOX)
            && run.machine.state().generation == 0
        {
            self.add_unreachable(run, &mut batch).await;
        }
        let point = passing(&batch);
        crash::point(point);
        let seen = run.machine.state().seq;
        let bytes: usize = batch.records.iter().map(|record| record.body.len()).sum();
        (run.bytes, run.loose_bytes) = (run.bytes + bytes, run.loose_bytes + bytes);
        let committed = match batch.new_hands.clone() {
            Some(name) => self.commit_hands(run, &batch, &name, seen).await?,
            None => self.commit_surely(self.writes(run, &batch, seen)).await,
        };
        if point == "before-result" && committed.is_ok() {
            crash::point("after-result");
        }
        match committed {
            Ok(placed) => {
                let contiguous = placed.first().is_none_or(|(seq, _)| *seq == seen + 1);
                if contiguous {
                    let records = batch.records.into_iter().zip(placed);
                    let records = records.map(|(new, (seq, at))| Record { seq, at, new });
                    return Ok(Input::Committed(records.collect()));
                }
                Ok(Input::Committed(self.read_after(seen).await?))
            }
            Err(CommitError::Grown) => {
                let records = self.read_after(seen).await?;
                if records.iter().any(by_another) {
                    return Err(Stopped::LeaseLost);
                }
                Ok(Input::Grown(records))
            }
            Err(CommitError::Store(error)) => Err(error.into()),
            Err(
                CommitError::LeaseLost { .. }
                | CommitError::Changed
                | CommitError::Duplicate { .. }
                | CommitError::NotFound
                | CommitError::Answered,
            ) => Err(Stopped::LeaseLost),
        }
    }

    /// Says with a session's first sandbox which of its secrets cannot reach their hosts.
    async fn add_unreachable(&self, run: &Run, batch: &mut Batch) {
        let Some(hands) = run.hands.get(DEFAULT_SANDBOX) else { return };
        match hands.origin().unreachable(&self.world).await {
            Ok(events) => batch.records.extend(events.into_iter().map(|event| NewRecord {
                kind: RecordKind::Event,
                event_id: EventId::new(self.world.ids.next(self.world.clock.now())),
                thread: run.machine.facts().thread.clone(),
                event_type: event.event_type.to_owned(),
                body: event.body.into(),
            })),
            // The sandbox cannot be made either, and says why.
            Err(error) => {
                tracing::warn!(session = %self.lease.session, %error, "secrets are not checked")
            }
        }
    }

    /// Makes a new generation durable, together with the word that the workspace is here now.
    async fn commit_hands(
        &self,
        run: &mut Run,
        batch: &Batch,
        name: &str,
        seen: Seq,
    ) -> Result<Result<Vec<(Seq, Timestamp)>, CommitError>, Stopped> {
        let workspace = &self.lease.workspace;
        let key = SandboxKey::of(self.lease.session.as_str(), name);
        let files = SessionId::from_wire(key.session);
        loop {
            let mut writes = self.writes(run, batch, seen);
            if let Some(checkpoints) = &self.world.checkpoints {
                let here = self.world.compute.has_workspace(files.as_str()).await;
                let generation = run.machine.state().generation(name) + 1;
                let (write, restore) =
                    checkpoints.begin(workspace, &files, generation, here).await?;
                writes.push(write);
                run.restore = restore;
            }
            match self.commit_surely(writes).await {
                // A checkpoint of the generation before came between.
                Err(CommitError::Changed) if !self.stop.is_cancelled() => {}
                outcome => return Ok(outcome),
            }
        }
    }

    fn writes(&self, run: &mut Run, batch: &Batch, seen: Seq) -> Vec<Write> {
        let mut writes = vec![Write::Append(Append {
            session: self.lease.session.clone(),
            author: Author::Worker {
                epoch: self.lease.epoch,
                seen: (batch.ends || batch.guarded).then_some(seen),
            },
            records: batch.records.clone(),
            change: SessionChange {
                status: batch.status,
                gate: batch.gate.clone(),
                usage: batch.usage,
                activity: batch.activity,
                ready: batch.ends.then_some(false),
                progress: batch.progress,
                hands: batch.new_hands.as_ref().map(|_| self.config.name.clone()),
                ..SessionChange::default()
            },
        })];
        if batch.ends && run.loose_bytes > SNAPSHOT_EVERY {
            run.loose_bytes = 0;
            let state = run.machine.state();
            let snapshot = Snapshot {
                seq: state.seq,
                version: vaquero_core::state::STATE_VERSION,
                body: state.to_snapshot(),
            };
            writes.push(Write::PutSnapshot { session: self.lease.session.clone(), snapshot });
        }
        writes
    }

    /// Repeats a commit whose outcome is unknown, for as long as a lease lasts; appends are idempotent.
    async fn commit_surely(
        &self,
        writes: Vec<Write>,
    ) -> Result<Vec<(Seq, Timestamp)>, CommitError> {
        let until = Instant::now() + self.config.lease;
        let (mut pause, longest) = COMMIT_PAUSES;
        loop {
            let outcome = self.world.store.commit(writes.clone(), self.world.clock.now()).await;
            match outcome {
                Ok(mut committed) => return Ok(committed.appended.pop().unwrap_or_default()),
                Err(CommitError::Store(error))
                    if Instant::now() < until && !self.stop.is_cancelled() =>
                {
                    tracing::warn!(session = %self.lease.session, %error, "a commit failed; repeating it");
                    self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                    pause = longest.min(pause * 2);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_after(&self, seen: Seq) -> Result<Vec<Record>, Stopped> {
        let mut all = Vec::new();
        let mut after = seen;
        loop {
            let records = self.world.store.read(&self.lease.session, after, READ).await?;
            let Some(last) = records.last() else { return Ok(all) };
            after = last.seq;
            all.extend(records);
        }
    }

    async fn renew(&self) -> Result<(), Stopped> {
        let now = self.world.clock.now();
        match self.world.store.renew(&self.lease, self.config.lease, now).await {
            Ok(()) => Ok(()),
            Err(CommitError::Store(error)) => {
                tracing::warn!(%error, "the lease could not be renewed yet");
                Ok(())
            }
            Err(_) => Err(Stopped::LeaseLost),
        }
    }
}

/// Only the brain that holds the lease writes such a record: one that did not come from here says that another does. A brain that stood still may read it before it
/// hears that its lease is lost, and must not take up another's work.
fn by_another(record: &Record) -> bool {
    let name = record.new.event_type.as_str();
    record.new.kind == RecordKind::Transcript
        || name == "session.deleted"
        || name.starts_with("agent.")
        || name.starts_with("span.")
}

/// Which crash point lies before a batch.
fn passing(batch: &Batch) -> &'static str {
    let has = |name: &str| batch.records.iter().any(|record| record.event_type == name);
    if batch.ends {
        "before-idle"
    } else if has("span.model_request_end") {
        "before-answer"
    } else if has("agent.tool_result") {
        "before-result"
    } else if has("span.model_request_start") {
        "before-turn-start"
    } else {
        "before-generation"
    }
}
