//! Sandboxes as pods of a Kubernetes cluster: one for each, in a network policy that lets nothing out and nothing in, under gVisor's runtime class if there is one. A pod that is stopped is
//! gone, and its files come back from checkpoints. What is done with pods is [`Remote`](vaquero_sandbox::remote::Remote)'s. Tried against a fake of the API that Kubernetes' own Python client
//! is tried against as well, never against a cluster.

mod controller;
mod errors;
mod pods;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use vaquero_sandbox::remote::{Machine, Machines, Pipe, Remote, RemoteConfig, Rest, Wanted};
use vaquero_sandbox::{Provider, SandboxError, SandboxSpec, Uplink};

use self::pods::Pods;

/// Which cluster, and how pods are made there.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// A kubeconfig; otherwise that of `KUBECONFIG`, or the usual place.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; otherwise its current one, or the cluster that this server runs in.
    pub context: Option<String>,
    /// The namespace of the pods, where nothing else of worth should be.
    pub namespace: String,
    /// The image of sandboxes whose environment names none.
    pub image: String,
    /// The runtime class of pods, such as `gvisor`; otherwise the cluster's default.
    pub runtime_class: Option<String>,
    /// The cluster's agent-sandbox controller makes the pods, of its `Sandbox` objects.
    pub agent_sandbox: bool,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: "vaquero-sandboxes".to_owned(),
            image: "debian:stable".to_owned(),
            runtime_class: None,
            agent_sandbox: false,
        }
    }
}

/// Pods of a cluster.
#[derive(Debug)]
pub struct Kubernetes {
    pods: Pods,
    image: String,
}

/// Puts the network policy up, and proves with a canary that commands run in a pod and reach nothing.
///
/// Without an `uplink` no sandbox can have a way out.
pub async fn start(
    config: KubernetesConfig,
    remote: RemoteConfig,
    uplink: Option<Arc<dyn Uplink>>,
) -> Result<Provider<Remote<Kubernetes>>, SandboxError> {
    let machines = Kubernetes { pods: Pods::open(&config).await?, image: config.image };
    Remote::start(machines, remote, uplink).await
}

#[async_trait]
impl Machines for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn image(&self) -> &str {
        &self.image
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.provision.is_some() {
            return Err(SandboxError::Provision(
                "pods are not set up by the server: have their image bring the packages, or name another provider".to_owned(),
            ));
        }
        Ok(())
    }

    async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        self.pods.list(owner).await
    }

    async fn find(&self, _owner: &str, id: &str) -> Result<Option<Machine>, SandboxError> {
        self.pods.look(id).await
    }

    async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError> {
        self.pods.create(wanted).await
    }

    async fn stop(&self, id: &str) -> Result<Rest, SandboxError> {
        self.pods.delete(id).await?;
        Ok(Rest::Nothing)
    }

    async fn wake(&self, _id: &str) -> Result<(), SandboxError> {
        Err(SandboxError::gone("a pod that has ended does not start again"))
    }

    async fn destroy(&self, id: &str) -> Result<(), SandboxError> {
        self.pods.delete(id).await
    }

    async fn stay(&self, id: &str, linger: Duration) -> Result<(), SandboxError> {
        self.pods.extend(id, linger).await
    }

    async fn write(&self, id: &str, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        self.pods.write(id, path, bytes).await
    }

    async fn exec(&self, id: &str, command: &[String]) -> Result<Pipe, SandboxError> {
        self.pods.exec(id, command).await
    }

    async fn snapshot(&self, _id: &str) -> Result<String, SandboxError> {
        Err(SandboxError::Provision("of pods no snapshots are taken".to_owned()))
    }

    async fn forget(&self, _snapshot: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    fn keeps_files(&self) -> bool {
        false
    }
}
