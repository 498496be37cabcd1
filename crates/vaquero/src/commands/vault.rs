//! `vaquero vault`: the keys that secrets are sealed with.

use super::{Place, say};
use crate::operate::{Ask, Told};
use anyhow::bail;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Seal all secrets with a new key, also while a server runs. With `VAQUERO_VAULT_KEY=new,old` on all servers: with the first of them; then take the old one away.
    Rotate,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Rotate = args.command;
    match args.place.ask(Ask::VaultRotate)? {
        Told::Resealed(count) => say!("{count} credentials sealed anew"),
        told => bail!("the server answered another question: {told:?}"),
    }
    Ok(ExitCode::SUCCESS)
}
