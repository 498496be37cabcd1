//! `vaquero stop-all`, `export`, `import` and `backup`: what operators do to a store, whether or not a server has it open.

use super::{Place, say};
use crate::operate::{Ask, Told, full};
use anyhow::bail;
use std::{path::PathBuf, process::ExitCode};
use vaquero_api::portable::Counts;

#[derive(Debug, clap::Args)]
pub(crate) struct StopAll {
    #[command(flatten)]
    place: Place,
    /// The workspace.
    #[arg(long, value_name = "NAME", default_value = "default")]
    workspace: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    place: Place,
    /// The workspace.
    #[arg(long, value_name = "NAME", default_value = "default")]
    workspace: String,
    /// Only this session, with its agent and environment.
    #[arg(long, value_name = "sesn_…")]
    session: Option<String>,
    /// Where to write; must not exist.
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    #[command(flatten)]
    place: Place,
    /// The workspace it is to be in [default: the one it is of].
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// What `export` wrote.
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    #[command(flatten)]
    place: Place,
    /// Where to write; must not exist. A server started on a data directory with this file as `vaquero.db` goes on from it.
    file: PathBuf,
}

pub(crate) fn stop_all(args: &StopAll) -> anyhow::Result<ExitCode> {
    match args.place.ask(Ask::StopAll { workspace: args.workspace.clone() })? {
        Told::Stopped(sessions) => {
            for session in &sessions {
                say!("{session}");
            }
            say!("{} sessions interrupted", sessions.len());
            Ok(ExitCode::SUCCESS)
        }
        told => unexpected(&told),
    }
}

pub(crate) fn export(args: &Export) -> anyhow::Result<ExitCode> {
    let ask = Ask::Export {
        workspace: args.workspace.clone(),
        session: args.session.clone(),
        to: full(&args.file)?,
    };
    match args.place.ask(ask)? {
        Told::Moved(counts) => {
            say!("{}: {}", args.file.display(), describe(counts));
            Ok(ExitCode::SUCCESS)
        }
        told => unexpected(&told),
    }
}

pub(crate) fn import(args: &Import) -> anyhow::Result<ExitCode> {
    let ask = Ask::Import { workspace: args.workspace.clone(), from: full(&args.file)? };
    match args.place.ask(ask)? {
        Told::Moved(counts) => {
            say!("{}", describe(counts));
            if counts.skipped > 0 {
                say!("{} skipped: they are there already", counts.skipped);
            }
            Ok(ExitCode::SUCCESS)
        }
        told => unexpected(&told),
    }
}

pub(crate) fn backup(args: &Backup) -> anyhow::Result<ExitCode> {
    match args.place.ask(Ask::Backup { to: full(&args.file)? })? {
        Told::Written => {
            say!("{}", args.file.display());
            Ok(ExitCode::SUCCESS)
        }
        told => unexpected(&told),
    }
}

fn describe(counts: Counts) -> String {
    let Counts { documents, sessions, records, .. } = counts;
    format!("{documents} agents, versions and environments, {sessions} sessions, {records} records")
}

fn unexpected(told: &Told) -> anyhow::Result<ExitCode> {
    bail!("the server answered another question: {told:?}")
}
