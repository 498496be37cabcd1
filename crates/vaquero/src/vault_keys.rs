//! Where the keys of vaults come from: `VAQUERO_VAULT_KEY`, or a file in the data directory that only its owner reads. They are never in the database.

use crate::config::Config;
use anyhow::{Context, bail};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use vaquero_store::Store;
use vaquero_types::Timestamp;
use vaquero_vault::{Keyring, Keys, new_key, secrets};

const FILE: &str = "vault.key";

/// The keys, and the file they are from.
#[derive(Clone, Debug)]
pub(crate) struct VaultKeys {
    pub(crate) keys: Arc<Keys>,
    file: Option<PathBuf>,
}

impl VaultKeys {
    /// No keys, and why.
    pub(crate) fn none(why: &str) -> Self {
        Self { keys: Arc::new(Keys::new(Err(why.to_owned()))), file: None }
    }

    /// Reads the keys; the first start with an embedded store makes one.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        if let Some(text) = &config.vault_key {
            let ring = Keyring::parse(text).context("VAQUERO_VAULT_KEY cannot be used")?;
            return Ok(Self { keys: Arc::new(Keys::new(Ok(ring))), file: None });
        }
        if config.database_url.is_some() {
            let why = "servers that share a database need the same VAQUERO_VAULT_KEY";
            return Ok(Self::none(why));
        }
        let file = config.data_dir.join(FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = new_key()?;
                replace(&file, &key)?;
                key.to_string()
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", file.display()));
            }
        };
        let mode = fs::metadata(&file)?.permissions().mode();
        if mode & 0o077 != 0 {
            let file = file.display();
            bail!(
                "{file} can be read by others; `chmod 600 {file}`, and think of `vaquero vault rotate`"
            );
        }
        let ring = Keyring::parse(&text).with_context(|| format!("{}", file.display()))?;
        Ok(Self { keys: Arc::new(Keys::new(Ok(ring))), file: Some(file) })
    }

    /// Seals all secrets with a new key (from a file), or with the first of those that are configured; how many that were.
    pub(crate) async fn rotate(&self, store: &dyn Store, now: Timestamp) -> anyhow::Result<usize> {
        let Some(file) = &self.file else {
            let ring = self.keys.get().map_err(anyhow::Error::msg)?;
            return Ok(secrets::reseal(store, &ring, now).await?);
        };
        let old = fs::read_to_string(file)?;
        let new = new_key()?;
        // Both, until nothing needs the old one: whoever is cut off in between has both again.
        let both = format!("{}\n{old}", new.as_str());
        replace(file, &both)?;
        self.keys.replace(Keyring::parse(&both)?);
        let ring = self.keys.get().map_err(anyhow::Error::msg)?;
        let resealed = secrets::reseal(store, &ring, now).await?;
        // The last key stays until the next rotation: a request under way may have sealed with it after everything was sealed anew.
        let last = old.lines().next().unwrap_or_default();
        let kept = format!("{}\n{last}", new.as_str());
        replace(file, &kept)?;
        self.keys.replace(Keyring::parse(&kept)?);
        Ok(resealed)
    }
}

/// Puts a text into a private file, all of it or nothing, also when the machine stops.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let beside = file.with_extension("key.new");
    let written = || -> std::io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        new.write_all(text.trim().as_bytes())?;
        new.write_all(b"\n")?;
        new.sync_all()?;
        fs::rename(&beside, file)?;
        file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().with_context(|| format!("{} cannot be written", file.display()))
}
