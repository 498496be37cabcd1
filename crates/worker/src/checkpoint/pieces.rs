//! The pieces of checkpoints in the blob store, named by what they hold. Each session has its own: nobody's bytes are ever taken for another's.

use super::{CheckpointError, Checkpoints, Dirty, lock};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use vaquero_blob::Blobs;
use vaquero_sandbox::{Entry, Fence, Kind, PART, Page, Piece, Sandbox};
use vaquero_types::{SessionId, WorkspaceId, checkpoint::Source};

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

/// Most pieces of a checkpoint, and bytes: a sandbox says what its workspace holds, and is not to be believed without bounds.
const MOST_PIECES: usize = 200_000;
const MOST_BYTES: u64 = 64 << 30;

/// What the newest checkpoint names, and so is stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pages: Vec<Piece>,
    /// The parts of each page's large files.
    parts: HashMap<Piece, Vec<Piece>>,
    taken: u32,
}

/// How much a checkpoint may still name.
struct Room {
    pieces: usize,
    bytes: u64,
}

impl Room {
    fn take<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = &'a Piece>,
    ) -> Result<(), CheckpointError> {
        for piece in pieces {
            let left = self.pieces.checked_sub(1).zip(self.bytes.checked_sub(piece.length));
            (self.pieces, self.bytes) = left.ok_or(CheckpointError::TooLarge)?;
        }
        Ok(())
    }
}

/// A checkpoint that stays when newer ones are taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Moment {
    pub(super) pages: Vec<Piece>,
}

/// Where the moments of a session are, each under the newest call that was over.
fn moments(workspace: &WorkspaceId, session: &SessionId) -> String {
    format!("{ROOT}/{workspace}/{session}/calls")
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
        let mut stored: HashSet<Piece> = known.parts.values().flatten().cloned().collect();
        let pages = dirty.sandbox.pack(fence).await?;
        let mut room = Room { pieces: MOST_PIECES, bytes: MOST_BYTES };
        room.take(&pages)?;
        let mut named = HashMap::new();
        for (index, page) in pages.iter().enumerate() {
            if let Some(parts) = known.parts.get(page) {
                room.take(parts)?;
                named.insert(page.clone(), parts.clone());
                continue;
            }
            if page.length > PAGE {
                return Err(CheckpointError::TooLarge);
            }
            let bytes = dirty.sandbox.page(index, fence).await?;
            if Piece::of(&bytes) != *page {
                return Ok(None);
            }
            let parsed = parse(&bytes)?;
            let listed: Vec<Piece> =
                parts(&parsed).flat_map(|(_, parts)| parts.iter().cloned()).collect();
            room.take(&listed)?;
            if !self.store_parts(session, dirty, &parsed, &mut stored, fence).await? {
                return Ok(None);
            }
            self.blobs()?.put(&name(&dirty.workspace, session, page), Bytes::from(bytes)).await?;
            named.insert(page.clone(), listed);
        }
        // Only what this checkpoint names: the rest may be removed by the time it is wanted again.
        known = Known { pages: pages.clone(), parts: named, taken: known.taken + 1 };
        if known.taken.is_multiple_of(TIDY_EVERY) {
            self.tidy(session, &dirty.workspace, &known).await?;
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
        stored: &mut HashSet<Piece>,
        fence: Fence,
    ) -> Result<bool, CheckpointError> {
        let mut missing = Vec::new();
        for (entry, parts) in parts(page) {
            let path = path_of(entry)?;
            for (number, piece) in (0_u64..).zip(parts) {
                if stored.insert(piece.clone()) {
                    missing.push((path.clone(), number * PART, piece.clone()));
                }
            }
        }
        let storing = stream::iter(missing).map(|(path, offset, piece)| async move {
            let bytes = dirty.sandbox.part(&path, offset, fence).await?;
            if Piece::of(&bytes) != piece {
                return Ok(false);
            }
            let name = name(&dirty.workspace, session, &piece);
            self.blobs()?.put(&name, Bytes::from(bytes)).await?;
            Ok::<bool, CheckpointError>(true)
        });
        storing.buffer_unordered(AT_ONCE).try_all(|same| async move { same }).await
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
        let mut named = HashMap::new();
        for page in pages {
            let parsed = parse(&self.piece(session, workspace, page).await?)?;
            let listed = parts(&parsed).flat_map(|(_, parts)| parts.iter().cloned()).collect();
            named.insert(page.clone(), listed);
        }
        Ok(Known { pages: pages.to_vec(), parts: named, taken: 0 })
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
        pages: &[Piece],
        sandbox: &dyn Sandbox,
        fence: Fence,
    ) -> Result<(), CheckpointError> {
        for page in pages {
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

    /// Keeps a checkpoint for the time when it is not the newest any more.
    pub(super) async fn keep_moment(
        &self,
        session: &SessionId,
        dirty: &Dirty,
        pages: &[Piece],
    ) -> Result<(), CheckpointError> {
        let moment = Moment { pages: pages.to_vec() };
        let bytes = serde_json::to_vec(&moment).unwrap_or_default();
        let name = format!("{}/{}", moments(&dirty.workspace, session), dirty.covers);
        Ok(self.blobs()?.put(&name, Bytes::from(bytes)).await?)
    }

    /// The newest moment of a session up to a place in its log, and how many calls lie between.
    pub(super) async fn moment(
        &self,
        workspace: &WorkspaceId,
        source: &Source,
    ) -> Result<Option<(Moment, usize)>, CheckpointError> {
        let Some(blobs) = &self.blobs else { return Ok(None) };
        let place = moments(workspace, &source.session);
        let mut kept = HashSet::new();
        let mut all = blobs.list(&place);
        while let Some(found) = all.try_next().await? {
            kept.extend(found.name.rsplit('/').next().map(str::to_owned));
        }
        let newest_first = source.calls.iter().rev().enumerate();
        let mut found = newest_first.filter(|(_, call)| kept.contains(call.as_str()));
        let Some((behind, call)) = found.next() else { return Ok(None) };
        let bytes = blobs.get(&format!("{place}/{call}")).await?;
        let moment = serde_json::from_slice(&bytes)
            .map_err(|error| CheckpointError::Damaged(error.to_string()))?;
        Ok(Some((moment, behind)))
    }

    /// Forgets all but the newest moments; what those name that stay.
    async fn named_by_moments(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        known: &Known,
    ) -> Result<HashSet<String>, CheckpointError> {
        let blobs = self.blobs()?;
        let mut all: Vec<_> = blobs.list(&moments(workspace, session)).try_collect().await?;
        all.sort_by_key(|found| found.age);
        let mut named = HashSet::new();
        for (place, found) in all.iter().enumerate() {
            if place >= self.moments_kept {
                blobs.remove(&found.name).await?;
                continue;
            }
            let Ok(moment) = serde_json::from_slice::<Moment>(&blobs.get(&found.name).await?)
            else {
                continue;
            };
            for page in moment.pages {
                if known.parts.contains_key(&page) || !named.insert(page.sha256.clone()) {
                    continue;
                }
                let parsed = parse(&self.piece(session, workspace, &page).await?)?;
                let listed = parts(&parsed).flat_map(|(_, parts)| parts.iter());
                named.extend(listed.map(|piece| piece.sha256.clone()));
            }
        }
        Ok(named)
    }

    /// Removes old pieces that no checkpoint names.
    async fn tidy(
        &self,
        session: &SessionId,
        workspace: &WorkspaceId,
        known: &Known,
    ) -> Result<(), CheckpointError> {
        let mut named = self.named_by_moments(session, workspace, known).await?;
        let newest = known.parts.iter().flat_map(|(page, parts)| parts.iter().chain([page]));
        named.extend(newest.map(|piece| piece.sha256.clone()));
        let mut all = self.blobs()?.list(&format!("{ROOT}/{workspace}/{session}"));
        while let Some(found) = all.try_next().await? {
            let digest = found.name.rsplit('/').next().unwrap_or_default();
            let is_piece = !found.name.contains("/calls/");
            if is_piece && found.age > UNNAMED && !named.contains(digest) {
                self.blobs()?.remove(&found.name).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_bounds() {
        let piece = |length| Piece { sha256: "0".repeat(64), length };
        let mut room = Room { pieces: 3, bytes: 100 };
        room.take(&[piece(60), piece(40)]).expect("it fits");
        assert!(matches!(room.take(&[piece(1)]), Err(CheckpointError::TooLarge)), "no more bytes");
        room.take(&[piece(0)]).expect("an empty one fits");
        assert!(matches!(room.take(&[piece(0)]), Err(CheckpointError::TooLarge)), "no more pieces");
    }
}
