//! What to do next, given the folded log and what is under way. Called after every input; it only ever moves a turn forward.

use super::{Batch, Desk, Machine, Purpose, Step, close::INTERRUPTED};
use crate::{
    context::{self, COMPACTION_REQUEST, Role},
    state::{Queued, Reply},
    tools,
    transcript::Transcript,
};
use serde_json::Value;
use vaquero_types::{
    EventId,
    event::server::{self, SessionErrorKind, StopReason},
    gate::{Awaits, GateChange},
    record::{NewRecord, RecordKind},
    session::Status,
};

impl Machine {
    pub(super) fn decide(&mut self, desk: &mut Desk<'_>) -> Vec<Step> {
        if self.pending.is_some() {
            return Vec::new();
        }
        if self.facts.status == Status::Terminated {
            return self.append(Batch { ends: true, ..Batch::default() });
        }
        if self.interrupted() {
            return self.interrupt(desk);
        }
        if let Some((kind, message)) = self.over_limit(desk) {
            return self.stop_for_limit(kind, &message, desk);
        }
        if let Some(message) = self.flight.hands_failed.clone() {
            return self.stop_for_hands(&message, desk);
        }
        if self.flight.model.is_some() {
            return self.wake_for_limit();
        }
        if let Some(at) = self.state.progress.retry_at
            && at > desk.now
        {
            return vec![Step::WakeAt(at)];
        }
        if !self.state.calls.is_empty() {
            return self.calls(desk);
        }
        self.converse(desk)
    }

    /// Stops what is under way, then closes everything and ends the turn. A turn that no brain has begun yet is stopped with the messages that were to begin it; other
    /// messages start the next one.
    fn interrupt(&mut self, desk: &mut Desk<'_>) -> Vec<Step> {
        let steps = self.cancel_flight();
        if !steps.is_empty() || self.in_flight() {
            return steps;
        }
        let mut batch = Batch::default();
        let is_interrupt = |queued: &Queued| queued.event_type == "user.interrupt";
        let stopped = if self.state.begun() {
            // What a client queued behind the turn is not what it stops.
            0
        } else {
            let last = self.state.queue.iter().rposition(is_interrupt);
            last.map_or(0, |last| last + 1)
        };
        self.take(self.state.queue.iter().take(stopped), &mut batch, desk);
        let jumping = self.state.queue.iter().skip(stopped).filter(|queued| is_interrupt(queued));
        self.take(jumping, &mut batch, desk);
        self.take_confirmations(&mut batch);
        self.abandon(&mut batch, INTERRUPTED, desk);
        self.close(&mut batch, &StopReason::EndTurn, desk);
        if self.state.queue.iter().skip(stopped).any(|queued| queued.event_type == "user.message") {
            self.go_on(&mut batch, desk);
        }
        self.append(batch)
    }

    pub(super) fn interrupted(&self) -> bool {
        self.state.queue.iter().any(|queued| queued.event_type == "user.interrupt")
    }

    fn in_flight(&self) -> bool {
        self.flight.model.is_some() || !self.flight.tools.is_empty()
    }

    fn cancel_flight(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.flight.model.is_some() && !self.flight.model_cancelled {
            self.flight.model_cancelled = true;
            steps.push(Step::CancelModel);
        }
        for call in &self.flight.tools {
            if self.flight.cancelled.insert(call.clone()) {
                steps.push(Step::CancelTool { call: call.clone() });
            }
        }
        steps
    }

    fn over_limit(&self, desk: &Desk<'_>) -> Option<(SessionErrorKind, String)> {
        let (progress, limits) = (&self.state.progress, &self.limits);
        let working = self.state.owed || !self.state.calls.is_empty() || self.in_flight();
        if !working || self.facts.status == Status::Idle {
            return None;
        }
        if self.claims > limits.claims {
            let message = format!(
                "the turn was started {} times without getting any further and is given up; send a message to try again",
                limits.claims
            );
            return Some((SessionErrorKind::Unknown, message));
        }
        let ran = self.facts.activity.running_since.map(vaquero_types::Timestamp::from_micros);
        if let Some(since) = ran.or(progress.started_at)
            && desk.now.since(since) >= limits.turn_time
        {
            let message = format!("the turn ran longer than {} s", limits.turn_time.as_secs());
            return Some((SessionErrorKind::Unknown, message));
        }
        if progress.tool_calls > limits.tool_calls {
            let message = format!("the turn made more than {} tool calls", limits.tool_calls);
            return Some((SessionErrorKind::ToolUseLimitReached, message));
        }
        if progress.model_calls >= limits.model_calls
            && self.flight.model.is_none()
            && self.state.owed
        {
            let message = format!("the turn made {} model requests", limits.model_calls);
            return Some((SessionErrorKind::ToolUseLimitReached, message));
        }
        None
    }

    fn stop_for_limit(
        &mut self,
        kind: SessionErrorKind,
        message: &str,
        desk: &mut Desk<'_>,
    ) -> Vec<Step> {
        let steps = self.cancel_flight();
        if !steps.is_empty() || self.in_flight() {
            return steps;
        }
        let mut batch = Batch { progress: true, ..Batch::default() };
        self.give_up(&mut batch, kind, message, desk);
        self.append(batch)
    }

    /// The calls that were to run failed, and so did the turn.
    fn stop_for_hands(&mut self, message: &str, desk: &mut Desk<'_>) -> Vec<Step> {
        let mut batch = Batch { progress: true, ..Batch::default() };
        self.abandon(&mut batch, message, desk);
        self.exhaust(&mut batch, SessionErrorKind::Unknown, message, desk);
        self.append(batch)
    }

    fn wake_for_limit(&self) -> Vec<Step> {
        let since = self.facts.activity.running_since.map(vaquero_types::Timestamp::from_micros);
        since.map(|since| Step::WakeAt(since.plus(self.limits.turn_time))).into_iter().collect()
    }

    /// Moves the unsettled calls on: takes replies, runs what may run, waits for the rest.
    fn calls(&mut self, desk: &mut Desk<'_>) -> Vec<Step> {
        let mut batch = Batch::default();
        if self.state.calls.iter().all(|call| !call.awaits_reply()) {
            self.take_confirmations(&mut batch);
        }
        for call in &self.state.calls {
            match &call.reply {
                Some(Reply::Result { content, is_error }) => {
                    self.settle_privately(
                        &mut batch,
                        &call.record,
                        content.clone(),
                        *is_error,
                        desk,
                    );
                }
                Some(Reply::Deny { message }) => {
                    let text = denial(&call.record.name, message.as_deref());
                    self.settle(&mut batch, &call.record, &[server::text_block(&text)], true, desk);
                }
                Some(Reply::Allow) | None => {}
            }
        }
        if !batch.records.is_empty() {
            return self.append(batch);
        }
        let mut steps = Vec::new();
        for call in &self.state.calls {
            let id = &call.record.event;
            if call.runnable() && self.flight.tools.insert(id.clone()) {
                steps.push(Step::RunTool {
                    call: id.clone(),
                    name: call.record.name.clone(),
                    input: call.record.input.clone(),
                    fresh: self.flight.fresh.contains(id)
                        || self.state.generation(tools::place(&call.record.name).0) == 0,
                });
            }
        }
        if !steps.is_empty() || !self.flight.tools.is_empty() {
            steps.extend(self.wake_for_limit());
            return steps;
        }
        let event_ids: Vec<EventId> = self
            .state
            .calls
            .iter()
            .filter(|call| call.waits_for_client())
            .map(|call| call.record.event.clone())
            .collect();
        self.close(&mut batch, &StopReason::RequiresAction { event_ids }, desk);
        self.append(batch)
    }

    /// Confirmations become processed events, in the order they came. What a worker may run now waits for its result.
    fn take_confirmations(&self, batch: &mut Batch) {
        for queued in &self.state.queue {
            if queued.event_type != "user.tool_confirmation" {
                continue;
            }
            batch.records.push(taken(queued, &self.facts.thread));
            let id = EventId::from_wire(queued.body["tool_use_id"].as_str().unwrap_or_default());
            let call = self.state.call(&id);
            if call.is_some_and(|call| call.record.remote && call.reply == Some(Reply::Allow)) {
                batch.gate.push(GateChange::Close(id.clone()));
                batch.gate.push(GateChange::Open(id, Awaits::ToolResult));
            }
        }
    }

    pub(super) fn tool_done(
        &mut self,
        id: &EventId,
        content: Vec<Value>,
        is_error: bool,
        desk: &mut Desk<'_>,
    ) -> Vec<Step> {
        self.flight.cancelled.remove(id);
        let Some(call) = self.state.call(id).cloned() else { return self.decide(desk) };
        let mut batch = Batch { progress: true, ..Batch::default() };
        let content =
            if content.is_empty() { vec![server::text_block("(no output)")] } else { content };
        self.settle(&mut batch, &call.record, &content, is_error, desk);
        self.append(batch)
    }

    /// Everything queued enters the context, in order.
    pub(super) fn take_queue(&self, batch: &mut Batch, desk: &mut Desk<'_>) {
        self.take(&self.state.queue, batch, desk);
    }

    fn take<'a>(
        &self,
        queue: impl IntoIterator<Item = &'a Queued>,
        batch: &mut Batch,
        desk: &mut Desk<'_>,
    ) {
        let thread = &self.facts.thread;
        for queued in queue {
            batch.records.push(taken(queued, thread));
            let content = context::blocks_from_event(&queued.body["content"]);
            let transcript = match queued.event_type.as_str() {
                "user.message" => Transcript::User { content },
                "system.message" => Transcript::System { content },
                _ => continue,
            };
            batch.records.push(transcript.record(desk.event_id(), thread));
        }
    }

    /// With no calls open: takes messages, asks the model, or ends the turn.
    fn converse(&mut self, desk: &mut Desk<'_>) -> Vec<Step> {
        let begun = std::mem::take(&mut self.flight.span_started);
        if begun && self.state.open_span.is_some() {
            // What a client sent since waits for the next request.
            return self.call_model();
        }
        let mut batch = Batch::default();
        self.take_queue(&mut batch, desk);
        let owed = self.state.owed || self.has_messages();
        if !owed {
            if self.facts.status == Status::Idle && batch.records.is_empty() {
                return self.append(Batch { ends: true, ..Batch::default() });
            }
            self.close(&mut batch, &StopReason::EndTurn, desk);
            return self.append(batch);
        }
        if self.state.open_span.is_some() {
            self.abandon(&mut batch, INTERRUPTED, desk);
        }
        if self.facts.status != Status::Running {
            self.resume(&mut batch, desk);
        }
        let start = server::model_request_start();
        batch.push(desk.event_id(), &self.facts.thread, start);
        self.flight.span_started = true;
        self.append(batch)
    }

    fn call_model(&mut self) -> Vec<Step> {
        let mut messages = self.state.messages.clone();
        let purpose = if self.wants_compaction() { Purpose::Compaction } else { Purpose::Answer };
        if purpose == Purpose::Compaction {
            let request = server::text_block(COMPACTION_REQUEST);
            context::push(&mut messages, Role::User, [request]);
        }
        self.flight.compact = false;
        self.flight.model = Some(purpose);
        let mut steps = vec![Step::CallModel { purpose, messages }];
        steps.extend(self.wake_for_limit());
        steps
    }

    fn wants_compaction(&self) -> bool {
        let limits = &self.limits;
        let full = limits.window_tokens.saturating_mul(limits.compact_at_percent) / 100;
        let can = self.state.progress.compactions < limits.compactions
            && self.state.messages.iter().any(|message| message.role == Role::Assistant);
        can && (self.flight.compact || self.state.window_tokens > full)
    }
}

/// A queued event as the agent takes it.
fn taken(queued: &Queued, thread: &vaquero_types::ThreadId) -> NewRecord {
    NewRecord {
        kind: RecordKind::Event,
        event_id: queued.id.clone(),
        thread: thread.clone(),
        event_type: queued.event_type.clone(),
        body: queued.body.to_string().into(),
    }
}

fn denial(name: &str, message: Option<&str>) -> String {
    match message {
        Some(message) if !message.is_empty() => {
            format!("Permission to use {name} has been rejected. Rejection message: {message}")
        }
        _ => format!("Permission to use {name} has been rejected."),
    }
}
