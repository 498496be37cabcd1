//! Pods, and the policy that shuts their network.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;
use vaquero_sandbox::SandboxError;
use vaquero_sandbox::remote::{Machine, Pipe, Wanted, unique};

use crate::KubernetesConfig;
use crate::controller::Controller;
use crate::errors::failed;

/// What marks a pod as this server's, and what it is for.
const OWNER: &str = "vaquero/owner";
const SESSION: &str = "vaquero/session";
const SANDBOX: &str = "vaquero/sandbox";
/// The one container of a pod.
const CONTAINER: &str = "sandbox";
/// Who writes the policy.
const MANAGER: &str = "vaquero";
/// Between two looks at a pod that changes, and for how long: an image may have to be fetched.
const PAUSE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_mins(5);
/// What root in a pod keeps: as much as in every sandbox.
const CAPABILITIES: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETUID", "SETGID", "NET_BIND_SERVICE"];

pub(crate) struct Pods {
    api: Api<Pod>,
    policies: Api<NetworkPolicy>,
    runtime_class: Option<String>,
    /// Makes them, if this server does not.
    controller: Option<Controller>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").field("runtime_class", &self.runtime_class).finish_non_exhaustive()
    }
}

impl Pods {
    pub(crate) async fn open(config: &KubernetesConfig) -> Result<Self, SandboxError> {
        let options =
            KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
        let unknown = |why: String| {
            SandboxError::unavailable(
                format!("no Kubernetes cluster is known: {why}"),
                "name a kubeconfig with KUBECONFIG, or run the server in the cluster",
            )
        };
        let found = match &config.kubeconfig {
            Some(file) => match Kubeconfig::read_from(file) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let named = config.kubeconfig.is_some() || config.context.is_some();
        let found = match found {
            Err(error) if !named => Config::incluster().map_err(|_| unknown(error.to_string()))?,
            found => found.map_err(|error| unknown(error.to_string()))?,
        };
        let client = Client::try_from(found).map_err(|error| unknown(error.to_string()))?;
        let controller = if config.agent_sandbox {
            Some(Controller::open(&client, &config.namespace).await?)
        } else {
            None
        };
        Ok(Self {
            api: Api::namespaced(client.clone(), &config.namespace),
            policies: Api::namespaced(client, &config.namespace),
            runtime_class: config.runtime_class.clone(),
            controller,
        })
    }

    /// Nothing leaves an owner's pods, and nothing comes in.
    async fn shut(&self, owner: &str) -> Result<(), SandboxError> {
        let name = format!("vaquero-{owner}");
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": name },
            "spec": {
                "podSelector": { "matchLabels": { OWNER: owner } },
                "policyTypes": ["Ingress", "Egress"],
            },
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let written = self.policies.patch(&name, &parameters, &Patch::Apply(policy)).await;
        written.map(drop).map_err(|error| failed("cannot shut the network of pods", &error))
    }

    /// Makes a pod, and waits until it runs.
    pub(crate) async fn create(&self, wanted: &Wanted<'_>) -> Result<String, SandboxError> {
        self.shut(wanted.owner).await?;
        let name = format!("vaquero-{}", unique());
        let limits = &wanted.limits;
        let labels = json!({
            OWNER: wanted.owner, SESSION: wanted.key.session, SANDBOX: wanted.key.name,
        });
        let mut spec = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "dnsPolicy": "None",
            "dnsConfig": { "nameservers": ["127.0.0.1"] },
            "containers": [{
                "name": CONTAINER,
                "image": wanted.image,
                "command": ["/bin/sh", "-c", "while :; do sleep 3600; done"],
                "resources": { "limits": {
                    "memory": limits.memory_bytes.to_string(),
                    "cpu": format!("{}m", limits.cpu_millis),
                    "ephemeral-storage": limits.workspace_bytes.to_string(),
                } },
                "securityContext": {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"], "add": CAPABILITIES },
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
            }],
        });
        if let Some(class) = &self.runtime_class {
            spec["runtimeClassName"] = json!(class);
        }
        if let Some(controller) = &self.controller {
            controller.create(&name, &labels, &spec, PATIENCE + wanted.linger).await?;
        } else {
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": name, "labels": labels },
                "spec": spec,
            });
            let pod: Pod = serde_json::from_value(pod)
                .map_err(|error| SandboxError::Invalid(format!("no pod can be made: {error}")))?;
            let made = self.api.create(&PostParams::default(), &pod).await;
            made.map_err(|error| failed("cannot make a pod", &error))?;
        }
        let runs = tokio::time::timeout(PATIENCE, self.until_it_runs(&name)).await;
        let runs = runs.unwrap_or_else(|_| Err(stuck("it does not run after five minutes")));
        match runs {
            Ok(()) => Ok(name),
            Err(error) => {
                self.delete(&name).await?;
                Err(error)
            }
        }
    }

    async fn until_it_runs(&self, name: &str) -> Result<(), SandboxError> {
        loop {
            let pod = self.api.get_opt(name).await;
            let pod = pod.map_err(|error| failed("cannot look at a pod", &error))?;
            if pod.is_none() && self.controller.is_none() {
                return Err(SandboxError::gone("somebody has deleted its pod"));
            }
            let status = pod.and_then(|pod| pod.status).unwrap_or_default();
            match status.phase.as_deref() {
                Some("Running") => return Ok(()),
                Some("Failed" | "Succeeded") => {
                    return Err(stuck(
                        &status.message.unwrap_or_else(|| "it has ended".to_owned()),
                    ));
                }
                _ => {}
            }
            let waits = status.container_statuses.unwrap_or_default();
            if let Some(why) = waits.into_iter().find_map(hopeless) {
                return Err(stuck(&why));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(crate) async fn list(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        let pods = self.pods(owner).await?;
        let Some(controller) = &self.controller else { return Ok(pods) };
        let names = controller.list(&format!("{OWNER}={owner}")).await?.into_iter();
        let runs = |id: &String| pods.iter().any(|pod| pod.id == *id && pod.runs);
        Ok(names.map(|id| Machine { runs: runs(&id), id }).collect())
    }

    async fn pods(&self, owner: &str) -> Result<Vec<Machine>, SandboxError> {
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let mut parameters =
                ListParams::default().labels(&format!("{OWNER}={owner}")).limit(200);
            parameters.continue_token = next;
            let page = self.api.list(&parameters).await;
            let page = page.map_err(|error| failed("cannot list pods", &error))?;
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            for pod in page.items {
                all.extend(self.use_of(pod).await?);
            }
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// Whether it is there, and runs.
    pub(crate) async fn look(&self, name: &str) -> Result<Option<Machine>, SandboxError> {
        if let Some(controller) = &self.controller
            && !controller.has(name).await?
        {
            return Ok(None);
        }
        match self.api.get_opt(name).await {
            Ok(Some(pod)) => self.use_of(pod).await,
            Ok(None) => Ok(None),
            Err(error) => Err(failed("cannot look at a pod", &error)),
        }
    }

    /// A pod that is of use: one that has ended, or was thrown out, is removed.
    async fn use_of(&self, pod: Pod) -> Result<Option<Machine>, SandboxError> {
        let (metadata, status) = (pod.metadata, pod.status.unwrap_or_default());
        let Some(id) = metadata.name else { return Ok(None) };
        match status.phase.as_deref() {
            // One that is being deleted is as good as gone.
            _ if metadata.deletion_timestamp.is_some() => Ok(None),
            Some("Failed" | "Succeeded") => self.delete(&id).await.map(|()| None),
            phase => Ok(Some(Machine { id, runs: phase == Some("Running") })),
        }
    }

    /// One that nobody extends goes by itself, where a controller sees to it.
    pub(crate) async fn extend(&self, name: &str, life: Duration) -> Result<(), SandboxError> {
        match &self.controller {
            Some(controller) => controller.extend(name, life).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), SandboxError> {
        if let Some(controller) = &self.controller {
            return controller.delete(name).await;
        }
        match self.api.delete(name, &DeleteParams::default().grace_period(0)).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(failed("cannot delete a pod", &error)),
        }
    }

    pub(crate) async fn exec(&self, name: &str, command: &[String]) -> Result<Pipe, SandboxError> {
        let parameters =
            AttachParams::default().container(CONTAINER).stdin(true).stdout(true).stderr(false);
        let started = self.api.exec(name, command, &parameters).await;
        let mut program =
            started.map_err(|error| failed("cannot start a program in a pod", &error))?;
        let (Some(write), Some(read)) = (program.stdin(), program.stdout()) else {
            return Err(SandboxError::gone("a program in a pod has no standard streams"));
        };
        // It is carried for as long as it runs, and its output ends only if somebody hears how it ended.
        let ended = program.take_status();
        drop(TaskTracker::new().spawn(async move {
            drop(program.join().await);
            if let Some(ended) = ended {
                ended.await;
            }
        }));
        Ok(Pipe { read: Box::new(read), write: Box::new(write) })
    }

    /// Writes a file. Not every cluster says when an input has ended, so that its length comes first.
    pub(crate) async fn write(
        &self,
        name: &str,
        path: &str,
        bytes: Bytes,
    ) -> Result<(), SandboxError> {
        let script = format!(
            "mkdir -p \"$(dirname \"$0\")\" && head -c {} >\"$0\" && echo :done",
            bytes.len()
        );
        let command = ["/bin/sh", "-c", &script, path].map(str::to_owned);
        let Pipe { mut read, mut write } = self.exec(name, &command).await?;
        let failed = |error| SandboxError::io("cannot write a file in a pod", error);
        write.write_all(&bytes).await.map_err(failed)?;
        write.flush().await.map_err(failed)?;
        let mut said = String::new();
        read.read_to_string(&mut said).await.map_err(failed)?;
        if said.trim() == ":done" {
            return Ok(());
        }
        Err(stuck(&format!("{path} cannot be written in it")))
    }
}

/// Why a container will never run, if it will not.
fn hopeless(status: ContainerStatus) -> Option<String> {
    const REASONS: [&str; 5] = [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
    ];
    let waiting = status.state?.waiting?;
    let reason = waiting.reason.filter(|reason| REASONS.contains(&reason.as_str()))?;
    Some(format!("{reason}: {}", waiting.message.unwrap_or_default()))
}

fn stuck(why: &str) -> SandboxError {
    SandboxError::unavailable(
        format!("a pod cannot be used: {why:.400}"),
        "see `kubectl describe pod` for what the cluster says; the image needs /bin/sh, /bin/bash, tar and gzip",
    )
}
