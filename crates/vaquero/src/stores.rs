//! Which store a server has: the embedded one in its data directory, or a database that it shares with others. The only place that names a concrete store.

use crate::config::{Config, Role};
use anyhow::Context;
use std::{fs, path::Path, sync::Arc};
use vaquero_store::{Live, LocalLive, SharedStore};
use vaquero_store_postgres::{PostgresConfig, PostgresStore};
use vaquero_store_sqlite::{DirectoryLock, OpenError, SqliteStore};
use vaquero_types::{Clock, IdGen, RandomIds, SystemClock, Timestamp};

/// The name of the only worker of an embedded store.
const LOCAL: &str = "local";

/// An open store.
pub(crate) enum Opened {
    Embedded(Arc<SqliteStore>),
    Shared {
        store: Arc<PostgresStore>,
        /// Held by whoever keeps sandboxes in the data directory.
        _directory: Option<DirectoryLock>,
    },
}

/// The settings of a shared database.
pub(crate) fn postgres(config: &Config, url: &str) -> PostgresConfig {
    PostgresConfig {
        connections: config.database_connections,
        own_clock: own_clock(),
        ..PostgresConfig::new(url)
    }
}

/// The machine's clock, wrong by as many seconds as a test wants it to be.
fn own_clock() -> Arc<dyn Clock> {
    struct Skewed(i64);
    impl Clock for Skewed {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(SystemClock.now().as_micros() + self.0)
        }
    }
    let seconds = std::env::var("VAQUERO_TEST_CLOCK_SKEW").ok().and_then(|skew| skew.parse().ok());
    let skew: Option<i64> = seconds.map(|seconds: i64| seconds * 1_000_000);
    skew.map_or_else(|| Arc::new(SystemClock) as Arc<dyn Clock>, |skew| Arc::new(Skewed(skew)))
}

impl Opened {
    /// Opens the store a server is configured for; with it comes the server's name among those that share it.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<(Self, String)> {
        let Some(url) = &config.database_url else {
            let store = SqliteStore::open(&config.data_dir)?;
            return Ok((Self::Embedded(Arc::new(store)), LOCAL.to_owned()));
        };
        let directory = match config.role {
            Role::Api => None,
            Role::All | Role::Worker => Some(DirectoryLock::take(&config.data_dir)?),
        };
        let name = match (&config.node, &directory) {
            (Some(name), _) => name.clone(),
            (None, Some(_)) => name_in(&config.data_dir)?,
            (None, None) => new_name(),
        };
        let store = Arc::new(PostgresStore::open(&postgres(config, url), &name).await?);
        Ok((Self::Shared { store, _directory: directory }, name))
    }

    /// Opens it for a command. `None` if a server holds the data directory: it has to be asked.
    pub(crate) async fn open_for_command(config: &Config) -> anyhow::Result<Option<Self>> {
        if let Some(url) = &config.database_url {
            let store = PostgresStore::open(&postgres(config, url), &new_name()).await?;
            return Ok(Some(Self::Shared { store: Arc::new(store), _directory: None }));
        }
        match SqliteStore::open(&config.data_dir) {
            Ok(store) => Ok(Some(Self::Embedded(Arc::new(store)))),
            Err(OpenError::Locked { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The store.
    pub(crate) fn store(&self) -> SharedStore {
        match self {
            Self::Embedded(store) => Arc::clone(store) as SharedStore,
            Self::Shared { store, .. } => Arc::clone(store) as SharedStore,
        }
    }

    /// Where deltas go and come from.
    pub(crate) fn live(&self) -> Arc<dyn Live> {
        match self {
            Self::Embedded(_) => Arc::new(LocalLive::default()),
            Self::Shared { store, .. } => store.live(),
        }
    }

    /// The time to go by.
    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Embedded(_) => own_clock(),
            Self::Shared { store, .. } => store.clock(),
        }
    }

    /// Copies the embedded store's database to a file that is there and empty.
    pub(crate) async fn backup(&self, to: &Path) -> anyhow::Result<()> {
        match self {
            Self::Embedded(store) => Ok(store.backup(to).await?),
            Self::Shared { .. } => anyhow::bail!(
                "a PostgreSQL database has backup tools of its own (pg_dump, pg_basebackup); `vaquero export` writes a workspace"
            ),
        }
    }

    /// Finishes what is queued.
    pub(crate) async fn close(&self) {
        match self {
            Self::Embedded(store) => store.close(),
            Self::Shared { store, .. } => store.close().await,
        }
    }
}

fn new_name() -> String {
    let random = RandomIds.next(SystemClock.now());
    format!("node-{:010x}", random & 0xff_ffff_ffff)
}

/// The name in a data directory: a server that comes back is known, and its sandboxes with it.
fn name_in(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("node");
    if let Ok(name) = fs::read_to_string(&path) {
        let name = name.trim();
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
    }
    let name = new_name();
    fs::write(&path, &name).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(name)
}
