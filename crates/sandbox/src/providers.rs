//! Several providers as one: which of them a sandbox comes from is a word in what is asked for, and a session's files follow it from one to another.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use vaquero_types::AllowedImages;

use crate::error::SandboxError;
use crate::seam::{
    Capabilities, ComputeProvider, Fence, Kind, Page, Piece, PoolState, Sandbox, SandboxKey,
    SandboxSpec,
};

/// Providers by their names; the first is for whoever names none.
pub struct Providers {
    all: Vec<Arc<dyn ComputeProvider>>,
    images: AllowedImages,
}

impl Providers {
    /// `default`, and others, which make sandboxes of these images.
    pub fn new(
        default: Arc<dyn ComputeProvider>,
        others: Vec<Arc<dyn ComputeProvider>>,
        images: AllowedImages,
    ) -> Self {
        Self { all: [vec![default], others].concat(), images }
    }

    fn default(&self) -> &Arc<dyn ComputeProvider> {
        &self.all[0]
    }

    fn of(&self, spec: &SandboxSpec) -> Result<&Arc<dyn ComputeProvider>, SandboxError> {
        let Some(name) = &spec.provider else { return Ok(self.default()) };
        let found = self.all.iter().find(|provider| provider.capabilities().name == name);
        found.ok_or_else(|| {
            let names: Vec<_> =
                self.all.iter().map(|provider| provider.capabilities().name).collect();
            SandboxError::unavailable(
                format!(
                    "its environment wants sandboxes of `{name}`, and this server has {}",
                    names.join(", ")
                ),
                format!(
                    "start the server with --sandbox {},{name}, or name another in the environment",
                    names.join(",")
                ),
            )
        })
    }

    /// Refuses an image that the operator does not allow.
    fn check_image(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        match &spec.image {
            Some(image) if !self.images.allow(image) => Err(SandboxError::Invalid(format!(
                "the image `{image}` is none that this server's operator allows (--sandbox-images)"
            ))),
            _ => Ok(()),
        }
    }

    /// The provider that has a session's files, if it is not the one they should be with.
    async fn elsewhere(
        &self,
        chosen: &Arc<dyn ComputeProvider>,
        session: &str,
    ) -> Option<&Arc<dyn ComputeProvider>> {
        for other in self.all.iter().filter(|other| !Arc::ptr_eq(other, chosen)) {
            if other.has_workspace(session).await {
                return Some(other);
            }
        }
        None
    }
}

/// A sandbox of `to` with the workspace that is with `from`. What is there is the truth until it is gone from there, and nothing runs in the new sandbox before.
async fn bring(
    from: &Arc<dyn ComputeProvider>,
    to: &Arc<dyn ComputeProvider>,
    key: &SandboxKey,
    spec: &SandboxSpec,
) -> Result<Arc<dyn Sandbox>, SandboxError> {
    let plain = SandboxSpec {
        env: std::collections::BTreeMap::new(),
        outbound: None,
        provision: None,
        image: None,
        provider: None,
        stand_ins: std::collections::BTreeMap::new(),
        pool: None,
        ..spec.clone()
    };
    let source = match last_of(from, key, &plain).await? {
        Some(source) => source,
        None => from.ensure(key, &plain).await?,
    };
    to.destroy(&key.session).await?;
    let target = to.ensure(key, &SandboxSpec { restored: true, ..spec.clone() }).await?;
    if let Err(error) = copy(source.as_ref(), target.as_ref(), spec.epoch).await {
        to.destroy(&key.session).await?;
        return Err(error);
    }
    from.destroy(&key.session).await?;
    let (from, to) = (from.capabilities().name, to.capabilities().name);
    tracing::info!(%key, from, to, "a session's workspace has moved");
    Ok(target)
}

/// The sandbox that lives, where files go with it. What still runs in it may change them while they are read, which is then noticed.
async fn last_of(
    from: &Arc<dyn ComputeProvider>,
    key: &SandboxKey,
    plain: &SandboxSpec,
) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
    if from.capabilities().keeps_files {
        return Ok(None);
    }
    let living = from.living().await?.into_iter().find(|(other, _)| other == key);
    let Some((_, generation)) = living else { return Ok(None) };
    from.attach(key, &SandboxSpec { generation, ..plain.clone() }).await
}

async fn copy(from: &dyn Sandbox, to: &dyn Sandbox, epoch: u64) -> Result<(), SandboxError> {
    let there = Fence { epoch, generation: from.generation() };
    let here = Fence { epoch, generation: to.generation() };
    let changed = || SandboxError::Refused("files change while they are moved".to_owned());
    let pages = from.pack(there).await?;
    for (index, piece) in pages.iter().enumerate() {
        let bytes = from.page(index, there).await?;
        if Piece::of(&bytes) != *piece {
            return Err(changed());
        }
        let page: Page = serde_json::from_slice(&bytes)
            .map_err(|error| SandboxError::Protocol(format!("a page cannot be read: {error}")))?;
        for entry in &page.entries {
            let Kind::Parts { parts } = &entry.kind else { continue };
            let path = entry
                .path_bytes()
                .map_err(|error| SandboxError::Protocol(format!("a path is none: {error}")))?;
            let mut offset = 0;
            for part in parts {
                let bytes = from.part(&path, offset, there).await?;
                if Piece::of(&bytes) != *part {
                    return Err(changed());
                }
                to.put_part(&path, offset == 0, &bytes, here).await?;
                offset += part.length;
            }
        }
        to.unpack(&bytes, here).await?;
    }
    Ok(())
}

#[async_trait]
impl ComputeProvider for Providers {
    fn capabilities(&self) -> Capabilities {
        self.default().capabilities()
    }

    fn capabilities_for(&self, spec: &SandboxSpec) -> Result<Capabilities, SandboxError> {
        self.of(spec)?.capabilities_for(spec)
    }

    fn check(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        self.check_image(spec)?;
        self.of(spec)?.check(spec)
    }

    fn prepare(&self, spec: &SandboxSpec) {
        if let (Ok(chosen), Ok(())) = (self.of(spec), self.check_image(spec)) {
            chosen.prepare(spec);
        }
    }

    fn keep_warm(&self, pools: Vec<SandboxSpec>) {
        let name = |provider: &Arc<dyn ComputeProvider>| provider.capabilities().name;
        for provider in &self.all {
            let theirs = pools.iter().filter(|spec| {
                let chosen = self.of(spec).is_ok_and(|chosen| name(chosen) == name(provider));
                chosen && self.check_image(spec).is_ok()
            });
            provider.keep_warm(theirs.cloned().collect());
        }
    }

    fn pools(&self) -> Vec<PoolState> {
        self.all.iter().flat_map(|provider| provider.pools()).collect()
    }

    async fn ensure(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.check_image(spec)?;
        let chosen = self.of(spec)?;
        match self.elsewhere(chosen, &key.session).await {
            Some(from) if !spec.restored => bring(from, chosen, key, spec).await,
            _ => chosen.ensure(key, spec).await,
        }
    }

    async fn attach(
        &self,
        key: &SandboxKey,
        spec: &SandboxSpec,
    ) -> Result<Option<Arc<dyn Sandbox>>, SandboxError> {
        self.of(spec)?.attach(key, spec).await
    }

    async fn stop(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        // One that cannot be asked now keeps the others from nothing.
        let mut stopped = Ok(());
        for provider in &self.all {
            stopped = stopped.and(provider.stop(key).await);
        }
        stopped
    }

    async fn pause(&self, key: &SandboxKey) -> Result<(), SandboxError> {
        for provider in &self.all {
            if provider.living().await?.iter().any(|(living, _)| living == key) {
                return provider.pause(key).await;
            }
        }
        Err(SandboxError::gone("no such sandbox lives here"))
    }

    async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        let mut destroyed = Ok(());
        for provider in &self.all {
            destroyed = destroyed.and(provider.destroy(session).await);
        }
        destroyed
    }

    async fn living(&self) -> Result<Vec<(SandboxKey, u64)>, SandboxError> {
        let mut living = Vec::new();
        for provider in &self.all {
            living.extend(provider.living().await?);
        }
        Ok(living)
    }

    async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        let mut sessions = BTreeSet::new();
        for provider in &self.all {
            sessions.extend(provider.sessions().await?);
        }
        Ok(sessions)
    }

    async fn has_workspace(&self, session: &str) -> bool {
        for provider in &self.all {
            if provider.has_workspace(session).await {
                return true;
            }
        }
        false
    }

    async fn shutdown(&self, linger: bool) {
        for provider in &self.all {
            provider.shutdown(linger).await;
        }
    }
}
