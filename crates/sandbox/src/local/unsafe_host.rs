//! The way around isolation: the local provider's machinery without its walls.
//! Whoever starts it must have been told by the operator, by name, to do so.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::{LocalConfig, LocalProvider};
use crate::error::SandboxError;
use crate::seam::{
    Capabilities, ComputeProvider, Outbound, Reach, Sandbox, SandboxKey, SandboxSpec,
};

/// The way around isolation that an operator has to name: the same hand, on the host itself.
#[derive(Debug, Clone)]
pub struct UnsafeHost {
    local: LocalProvider,
    packages_ok: bool,
}

impl UnsafeHost {
    /// Starts or re-adopts a launcher that isolates nothing, and proves that commands run. With `packages_ok`, what environments want installed is installed on the host.
    pub async fn start(config: LocalConfig, packages_ok: bool) -> Result<Self, SandboxError> {
        Ok(Self { local: LocalProvider::begin(config, false, None).await?, packages_ok })
    }
}

#[async_trait]
impl ComputeProvider for UnsafeHost {
    fn capabilities(&self) -> Capabilities {
        self.local.capabilities()
    }

    fn prepare(&self, spec: &SandboxSpec) {
        if self.packages_ok {
            self.local.prepare(spec);
        }
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let limited = |outbound: &Outbound| matches!(outbound.reach, Reach::Limited(_));
        if spec.outbound.as_ref().is_some_and(limited) {
            return Err(SandboxError::unavailable(
                "sandbox required: the environment limits networking, which nothing on the host itself can",
                "start the server with --sandbox local",
            ));
        }
        if spec.outbound.as_ref().is_some_and(|outbound| outbound.vaults.is_some()) {
            return Err(SandboxError::unavailable(
                "sandbox required: the session has vaults, and on the host itself nothing keeps their secrets from its commands",
                "start the server with --sandbox local",
            ));
        }
        if spec.provision.is_some() && !self.packages_ok {
            return Err(SandboxError::Provision(
                "sandbox required: packages and setup commands would change the host itself. Fix: start the server with --sandbox local, or allow it with --host-packages-ok".to_owned(),
            ));
        }
        self.local.check(spec)
    }

    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.check(spec)?;
        self.local.ensure(key, spec).await
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        self.local.attach(key, spec).await
    }

    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        self.local.stop(key).await
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        self.local.destroy(session).await
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        self.local.living().await
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        self.local.sessions().await
    }

    async fn has_workspace(&self, session: &str) -> bool {
        self.local.has_workspace(session).await
    }

    async fn shutdown(&self, linger: bool) {
        self.local.shutdown(linger).await;
    }
}
