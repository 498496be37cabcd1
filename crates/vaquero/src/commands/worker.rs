//! `vaquero worker`: serves a self-hosted environment's queue, this server's or any other's, from sandboxes on this machine.

use super::serve;
use crate::{
    config::{Config, SandboxArgs, ServeArgs},
    hired::{self, Job},
};
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Settings of sandboxes (`VAQUERO_SANDBOX_…`, `VAQUERO_EGRESS_ALLOW_PRIVATE`, `VAQUERO_LOG`) are those of `vaquero serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server whose queue it is.
    #[arg(long, value_name = "URL", env = "ANTHROPIC_BASE_URL")]
    base_url: String,
    /// The environment.
    #[arg(long, value_name = "env_…", env = "ANTHROPIC_ENVIRONMENT_ID")]
    environment: String,
    /// The key of its workers; better in the variable, where other users of this machine do not see it.
    #[arg(long, value_name = "KEY", env = "ANTHROPIC_ENVIRONMENT_KEY", hide_env_values = true)]
    environment_key: String,
    /// Where sandboxes and their files are kept; no server may use the same one.
    #[arg(long, value_name = "DIRECTORY", default_value = "./vaquero-worker")]
    data_dir: PathBuf,
    /// The hosts sandboxes may reach, with commas between them, also `*.example.com` [default: the public internet].
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    allowed_hosts: Option<Vec<String>>,
    /// Sessions served at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    sessions: u16,
    /// Seconds a session may rest before it is left.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    max_idle_seconds: u64,
    #[command(flatten)]
    sandboxes: SandboxArgs,
    /// A configuration file [default: ./vaquero.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&ServeArgs {
        data_dir: Some(args.data_dir),
        config: args.config,
        sandboxes: args.sandboxes,
        ..ServeArgs::default()
    })?;
    serve::log(&config)?;
    let job = Job {
        base_url: args.base_url,
        environment: args.environment,
        key: args.environment_key,
        allowed_hosts: args.allowed_hosts,
        sessions: args.sessions.into(),
        max_idle: Duration::from_secs(args.max_idle_seconds),
    };
    serve::runtime()?.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = CancellationToken::new();
        let work = hired::run(&config, job, stop.clone());
        tokio::pin!(work);
        tokio::select! {
            outcome = &mut work => return outcome.map(|()| ExitCode::SUCCESS),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        work.await.map(|()| ExitCode::SUCCESS)
    })
}
