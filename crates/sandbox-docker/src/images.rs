//! The images that containers are made of: those that environments name, fetched when they are not there, and those that are made of them with what environments want installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bollard::Docker as Client;
use bollard::models::ContainerConfig;
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures::StreamExt;
use vaquero_sandbox::container::SEEDS;
use vaquero_sandbox::{SandboxError, mark_used, remove_tree, unused};

use crate::errors::{failed, is_missing};

/// What images with something installed are called.
const OURS: &str = "vaquero/";

/// The id of an image that an environment may name, which is fetched if the engine does not have it.
pub(crate) async fn find(client: &Client, image: &str) -> Result<String, SandboxError> {
    match client.inspect_image(image).await {
        Ok(found) => {
            // Also by the beginning of an id: what one environment has installed is nobody else's.
            let tags = found.repo_tags.unwrap_or_default();
            if tags.iter().any(|tag| tag.starts_with(OURS)) {
                return Err(SandboxError::Invalid(format!(
                    "the image {image} is what an environment has installed, and cannot be named"
                )));
            }
            return Ok(found.id.unwrap_or_default());
        }
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(failed("cannot look for the image", &error)),
    }
    tracing::info!(image, "fetching an image");
    // Without a tag the engine would fetch them all.
    let tag = if image.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        ""
    } else {
        "latest"
    };
    let options = CreateImageOptionsBuilder::default().from_image(image).tag(tag).build();
    let mut steps = client.create_image(Some(options), None, None);
    while let Some(step) = steps.next().await {
        step.map_err(|error| {
            SandboxError::unavailable(
                format!(
                    "the image {image} is not on the Docker engine and cannot be fetched: {error}"
                ),
                format!("name one that is there, or fetch it with `docker pull {image}`"),
            )
        })?;
    }
    let found = client.inspect_image(image).await;
    Ok(found.map_err(|error| failed("cannot look for the image", &error))?.id.unwrap_or_default())
}

/// Images with something installed, and what their sessions begin with.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    repository: String,
}

impl Layers {
    pub(crate) fn new(dir: PathBuf, owner: &str) -> Self {
        Self { dir, repository: format!("{OURS}{owner}") }
    }

    /// Of which image containers with a layer are made.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}:{name}", self.repository)
    }

    /// What a session with a layer begins with.
    pub(crate) fn seeds(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) async fn has(&self, client: &Client, name: &str) -> bool {
        let there =
            self.seeds(name).is_dir() && client.inspect_image(&self.image(name)).await.is_ok();
        if there {
            mark_used(&self.seeds(name));
        }
        there
    }

    /// Keeps what a container has become, and what it has left in its session's files.
    pub(crate) async fn keep(
        &self,
        client: &Client,
        container: &str,
        name: &str,
        files: &Path,
    ) -> Result<(), SandboxError> {
        let options = CommitContainerOptionsBuilder::default()
            .container(container)
            .repo(&self.repository)
            .tag(name)
            .pause(true)
            .build();
        let committed = client.commit_container(options, ContainerConfig::default()).await;
        committed.map_err(|error| failed("cannot keep what was installed", &error))?;
        let (files, to) = (files.to_owned(), self.seeds(name));
        let moved = tokio::task::spawn_blocking(move || take_seeds(&files, &to)).await;
        let moved = moved.map_err(io::Error::other).and_then(|moved| moved);
        moved.map_err(|error| SandboxError::io("cannot keep what was installed", error))
    }

    /// Removes images that nobody has used for long.
    pub(crate) async fn clear(&self, client: &Client) {
        for dir in unused(&self.dir) {
            let Some(name) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            match client.remove_image(&self.image(name), Some(options), None).await {
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => {
                    tracing::warn!(layer = name, %error, "cannot remove an image");
                    continue;
                }
            }
            if let Err(error) = remove_tree(&dir) {
                tracing::warn!(layer = name, %error, "cannot remove a layer's files");
            }
        }
    }
}

fn take_seeds(files: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        remove_tree(to)?;
    }
    fs::create_dir_all(to)?;
    for name in SEEDS {
        fs::rename(files.join(name), to.join(name))?;
    }
    remove_tree(&to.join("home/.tool-results"))
}
