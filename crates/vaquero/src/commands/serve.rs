//! `vaquero serve`

use super::say;
use crate::{
    config::{Config, LogFormat, ServeArgs},
    server::Server,
};
use anyhow::Context;
use std::{io::IsTerminal, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args)?;
    log(&config)?;
    runtime()?.block_on(serve(&config))
}

/// The runtime every command that serves uses.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")
}

/// Where log lines go, and which.
pub(crate) fn log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)
        .with_context(|| format!("log: `{}` is not a log filter", config.log))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::start(config, true).await?;
    if let Some(key) = &server.new_key {
        say!("API key (shown this once; keep it): {key}");
    }
    say!("Vaquero listens on http://{}", server.address);
    tracing::info!(address = %server.address, data_dir = %config.data_dir.display(), sandbox = server.sandbox(), node = server.node, "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; once more to stop at once");
    tokio::select! {
        () = server.stop() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::FAILURE),
        _ = interrupt.recv() => Ok(ExitCode::FAILURE),
    }
}
