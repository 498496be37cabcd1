//! `vaquero sandbox`: the sandboxes of sessions, as the store has them on record, and ending one that runs here.

use super::{Place, say};
use crate::{
    admin,
    operate::{Ask, Told},
};
use anyhow::{Context, bail};
use clap::Subcommand;
use std::process::ExitCode;
use vaquero_types::sandbox::{SandboxRecord, SandboxState};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List sandboxes: session, name, provider, server, state, since when, seconds lived, connections and refusals.
    Ls {
        /// Also those that have ended.
        #[arg(long)]
        all: bool,
    },
    /// Keep a sandbox of this server from running until it is resumed, by its session's next call at the latest; what runs in it goes on then.
    Pause {
        /// The session (`sesn_…`).
        session: String,
        /// Its name within the session.
        #[arg(default_value = "default")]
        name: String,
    },
    /// Have a paused sandbox of this server go on.
    Resume {
        /// The session (`sesn_…`).
        session: String,
        /// Its name within the session.
        #[arg(default_value = "default")]
        name: String,
    },
    /// End a sandbox of this server; its files stay, and the session's next call makes another one.
    Stop {
        /// The session (`sesn_…`).
        session: String,
        /// Its name within the session.
        #[arg(default_value = "default")]
        name: String,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Ls { all } => {
            let Told::Sandboxes(records) = args.place.ask(Ask::SandboxList { all: *all })? else {
                bail!("the server answered another question");
            };
            records.iter().for_each(show);
        }
        Command::Pause { session, name } => {
            act(args, &Ask::SandboxPause { session: session.clone(), name: name.clone() })?;
        }
        Command::Resume { session, name } => {
            act(args, &Ask::SandboxResume { session: session.clone(), name: name.clone() })?;
        }
        Command::Stop { session, name } => {
            act(args, &Ask::SandboxStop { session: session.clone(), name: name.clone() })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the server do something to a sandbox of its own.
fn act(args: &Args, ask: &Ask) -> anyhow::Result<()> {
    let told = admin::ask(&args.place.config()?.data_dir, ask)
        .context("only its own server pauses, resumes or ends a sandbox")?;
    match told {
        Told::Lived(true) => Ok(()),
        Told::Lived(false) => bail!(
            "no such sandbox runs on this server; `vaquero sandbox ls` shows which do, and where"
        ),
        told => bail!("the server answered another question: {told:?}"),
    }
}

fn show(record: &SandboxRecord) {
    let state = match record.ended_at {
        Some(at) => format!("ended {at}"),
        None if record.state == SandboxState::Paused => {
            format!("paused since {}", record.updated_at)
        }
        None => format!("running since {}", record.started_at),
    };
    let SandboxRecord { session_id, name, provider, server, active_seconds, network, .. } = record;
    say!(
        "{session_id}  {name}  {provider}  {server}  {state}  {active_seconds} s  {} connections, {} refused",
        network.connections,
        network.refusals
    );
}
