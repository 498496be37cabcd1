//! A sandbox that was paused goes on before its session's next call.

use crate::{
    World,
    outbound::{Origin, mcp_hosts},
};
use vaquero_sandbox::{SandboxError, SandboxKey, SandboxSpec};
use vaquero_types::{SessionId, session::SessionBody};

/// Has a sandbox go on that lives here, with what it may reach as its session's environment says now; false if there is none.
pub async fn resume(world: &World, key: &SandboxKey) -> Result<bool, SandboxError> {
    let living = world.compute.living().await?.into_iter().find(|(living, _)| living == key);
    let Some((_, generation)) = living else { return Ok(false) };
    let (session, name) = key.owner();
    let unknown = |why: String| SandboxError::Unavailable {
        what: format!("its session cannot be read: {why}"),
        fix: "try again".to_owned(),
    };
    let found = world.store.session(&SessionId::from_wire(session)).await;
    let Some(row) = found.map_err(|error| unknown(error.to_string()))? else { return Ok(false) };
    let body: SessionBody =
        serde_json::from_str(&row.body).map_err(|error| unknown(error.to_string()))?;
    let origin = Origin {
        workspace: row.workspace,
        environment: row.environment,
        mcp_hosts: mcp_hosts(&body.agent),
        vaults: body.vault_ids,
        sandbox: name.to_owned(),
    };
    let mut spec = SandboxSpec::new(generation, row.epoch, world.limits);
    origin.complete(world, &mut spec).await?;
    Ok(world.compute.attach(key, &spec).await?.is_some())
}
