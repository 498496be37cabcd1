//! Hands that count what they do. A machine's sandboxes outlive its server, and go when the machine does.

use crate::{Sabotage, network::Wire};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use vaquero_sandbox::{
    CallState, Capabilities, ComputeProvider, Fence, Isolation, LimitsState, Networking, Piece,
    Quota, Sandbox, SandboxError, SandboxKey, SandboxSpec, ToolResult, Traffic,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gone() -> SandboxError {
    SandboxError::Gone { what: "its machine is gone".to_owned() }
}

/// A sandbox: what runs in it goes on whatever becomes of the server.
struct Confined {
    generation: u64,
    epoch: Mutex<u64>,
    calls: Mutex<BTreeMap<String, watch::Receiver<Option<ToolResult>>>>,
    running: Mutex<JoinSet<()>>,
}

/// The sandboxes of a machine.
#[derive(Default)]
pub(crate) struct Machine(Mutex<BTreeMap<String, Arc<Confined>>>);

impl Machine {
    /// Everything on it is gone.
    pub(crate) fn dies(&self) {
        lock(&self.0).clear();
    }
}

/// A server's hold on the sandboxes of its machine.
pub(crate) struct Hands {
    pub(crate) wire: Arc<Wire>,
    pub(crate) machine: Arc<Machine>,
}

struct Held {
    wire: Arc<Wire>,
    sandbox: Arc<Confined>,
}

impl Hands {
    fn held(&self, sandbox: Arc<Confined>) -> Arc<dyn Sandbox> {
        Arc::new(Held { wire: Arc::clone(&self.wire), sandbox })
    }

    fn fresh(&self, key: &SandboxKey, generation: u64) -> Arc<Confined> {
        let sandbox = Arc::new(Confined {
            generation,
            epoch: Mutex::new(0),
            calls: Mutex::default(),
            running: Mutex::default(),
        });
        lock(&self.machine.0).insert(key.session.clone(), Arc::clone(&sandbox));
        sandbox
    }
}

#[async_trait]
impl ComputeProvider for Hands {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "simulated",
            isolation: Isolation::Namespaces,
            own_ids: false,
            limits: LimitsState::Degraded,
            quota: Quota::Soft,
            networking: Networking::None,
            keeps_files: true,
            keeps_ready: false,
        }
    }

    fn check(&self, _spec: &SandboxSpec) -> Result<(), SandboxError> {
        Ok(())
    }

    fn prepare(&self, _spec: &SandboxSpec) {}

    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.wire.moves().await;
        sleep(Duration::from_millis(3)).await;
        let found = lock(&self.machine.0).get(&key.session).cloned();
        match found {
            Some(found) if found.generation == spec.generation => Ok(self.held(found)),
            Some(found) if found.generation > spec.generation => Err(SandboxError::StaleFence),
            _ => Ok(self.held(self.fresh(key, spec.generation))),
        }
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        self.wire.moves().await;
        let found = lock(&self.machine.0).get(&key.session).cloned();
        let found = found.filter(|found| found.generation == spec.generation);
        if found.is_none() && self.wire.shared.sabotage == Sabotage::ToolTwice {
            return Ok(Some(self.held(self.fresh(key, spec.generation))));
        }
        Ok(found.map(|found| self.held(found)))
    }

    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        self.destroy(&key.session).await
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        self.wire.moves().await;
        lock(&self.machine.0).remove(session);
        Ok(())
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let machine = lock(&self.machine.0);
        let living = machine.iter().map(|(session, sandbox)| {
            (SandboxKey::default_of(session.clone()), sandbox.generation)
        });
        Ok(living.collect())
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        Ok(lock(&self.machine.0).keys().cloned().collect())
    }

    async fn has_workspace(&self, session: &str) -> bool {
        lock(&self.machine.0).contains_key(session)
    }

    async fn shutdown(&self, _linger: bool) {}
}

impl Held {
    fn check(&self, fence: Fence) -> Result<(), SandboxError> {
        let mut epoch = lock(&self.sandbox.epoch);
        if fence.generation != self.sandbox.generation || fence.epoch < *epoch {
            return Err(SandboxError::StaleFence);
        }
        *epoch = fence.epoch;
        Ok(())
    }
}

#[async_trait]
impl Sandbox for Held {
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn provider(&self) -> &'static str {
        "simulated"
    }

    fn generation(&self) -> u64 {
        self.sandbox.generation
    }

    async fn run(
        &self,
        call_id: &str,
        fence: Fence,
        _tool: &str,
        _input: &serde_json::Value,
        _timeout: Option<Duration>,
    ) -> Result<ToolResult, SandboxError> {
        self.wire.moves().await;
        self.check(fence)?;
        let mut result = {
            let mut calls = lock(&self.sandbox.calls);
            if let Some(result) = calls.get(call_id) {
                result.clone()
            } else {
                let (done, result) = watch::channel(None);
                calls.insert(call_id.to_owned(), result.clone());
                self.wire.shared.executed(self.wire.number, call_id);
                let takes = Duration::from_millis(self.wire.dice("call").roll(900));
                lock(&self.sandbox.running).spawn(async move {
                    sleep(takes).await;
                    // Whoever waited may be gone; the result is kept.
                    done.send_replace(Some(ToolResult::text("ran")));
                });
                result
            }
        };
        let found = result.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
        self.wire.moves().await;
        found.ok_or_else(gone)
    }

    async fn status(&self, _call_id: &str, _fence: Fence) -> Result<CallState, SandboxError> {
        Ok(CallState::Unknown)
    }

    async fn ack(&self, _call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        self.check(fence)
    }

    async fn cancel(&self, _call_id: &str, fence: Fence) -> Result<(), SandboxError> {
        self.check(fence)
    }

    async fn pack(&self, _fence: Fence) -> Result<Vec<Piece>, SandboxError> {
        Ok(Vec::new())
    }

    async fn page(&self, _index: usize, _fence: Fence) -> Result<Vec<u8>, SandboxError> {
        Err(gone())
    }

    async fn part(&self, _: &[u8], _: u64, _: Fence) -> Result<Vec<u8>, SandboxError> {
        Err(gone())
    }

    async fn put_part(&self, _: &[u8], _: bool, _: &[u8], _: Fence) -> Result<(), SandboxError> {
        Err(gone())
    }

    async fn unpack(&self, _page: &[u8], _fence: Fence) -> Result<(), SandboxError> {
        Err(gone())
    }

    async fn read_file(&self, _: &str, _: u64, _: Fence) -> Result<Vec<u8>, SandboxError> {
        Err(gone())
    }
}
