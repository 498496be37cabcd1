//! The executable: one program, many roles. Everything it does is in the modules; here the command line is read and a role chosen.

mod admin;
mod commands;
mod compute;
mod config;
mod hired;
mod listen;
mod operate;
mod registries;
mod server;
mod stores;
mod uplink;
mod vault_keys;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Vaquero: a self-hosted managed-agents server.
#[derive(Debug, Parser)]
#[command(name = "vaquero", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server.
    Serve(config::ServeArgs),
    /// Run a first session from end to end and show it happening.
    Demo(commands::demo::Args),
    /// Make, list and revoke API keys.
    Key(commands::key::Args),
    /// Say what this machine can and cannot do, and what to do about it.
    Doctor(commands::doctor::Args),
    /// Interrupt every running session of a workspace.
    StopAll(commands::operate::StopAll),
    /// Write a workspace, or one session, to a file that any server can import.
    Export(commands::operate::Export),
    /// Read what `export` wrote.
    Import(commands::operate::Import),
    /// List the sandboxes of sessions, and end them.
    Sandbox(commands::sandbox::Args),
    /// Change the key that secrets are sealed with.
    Vault(commands::vault::Args),
    /// Copy the embedded store's database, also while a server uses it.
    Backup(commands::operate::Backup),
    /// Serve a self-hosted environment's work queue, of any server, from sandboxes on this machine.
    Worker(commands::worker::Args),
    /// Serve a scripted stand-in model (not a language model), for offline use and tests.
    ScriptedModel(commands::scripted_model::Args),
}

fn main() -> ExitCode {
    // Roles that the server itself starts, many times: reading the whole command line first would cost them more than their own start.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("launcher") => return code(vaquero_sandbox::launcher_main(args)),
        Some("hand") => return code(vaquero_sandbox::hand_main(args)),
        _ => {}
    }
    let outcome = match Cli::parse().command {
        Command::Serve(args) => commands::serve::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Key(args) => commands::key::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::StopAll(args) => commands::operate::stop_all(&args),
        Command::Export(args) => commands::operate::export(&args),
        Command::Import(args) => commands::operate::import(&args),
        Command::Sandbox(args) => commands::sandbox::run(&args),
        Command::Vault(args) => commands::vault::run(&args),
        Command::Backup(args) => commands::operate::backup(&args),
        Command::Worker(args) => commands::worker::run(args),
        Command::ScriptedModel(args) => commands::scripted_model::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of a failed command")]
            {
                eprintln!("vaquero: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
