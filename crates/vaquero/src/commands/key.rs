//! `vaquero key`: keys of a data directory, whether or not a server has it open.

use super::{Place, say};
use crate::operate::{Ask, Told};
use anyhow::bail;
use clap::Subcommand;
use std::process::ExitCode;
use vaquero_api::keys::{self, ApiKey};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, alone, once.
    Create {
        /// The workspace it opens; a new name is a new workspace.
        #[arg(long, value_name = "NAME", default_value = "default")]
        workspace: String,
        /// Make it for the workers of this self-hosted environment of the workspace, and for nothing else.
        #[arg(long, value_name = "env_…")]
        environment: Option<String>,
    },
    /// List keys: id, workspace, beginning, age.
    List,
    /// Revoke a key, from the next request on.
    Revoke {
        /// Its id (`apikey_…`), as `list` shows it.
        id: String,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let ask = match &args.command {
        Command::Create { workspace, environment } => {
            keys::workspace(workspace)?;
            Ask::KeyCreate { workspace: workspace.clone(), environment: environment.clone() }
        }
        Command::List => Ask::KeyList,
        Command::Revoke { id } => Ask::KeyRevoke { id: id.clone() },
    };
    let told = args.place.ask(ask)?;
    match told {
        Told::Key(key) => say!("{key}"),
        Told::Keys(keys) => keys.iter().for_each(show),
        Told::Revoked(true) => {}
        Told::Revoked(false) => bail!("there is no such key; `vaquero key list` shows all"),
        told => bail!("the server answered another question: {told:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(key: &ApiKey) {
    let state = match key.revoked_at {
        Some(at) => format!("revoked {at}"),
        None => "active".to_owned(),
    };
    let environment = key.environment.as_ref().map(|id| format!("  workers of {id}"));
    say!(
        "{}  {}  {}  created {}  {state}{}",
        key.id,
        key.workspace,
        key.hint,
        key.created_at,
        environment.unwrap_or_default()
    );
}
