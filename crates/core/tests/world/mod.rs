//! A session's world without a world: a log with the store's rules, a brain that can die, a model and hands that do as the test says.
#![allow(dead_code, reason = "each test file uses its own part")]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vaquero_core::{
    Input, Limits, Machine, Message, State, Step,
    admission::{self, Past, Standing},
    turn::{Answer, AnswerBlock, Batch, Ending, Facts, Failure, FailureKind, Purpose},
};
use vaquero_types::{
    ApiError, EventId, IdGen, SessionId, ThreadId, Timestamp,
    agent::SessionAgent,
    event::ClientEvent,
    gate::Gate,
    record::{NewRecord, Record, RecordKind},
    session::Status,
    usage::{Activity, Usage},
};

/// One, two, three.
struct Ids(std::sync::atomic::AtomicU64);

impl IdGen for Ids {
    fn next(&self, _now: Timestamp) -> u128 {
        u128::from(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) + 1
    }
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct World {
    ids: Ids,
    pub(crate) now: i64,
    agent: SessionAgent,
    session: SessionId,
    thread: ThreadId,
    pub(crate) limits: Limits,
    pub(crate) log: Vec<Record>,
    pub(crate) status: Status,
    pub(crate) gate: Gate,
    pub(crate) usage: Usage,
    /// Tokens of all answers.
    pub(crate) answered: Usage,
    activity: Activity,
    ready: bool,
    client_head: u64,
    claims: u32,
    brain: Option<Machine>,
    /// No brain comes, however ready the session is.
    pub(crate) stalled: bool,
    inbox: VecDeque<Input>,
    /// A model request under way.
    pub(crate) asked: Option<(Purpose, Vec<Message>)>,
    /// The last answer was a pause: the model goes on with its own words.
    pub(crate) paused: bool,
    /// Every request so far, without summaries.
    pub(crate) requests: Vec<Vec<Message>>,
    /// Calls in the sandbox: running there, or finished and not acknowledged.
    pub(crate) running: BTreeSet<EventId>,
    waiting: Vec<EventId>,
    needs_generation: bool,
    /// What a client sends while the brain's next append is on its way.
    pub(crate) meanwhile: Vec<Value>,
    /// How often each call was started.
    pub(crate) starts: BTreeMap<EventId, u32>,
    pub(crate) wake: Option<Timestamp>,
}

impl World {
    pub(crate) fn new() -> Self {
        let agent = json!({
            "type": "agent", "id": "agent_1", "version": 1, "name": "a", "description": null,
            "model": { "id": "m", "effort": { "type": "high" }, "speed": "standard", "inference_geo": null },
            "system": null, "mcp_servers": [], "skills": [], "multiagent": null,
            "execution_identity": { "type": "service_account" },
            "tools": [
                { "type": "agent_toolset_20260401", "default_config": { "enabled": true, "permission_policy": { "type": "always_allow" } }, "configs": [
                    { "type": "write", "name": "write", "enabled": true, "permission_policy": { "type": "always_ask" } },
                ] },
                { "type": "custom", "name": "ask", "description": "asks", "input_schema": { "type": "object" } },
            ],
        });
        Self {
            ids: Ids(0.into()),
            now: 1_000_000_000,
            agent: serde_json::from_value(agent).expect("an agent"),
            session: SessionId::from_wire("sesn_1"),
            thread: ThreadId::from_wire("sthr_1"),
            limits: Limits { attempts: 3, ..Limits::default() },
            log: Vec::new(),
            status: Status::Idle,
            gate: Gate::default(),
            usage: Usage::default(),
            answered: Usage::default(),
            activity: Activity::default(),
            ready: false,
            client_head: 0,
            claims: 0,
            brain: None,
            stalled: false,
            inbox: VecDeque::new(),
            asked: None,
            paused: false,
            requests: Vec::new(),
            running: BTreeSet::new(),
            waiting: Vec::new(),
            needs_generation: false,
            meanwhile: Vec::new(),
            starts: BTreeMap::new(),
            wake: None,
        }
    }

    fn at(&mut self) -> Timestamp {
        self.now += 1_000;
        Timestamp::from_micros(self.now)
    }

    fn head(&self) -> u64 {
        self.log.len() as u64
    }

    fn place(&mut self, records: Vec<NewRecord>) -> Vec<Record> {
        let mut placed = Vec::new();
        for new in records {
            let known = self
                .log
                .iter()
                .any(|old| old.new.event_id == new.event_id && old.new.kind == new.kind);
            assert!(!known, "a record is appended twice: {new:?}");
            let record = Record { seq: self.head() + 1, at: self.at(), new };
            self.log.push(record.clone());
            placed.push(record);
        }
        placed
    }

    /// A client's request.
    pub(crate) fn send(&mut self, events: &[Value]) -> Result<Vec<EventId>, ApiError> {
        let (ids, placed) = self.accept(events)?;
        if self.brain.is_some() {
            self.input(Input::Grown(placed));
        }
        self.claim();
        Ok(ids)
    }

    /// Commits a client's request.
    fn accept(&mut self, events: &[Value]) -> Result<(Vec<EventId>, Vec<Record>), ApiError> {
        let decode = |event: &Value| ClientEvent::decode(event.clone(), "events.0".to_owned());
        let events: Vec<ClientEvent> = events.iter().map(decode).collect::<Result<_, _>>()?;
        let past: BTreeMap<EventId, Past> = self
            .log
            .iter()
            .filter(|record| record.new.kind == RecordKind::Event)
            .map(|record| {
                let body = serde_json::from_str(&record.new.body).unwrap_or_default();
                (
                    record.new.event_id.clone(),
                    Past { event_type: record.new.event_type.clone(), body },
                )
            })
            .collect();
        let standing = Standing {
            session: &self.session,
            status: self.status,
            archived: false,
            gate: &self.gate,
            thread: &self.thread,
            agent: &self.agent,
            self_hosted: false,
            usage: self.usage,
            activity: self.activity,
        };
        let now = Timestamp::from_micros(self.now + 500);
        let admitted = admission::admit(&standing, &events, &past, now, &self.ids)?;
        self.status = admitted.status.unwrap_or(self.status);
        self.activity = admitted.activity.unwrap_or(self.activity);
        admitted.gate.iter().for_each(|change| self.gate.apply(change));
        self.ready |= admitted.ready;
        let placed = self.place(admitted.records);
        self.client_head = self.head();
        Ok((admitted.ids, placed))
    }

    /// A brain takes the session if it is ready and has none.
    pub(crate) fn claim(&mut self) {
        if self.brain.is_some() || self.stalled || !self.ready {
            return;
        }
        self.claims += 1;
        let mut state = State::default();
        self.log.iter().for_each(|record| state.apply(record));
        let facts = Facts {
            thread: self.thread.clone(),
            agent: self.agent.clone(),
            self_hosted: false,
            sandboxes: Vec::new(),
            status: self.status,
            usage: self.usage,
            activity: self.activity,
        };
        self.brain = Some(Machine::new(state, facts, self.limits.clone()));
        self.input(Input::Start { claims: self.claims });
    }

    /// The brain dies; what it had asked of the model is lost, what runs in the sandbox goes on.
    pub(crate) fn die(&mut self) {
        self.brain = None;
        self.inbox.clear();
        self.asked = None;
        self.waiting.clear();
        self.needs_generation = false;
        self.wake = None;
    }

    /// The sandbox is gone with everything in it.
    pub(crate) fn lose_hands(&mut self) -> BTreeSet<EventId> {
        std::mem::take(&mut self.running)
    }

    pub(crate) fn has_brain(&self) -> bool {
        self.brain.is_some()
    }

    /// Hands an input to the brain, and performs all that comes of it before the next one.
    pub(crate) fn input(&mut self, input: Input) {
        self.inbox.push_back(input);
        while let Some(input) = self.inbox.pop_front() {
            if self.brain.is_none() {
                self.inbox.clear();
                return;
            }
            let mut steps = self.handle(input);
            while let Some(step) = steps.pop_front() {
                self.perform(step, &mut steps);
            }
        }
    }

    fn perform(&mut self, step: Step, steps: &mut VecDeque<Step>) {
        match step {
            Step::Append(batch) => {
                let ends = batch.ends;
                let input = self.commit(batch);
                if ends && matches!(input, Input::Committed(_)) {
                    self.brain = None;
                    self.wake = None;
                    assert!(self.asked.is_none(), "a turn ended with a request under way");
                    assert!(steps.is_empty(), "a turn ended with steps left");
                    return;
                }
                steps.extend(self.handle(input));
                let generation = self.brain.as_ref().map_or(0, |brain| brain.state().generation);
                if self.needs_generation && generation > 0 {
                    self.needs_generation = false;
                    for call in std::mem::take(&mut self.waiting) {
                        self.start(call);
                    }
                }
            }
            Step::CallModel { purpose, messages } => {
                if purpose == Purpose::Answer {
                    self.requests.push(messages.clone());
                }
                assert!(self.asked.is_none(), "two requests at once");
                self.asked = Some((purpose, messages));
            }
            Step::CancelModel => {
                self.asked = None;
                self.inbox.push_back(Input::Answered(answer(Vec::new(), Ending::Cancelled)));
            }
            Step::RunTool { call, fresh, .. } => self.run(call, fresh),
            Step::CancelTool { call } => {
                self.running.remove(&call);
                self.waiting.retain(|other| *other != call);
                self.inbox.push_back(done(&call, "interrupted", true));
            }
            Step::WakeAt(at) => self.wake = Some(self.wake.map_or(at, |wake| wake.min(at))),
        }
    }

    fn run(&mut self, call: EventId, fresh: bool) {
        let durable = self.log.iter().any(|record| record.new.event_id == call);
        assert!(durable, "a call ran before its event was durable");
        let generation = self.brain.as_ref().map_or(0, |brain| brain.state().generation);
        if self.running.contains(&call) {
            assert!(!fresh, "a call that runs is said to be fresh");
        } else if self.starts.contains_key(&call) {
            // It was started in hands that are gone: nobody can know.
            self.inbox.push_back(done(&call, "outcome unknown", true));
        } else if generation == 0 {
            self.waiting.push(call);
            if !self.needs_generation {
                self.needs_generation = true;
                self.inbox.push_back(Input::HandsGone { sandbox: "default".to_owned() });
            }
        } else {
            self.start(call);
        }
    }

    fn start(&mut self, call: EventId) {
        *self.starts.entry(call.clone()).or_default() += 1;
        self.running.insert(call);
    }

    fn handle(&mut self, input: Input) -> VecDeque<Step> {
        let now = self.at();
        self.wake = None;
        let brain = self.brain.as_mut().expect("a brain");
        brain.handle(input, now, &self.ids).into()
    }

    fn commit(&mut self, batch: Batch) -> Input {
        let seen = self.brain.as_ref().map_or(0, |brain| brain.state().seq);
        let from = usize::try_from(seen).unwrap_or(0);
        let meanwhile = std::mem::take(&mut self.meanwhile);
        if !meanwhile.is_empty() {
            // It may be too late for it by now; then the client is told so.
            drop(self.accept(&meanwhile));
        }
        if (batch.ends || batch.guarded) && seen < self.client_head {
            return Input::Grown(self.log[from..].to_vec());
        }
        self.status = batch.status.unwrap_or(self.status);
        self.usage = batch.usage.unwrap_or(self.usage);
        self.activity = batch.activity.unwrap_or(self.activity);
        batch.gate.iter().for_each(|change| self.gate.apply(change));
        if batch.progress {
            self.claims = 0;
        }
        if batch.ends {
            self.ready = false;
            self.claims = 0;
        }
        self.place(batch.records);
        Input::Committed(self.log[from..].to_vec())
    }

    /// The model answers.
    pub(crate) fn answer(&mut self, blocks: Vec<Value>, ending: Ending) {
        let Some(_) = self.asked.take() else { return };
        self.paused = ending == Ending::Pause;
        let blocks = blocks
            .into_iter()
            .map(|block| AnswerBlock {
                event: EventId::new(self.ids.next(Timestamp::from_micros(0))),
                block,
            })
            .collect();
        let usage = Usage { input_tokens: 10, output_tokens: 1, ..Usage::default() };
        self.answered.add(&usage);
        self.input(Input::Answered(Answer { blocks, ending, usage, speed: None }));
    }

    pub(crate) fn fail(&mut self, kind: FailureKind) {
        if self.asked.take().is_some() {
            let failure = Failure { kind, message: "no".to_owned(), retry_after: None };
            self.input(Input::Failed(failure));
        }
    }

    /// A call that runs comes to its end.
    pub(crate) fn finish(&mut self, call: &EventId) {
        if self.brain.is_some() && self.running.remove(call) {
            self.input(done(call, "out", false));
        }
    }

    /// The clock reaches the time the brain waits for.
    pub(crate) fn tick(&mut self) {
        if let Some(at) = self.wake {
            self.now = self.now.max(at.as_micros() + 1);
            self.input(Input::Tick);
        }
    }

    pub(crate) fn calls_that_run(&self) -> Vec<EventId> {
        self.running.iter().cloned().collect()
    }

    /// Public events as a client lists them.
    pub(crate) fn events(&self) -> Vec<(&str, EventId, Value)> {
        self.log
            .iter()
            .filter(|record| record.new.kind == RecordKind::Event)
            .map(|record| {
                let body = serde_json::from_str(&record.new.body).unwrap_or_default();
                (record.new.event_type.as_str(), record.new.event_id.clone(), body)
            })
            .collect()
    }

    pub(crate) fn types(&self) -> Vec<&str> {
        self.events().into_iter().map(|(kind, ..)| kind).collect()
    }
}

pub(crate) fn done(call: &EventId, text: &str, is_error: bool) -> Input {
    let content = vec![json!({ "type": "text", "text": text })];
    Input::ToolDone { call: call.clone(), content, is_error }
}

pub(crate) fn answer(blocks: Vec<AnswerBlock>, ending: Ending) -> Answer {
    Answer { blocks, ending, usage: Usage::default(), speed: None }
}

pub(crate) fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

pub(crate) fn message(words: &str) -> Value {
    json!({ "type": "user.message", "content": [text(words)] })
}

pub(crate) fn tool_use(id: &str, name: &str) -> Value {
    json!({ "type": "tool_use", "id": id, "name": name, "input": { "command": id } })
}

pub(crate) fn confirm(call: &EventId, allow: bool) -> Value {
    json!({ "type": "user.tool_confirmation", "tool_use_id": call, "result": if allow { "allow" } else { "deny" } })
}

pub(crate) fn result(call: &EventId, words: &str) -> Value {
    json!({ "type": "user.custom_tool_result", "custom_tool_use_id": call, "content": [text(words)] })
}
