//! What a client may send to a session right now, and the records that accepting it makes. Pure: the caller commits the outcome against the revision it read.

use serde_json::Value;
use std::collections::BTreeMap;
use vaquero_types::{
    ApiError, EventId, IdGen, SessionId, ThreadId, Timestamp,
    agent::SessionAgent,
    event::{
        ClientEvent,
        server::{self, EventBody, StopReason},
    },
    gate::{Awaits, Gate, GateChange},
    record::{NewRecord, RecordKind},
    session::Status,
    usage::{Activity, Usage},
};

/// A session as its row has it.
#[derive(Clone, Debug)]
pub struct Standing<'a> {
    /// The session.
    pub session: &'a SessionId,
    /// Its status.
    pub status: Status,
    /// Whether it is archived.
    pub archived: bool,
    /// The calls that wait for a client.
    pub gate: &'a Gate,
    /// The primary thread.
    pub thread: &'a ThreadId,
    /// The agent.
    pub agent: &'a SessionAgent,
    /// Workers of the client's own run the built-in tools.
    pub self_hosted: bool,
    /// Tokens used.
    pub usage: Usage,
    /// Running time.
    pub activity: Activity,
}

/// An event of the log that a client's answer names, for calls that no longer wait.
#[derive(Clone, Debug)]
pub struct Past {
    /// Its type.
    pub event_type: String,
    /// Its body.
    pub body: Value,
}

/// What accepting the events does.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// The records to append.
    pub records: Vec<NewRecord>,
    /// The ids of the client's own events, in the order they were sent.
    pub ids: Vec<EventId>,
    /// The new status.
    pub status: Option<Status>,
    /// The new running time.
    pub activity: Option<Activity>,
    /// Changes of the gate.
    pub gate: Vec<GateChange>,
    /// A brain has something to do.
    pub ready: bool,
}

struct Desk<'a> {
    standing: &'a Standing<'a>,
    gate: Gate,
    admitted: Admitted,
    now: Timestamp,
    ids: &'a dyn IdGen,
}

/// Decides on a request's events. `past` holds the logged events of answered calls that the gate does not list.
pub fn admit(
    standing: &Standing<'_>,
    events: &[ClientEvent],
    past: &BTreeMap<EventId, Past>,
    now: Timestamp,
    ids: &dyn IdGen,
) -> Result<Admitted, ApiError> {
    if standing.archived {
        let message = format!("Cannot send events to archived session: {}", standing.session);
        return Err(ApiError::invalid(message));
    }
    if standing.status == Status::Terminated {
        let message = format!("Cannot send events to terminated session: {}", standing.session);
        return Err(ApiError::invalid(message));
    }
    order_of_system_messages(events, standing.agent)?;
    let mut desk =
        Desk { standing, gate: standing.gate.clone(), admitted: Admitted::default(), now, ids };
    for (index, event) in events.iter().enumerate() {
        desk.event(index, event, past)?;
    }
    Ok(desk.finish())
}

fn order_of_system_messages(events: &[ClientEvent], agent: &SessionAgent) -> Result<(), ApiError> {
    for (index, event) in events.iter().enumerate() {
        let ClientEvent::System { .. } = event else { continue };
        if index + 1 != events.len() {
            return Err(ApiError::invalid(format!(
                "Invalid system.message event at events[{index}]: it must be the last event of a request, and there may be only one"
            )));
        }
        let follows = index.checked_sub(1).and_then(|before| events.get(before));
        match follows {
            Some(
                ClientEvent::Message { .. }
                | ClientEvent::ToolResult { .. }
                | ClientEvent::CustomResult { .. },
            ) => {}
            _ => {
                return Err(ApiError::invalid(format!(
                    "Invalid system.message event at events[{index}]: it must directly follow a `user.message`, `user.tool_result` or `user.custom_tool_result` of the same request"
                )));
            }
        }
        if !takes_system_messages(&agent.model.id) {
            return Err(ApiError::invalid(format!(
                "Invalid system.message event at events[{index}]: model `{}` does not support system messages in the middle of a conversation",
                agent.model.id
            ))
            .with_error_code("model_does_not_support_mid_conversation_system"));
        }
    }
    Ok(())
}

/// Models of other makers are taken at their operator's word.
fn takes_system_messages(model: &str) -> bool {
    let older = [
        "claude-2",
        "claude-3",
        "claude-instant",
        "claude-haiku-4",
        "claude-sonnet-4",
        "claude-opus-4",
    ];
    let newer = ["claude-opus-4-8", "claude-opus-4-9"];
    newer.iter().any(|prefix| model.starts_with(prefix))
        || !older.iter().any(|prefix| model.starts_with(prefix))
}

impl Desk<'_> {
    fn event(
        &mut self,
        index: usize,
        event: &ClientEvent,
        past: &BTreeMap<EventId, Past>,
    ) -> Result<(), ApiError> {
        match event {
            ClientEvent::DefineOutcome => {
                return Err(refused(index, event, "outcomes are not available on this server yet"));
            }
            ClientEvent::ToolResult { call, .. } if self.standing.self_hosted => {
                self.answer(index, event, call, Awaits::ToolResult, past)?;
                self.processed(event);
            }
            ClientEvent::ToolResult { .. } => {
                let reason = "`user.tool_result` is for sessions of self-hosted environments; this server runs the tools of a cloud environment itself";
                return Err(refused(index, event, reason));
            }
            ClientEvent::Message { .. } => {
                self.refuse_while_waiting(index, event)?;
                self.received(event);
                self.admitted.ready = true;
            }
            ClientEvent::System { .. } => {
                self.received(event);
            }
            ClientEvent::Interrupt { thread } => {
                if let Some(thread) = thread
                    && thread != self.standing.thread
                {
                    let reason = format!("there is no thread `{thread}` in this session");
                    return Err(refused(index, event, &reason));
                }
                self.interrupt(event);
            }
            ClientEvent::Confirmation { call, .. } => {
                self.answer(index, event, call, Awaits::Confirmation, past)?;
                self.received(event);
            }
            ClientEvent::CustomResult { call, .. } => {
                self.answer(index, event, call, Awaits::CustomResult, past)?;
                self.processed(event);
            }
        }
        Ok(())
    }

    /// Whether the session is parked on calls that only a client can answer.
    fn waiting(&self) -> bool {
        self.standing.status == Status::Idle
            && !self.admitted.ready
            && !self.gate.unanswered().is_empty()
    }

    fn refuse_while_waiting(&self, index: usize, event: &ClientEvent) -> Result<(), ApiError> {
        if !self.waiting() {
            return Ok(());
        }
        let ids: Vec<String> = self.gate.unanswered().iter().map(ToString::to_string).collect();
        Err(ApiError::invalid(format!(
            "Invalid {} event at events[{index}]: waiting on responses to events [{}]; only `user.tool_confirmation`, `user.custom_tool_result`, `user.tool_result`, or `user.interrupt` may be sent",
            event.event_type(),
            ids.join(", ")
        )))
    }

    fn interrupt(&mut self, event: &ClientEvent) {
        let nothing_to_stop = self.standing.status == Status::Idle
            && self.gate.calls.is_empty()
            && !self.admitted.ready;
        if nothing_to_stop {
            self.processed(event);
            return;
        }
        self.received(event);
        self.gate.apply(&GateChange::Clear);
        self.admitted.gate.push(GateChange::Clear);
        self.admitted.ready = true;
    }

    fn answer(
        &mut self,
        index: usize,
        event: &ClientEvent,
        call: &EventId,
        awaits: Awaits,
        past: &BTreeMap<EventId, Past>,
    ) -> Result<(), ApiError> {
        match self.gate.find(call) {
            Some(open) if open.answered => {
                return Err(refused(index, event, &format!("`{call}` has been answered already")));
            }
            Some(open) if open.awaits == awaits => {}
            Some(open) => {
                let wanted = match open.awaits {
                    Awaits::Confirmation => "user.tool_confirmation",
                    Awaits::CustomResult => "user.custom_tool_result",
                    Awaits::ToolResult => "user.tool_result",
                };
                let reason = format!("`{call}` waits for a `{wanted}`");
                return Err(refused(index, event, &reason));
            }
            None => return Err(refused(index, event, &no_longer(call, awaits, past))),
        }
        let change = GateChange::Answer(call.clone());
        self.gate.apply(&change);
        self.admitted.gate.push(change);
        if self.gate.unanswered().is_empty() || self.standing.status != Status::Idle {
            self.admitted.ready = true;
        }
        Ok(())
    }

    fn id(&self) -> EventId {
        EventId::new(self.ids.next(self.now))
    }

    fn record(&mut self, kind: RecordKind, event_type: &str, body: String) -> EventId {
        let event_id = self.id();
        self.admitted.records.push(NewRecord {
            kind,
            event_id: event_id.clone(),
            thread: self.standing.thread.clone(),
            event_type: event_type.to_owned(),
            body: body.into(),
        });
        event_id
    }

    fn received(&mut self, event: &ClientEvent) {
        let id = self.record(RecordKind::Received, event.event_type(), event.body());
        self.admitted.ids.push(id);
    }

    fn processed(&mut self, event: &ClientEvent) {
        let id = self.record(RecordKind::Event, event.event_type(), event.body());
        self.admitted.ids.push(id);
    }

    fn server(&mut self, event: EventBody) {
        self.record(RecordKind::Event, event.event_type, event.body);
    }

    /// Adds what the events mean for the session as a whole.
    fn finish(mut self) -> Admitted {
        let (thread, name) = (self.standing.thread, self.standing.agent.name.as_str());
        if self.admitted.ready {
            if self.standing.status == Status::Idle {
                let mut activity = self.standing.activity;
                activity.start(self.now);
                self.server(server::status_running());
                self.server(server::thread_status_running(thread, name));
                self.admitted.status = Some(Status::Running);
                self.admitted.activity = Some(activity);
            }
        } else if !self.admitted.gate.is_empty() {
            let reason = StopReason::RequiresAction { event_ids: self.gate.unanswered() };
            let usage = self.standing.usage.to_wire(self.standing.activity.active(self.now));
            self.server(server::thread_status_idle(thread, name, &reason));
            self.server(server::session_usage(&usage));
            self.server(server::status_idle(&reason));
        }
        self.admitted
    }
}

fn refused(index: usize, event: &ClientEvent, reason: &str) -> ApiError {
    ApiError::invalid(format!("Invalid {} event at events[{index}]: {reason}", event.event_type()))
}

/// Why a call that does not wait cannot be answered.
fn no_longer(call: &EventId, awaits: Awaits, past: &BTreeMap<EventId, Past>) -> String {
    let Some(past) = past.get(call) else {
        return format!("there is no tool call `{call}` in this session");
    };
    let permission = past.body["evaluated_permission"].as_str();
    match (past.event_type.as_str(), awaits) {
        ("agent.tool_use", Awaits::Confirmation) if permission != Some("ask") => {
            format!(
                "`tool_use_id` \"{call}\" has `evaluated_permission` \"{}\" and needs no confirmation",
                permission.unwrap_or("allow")
            )
        }
        ("agent.tool_use", Awaits::Confirmation)
        | ("agent.custom_tool_use", Awaits::CustomResult) => {
            format!("`{call}` has been answered already")
        }
        ("agent.tool_use", Awaits::ToolResult) => format!("`{call}` has its result already"),
        ("agent.tool_use", _) => format!("`{call}` is not a custom tool call"),
        ("agent.custom_tool_use", _) => {
            format!("`{call}` is a custom tool call: send its `user.custom_tool_result`")
        }
        _ => format!("`{call}` is not a tool call"),
    }
}
