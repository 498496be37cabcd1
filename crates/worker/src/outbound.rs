//! What the sandbox of a session may reach: what its environment says, at the moment its sandbox is made or found again.

use crate::World;
use url::Url;
use vaquero_sandbox::{Networking as Reach, Outbound, SandboxError};
use vaquero_store::document::ENVIRONMENT;
use vaquero_types::{
    EnvironmentId, WorkspaceId,
    agent::SessionAgent,
    environment::{Config, Environment, Networking},
};

/// Which session's.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) workspace: WorkspaceId,
    pub(crate) environment: EnvironmentId,
    /// Hosts of the agent's MCP servers.
    pub(crate) mcp_hosts: Vec<String>,
}

impl Origin {
    /// What the sandbox may reach; `None` where sandboxes reach nothing.
    pub(crate) async fn outbound(&self, world: &World) -> Result<Option<Outbound>, SandboxError> {
        if world.compute.capabilities().networking == Reach::None {
            return Ok(None);
        }
        let found = world
            .store
            .document(&self.workspace, ENVIRONMENT, self.environment.as_str())
            .await
            .map_err(|error| unknown(&error.to_string()))?;
        let Some(document) = found else {
            // It was deleted, and with it what it allowed.
            return Ok(Some(Outbound::Limited(Vec::new())));
        };
        let environment: Environment =
            serde_json::from_str(&document.body).map_err(|error| unknown(&error.to_string()))?;
        Ok(Some(match environment.config {
            Config::Cloud { networking: Networking::Unrestricted, .. } => Outbound::Unrestricted,
            Config::Cloud {
                networking:
                    Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers },
                ..
            } => {
                let mut hosts = allowed_hosts;
                if allow_mcp_servers {
                    hosts.extend(self.mcp_hosts.iter().cloned());
                }
                if allow_package_managers {
                    hosts.extend(world.registries.clone().await.iter().cloned());
                }
                Outbound::Limited(hosts)
            }
            Config::SelfHosted => Outbound::Limited(Vec::new()),
        }))
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
