//! The admin socket: how commands reach a server that holds their data directory. One JSON line in, one out; only the server's own user can open it.

use crate::operate::{Ask, Operator, Told};
use anyhow::{Context, bail};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// Serves until `stop`.
pub(crate) async fn serve(data_dir: PathBuf, operator: Operator, stop: CancellationToken) {
    let path = path(&data_dir);
    // The directory's lock is held: a socket left here belongs to nobody.
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "no admin socket: key commands will not reach this server");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(answer(stream, operator.clone()));
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(std::fs::remove_file(&path));
}

async fn answer(mut stream: UnixStream, operator: Operator) {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(64 << 10));
    if reader.read_line(&mut line).await.is_err() {
        return;
    }
    let told = match serde_json::from_str(&line) {
        Ok(ask) => {
            operator.perform(ask).await.unwrap_or_else(|error| Told::Failed(format!("{error:#}")))
        }
        Err(error) => Told::Failed(format!("this server does not understand the command: {error}")),
    };
    let mut line = serde_json::to_string(&told).unwrap_or_default();
    line.push('\n');
    if let Err(error) = writer.write_all(line.as_bytes()).await {
        tracing::debug!(%error, "an admin command went away");
    }
}

/// Asks the server that holds `data_dir`.
pub(crate) fn ask(data_dir: &Path, ask: &Ask) -> anyhow::Result<Told> {
    let path = path(data_dir);
    let mut stream = StdUnixStream::connect(&path).with_context(|| {
        format!(
            "the server that holds {} cannot be reached through {}",
            data_dir.display(),
            path.display()
        )
    })?;
    writeln!(stream, "{}", serde_json::to_string(ask)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match serde_json::from_str(&line).context("the server's answer cannot be read")? {
        Told::Failed(reason) => bail!(reason),
        told => Ok(told),
    }
}
