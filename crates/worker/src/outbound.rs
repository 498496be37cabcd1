//! What the sandbox of a session is to be like: what is installed in it, what it may reach, and what stands for its secrets. As its environment and its vaults say at the moment
//! the sandbox is made or found again.

use crate::World;
use std::{sync::Arc, time::Duration};
use url::Url;
use vaquero_sandbox::{
    Networking as Networks, Outbound, Provision, Reach, SandboxError, SandboxSpec, Vaults, WarmPool,
};
use vaquero_store::document::ENVIRONMENT;
use vaquero_types::{
    EnvironmentId, VaultId, WorkspaceId,
    agent::SessionAgent,
    credential::{Auth, CredentialNetworking},
    environment::{Config, Environment, Networking, allows},
    event::server::{self, EventBody},
    sandbox::files_of,
};
use vaquero_vault::{headers, variables};

/// Which session's.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) workspace: WorkspaceId,
    pub(crate) environment: EnvironmentId,
    /// Hosts of the agent's MCP servers.
    pub(crate) mcp_hosts: Vec<String>,
    /// Where its secrets are.
    pub(crate) vaults: Vec<VaultId>,
    /// Which of its sandboxes.
    pub(crate) sandbox: String,
}

impl Origin {
    /// Adds what is to be installed, what the sandbox may reach, its variables, and those that stand for its secrets.
    pub(crate) async fn complete(
        &self,
        world: &World,
        spec: &mut SandboxSpec,
    ) -> Result<(), SandboxError> {
        let config = self.config(world).await?;
        if let Some(Config::Cloud(cloud)) = &config {
            spec.env.extend(cloud.env.clone());
            let Some((provider, image)) = cloud.sandbox(&self.sandbox) else {
                return Err(SandboxError::Invalid(format!(
                    "the environment has no sandbox `{}` any more",
                    self.sandbox
                )));
            };
            spec.provider = provider.map(str::to_owned);
            spec.image = image.map(str::to_owned);
            spec.pool = cloud.warm_pool.map(|pool| WarmPool {
                name: files_of(self.environment.as_str(), &self.sandbox),
                size: pool.size,
                max_age: Duration::from_secs(pool.max_age_seconds.into()),
            });
            if !cloud.packages.is_empty() || !cloud.setup.is_empty() {
                spec.provision = Some(Arc::new(Provision {
                    workspace: self.workspace.clone(),
                    packages: cloud.packages.clone(),
                    setup: cloud.setup.clone(),
                    env: cloud.env.clone(),
                }));
            }
        }
        if world.compute.capabilities_for(spec)?.networking == Networks::None {
            return Ok(());
        }
        let mut reach = self.reach(world, config).await;
        if let Reach::Limited(allowed) = &mut reach {
            let found = headers::of_vaults(world.store.as_ref(), &self.workspace, &self.vaults);
            for (headers, _) in found.await.map_err(|error| unknown(&error.to_string()))? {
                allowed.extend(headers.hosts);
            }
        }
        let (workspace, ids) = (self.workspace.clone(), self.vaults.clone());
        let vaults = (!ids.is_empty()).then_some(Vaults { workspace, ids });
        spec.outbound = Some(Outbound { reach, vaults });
        let found = variables::of_vaults(world.store.as_ref(), &self.workspace, &self.vaults).await;
        let found = found.map_err(|error| unknown(&error.to_string()))?;
        let stand_ins = found.into_iter().map(|(name, credential)| {
            let stand_in = variables::placeholder(&credential.id);
            (name, stand_in)
        });
        spec.stand_ins.extend(stand_ins);
        Ok(())
    }

    /// What the client is to know at the first sandbox: secrets for hosts that the environment does not allow.
    pub(crate) async fn unreachable(&self, world: &World) -> Result<Vec<EventBody>, SandboxError> {
        if self.vaults.is_empty() || world.compute.capabilities().networking == Networks::None {
            return Ok(Vec::new());
        }
        let config = self.config(world).await?;
        let Reach::Limited(allowed) = self.reach(world, config).await else {
            return Ok(Vec::new());
        };
        let found = variables::of_vaults(world.store.as_ref(), &self.workspace, &self.vaults).await;
        let mut events = Vec::new();
        for (name, credential) in found.map_err(|error| unknown(&error.to_string()))? {
            let Auth::EnvironmentVariable {
                networking: CredentialNetworking::Limited { allowed_hosts },
                ..
            } = &credential.auth
            else {
                continue;
            };
            let out: Vec<&str> = allowed_hosts
                .iter()
                .filter(|host| !allows(&allowed, host))
                .map(String::as_str)
                .collect();
            if !out.is_empty() {
                let message = format!(
                    "the secret of `{name}` is for {}, which the environment's networking does not allow",
                    out.join(", ")
                );
                events.push(server::credential_host_unreachable(
                    &credential.vault_id,
                    &credential.id,
                    &message,
                ));
            }
        }
        Ok(events)
    }

    /// Of its environment; none once that is deleted.
    pub(crate) async fn config(&self, world: &World) -> Result<Option<Config>, SandboxError> {
        let found = world
            .store
            .document(&self.workspace, ENVIRONMENT, self.environment.as_str())
            .await
            .map_err(|error| unknown(&error.to_string()))?;
        let Some(document) = found else { return Ok(None) };
        let environment: Environment =
            serde_json::from_str(&document.body).map_err(|error| unknown(&error.to_string()))?;
        Ok(Some(environment.config))
    }

    async fn reach(&self, world: &World, config: Option<Config>) -> Reach {
        let Some(Config::Cloud(cloud)) = config else {
            // With a deleted environment goes what it allowed.
            return Reach::Limited(Vec::new());
        };
        match cloud.networking {
            Networking::Unrestricted => Reach::Unrestricted,
            Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
                let mut hosts = allowed_hosts;
                if allow_mcp_servers {
                    hosts.extend(self.mcp_hosts.iter().cloned());
                }
                if allow_package_managers {
                    hosts.extend(world.registries.clone().await.iter().cloned());
                }
                Reach::Limited(hosts)
            }
        }
    }
}

/// The hosts of an agent's MCP servers.
pub(crate) fn mcp_hosts(agent: &SessionAgent) -> Vec<String> {
    let urls = agent.mcp_servers.iter().filter_map(|server| Url::parse(&server.url).ok());
    urls.filter_map(|url| url.host_str().map(str::to_owned)).collect()
}

fn unknown(why: &str) -> SandboxError {
    SandboxError::Unavailable {
        what: format!("its environment cannot be read: {why}"),
        fix: "the next call tries again".to_owned(),
    }
}
