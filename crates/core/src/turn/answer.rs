//! What becomes of a model's answer: its events, the transcript record, and the verdict on each call.

use super::{Batch, Desk, Machine, Purpose, Step};
use crate::{
    tools::{self, Evaluation},
    transcript::{CallRecord, Transcript},
};
use serde_json::Value;
use vaquero_types::{
    EventId,
    event::server::{self, Permission, SessionErrorKind, StopReason},
    gate::{Awaits, GateChange},
    usage::Usage,
};

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// It has said what it wanted.
    EndTurn,
    /// It waits for tool results.
    ToolUse,
    /// It ran into the limit on output.
    MaxTokens,
    /// It wants to be asked again.
    Pause,
    /// It declines.
    Refusal {
        /// The wire's category.
        category: Option<String>,
        /// For a person to read.
        explanation: Option<String>,
    },
    /// It was stopped by us.
    Cancelled,
}

/// A block of the answer under the id of the event it becomes part of: neighbouring text blocks share one.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerBlock {
    /// The event.
    pub event: EventId,
    /// The block, exactly as it must be replayed.
    pub block: Value,
}

/// A model's answer, complete or as far as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its finished blocks.
    pub blocks: Vec<AnswerBlock>,
    /// Why it stopped.
    pub ending: Ending,
    /// Tokens.
    pub usage: Usage,
    /// The speed it was served at.
    pub speed: Option<String>,
}

const CUT_OFF: &str =
    "This call was cut off by the limit on output and did not run. Make it smaller, or split it.";
const REFUSED: &str = "This call did not run: the model refused to go on.";

impl Machine {
    pub(super) fn answered(
        &mut self,
        purpose: Purpose,
        answer: &Answer,
        desk: &mut Desk<'_>,
    ) -> Vec<Step> {
        let mut batch = Batch { progress: true, ..Batch::default() };
        let mut usage = self.facts.usage;
        usage.add(&answer.usage);
        batch.usage = Some(usage);
        let cancelled = answer.ending == Ending::Cancelled;
        match purpose {
            _ if cancelled => self.end_span(&mut batch, true, answer, desk),
            Purpose::Answer => self.record_answer(&mut batch, answer, desk),
            Purpose::Compaction => self.record_summary(&mut batch, answer, desk),
        }
        self.append(batch)
    }

    fn record_answer(&mut self, batch: &mut Batch, answer: &Answer, desk: &mut Desk<'_>) {
        let thread = self.facts.thread.clone();
        let mut calls = Vec::new();
        let mut content = Vec::new();
        let mut refused = Vec::new();
        let mut blocks = answer.blocks.iter().peekable();
        while let Some(AnswerBlock { event, block }) = blocks.next() {
            match block["type"].as_str() {
                Some("text") => {
                    let mut texts = vec![block.clone()];
                    while let Some(next) = blocks.next_if(|next| next.event == *event) {
                        texts.push(next.block.clone());
                    }
                    texts.retain(|text| text["text"].as_str().is_some_and(|text| !text.is_empty()));
                    if !texts.is_empty() {
                        batch.push(event.clone(), &thread, server::agent_message(&texts));
                        content.extend(texts);
                    }
                }
                Some("thinking" | "redacted_thinking") => {
                    batch.push(event.clone(), &thread, server::agent_thinking());
                    content.push(block.clone());
                }
                Some("tool_use") => {
                    let call = self.judge(event, block);
                    self.announce(batch, &call);
                    if call.evaluation == Evaluation::Refused {
                        refused.push(call.clone());
                    }
                    content.push(block.clone());
                    calls.push(call);
                }
                _ => content.push(block.clone()),
            }
        }
        self.end_span(batch, false, answer, desk);
        let not_to_run = match &answer.ending {
            Ending::MaxTokens => calls.last().map(|call| (vec![call.clone()], CUT_OFF)),
            Ending::Refusal { .. } => Some((calls.clone(), REFUSED)),
            _ => None,
        };
        let window_tokens = window(&answer.usage);
        let goes_on = answer.ending == Ending::Pause && !content.is_empty();
        let assistant = Transcript::Assistant { content, calls, window_tokens, goes_on };
        batch.records.push(assistant.record(desk.event_id(), &thread));
        for call in refused {
            let reason =
                format!("There is no tool `{}`, or it is not enabled for this agent.", call.name);
            self.settle(batch, &call, &[server::text_block(&reason)], true, desk);
        }
        let (not_to_run, reason) = not_to_run.unwrap_or_default();
        for call in not_to_run.iter().filter(|call| call.evaluation != Evaluation::Refused) {
            self.settle(batch, call, &[server::text_block(reason)], true, desk);
        }
        if let Ending::Refusal { category, explanation } = &answer.ending
            && !self.interrupted()
        {
            let (category, explanation) = (category.clone(), explanation.clone());
            self.close(batch, &StopReason::Refusal { category, explanation }, desk);
            self.go_on_with_messages(batch, desk);
        }
    }

    fn judge(&self, event: &EventId, block: &Value) -> CallRecord {
        let name = block["name"].as_str().unwrap_or_default().to_owned();
        let evaluation = tools::evaluate(&self.facts.agent, &self.facts.sandboxes, &name);
        let built_in =
            matches!(evaluation, Evaluation::Allow | Evaluation::Ask | Evaluation::AutoAsk);
        CallRecord {
            event: event.clone(),
            tool_use_id: block["id"].as_str().unwrap_or_default().to_owned(),
            evaluation,
            remote: built_in && self.facts.self_hosted,
            input: block["input"].clone(),
            name,
        }
    }

    fn announce(&self, batch: &mut Batch, call: &CallRecord) {
        let body = match call.evaluation {
            Evaluation::Custom => server::agent_custom_tool_use(&call.name, &call.input),
            Evaluation::Allow => server::agent_tool_use(&call.name, &call.input, Permission::Allow),
            Evaluation::Ask => server::agent_tool_use(&call.name, &call.input, Permission::Ask),
            Evaluation::AutoAsk => {
                server::agent_tool_use(&call.name, &call.input, Permission::AutoAsk)
            }
            Evaluation::Refused => {
                server::agent_tool_use(&call.name, &call.input, Permission::Refused)
            }
        };
        batch.push(call.event.clone(), &self.facts.thread, body);
        let awaits = match call.evaluation {
            Evaluation::Custom => Some(Awaits::CustomResult),
            Evaluation::Ask | Evaluation::AutoAsk => Some(Awaits::Confirmation),
            Evaluation::Allow => call.remote.then_some(Awaits::ToolResult),
            Evaluation::Refused => None,
        };
        batch.gate.extend(awaits.map(|awaits| GateChange::Open(call.event.clone(), awaits)));
    }

    fn record_summary(&mut self, batch: &mut Batch, answer: &Answer, desk: &mut Desk<'_>) {
        let thread = self.facts.thread.clone();
        self.end_span(batch, false, answer, desk);
        let texts = answer.blocks.iter().filter_map(|block| block.block["text"].as_str());
        let summary = texts.collect::<Vec<_>>().join("\n");
        if summary.trim().is_empty() {
            let message = "the model gave no summary when the context had to be compacted";
            self.give_up(batch, SessionErrorKind::CompactionLimitReached, message, desk);
            return;
        }
        batch.records.push(Transcript::Compaction { summary }.record(desk.event_id(), &thread));
        batch.push(desk.event_id(), &thread, server::thread_context_compacted());
    }

    /// Ends the open span, if there is one.
    pub(super) fn end_span(
        &self,
        batch: &mut Batch,
        is_error: bool,
        answer: &Answer,
        desk: &mut Desk<'_>,
    ) {
        if let Some(start) = &self.state.open_span {
            let usage = answer.usage.to_span(answer.speed.as_deref());
            let body = server::model_request_end(start, is_error, &usage);
            batch.push(desk.event_id(), &self.facts.thread, body);
        }
    }
}

fn window(usage: &Usage) -> u64 {
    usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_input_tokens
        + usage.cache_creation_5m
        + usage.cache_creation_1h
}
