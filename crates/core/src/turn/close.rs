//! Settling calls and ending turns: the records that leave a session idle with nothing half done.

use super::{Answer, Batch, Desk, Ending, Machine};
use crate::{
    state::Call,
    tools::Evaluation,
    transcript::{CallRecord, Transcript},
};
use serde_json::Value;
use vaquero_types::{
    EventId, IdGen, ThreadId, Timestamp,
    event::server::{self, EventBody, RetryStatus, SessionErrorKind, StopReason},
    gate::GateChange,
    record::{NewRecord, RecordKind},
    session::Status,
    usage::Usage,
};

/// What the model reads of a call that an interrupt stopped.
pub(super) const INTERRUPTED: &str =
    "Tool execution was interrupted before completion. Please retry.";

impl Batch {
    /// Adds a public event.
    pub(super) fn push(&mut self, id: EventId, thread: &ThreadId, event: EventBody) {
        self.records.push(NewRecord {
            kind: RecordKind::Event,
            event_id: id,
            thread: thread.clone(),
            event_type: event.event_type.to_owned(),
            body: event.body.into(),
        });
    }
}

impl Machine {
    /// Settles a call: its public result, unless the client itself gave it, and the private one.
    pub(super) fn settle(
        &self,
        batch: &mut Batch,
        call: &CallRecord,
        content: &[Value],
        is_error: bool,
        desk: &mut Desk<'_>,
    ) {
        let thread = &self.facts.thread;
        let body = server::agent_tool_result(&call.event, content, is_error);
        batch.push(desk.event_id(), thread, body);
        self.settle_privately(batch, call, content.to_vec(), is_error, desk);
    }

    /// Settles a call whose result the client's own event shows.
    pub(super) fn settle_privately(
        &self,
        batch: &mut Batch,
        call: &CallRecord,
        mut content: Vec<Value>,
        is_error: bool,
        desk: &mut Desk<'_>,
    ) {
        if content.is_empty() {
            content.push(server::text_block("(no output)"));
        }
        let result = Transcript::ToolResult {
            call: call.event.clone(),
            tool_use_id: call.tool_use_id.clone(),
            content,
            is_error,
        };
        batch.records.push(result.record(desk.event_id(), &self.facts.thread));
        let gated = match call.evaluation {
            Evaluation::Custom | Evaluation::Ask | Evaluation::AutoAsk => true,
            Evaluation::Allow => call.remote,
            Evaluation::Refused => false,
        };
        if gated {
            batch.gate.push(GateChange::Close(call.event.clone()));
        }
    }

    /// Settles everything unsettled with the same error and ends an open span.
    pub(super) fn abandon(&self, batch: &mut Batch, reason: &str, desk: &mut Desk<'_>) {
        let nothing = Answer {
            blocks: Vec::new(),
            ending: Ending::Cancelled,
            usage: Usage::default(),
            speed: None,
        };
        self.end_span(batch, true, &nothing, desk);
        for Call { record, reply, .. } in &self.state.calls {
            if let Some(crate::state::Reply::Result { content, is_error }) = reply {
                self.settle_privately(batch, record, content.clone(), *is_error, desk);
            } else {
                self.settle(batch, record, &[server::text_block(reason)], true, desk);
            }
        }
    }

    /// Ends the turn: thread idle, usage, session idle.
    pub(super) fn close(&self, batch: &mut Batch, reason: &StopReason, desk: &mut Desk<'_>) {
        let (thread, name) = (&self.facts.thread, &self.facts.agent.name);
        let mut activity = self.facts.activity;
        activity.stop(desk.now);
        let usage = batch.usage.unwrap_or(self.facts.usage);
        let usage = usage.to_wire(activity.active(desk.now));
        batch.push(desk.event_id(), thread, server::thread_status_idle(thread, name, reason));
        batch.push(desk.event_id(), thread, server::session_usage(&usage));
        batch.push(desk.event_id(), thread, server::status_idle(reason));
        batch.records.push(Transcript::Stop.record(desk.event_id(), thread));
        batch.status = Some(Status::Idle);
        batch.activity = Some(activity);
        batch.ends = true;
    }

    /// Leaves the session idle, whatever was under way: what clients sent enters the context, and calls without a result fail.
    pub(crate) fn rest(self, now: Timestamp, ids: &dyn IdGen) -> Batch {
        let (mut batch, mut desk) = (Batch::default(), Desk { now, ids });
        self.take_queue(&mut batch, &mut desk);
        self.abandon(&mut batch, INTERRUPTED, &mut desk);
        self.close(&mut batch, &StopReason::EndTurn, &mut desk);
        batch
    }

    pub(super) fn has_messages(&self) -> bool {
        self.state.queue.iter().any(|queued| queued.event_type == "user.message")
    }

    /// Messages that came while the closed turn ran start the next one at once.
    pub(super) fn go_on_with_messages(&self, batch: &mut Batch, desk: &mut Desk<'_>) {
        if self.has_messages() {
            self.go_on(batch, desk);
        }
    }

    /// The next turn starts at once.
    pub(super) fn go_on(&self, batch: &mut Batch, desk: &mut Desk<'_>) {
        self.resume(batch, desk);
        (batch.ends, batch.guarded) = (false, true);
    }

    /// Ends the turn for a reason that more attempts will not mend: what is queued enters the context, so that the next message can refer to it.
    pub(super) fn give_up(
        &self,
        batch: &mut Batch,
        kind: SessionErrorKind,
        message: &str,
        desk: &mut Desk<'_>,
    ) {
        self.abandon_unless_done(batch, desk);
        self.exhaust(batch, kind, message, desk);
    }

    /// The same once nothing is left half done.
    pub(super) fn exhaust(
        &self,
        batch: &mut Batch,
        kind: SessionErrorKind,
        message: &str,
        desk: &mut Desk<'_>,
    ) {
        let body = server::session_error(kind, message, RetryStatus::Exhausted);
        batch.push(desk.event_id(), &self.facts.thread, body);
        self.take_queue(batch, desk);
        self.close(batch, &StopReason::RetriesExhausted, desk);
    }

    fn abandon_unless_done(&self, batch: &mut Batch, desk: &mut Desk<'_>) {
        let ended =
            batch.records.iter().any(|record| record.event_type == "span.model_request_end");
        if !ended {
            self.abandon(batch, INTERRUPTED, desk);
        }
    }

    /// Starts running again after an idle or rescheduled moment inside a turn.
    pub(super) fn resume(&self, batch: &mut Batch, desk: &mut Desk<'_>) {
        let (thread, name) = (&self.facts.thread, &self.facts.agent.name);
        let mut activity = batch.activity.unwrap_or(self.facts.activity);
        activity.start(desk.now);
        batch.push(desk.event_id(), thread, server::status_running());
        batch.push(desk.event_id(), thread, server::thread_status_running(thread, name));
        batch.status = Some(Status::Running);
        batch.activity = Some(activity);
    }
}
