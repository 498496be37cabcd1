//! Questions about this machine that need a single-threaded process: asked by starting the launcher's
//! executable for a moment, because a server must not fork from its threads.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::error::SandboxError;
use crate::report::Report;

const TIMEOUT: Duration = Duration::from_mins(1);

/// Tries every wall of the local provider on its own, for `doctor`. `exe` is the executable with the
/// `launcher` subcommand, normally `/proc/self/exe`.
pub async fn probe(exe: &Path) -> Result<Report, SandboxError> {
    ask(exe, &["--probe"]).await
}

/// Measures `count` bare sandboxes one after the other: clone into the same namespaces, exec of
/// `true`, wait. The measure for the cost of a real one.
pub async fn measure_bare(exe: &Path, count: usize) -> Result<Vec<Duration>, SandboxError> {
    let micros: Vec<u64> = ask(exe, &["--bare", &count.to_string()]).await?;
    Ok(micros.into_iter().map(Duration::from_micros).collect())
}

async fn ask<T: DeserializeOwned>(exe: &Path, args: &[&str]) -> Result<T, SandboxError> {
    let output = Command::new(exe)
        .arg0("vaquero")
        .arg("launcher")
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TIMEOUT, output)
        .await
        .map_err(|_| SandboxError::gone("the launcher did not answer in time"))?
        .map_err(|e| SandboxError::io("cannot start the launcher", e))?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        SandboxError::unavailable(
            format!("the launcher cannot examine this machine: {:.300}", said.trim()),
            "report this as a bug",
        )
    })
}
