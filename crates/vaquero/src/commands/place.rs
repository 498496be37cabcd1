//! Which store a command works on: the one a server with the same settings would open.

use super::serve::runtime;
use crate::{
    admin,
    config::{Config, ServeArgs},
    operate::{Ask, Operator, Told},
    stores::Opened,
    vault_keys::VaultKeys,
};
use anyhow::Context;
use std::path::PathBuf;

/// The flags that name a store.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// The data directory [default: ./vaquero-data].
    #[arg(long, global = true, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// The PostgreSQL database, if servers share one.
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// A configuration file [default: ./vaquero.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    /// The settings, with these flags over them.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let args = ServeArgs {
            data_dir: self.data_dir.clone(),
            database_url: self.database_url.clone(),
            config: self.config.clone(),
            ..ServeArgs::default()
        };
        Config::load(&args).context("the settings cannot be read")
    }

    /// Has something done to the store: by the server that holds it, or else here.
    pub(crate) fn ask(&self, ask: Ask) -> anyhow::Result<Told> {
        let config = self.config()?;
        runtime()?.block_on(async {
            let Some(opened) = Opened::open_for_command(&config).await? else {
                return admin::ask(&config.data_dir, &ask);
            };
            let operator = Operator::alone(opened, VaultKeys::open(&config)?);
            let told = operator.perform(ask).await;
            operator.close().await;
            told
        })
    }
}
