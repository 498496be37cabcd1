//! The pieces of checkpoints in the blob store, named by what they hold. Each session has its own: nobody's bytes are ever taken for another's.

use super::{CheckpointError, Checkpoints, Dirty, Kept, lock};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::HashSet, time::Duration};
use vaquero_blob::Blobs;
use vaquero_sandbox::{Entry, Fence, Kind, PART, Page, Piece, Sandbox};
use vaquero_types::{SessionId, WorkspaceId};

/// Where they are.
pub(super) const ROOT: &str = "workspaces";
/// Pieces under way at once.
const AT_ONCE: usize = 4;
/// Pieces that no checkpoint names are removed when they are older than this: a checkpoint that is just being taken may be about to name them.
const UNNAMED: Duration = Duration::from_secs(24 * 3600);
/// Checkpoints of a session between two removals of what none names.
const TIDY_EVERY: u32 = 100;
/// Most bytes of a page that is taken from a sandbox.
const PAGE: u64 = 4 << 20;

/// Pieces that are stored, because the newest checkpoint names them.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pages: Vec<Piece>,
    pieces: HashSet<Piece>,
    taken: u32,
}

fn name(workspace: &WorkspaceId, session: &SessionId, piece: &Piece) -> String {
    format!("{ROOT}/{workspace}/{session}/{}", piece.sha256)
}

fn parse(bytes: &[u8]) -> Result<Page, CheckpointError> {
    serde_json::from_slice(bytes).map_err(|error| CheckpointError::Damaged(error.to_string()))
}

fn parts(page: &Page) -> impl Iterator<Item = (&Entry, &Vec<Piece>)> {
    page.entries.iter().filter_map(|entry| match &entry.kind {
        Kind::Parts { parts } => Some((entry, parts)),
        _ => None,
    })
}

fn path_of(entry: &Entry) -> Result<Vec<u8>, CheckpointError> {
    entry.path_bytes().map_err(|error| CheckpointError::Damaged(error.to_string()))
}

impl Checkpoints {
    fn blobs(&self) -> Result<&Blobs, CheckpointError> {
        let missing = || CheckpointError::Damaged("there is no blob store".to_owned());
        self.blobs.as_ref().ok_or_else(missing)
    }

    /// Stores what is not there yet; the pages, or none if files changed meanwhile.
    pub(super) async fn store_pieces(
        &self,
        session: &SessionId,
        dirty: &Dirty,
        before: &[Piece],
        fence: Fence,
    ) -> Result<Option<Vec<Piece>>, CheckpointError> {
        let mut known = self.known(session, &dirty.workspace, before).await?;
        let pages = dirty.sandbox.pack(fence).await?;
        for (index, page) in pages.iter().enumerate() {
            if known.pieces.contains(page) {
                continue;
            }
            if page.length > PAGE {
                return Err(CheckpointError::Damaged("a page that no hand makes".to_owned()));
            }
            let bytes = dirty.sandbox.page(index, fence).await?;
            if Piece::of(&bytes) != *page {
                return Ok(None);
            }
            let parsed = parse(&bytes)?;
            if !self.store_parts(session, dirty, &parsed, &mut known, fence).await? {
                return Ok(None);
            }
            self.blobs()?.put(&name(&dirty.workspace, session, page), Bytes::from(bytes)).await?;
            known.pieces.insert(page.clone());
        }
        known.pages.clone_from(&pages);
        known.taken += 1;
        if known.taken.is_multiple_of(TIDY_EVERY) {
            self.tidy(session, &dirty.workspace, &pages).await?;
        }
        lock(&self.known).put(session.clone(), known);
        Ok(Some(pages))
    }

    /// Stores the parts of a page's large files; false if one changed meanwhile.
    async fn store_parts(
        &self,
        session: &SessionId,
        dirty: &Dirty,
        page: &Page,
        known: &mut Known,
        fence: Fence,
    ) -> Result<bool, CheckpointError> {
        let mut missing = Vec::new();
        for (entry, parts) in parts(page) {
            let path = path_of(entry)?;
            for (number, piece) in (0_u64..).zip(parts) {
                if known.pieces.insert(piece.clone()) {
                    missing.push((path.clone(), number * PART, piece.clone()));
                }
            }
        }
        let stored = stream::iter(missing).map(|(path, offset, piece)| async move {
            let bytes = dirty.sandbox.part(&path, offset, fence).await?;
            if Piece::of(&bytes) != piece {
                return Ok(false);
            }
            let name = name(&dirty.workspace, session, &piece);
            self.blobs()?.put(&name, Bytes::from(bytes)).await?;
            Ok::<bool, CheckpointError>(true)
        });
        stored.buffer_unordered(AT_ONCE).try_all(|same| async move { same }).await
    }

    /// What the newest checkpoint names.
    async fn known(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        pages: &[Piece],
    ) -> Result<Known, CheckpointError> {
        let found = lock(&self.known).get(session).filter(|known| known.pages == pages).cloned();
        if let Some(known) = found {
            return Ok(known);
        }
        let pieces = self.named_by(session, workspace, pages).await?;
        Ok(Known { pages: pages.to_vec(), pieces, taken: 0 })
    }

    async fn named_by(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        pages: &[Piece],
    ) -> Result<HashSet<Piece>, CheckpointError> {
        let mut pieces: HashSet<Piece> = pages.iter().cloned().collect();
        for page in pages {
            let parsed = parse(&self.piece(session, workspace, page).await?)?;
            pieces.extend(parts(&parsed).flat_map(|(_, parts)| parts.iter().cloned()));
        }
        Ok(pieces)
    }

    /// A stored piece, which must be what its name says.
    async fn piece(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        piece: &Piece,
    ) -> Result<Bytes, CheckpointError> {
        let bytes = self.blobs()?.get(&name(workspace, session, piece)).await?;
        if Piece::of(&bytes) == *piece {
            return Ok(bytes);
        }
        Err(CheckpointError::Damaged(piece.sha256.clone()))
    }

    /// Brings a checkpoint into a sandbox.
    pub(super) async fn unpack(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        kept: &Kept,
        sandbox: &dyn Sandbox,
        fence: Fence,
    ) -> Result<(), CheckpointError> {
        for page in &kept.pages {
            let bytes = self.piece(session, workspace, page).await?;
            let parsed = parse(&bytes)?;
            for (entry, parts) in parts(&parsed) {
                let path = path_of(entry)?;
                for (number, part) in parts.iter().enumerate() {
                    let part = self.piece(session, workspace, part).await?;
                    sandbox.put_part(&path, number == 0, &part, fence).await?;
                }
            }
            sandbox.unpack(&bytes, fence).await?;
        }
        Ok(())
    }

    /// Removes old pieces that the newest checkpoint does not name.
    async fn tidy(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        pages: &[Piece],
    ) -> Result<(), CheckpointError> {
        let named = self.named_by(session, workspace, pages).await?;
        let named: HashSet<&str> = named.iter().map(|piece| piece.sha256.as_str()).collect();
        let mut all = self.blobs()?.list(&format!("{ROOT}/{workspace}/{session}"));
        while let Some(found) = all.try_next().await? {
            let digest = found.name.rsplit('/').next().unwrap_or_default();
            if found.age > UNNAMED && !named.contains(digest) {
                self.blobs()?.remove(&found.name).await?;
            }
        }
        Ok(())
    }
}
