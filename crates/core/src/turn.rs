//! The turn machine. The shell hands it what happened; it answers with what to do. Its state changes only by records that are durable: a step that appends is
//! followed by [`Input::Committed`] with those records before anything is decided on them.

mod answer;
mod close;
mod decide;
mod failure;

pub use answer::{Answer, AnswerBlock, Ending};
pub use failure::{Failure, FailureKind};

use crate::{context::Message, state::State, transcript::Transcript};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use vaquero_types::{
    EventId, IdGen, ThreadId, Timestamp,
    agent::SessionAgent,
    environment::{DEFAULT_SANDBOX, NamedSandbox},
    gate::GateChange,
    record::{NewRecord, Record},
    session::Status,
    usage::{Activity, Usage},
};

/// What a turn may use before it is ended, and when it retries or compacts.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Wall time of a turn, from the message that began it.
    pub turn_time: Duration,
    /// Model requests in a turn.
    pub model_calls: u32,
    /// Tool calls in a turn.
    pub tool_calls: u32,
    /// Failed model requests in a row before the turn is given up.
    pub attempts: u32,
    /// The first pause between attempts; each is twice the one before.
    pub backoff: Duration,
    /// The longest pause between attempts.
    pub backoff_max: Duration,
    /// Tokens the model's window holds.
    pub window_tokens: u64,
    /// Percent of the window at which the context is compacted.
    pub compact_at_percent: u64,
    /// Compactions in a row before the turn is given up.
    pub compactions: u32,
    /// Claims without progress before a session is given up.
    pub claims: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            turn_time: Duration::from_secs(24 * 3600),
            model_calls: 1_000,
            tool_calls: 5_000,
            attempts: 8,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            window_tokens: 200_000,
            compact_at_percent: 80,
            compactions: 3,
            claims: 20,
        }
    }
}

/// What the machine knows of its session beside the log.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The primary thread.
    pub thread: ThreadId,
    /// The agent, as the session froze it.
    pub agent: SessionAgent,
    /// Workers of the client's own run the built-in tools.
    pub self_hosted: bool,
    /// The sandboxes it has beside its default one.
    pub sandboxes: Vec<NamedSandbox>,
    /// The session's status.
    pub status: Status,
    /// Tokens used so far.
    pub usage: Usage,
    /// Running time so far.
    pub activity: Activity,
}

/// What a model request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The next answer of the turn.
    Answer,
    /// A summary to replace the context.
    Compaction,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The brain has the lease and the log is folded. `claims` counts claims without progress, this one included.
    Start {
        /// The count.
        claims: u32,
    },
    /// An append of this machine is durable.
    Committed(Vec<Record>),
    /// Others appended.
    Grown(Vec<Record>),
    /// The model answered, as far as it came.
    Answered(Answer),
    /// The model request failed.
    Failed(Failure),
    /// A call finished, was cancelled, or could not be run.
    ToolDone {
        /// The call.
        call: EventId,
        /// Blocks in the shape of the Messages API.
        content: Vec<Value>,
        /// Whether it failed.
        is_error: bool,
    },
    /// The hands need a new generation of a sandbox before they can run anything there.
    HandsGone {
        /// The sandbox.
        sandbox: String,
    },
    /// There can be no sandbox such as the session's environment wants it: none of the calls can run.
    HandsFailed {
        /// For a person and the model to read.
        message: String,
    },
    /// The time a `WakeAt` asked for has come, or a moment to look again.
    Tick,
}

/// What to do. Steps are performed in order.
#[derive(Clone, Debug)]
pub enum Step {
    /// Make these durable, then hand them back with `Committed`.
    Append(Batch),
    /// Ask the model.
    CallModel {
        /// What for.
        purpose: Purpose,
        /// The context.
        messages: Vec<Message>,
    },
    /// Stop the request under way; it still reports `Answered` or `Failed`.
    CancelModel,
    /// Run a call in its sandbox, of the state's generation. `fresh`: this brain knows that it was never started.
    RunTool {
        /// The call.
        call: EventId,
        /// The tool.
        name: String,
        /// Its input.
        input: Value,
        /// Known not to have been started.
        fresh: bool,
    },
    /// Stop a call; it still reports `ToolDone`.
    CancelTool {
        /// The call.
        call: EventId,
    },
    /// Come back with `Tick` then.
    WakeAt(Timestamp),
}

/// Records to append and the change of the session's row that goes with them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The records.
    pub records: Vec<NewRecord>,
    /// The new status.
    pub status: Option<Status>,
    /// Changes of the gate.
    pub gate: Vec<GateChange>,
    /// Tokens used, in total, if they changed.
    pub usage: Option<Usage>,
    /// Running time, in total, if it changed.
    pub activity: Option<Activity>,
    /// The batch ends the turn and gives up the lease; it is guarded.
    pub ends: bool,
    /// The batch is refused if a client has written since: it settles calls that a client could still answer.
    pub guarded: bool,
    /// The turn got somewhere.
    pub progress: bool,
    /// A new generation of this sandbox begins, with whoever appends this.
    pub new_hands: Option<String>,
}

/// What is under way outside and not in the log.
#[derive(Clone, Debug, Default)]
struct Flight {
    model: Option<Purpose>,
    model_cancelled: bool,
    tools: BTreeSet<EventId>,
    cancelled: BTreeSet<EventId>,
    fresh: BTreeSet<EventId>,
    compact: bool,
    span_started: bool,
    hands_failed: Option<String>,
}

/// What the model's end of a request was, until the batch made of it is durable: a guarded batch may have to be made again.
#[derive(Clone, Debug)]
enum Came {
    Answer(Purpose, Answer),
    Failure(Failure),
}

/// One session's turn.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    facts: Facts,
    limits: Limits,
    flight: Flight,
    claims: u32,
    pending: Option<Batch>,
    came: Option<Came>,
}

impl Machine {
    /// A machine on a folded log.
    pub fn new(state: State, facts: Facts, limits: Limits) -> Self {
        Self {
            state,
            facts,
            limits,
            flight: Flight::default(),
            claims: 0,
            pending: None,
            came: None,
        }
    }

    /// The folded log.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The folded log, once the turn is over.
    pub fn into_state(self) -> State {
        self.state
    }

    /// The session's facts.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Takes an input and answers with what to do.
    pub fn handle(&mut self, input: Input, now: Timestamp, ids: &dyn IdGen) -> Vec<Step> {
        let mut desk = Desk { now, ids };
        match input {
            Input::Start { claims } => {
                self.claims = claims;
                self.decide(&mut desk)
            }
            Input::Committed(records) => {
                self.committed(&records);
                self.decide(&mut desk)
            }
            Input::Grown(records) => {
                self.pending = None;
                for record in &records {
                    self.state.apply(record);
                }
                match self.came.take() {
                    Some(came) => self.came(came, &mut desk),
                    None => self.decide(&mut desk),
                }
            }
            Input::Answered(answer) => {
                let purpose = self.flight.model.take().unwrap_or(Purpose::Answer);
                self.flight.model_cancelled = false;
                self.came(Came::Answer(purpose, answer), &mut desk)
            }
            Input::Failed(failure) => {
                self.flight.model = None;
                self.flight.model_cancelled = false;
                self.came(Came::Failure(failure), &mut desk)
            }
            Input::ToolDone { call, content, is_error } => {
                self.flight.tools.remove(&call);
                self.tool_done(&call, content, is_error, &mut desk)
            }
            Input::HandsGone { sandbox } => {
                let generation = self.state.generation(&sandbox) + 1;
                let mut batch = Batch { new_hands: Some(sandbox.clone()), ..Batch::default() };
                let sandbox = Some(sandbox).filter(|name| name != DEFAULT_SANDBOX);
                let transcript = Transcript::Generation { generation, sandbox };
                batch.records.push(transcript.record(desk.event_id(), &self.facts.thread));
                self.append(batch)
            }
            Input::HandsFailed { message } => {
                self.flight.tools.clear();
                self.flight.cancelled.clear();
                self.flight.hands_failed = Some(message);
                self.decide(&mut desk)
            }
            Input::Tick => self.decide(&mut desk),
        }
    }

    fn came(&mut self, came: Came, desk: &mut Desk<'_>) -> Vec<Step> {
        let steps = match &came {
            Came::Answer(purpose, answer) => self.answered(*purpose, answer, desk),
            Came::Failure(failure) => self.failed(failure, desk),
        };
        self.came = Some(came);
        steps
    }

    /// An append step; the batch is remembered until it is durable.
    fn append(&mut self, batch: Batch) -> Vec<Step> {
        self.pending = Some(batch.clone());
        vec![Step::Append(batch)]
    }

    fn committed(&mut self, records: &[Record]) {
        self.came = None;
        if let Some(batch) = self.pending.take() {
            self.facts.status = batch.status.unwrap_or(self.facts.status);
            self.facts.usage = batch.usage.unwrap_or(self.facts.usage);
            self.facts.activity = batch.activity.unwrap_or(self.facts.activity);
            self.claims = if batch.progress { 0 } else { self.claims };
        }
        let runnable_before: BTreeSet<EventId> = self.runnable();
        for record in records {
            self.state.apply(record);
        }
        for call in self.runnable().difference(&runnable_before) {
            self.flight.fresh.insert(call.clone());
        }
    }

    fn runnable(&self) -> BTreeSet<EventId> {
        let calls = self.state.calls.iter().filter(|call| call.runnable());
        calls.map(|call| call.record.event.clone()).collect()
    }
}

/// The present instant and new ids, for the length of one input.
struct Desk<'a> {
    now: Timestamp,
    ids: &'a dyn IdGen,
}

impl Desk<'_> {
    fn event_id(&mut self) -> EventId {
        EventId::new(self.ids.next(self.now))
    }

    /// A fraction in `0.0..1.0`.
    fn fraction(&mut self) -> f64 {
        let low = u32::try_from(self.ids.next(self.now) & 0xffff_ffff).unwrap_or(0);
        f64::from(low) / 4_294_967_296.0
    }
}
