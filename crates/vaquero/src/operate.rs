//! What operators do to a store: by a command that opens it, or through the admin socket of the server that holds it. One set of words, one way to perform them.

use crate::{stores::Opened, vault_keys::VaultKeys};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use vaquero_api::{
    App,
    keys::{self, ApiKey},
    portable::{self, Counts},
    stop_all,
};
use vaquero_sandbox::SandboxKey;
use vaquero_store::sandboxes;
use vaquero_types::{
    Clock, EnvironmentId, IdGen, RandomIds, SessionId,
    sandbox::{SandboxRecord, SandboxState},
};
use vaquero_worker::World;

/// What a command asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Make a key for a workspace.
    KeyCreate {
        /// Its name.
        workspace: String,
        /// The environment whose workers it is for.
        environment: Option<String>,
    },
    /// List all keys.
    KeyList,
    /// Revoke a key.
    KeyRevoke {
        /// Its id.
        id: String,
    },
    /// Interrupt every running session of a workspace.
    StopAll {
        /// Its name.
        workspace: String,
    },
    /// Write a workspace, or a session of it, to a file.
    Export {
        /// Its name.
        workspace: String,
        /// The session.
        session: Option<String>,
        /// The file, by its full path.
        to: PathBuf,
    },
    /// Read an export.
    Import {
        /// The workspace it is to be in, if not the one it is of.
        workspace: Option<String>,
        /// The file, by its full path.
        from: PathBuf,
    },
    /// List the sandboxes of all sessions.
    SandboxList {
        /// Also those that have ended.
        all: bool,
    },
    /// Pause a sandbox of this server.
    SandboxPause {
        /// Its session.
        session: String,
        /// Its name.
        name: String,
    },
    /// Have it go on.
    SandboxResume {
        /// Its session.
        session: String,
        /// Its name.
        name: String,
    },
    /// End a sandbox of this server.
    SandboxStop {
        /// Its session.
        session: String,
        /// Its name.
        name: String,
    },
    /// Seal all secrets with another key.
    VaultRotate,
    /// Copy the embedded store's database.
    Backup {
        /// The file, by its full path.
        to: PathBuf,
    },
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A new key.
    Key(String),
    /// All keys.
    Keys(Vec<ApiKey>),
    /// Whether there was such a key.
    Revoked(bool),
    /// The sessions that were running.
    Stopped(Vec<SessionId>),
    /// What is on record of sandboxes.
    Sandboxes(Vec<SandboxRecord>),
    /// Whether such a sandbox lived here.
    Lived(bool),
    /// What went out or came in.
    Moved(Counts),
    /// How many credentials were sealed anew.
    Resealed(usize),
    /// The file is written.
    Written,
    /// Why not.
    Failed(String),
}

/// Performs what is asked.
#[derive(Clone)]
pub(crate) struct Operator {
    opened: Arc<Opened>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdGen>,
    vault: VaultKeys,
    /// The server's own application, if one is running on this store.
    app: Option<App>,
    /// What its brains work with.
    world: Option<World>,
}

impl Operator {
    /// For a command that has opened the store itself.
    pub(crate) fn alone(opened: Opened, vault: VaultKeys) -> Self {
        let clock = opened.clock();
        let (opened, ids) = (Arc::new(opened), Arc::new(RandomIds));
        Self { opened, clock, ids, vault, app: None, world: None }
    }

    /// For the server that has it open.
    pub(crate) fn of_server(
        opened: Arc<Opened>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdGen>,
        vault: VaultKeys,
        app: App,
        world: World,
    ) -> Self {
        Self { opened, clock, ids, vault, app: Some(app), world: Some(world) }
    }

    /// Closes the store.
    pub(crate) async fn close(self) {
        self.opened.close().await;
    }

    /// Ends a sandbox that lives here; false if it does not.
    async fn end_sandbox(&self, key: SandboxKey) -> anyhow::Result<bool> {
        let compute = &self.world()?.compute;
        if !compute.living().await?.iter().any(|(living, _)| *living == key) {
            return Ok(false);
        }
        compute.stop(&key).await?;
        let (store, now) = (self.opened.store(), self.clock.now());
        let (session, name) = key.owner();
        let session = SessionId::from_wire(session);
        for record in sandboxes::list(store.as_ref(), Some(&session), true).await? {
            if record.name == name {
                sandboxes::put(store.as_ref(), &record.ended(now), now).await?;
            }
        }
        Ok(true)
    }

    /// Pauses a sandbox that lives here; false if it does not.
    async fn pause_sandbox(&self, key: SandboxKey) -> anyhow::Result<bool> {
        let compute = &self.world()?.compute;
        if !compute.living().await?.iter().any(|(living, _)| *living == key) {
            return Ok(false);
        }
        compute.pause(&key).await?;
        self.note(&key, SandboxState::Paused).await?;
        Ok(true)
    }

    /// Has a sandbox go on that lives here; false if it does not.
    async fn resume_sandbox(&self, key: SandboxKey) -> anyhow::Result<bool> {
        let lives = vaquero_worker::resume(self.world()?, &key).await?;
        if lives {
            self.note(&key, SandboxState::Running).await?;
        }
        Ok(lives)
    }

    /// Puts the state of a sandbox on record.
    async fn note(&self, key: &SandboxKey, state: SandboxState) -> anyhow::Result<()> {
        let (store, now) = (self.opened.store(), self.clock.now());
        let (session, name) = key.owner();
        let session = SessionId::from_wire(session);
        for mut record in sandboxes::list(store.as_ref(), Some(&session), false).await? {
            if record.name == name {
                (record.state, record.updated_at) = (state, now);
                sandboxes::put(store.as_ref(), &record, now).await?;
            }
        }
        Ok(())
    }

    fn world(&self) -> anyhow::Result<&World> {
        self.world.as_ref().context("no server is running here")
    }

    pub(crate) async fn perform(&self, ask: Ask) -> anyhow::Result<Told> {
        let store = self.opened.store();
        let (store, clock, ids) = (store.as_ref(), self.clock.as_ref(), self.ids.as_ref());
        Ok(match ask {
            Ask::KeyCreate { workspace, environment } => {
                let workspace = keys::workspace(&workspace)?;
                let made = match environment.map(EnvironmentId::from_wire) {
                    Some(environment) => {
                        keys::create_for_workers(store, clock, ids, &workspace, &environment)
                            .await?
                    }
                    None => keys::create(store, clock, ids, &workspace).await?,
                };
                Told::Key(made.0)
            }
            Ask::KeyList => Told::Keys(keys::list(store).await?),
            Ask::KeyRevoke { id } => Told::Revoked(match &self.app {
                Some(app) => keys::revoke(app, &id).await?,
                None => keys::revoke_in(store, clock, &id).await?,
            }),
            Ask::StopAll { workspace } => {
                let workspace = keys::workspace(&workspace)?;
                Told::Stopped(stop_all(store, clock, ids, &workspace).await?)
            }
            Ask::SandboxList { all } => {
                let now = clock.now();
                let records = sandboxes::list(store, None, all).await?.into_iter();
                Told::Sandboxes(records.map(|record| record.shown(now)).collect())
            }
            Ask::SandboxPause { session, name } => {
                Told::Lived(self.pause_sandbox(SandboxKey::of(&session, &name)).await?)
            }
            Ask::SandboxResume { session, name } => {
                Told::Lived(self.resume_sandbox(SandboxKey::of(&session, &name)).await?)
            }
            Ask::SandboxStop { session, name } => {
                Told::Lived(self.end_sandbox(SandboxKey::of(&session, &name)).await?)
            }
            Ask::Export { workspace, session, to } => {
                let workspace = keys::workspace(&workspace)?;
                let session = session.map(SessionId::from_wire);
                let mut file = BufWriter::new(private(&to)?);
                let exported =
                    portable::export(store, clock, &workspace, session.as_ref(), &mut file).await;
                if exported.is_err() {
                    drop(fs::remove_file(&to));
                }
                let counts = exported?;
                file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
                Told::Moved(counts)
            }
            Ask::Import { workspace, from } => {
                let workspace = workspace.as_deref().map(keys::workspace).transpose()?;
                let file = File::open(&from)
                    .with_context(|| format!("{} cannot be read", from.display()))?;
                let file = BufReader::new(file);
                Told::Moved(portable::import(store, clock, workspace.as_ref(), file).await?)
            }
            Ask::VaultRotate => Told::Resealed(self.vault.rotate(store, clock.now()).await?),
            Ask::Backup { to } => {
                // What SQLite is about to fill must be private from its first byte.
                drop(private(&to)?);
                self.opened.backup(&to).await?;
                Told::Written
            }
        })
    }
}

/// A new file that only its owner can read.
fn private(path: &Path) -> anyhow::Result<File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.with_context(|| format!("{} cannot be made", path.display()))?;
    file.flush()?;
    Ok(file)
}

/// The full path of a file that a command names: the server that acts on it may stand elsewhere.
pub(crate) fn full(path: &Path) -> anyhow::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        bail!("the name of the file is empty");
    }
    std::path::absolute(path).with_context(|| format!("{} cannot be found", path.display()))
}
