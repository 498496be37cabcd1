//! One item of work: its session's calls, run in a sandbox while heartbeats keep it.

use super::{
    Hands,
    calls::{Call, Calls},
    queue::{Queue, Trouble},
};
use futures::{StreamExt, future::BoxFuture};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use vaquero_sandbox::{Fence, Sandbox, SandboxError, SandboxKey, SandboxSpec, ToolResult, blocks};
use vaquero_types::{Clock, SystemClock};

/// What is assumed of a lease until the server says how long it is.
const LEASE: Duration = Duration::from_secs(90);
/// The longest time between two heartbeats.
const BEAT_MAX: Duration = Duration::from_secs(30);
/// The first pause before something is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The generation of every sandbox: a session has one after the other, and this worker alone makes them.
const GENERATION: u64 = 1;
const GONE: &str = "The sandbox ended while this call was running (it may have run out of memory, or of room for files). Files in /workspace are kept; running programs and \
everything else outside it are gone. The next call gets a fresh sandbox.";

/// An item that has been taken.
pub(super) struct Item {
    pub(super) queue: Arc<Queue>,
    /// The item's token, or the environment's key.
    pub(super) bearer: String,
    pub(super) work: String,
    pub(super) session: String,
}

/// Why an item is left.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Its session rests, or is over.
    Done,
    /// It is another worker's.
    Lost,
    /// This worker stops; it goes on when it is started again.
    Stopped,
}

/// A call under way.
struct Running {
    call: Call,
    result: BoxFuture<'static, (Option<Arc<dyn Sandbox>>, ToolResult)>,
}

impl Item {
    /// Serves the session until it rests, the item is lost, or the worker stops.
    pub(super) async fn serve(self, hands: &Hands, stop: &CancellationToken) {
        let left = tokio::select! {
            left = self.follow(hands) => left,
            left = self.keep() => left,
            () = stop.cancelled() => Left::Stopped,
        };
        if left == Left::Done
            && let Err(error) = self.queue.stop(&self.bearer, &self.work).await
        {
            tracing::warn!(work = self.work, %error, "an item is left without a word");
        }
        if left == Left::Lost
            && let Err(error) = hands.compute.stop(&self.key()).await
        {
            // What runs here may run at the other worker's as well.
            tracing::warn!(session = self.session, %error, "a sandbox cannot be ended");
        }
        tracing::info!(work = self.work, session = self.session, ?left, "left a session");
    }

    /// Keeps the item by heartbeats, until it is lost or to be left.
    async fn keep(&self) -> Left {
        let (mut last, mut lease) = ("NO_HEARTBEAT".to_owned(), LEASE);
        let mut heard = Instant::now();
        loop {
            let expected: String = url::form_urlencoded::byte_serialize(last.as_bytes()).collect();
            let action = format!("heartbeat?expected_last_heartbeat={expected}");
            let pause;
            match self.queue.act(&self.bearer, &self.work, &action, None).await {
                Ok(beat) => {
                    heard = Instant::now();
                    beat["last_heartbeat"].as_str().unwrap_or_default().clone_into(&mut last);
                    let seconds = beat["ttl_seconds"].as_u64().filter(|seconds| *seconds > 0);
                    lease = seconds.map_or(lease, Duration::from_secs);
                    pause = (lease / 2).min(BEAT_MAX);
                    if beat["lease_extended"] != true {
                        return Left::Done;
                    }
                }
                Err(Trouble::Refused(status, why)) => {
                    tracing::warn!(work = self.work, status, why, "an item is lost");
                    return Left::Lost;
                }
                Err(Trouble::Away(_)) if heard.elapsed() < lease => pause = PAUSES.0 * 5,
                Err(Trouble::Away(why)) => {
                    tracing::warn!(work = self.work, why, "an item must be taken for lost");
                    return Left::Lost;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the session's events and runs its calls.
    async fn follow(&self, hands: &Hands) -> Left {
        let epoch = u64::try_from(SystemClock.now().as_micros()).unwrap_or(1);
        let mut calls = Calls::default();
        let mut sandbox: Option<Arc<dyn Sandbox>> = None;
        let mut running: Option<Running> = None;
        let mut pause = PAUSES.0;
        loop {
            // The stream first: what happens between the two is in one of them.
            let opened = async {
                let stream = self.queue.stream(&self.bearer, &self.session).await?;
                let events = self.queue.events(&self.bearer, &self.session).await?;
                Ok((stream, events))
            };
            let (mut stream, events) = match opened.await {
                Ok(opened) => opened,
                Err(Trouble::Refused(status, why)) => {
                    tracing::warn!(session = self.session, status, why, "a session is not ours");
                    return Left::Done;
                }
                Err(Trouble::Away(_)) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
            };
            pause = PAUSES.0;
            calls.rests = false;
            for event in &events {
                calls.take(event);
            }
            let mut rested = Instant::now();
            loop {
                if calls.over {
                    return Left::Done;
                }
                if running.is_none()
                    && let Some(call) = calls.next()
                {
                    let (key, spec) = (self.key(), spec(hands, epoch));
                    let (hands, call) = (hands.clone(), call.clone());
                    let (known, wanted) = (sandbox.clone(), call.clone());
                    let result =
                        Box::pin(async move { run(&hands, key, &spec, known, &wanted).await });
                    running = Some(Running { call, result });
                }
                let leave = rested + hands.max_idle;
                tokio::select! {
                    (found, result) = result_of(running.as_mut()), if running.is_some() => {
                        let Some(Running { call, .. }) = running.take() else { continue };
                        sandbox = found;
                        if !calls.is_settled(&call.id) {
                            self.settle(&call, result).await;
                        }
                        calls.settle(&call.id);
                        if let Some(sandbox) = &sandbox {
                            // Nothing hangs on it: a result that is kept too long goes with its sandbox.
                            drop(sandbox.ack(&call.id, fence(epoch)).await);
                        }
                    }
                    event = stream.next() => {
                        let Some(event) = event else { break };
                        calls.take(&event);
                        rested = Instant::now();
                        // Somebody has answered what runs: it is not wanted any more.
                        if let (Some(running), Some(sandbox)) = (&running, &sandbox)
                            && calls.is_settled(&running.call.id)
                        {
                            drop(sandbox.cancel(&running.call.id, fence(epoch)).await);
                        }
                    }
                    () = sleep_until(leave), if calls.rests && running.is_none() => return Left::Done,
                }
            }
        }
    }

    fn key(&self) -> SandboxKey {
        SandboxKey::default_of(self.session.clone())
    }

    /// Sends a result, again and again until the server has it or does not want it.
    async fn settle(&self, call: &Call, result: ToolResult) {
        let is_error = result.is_error;
        let mut content = blocks(result);
        if content.is_empty() {
            content.push(json!({ "type": "text", "text": "(no output)" }));
        }
        let event: Value = json!({ "type": "user.tool_result", "tool_use_id": call.id, "content": content, "is_error": is_error });
        let mut pause = PAUSES.0;
        loop {
            match self.queue.send(&self.bearer, &self.session, &event).await {
                Ok(()) => return,
                Err(Trouble::Refused(status, why)) => {
                    tracing::warn!(call = call.id, status, why, "a result is not wanted");
                    return;
                }
                Err(Trouble::Away(why)) => {
                    tracing::warn!(call = call.id, why, "a result waits");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

fn fence(epoch: u64) -> Fence {
    Fence { epoch, generation: GENERATION }
}

fn spec(hands: &Hands, epoch: u64) -> SandboxSpec {
    SandboxSpec {
        outbound: hands.outbound.clone(),
        ..SandboxSpec::new(GENERATION, epoch, hands.limits)
    }
}

async fn result_of(running: Option<&mut Running>) -> (Option<Arc<dyn Sandbox>>, ToolResult) {
    match running {
        Some(running) => (&mut running.result).await,
        None => std::future::pending().await,
    }
}

/// Runs a call in the session's sandbox, which is made if it has none; a call that runs there already, or has run, is waited for.
async fn run(
    hands: &Hands,
    key: SandboxKey,
    spec: &SandboxSpec,
    known: Option<Arc<dyn Sandbox>>,
    call: &Call,
) -> (Option<Arc<dyn Sandbox>>, ToolResult) {
    let failed = |text: String| ToolResult { is_error: true, ..ToolResult::text(text) };
    let sandbox = match known {
        Some(known) => known,
        None => match hands.compute.ensure(&key, spec).await {
            Ok(made) => made,
            Err(error) => {
                return (None, failed(format!("The sandbox could not be started: {error}")));
            }
        },
    };
    match sandbox.run(&call.id, fence(spec.epoch), &call.name, &call.input, None).await {
        Ok(result) => (Some(sandbox), result),
        Err(SandboxError::Gone { .. }) => (None, failed(GONE.to_owned())),
        Err(error) => {
            (Some(sandbox), failed(format!("The sandbox could not run this call: {error}")))
        }
    }
}
