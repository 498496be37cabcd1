//! Finding a launcher: the one that already runs for this data directory, or a new one.
//! It must never leave two launchers with one directory, and says why when there is none.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio_util::task::TaskTracker;

use super::post::{Post, dial};
use crate::error::SandboxError;
use crate::launcher::Options;
use crate::launcher::wire::{Answer, Ask, Started, VERSION};
use crate::seam::LimitsBy;

/// How long a launcher may take to start; it may have to wait for its predecessor to end.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
/// A log larger than this is begun anew.
const LOG_LIMIT: u64 = 1 << 20;

/// A launcher that answered.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) post: Post,
    pub(crate) limits: Option<LimitsBy>,
    pub(crate) disks: bool,
}

/// Talks to the launcher of this directory, starting it if there is none or if it is of another kind.
pub(crate) async fn find(
    exe: &Path,
    options: &Options,
    tasks: &TaskTracker,
) -> Result<Found, SandboxError> {
    for _ in 0..3 {
        let socket = match dial(&options.dir) {
            Ok(socket) => socket,
            Err(e) if none_there(&e) => {
                start(exe, options, tasks).await?;
                dial(&options.dir)
                    .map_err(|e| SandboxError::io("cannot reach the launcher just started", e))?
            }
            Err(e) => return Err(SandboxError::io("cannot reach the launcher", e)),
        };
        if let Some(found) = greet(socket, options, tasks).await? {
            return Ok(found);
        }
    }
    Err(SandboxError::unavailable(
        "the launcher ends as soon as it has started",
        format!("see {}", options.dir.join("launcher.log").display()),
    ))
}

fn none_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Says hello; `None` if the launcher had to be ended first, or ended by itself.
async fn greet(
    socket: OwnedFd,
    options: &Options,
    tasks: &TaskTracker,
) -> Result<Option<Found>, SandboxError> {
    let post = Post::open(socket, tasks)?;
    let linger_ms = u64::try_from(options.linger.as_millis()).unwrap_or(u64::MAX);
    let hello = Ask::Hello { version: VERSION, linger_ms };
    match post.ask(hello, HELLO_TIMEOUT).await {
        Ok((Answer::Hello { version, isolated, limits, disks, root, pid }, _)) => {
            // Limits that are missing where they are now required need a new launcher too: cgroups
            // may have become available since.
            let limits_fit = !isolated || options.degraded || limits.is_some();
            let alike = isolated == options.isolated && root == options.root;
            if version == VERSION && alike && limits_fit {
                tracing::debug!(pid, "talking to the launcher");
                return Ok(Some(Found { post, limits, disks }));
            }
            tracing::info!(pid, version, isolated, "ending a launcher of another kind");
            quit(&post).await;
            Ok(None)
        }
        Ok(_) => Err(SandboxError::unavailable(
            "what listens on the launcher's socket is no launcher",
            format!("remove {}", options.dir.display()),
        )),
        Err(SandboxError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends a launcher with all its sandboxes, and waits until it is gone.
pub(crate) async fn quit(post: &Post) {
    let quit = async {
        // It answers when the last sandbox is gone, or just ends.
        if let Err(error) = post.ask(Ask::Quit {}, START_TIMEOUT).await {
            tracing::debug!(%error, "the launcher went without a word");
        }
        post.ended().await;
    };
    if tokio::time::timeout(START_TIMEOUT, quit).await.is_err() {
        tracing::warn!("the launcher does not end");
    }
}

/// Starts a launcher and waits until it listens.
async fn start(exe: &Path, options: &Options, tasks: &TaskTracker) -> Result<(), SandboxError> {
    let mut args: Vec<OsString> = vec!["launcher".into()];
    args.extend(options.to_args());
    let log_path = options.dir.join("launcher.log");
    let log =
        open_log(&log_path).map_err(|e| SandboxError::io("cannot open the launcher's log", e))?;
    let mut child = Command::new(exe)
        .arg0("vaquero")
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| SandboxError::io("cannot start the launcher", e))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut said = BufReader::new(stdout.take(64 << 10));
        let read = tokio::time::timeout(START_TIMEOUT, said.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) {
            line.clear();
        }
    }
    // It outlives this server, but while both live somebody has to collect it.
    tasks.spawn(async move {
        if let Ok(status) = child.wait().await {
            tracing::debug!(%status, "the launcher has ended");
        }
    });
    match serde_json::from_str(&line) {
        Ok(Started::Ready {}) => Ok(()),
        Ok(Started::Failed { what, fix }) => Err(SandboxError::Unavailable { what, fix }),
        Err(_) => Err(SandboxError::unavailable(
            "the launcher did not start",
            format!("see {}", log_path.display()),
        )),
    }
}

fn open_log(path: &PathBuf) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let large = std::fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_LIMIT);
    let mut options = std::fs::OpenOptions::new();
    options.create(true).mode(0o600);
    if large {
        options.write(true).truncate(true);
    } else {
        options.append(true);
    }
    options.open(path)
}
