//! What sessions have here, and how it goes: sandboxes that the launcher lists, files on disk, and the trash they go through.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{BUILD, ENSURE_TIMEOUT, Inner, STOP_TIMEOUT, done};
use crate::error::SandboxError;
use crate::launcher::SPARE;
use crate::launcher::wire::{Answer, Ask, Listed};
use crate::remove::remove_tree;
use crate::seam::check_part;

impl Inner {
    pub(super) async fn destroy(&self, session: &str) -> Result<(), SandboxError> {
        check_part("session", session)?;
        let _turn = self.turn(session).await;
        self.forget(|k| k.session == session, "its session was deleted");
        match self.launcher().await {
            Ok(launcher) => {
                let ask = Ask::StopSession { session: session.to_owned() };
                done(launcher.post.ask(ask, STOP_TIMEOUT).await)?;
            }
            // Without a launcher there are no sandboxes, but there may be files.
            Err(error) => tracing::warn!(%error, "no launcher while a session is destroyed"),
        }
        self.discard(session).await
    }

    /// Moves a workspace out of the way, so that it is gone at once, and removes it.
    pub(super) async fn discard(&self, session: &str) -> Result<(), SandboxError> {
        let number = self.discarded.fetch_add(1, Ordering::Relaxed);
        let from = self.options.workspaces.join(session);
        // In a container every server may have the same process id.
        let moment = crate::launcher::now().as_nanos();
        let to = self.trash.join(format!("{session}.{moment}.{number}"));
        let removed = tokio::task::spawn_blocking(move || {
            match fs::rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            remove_tree(&to)
        });
        removed
            .await
            .map_err(io::Error::other)
            .and_then(|removed| removed)
            .map_err(|e| SandboxError::io("cannot remove the session's workspace", e))
    }

    /// Removes what an earlier server had begun to remove, while this one already works.
    pub(super) fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(&self.trash) else { return };
        let old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        self.shared.tasks.spawn_blocking(move || {
            for path in old {
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove old files");
                }
            }
        });
    }

    pub(super) async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let launcher = self.launcher().await?;
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map(|l| l.key.clone());
            match launcher.post.ask(Ask::List { after }, ENSURE_TIMEOUT).await? {
                (Answer::Listing { sandboxes, more }, _) => {
                    let none = sandboxes.is_empty();
                    all.extend(sandboxes);
                    if !more || none {
                        return Ok(all);
                    }
                }
                _ => return Err(SandboxError::gone("the launcher does not list its sandboxes")),
            }
        }
    }

    /// Every session that has a sandbox or a workspace.
    pub(super) async fn sessions(&self) -> Result<BTreeSet<String>, SandboxError> {
        let living = self.list().await?;
        let living = living.into_iter().map(|listed| listed.key.session);
        let mut sessions: BTreeSet<String> =
            living.filter(|session| !session.starts_with(BUILD)).collect();
        let entries = fs::read_dir(&self.options.workspaces)
            .map_err(|e| SandboxError::io("cannot list the workspaces", e))?;
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        sessions.extend(names.filter(|name| !name.starts_with(SPARE) && !name.starts_with(BUILD)));
        Ok(sessions)
    }
}
