//! One model request: what is asked, the deltas on the way, and the answer in the shape the turn machine takes.

use crate::{World, crash};
use futures::StreamExt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use vaquero_core::{
    Message, Role, tools,
    turn::{Answer, AnswerBlock, Ending, Facts, Failure, FailureKind},
};
use vaquero_model::{BlockKind, ModelError, ModelEvent, ModelRequest, StopReason, ToolDef};
use vaquero_store::Delta;
use vaquero_types::{
    EventId, SessionId, ThreadId,
    agent::{Effort, Speed},
    usage::Usage,
};

/// A request as a task of its own performs it.
pub(crate) struct Ask {
    pub(crate) world: World,
    pub(crate) session: SessionId,
    pub(crate) thread: ThreadId,
    pub(crate) request: ModelRequest,
    /// A summary is not shown while it is written.
    pub(crate) quiet: bool,
    pub(crate) cancel: CancellationToken,
}

/// The request for a context.
pub(crate) fn request(facts: &Facts, messages: Vec<Message>, max_tokens: u32) -> ModelRequest {
    let agent = &facts.agent;
    let messages = messages
        .into_iter()
        .map(|message| vaquero_model::Message {
            role: match message.role {
                Role::User => vaquero_model::Role::User,
                Role::Assistant => vaquero_model::Role::Assistant,
                Role::System => vaquero_model::Role::System,
            },
            content: message.content,
        })
        .collect();
    let tools = tools::definitions(agent, &facts.sandboxes).into_iter().map(|tool| ToolDef {
        name: tool.name,
        description: tool.description,
        input_schema: tool.input_schema,
    });
    let effort = agent.model.effort;
    ModelRequest {
        model: agent.model.id.clone(),
        max_tokens,
        system: tools::system_prompt(agent, facts.self_hosted),
        tools: tools.collect(),
        messages,
        // The default is left unsaid: models without the setting refuse to hear of it.
        effort: (effort != Effort::default()).then(|| effort.as_str().to_owned()),
        fast: agent.model.speed == Speed::Fast,
        inference_geo: agent.model.inference_geo.clone(),
    }
}

/// The answer so far.
#[derive(Default)]
struct Sheet {
    blocks: Vec<AnswerBlock>,
    usage: Usage,
    run: Option<Run>,
}

/// Neighbouring text blocks, which become one event.
struct Run {
    event: EventId,
    announced: bool,
    /// The content position of the block being written, counted over blocks with text.
    index: Option<usize>,
    blocks_with_text: usize,
}

impl Ask {
    /// Performs the request. A cancelled one answers with the blocks that were finished.
    pub(crate) async fn perform(self) -> Result<Answer, Failure> {
        let mut sheet = Sheet::default();
        let cancel = self.cancel.clone();
        let outcome = tokio::select! {
            biased;
            outcome = self.follow(&mut sheet) => outcome,
            () = cancel.cancelled() => Ok((Ending::Cancelled, None)),
        };
        match outcome {
            Ok((ending, speed)) => {
                Ok(Answer { blocks: sheet.blocks, ending, usage: sheet.usage, speed })
            }
            Err(error) => Err(failure(error)),
        }
    }

    async fn follow(&self, sheet: &mut Sheet) -> Result<(Ending, Option<String>), ModelError> {
        let mut stream = self.world.models.stream(self.request.clone()).await?;
        crash::point("model-answering");
        while let Some(event) = stream.next().await {
            match event? {
                ModelEvent::Started { usage } => sheet.usage = usage,
                ModelEvent::BlockStart { kind, .. } => self.begin(sheet, &kind),
                ModelEvent::TextDelta { text, .. } => self.more(sheet, &text),
                ModelEvent::BlockDone { block, .. } => self.done(sheet, block),
                ModelEvent::Done { stop, usage, speed } => {
                    sheet.usage = usage;
                    if stop == StopReason::ContextWindowExceeded && sheet.blocks.is_empty() {
                        return Err(ModelError::ContextTooLong(
                            "the model's window is full".to_owned(),
                        ));
                    }
                    return Ok((ending(stop), speed));
                }
            }
        }
        Err(ModelError::Failed("the model's stream ended early".to_owned()))
    }

    fn new_event(&self) -> EventId {
        EventId::new(self.world.ids.next(self.world.clock.now()))
    }

    fn publish(&self, delta: Delta) {
        if !self.quiet {
            self.world.live.publish(&self.session, delta);
        }
    }

    fn start(&self, event: EventId, event_type: &'static str) {
        self.publish(Delta::Start { thread: self.thread.clone(), event, event_type });
    }

    fn begin(&self, sheet: &mut Sheet, kind: &BlockKind) {
        if *kind == BlockKind::Text {
            let run = sheet.run.get_or_insert_with(|| Run {
                event: self.new_event(),
                announced: false,
                index: None,
                blocks_with_text: 0,
            });
            run.index = None;
            return;
        }
        sheet.run = None;
        if *kind == BlockKind::Thinking {
            let event = self.new_event();
            self.start(event.clone(), "agent.thinking");
            sheet.run = Some(Run { event, announced: true, index: None, blocks_with_text: 0 });
        }
    }

    fn more(&self, sheet: &mut Sheet, text: &str) {
        let Some(run) = &mut sheet.run else { return };
        if !run.announced {
            run.announced = true;
            self.start(run.event.clone(), "agent.message");
        }
        let index = *run.index.get_or_insert_with(|| {
            run.blocks_with_text += 1;
            run.blocks_with_text - 1
        });
        self.publish(Delta::Text {
            thread: self.thread.clone(),
            event: run.event.clone(),
            index,
            text: Arc::from(text),
        });
    }

    fn done(&self, sheet: &mut Sheet, block: serde_json::Value) {
        let is_text = block["type"] == "text";
        let event = match &sheet.run {
            Some(run) => run.event.clone(),
            None => self.new_event(),
        };
        if !is_text {
            sheet.run = None;
        }
        sheet.blocks.push(AnswerBlock { event, block });
    }
}

fn ending(stop: StopReason) -> Ending {
    match stop {
        StopReason::EndTurn => Ending::EndTurn,
        StopReason::ToolUse => Ending::ToolUse,
        StopReason::MaxTokens | StopReason::ContextWindowExceeded => Ending::MaxTokens,
        StopReason::PauseTurn => Ending::Pause,
        StopReason::Refusal { category, explanation } => Ending::Refusal { category, explanation },
    }
}

fn failure(error: ModelError) -> Failure {
    let message = error.to_string();
    let (kind, retry_after) = match error {
        ModelError::Overloaded { retry_after, .. } => (FailureKind::Overloaded, retry_after),
        ModelError::RateLimited { retry_after, .. } => (FailureKind::RateLimited, retry_after),
        ModelError::Failed(_) => (FailureKind::Failed, None),
        ModelError::Invalid(_) => (FailureKind::Invalid, None),
        ModelError::ContextTooLong(_) => (FailureKind::ContextTooLong, None),
        ModelError::Media(_) => (FailureKind::Media, None),
        ModelError::Billing(_) => (FailureKind::Billing, None),
        ModelError::Unauthorized(_) | ModelError::NotConfigured(_) => {
            (FailureKind::NotConfigured, None)
        }
    };
    Failure { kind, message, retry_after }
}
