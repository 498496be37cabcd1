//! The cluster's agent-sandbox controller: it makes a pod for each `Sandbox` object, under that object's name, and removes both once their time is over.

use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Error, discovery};
use serde_json::{Value, json};
use vaquero_sandbox::SandboxError;
use vaquero_types::{Clock, SystemClock};

use crate::errors::failed;

const GROUP: &str = "agents.x-k8s.io";

pub(crate) struct Controller {
    api: Api<DynamicObject>,
    api_version: String,
}

impl Controller {
    /// Finds out which version of it the cluster has.
    pub(crate) async fn open(client: &Client, namespace: &str) -> Result<Self, SandboxError> {
        let missing = |why: String| {
            SandboxError::unavailable(
                format!("the cluster knows no sandboxes of agent-sandbox: {why}"),
                "install its controller, or leave --kubernetes-agent-sandbox away",
            )
        };
        let group = discovery::group(client, GROUP).await;
        let group = group.map_err(|error| missing(error.to_string()))?;
        let found = group.recommended_kind("Sandbox");
        let (resource, _) = found.ok_or_else(|| missing(format!("no Sandbox in {GROUP}")))?;
        let api = Api::namespaced_with(client.clone(), namespace, &resource);
        Ok(Self { api, api_version: resource.api_version })
    }

    /// Has a pod made, which goes after `life` unless that is extended.
    pub(crate) async fn create(
        &self,
        name: &str,
        labels: &Value,
        pod: &Value,
        life: Duration,
    ) -> Result<(), SandboxError> {
        let sandbox = json!({
            "apiVersion": self.api_version,
            "kind": "Sandbox",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "podTemplate": { "metadata": { "labels": labels }, "spec": pod },
                "shutdownTime": after(life),
                "shutdownPolicy": "Delete",
            },
        });
        let sandbox: DynamicObject = serde_json::from_value(sandbox)
            .map_err(|error| SandboxError::Invalid(format!("no sandbox can be made: {error}")))?;
        let made = self.api.create(&PostParams::default(), &sandbox).await;
        made.map(drop).map_err(|error| failed("cannot make a sandbox", &error))
    }

    pub(crate) async fn extend(&self, name: &str, life: Duration) -> Result<(), SandboxError> {
        let change = json!({ "spec": { "shutdownTime": after(life) } });
        let changed = self.api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
        changed.map(drop).map_err(|error| failed("cannot extend a sandbox", &error))
    }

    pub(crate) async fn has(&self, name: &str) -> Result<bool, SandboxError> {
        let found = self.api.get_opt(name).await;
        let found = found.map_err(|error| failed("cannot look at a sandbox", &error))?;
        Ok(found.is_some_and(|sandbox| sandbox.metadata.deletion_timestamp.is_none()))
    }

    /// The names of those with such labels.
    pub(crate) async fn list(&self, labels: &str) -> Result<Vec<String>, SandboxError> {
        let parameters = ListParams::default().labels(labels);
        let listed = self.api.list(&parameters).await;
        let listed = listed.map_err(|error| failed("cannot list sandboxes", &error))?;
        let there = listed.items.into_iter().map(|sandbox| sandbox.metadata);
        let there = there.filter(|metadata| metadata.deletion_timestamp.is_none());
        Ok(there.filter_map(|metadata| metadata.name).collect())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), SandboxError> {
        match self.api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(failed("cannot delete a sandbox", &error)),
        }
    }
}

fn after(life: Duration) -> String {
    SystemClock.now().plus(life).to_string()
}
