//! What runs in a machine beside the hand: it listens where the hand dials, and where the hand carries the proxy's clients, and takes all of it to the server over its own standard
//! streams. A new one takes the place of the one before; without a word from the server it ends.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::task::TaskTracker;

use super::mux::{self, CARRIED_AT_ONCE, CLIENT, HAND, Opener, PULSE};
use super::text;
use crate::container::{PROXY_SOCKET, SOCKET};

/// How long the server may say nothing.
pub(super) const SILENCE: Duration = Duration::from_mins(1);
/// In the directory: the process of the relay that is there.
const PROCESS: &str = "relay.pid";
/// And that of the hand: nobody else is carried.
pub(super) const HAND_PROCESS: &str = "hand.pid";

/// Relays until the server is gone; the process's exit code.
pub(crate) fn relay_main(dir: &Path, as_text: bool) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return 1 };
    let ended = runtime.block_on(relay(dir, as_text));
    // Standard input is read by a thread that nothing wakes.
    runtime.shutdown_background();
    match ended {
        Ok(()) => 0,
        Err(error) => {
            drop(io::Write::write_all(&mut io::stderr(), format!("relay: {error}\n").as_bytes()));
            1
        }
    }
}

async fn relay(dir: &Path, as_text: bool) -> io::Result<()> {
    replace(dir)?;
    let (hand, proxy) = (listen(dir, SOCKET)?, listen(dir, PROXY_SOCKET)?);
    let tasks = TaskTracker::new();
    let (opener, asked) = mpsc::channel(16);
    let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
    let driven = async {
        if as_text {
            let (stream, translated) = text::over(input, output);
            tokio::select! {
                () = translated => {}
                () = mux::drive_machine(stream.compat(), asked) => {}
            }
        } else {
            let stream = tokio::io::join(input, output);
            mux::drive_machine(Box::pin(stream).compat(), asked).await;
        }
    };
    tokio::select! {
        () = driven => Ok(()),
        ended = pulse(&opener) => ended,
        () = carry(dir, &hand, HAND, &opener, &tasks) => Ok(()),
        () = carry(dir, &proxy, CLIENT, &opener, &tasks) => Ok(()),
    }
}

/// Ends the relay before, which may hang on a server that is gone.
fn replace(dir: &Path) -> io::Result<()> {
    let file = dir.join(PROCESS);
    if let Ok(text) = fs::read_to_string(&file)
        && let Some(pid) = text.parse().ok().and_then(rustix::process::Pid::from_raw)
    {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == b"--relay") {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
    fs::write(file, std::process::id().to_string())
}

fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Says again what the server says, so that each knows of the other.
async fn pulse(opener: &Opener) -> io::Result<()> {
    let mut stream = mux::open(opener).await?;
    stream.write_all(&[PULSE]).await?;
    loop {
        let beat = tokio::time::timeout(SILENCE, stream.read_u8()).await;
        let beat = beat.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.write_all(&[beat]).await?;
    }
}

async fn carry(
    dir: &Path,
    listener: &UnixListener,
    kind: u8,
    opener: &Opener,
    tasks: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CARRIED_AT_ONCE));
    loop {
        let Ok((mut here, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let hand = fs::read_to_string(dir.join(HAND_PROCESS)).unwrap_or_default();
        let who = here.peer_cred().ok().and_then(|peer| peer.pid());
        if who.map(|pid| pid.to_string()).as_deref() != Some(hand.trim()) {
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let opener = opener.clone();
        tasks.spawn(async move {
            let _place = place;
            let mut there = mux::open(&opener).await?;
            there.write_all(&[kind]).await?;
            tokio::io::copy_bidirectional(&mut here, &mut there).await
        });
    }
}
