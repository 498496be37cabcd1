//! Which environments want sandboxes kept ready: told to the providers again and again, since they change without this server hearing of it.

use crate::{World, outbound::Origin};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use vaquero_sandbox::{SandboxError, SandboxSpec};
use vaquero_store::{
    Document, DocumentQuery, Order, StoreError,
    document::{SYSTEM, WARM_POOL},
};
use vaquero_types::{
    EnvironmentId, WorkspaceId,
    environment::{Config, DEFAULT_SANDBOX},
};

/// Environments that are read at once.
const PAGE: usize = 100;

pub(crate) async fn run(world: World, every: Duration, stop: CancellationToken) {
    let mut rounds = tokio::time::interval(every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        match wanted(&world).await {
            Ok(pools) => world.compute.keep_warm(pools),
            Err(error) => tracing::warn!(%error, "warm pools stay as they are"),
        }
    }
}

/// What the next session's sandboxes would be, for each environment that wants some ready.
async fn wanted(world: &World) -> Result<Vec<SandboxSpec>, StoreError> {
    let mut query = DocumentQuery {
        workspace: WorkspaceId::from_wire(SYSTEM),
        kind: WARM_POOL.to_owned(),
        parent: None,
        include_archived: false,
        from: None,
        until: None,
        order: Order::Ascending,
        cursor: None,
        limit: PAGE,
    };
    let mut pools = Vec::new();
    loop {
        let page = world.store.documents(&query).await?;
        for document in &page.documents {
            match of_environment(world, document).await {
                Ok(found) => pools.extend(found),
                Err(error) => {
                    tracing::warn!(environment = document.id, %error, "its warm pool cannot be filled");
                }
            }
        }
        match page.documents.last() {
            Some(last) if page.more => query.cursor = Some((last.created_at, last.id.clone())),
            _ => return Ok(pools),
        }
    }
}

async fn of_environment(
    world: &World,
    document: &Document,
) -> Result<Vec<SandboxSpec>, SandboxError> {
    let mut origin = Origin {
        workspace: WorkspaceId::from_wire(document.parent.clone().unwrap_or_default()),
        environment: EnvironmentId::from_wire(document.id.clone()),
        mcp_hosts: Vec::new(),
        vaults: Vec::new(),
        sandbox: DEFAULT_SANDBOX.to_owned(),
    };
    let Some(Config::Cloud(cloud)) = origin.config(world).await? else { return Ok(Vec::new()) };
    let named = cloud.sandboxes.iter().map(|sandbox| sandbox.name.clone());
    let mut specs = Vec::new();
    for name in std::iter::once(DEFAULT_SANDBOX.to_owned()).chain(named) {
        origin.sandbox = name;
        let mut spec = world.sandbox(1, 1);
        origin.complete(world, &mut spec).await?;
        specs.push(spec);
    }
    Ok(specs)
}
