//! What a machine is given before it is a sandbox: the hand, the certificates it trusts, and the directories of a session.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::relay::HAND_PROCESS;
use super::{LINE, Machines, Remote};
use crate::container::{Kit, WayOut, trust_files, variables};
use crate::engine::Order;
use crate::error::SandboxError;
use crate::hand::contained_command_line;
use crate::remove::remove_tree;

/// Where a kit is uploaded to.
const UPLOAD: &str = "/tmp/.hand.tar.gz";
/// In a kit: all of it.
const PACKED: &str = "packed.tar.gz";

impl<M: Machines> Remote<M> {
    /// Makes a machine ready for a hand, and starts it.
    pub(super) async fn equip(&self, id: &str, order: &Order<'_>) -> Result<(), SandboxError> {
        let name = self.kit.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mark = format!("{}/{name}", Kit::PLACE);
        let empty = order.layer.as_ref().is_some_and(|layer| !layer.building && !layer.workspace);
        let empties = if empty { "find /workspace -mindepth 1 -delete\n" } else { "" };
        let said = self
            .script(
                id,
                &format!(
                    "mkdir -p {LINE} /workspace /root /mnt/session/uploads /mnt/session/outputs /var/tmp\n\
                     chmod 700 {LINE}\n{empties}[ -e {mark} ] || echo missing"
                ),
            )
            .await?;
        if said.contains("missing") {
            self.machines.write(id, UPLOAD, self.packed().await?).await?;
            let place = Kit::PLACE;
            self.script(
                id,
                &format!(
                    "rm -rf {place}\nmkdir -p {place}\ntar -xzf {UPLOAD} -C {place}\nrm {UPLOAD}\ntouch {mark}"
                ),
            )
            .await?;
        }
        if let Some(trust) = &order.trust {
            let (dir, trust) = (self.dir.clone(), trust.clone());
            let files = tokio::task::spawn_blocking(move || {
                let dir = scratch(&dir)?;
                let files = trust_files(&dir, &trust).and_then(|files| {
                    let read = |(path, place)| Ok((Bytes::from(std::fs::read(path)?), place));
                    files.into_iter().map(read).collect::<io::Result<Vec<_>>>()
                });
                remove_tree(&dir)?;
                files
            });
            let files = files.await.map_err(io::Error::other).and_then(|files| files);
            let files = files.map_err(|e| SandboxError::io("cannot write certificates", e))?;
            self.script(id, "mkdir -p /etc/ssl/certs/java").await?;
            for (bytes, place) in files {
                self.machines.write(id, &place, bytes).await?;
            }
        }
        let mut words: Vec<String> = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        // It must outlive the program that starts it. Its number is where no other program may write, if the kernel has Landlock.
        words.push(format!(
            "env -i PATH=\"$PATH\" \"$@\" </dev/null >/dev/null 2>&1 & echo $! >{LINE}/{HAND_PROCESS}; echo started"
        ));
        words.push("sh".to_owned());
        words.extend(variables(order).iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(self.kit.start().iter().cloned());
        let dial = Path::new(LINE).join(crate::container::SOCKET);
        words.extend(contained_command_line(order, &dial, WayOut::Forwarded, self.linger));
        let said = self.machines.run(id, &words).await?;
        if said.trim() == "started" {
            return Ok(());
        }
        Err(broken("start the hand", &said))
    }

    /// Runs a script to its end; what it says.
    async fn script(&self, id: &str, script: &str) -> Result<String, SandboxError> {
        let script = format!("exec 2>&1\nset -e\n{script}\necho :done");
        let said = self.machines.run(id, &["/bin/sh".to_owned(), "-c".to_owned(), script]).await?;
        match said.trim_end().strip_suffix(":done") {
            Some(said) => Ok(said.to_owned()),
            None => Err(broken("make a machine ready", &said)),
        }
    }

    /// The kit as an archive, made once for every server with this hand.
    async fn packed(&self) -> Result<Bytes, SandboxError> {
        let kit = self.kit.dir().to_owned();
        let packed = self.packed.get_or_try_init(|| async move {
            let packed = tokio::task::spawn_blocking(move || packed(&kit)).await;
            packed.map_err(io::Error::other).and_then(|packed| packed)
        });
        packed.await.cloned().map_err(|e| SandboxError::io("cannot pack the hand", e))
    }
}

fn broken(what: &str, said: &str) -> SandboxError {
    let said = said.trim();
    SandboxError::unavailable(
        format!("cannot {what}: {said:.400}"),
        "the image needs /bin/sh, /bin/bash, tar and gzip, and root to run commands",
    )
}

fn scratch(dir: &Path) -> io::Result<PathBuf> {
    let dir = dir.join(format!("trust.{}", crate::launcher::now().as_nanos()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

fn packed(kit: &Path) -> io::Result<Bytes> {
    let file = kit.join(PACKED);
    if let Ok(packed) = std::fs::read(&file) {
        return Ok(packed.into());
    }
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for entry in std::fs::read_dir(kit)? {
        let entry = entry?;
        archive.append_file(entry.file_name(), &mut File::open(entry.path())?)?;
    }
    let packed = archive.into_inner()?.finish()?;
    let making = kit.with_extension("packing");
    std::fs::write(&making, &packed)?;
    std::fs::rename(making, file)?;
    Ok(packed.into())
}
