//! Spare sandboxes: made while nothing else is to be done, so that a new session's first call finds one running.
//! A spare has run nothing and belongs to nobody; whoever gets it gets its empty workspace along with it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::members::Member;
use super::wire::SparesWanted;
use super::{SPARE, log, now};
use crate::engine::Layer;
use crate::remove::remove_tree;
use crate::seam::{Limits, SandboxKey};

/// The only generation a spare can be: the first of a session.
pub(super) const GENERATION: u64 = 1;
/// How long nobody must have asked for a sandbox before a spare is made.
const QUIET: Duration = Duration::from_millis(10);

/// Which spares there should be.
#[derive(Debug, Default)]
pub(super) struct Spares {
    kind: Option<Kind>,
    count: u32,
    made: u64,
    /// When the next one may be made, if one may be missing.
    due: Option<Duration>,
    /// When to end those that nobody wanted.
    until: Option<Duration>,
}

/// What a sandbox is like.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kind {
    pub(super) limits: Limits,
    pub(super) env: BTreeMap<String, String>,
    pub(super) network: bool,
    pub(super) layer: Option<Layer>,
}

pub(super) fn is_spare(key: &SandboxKey) -> bool {
    key.session.starts_with(SPARE)
}

/// Removes the workspaces of spares whose launcher is gone.
pub(super) fn clear(workspaces: &Path) {
    let Ok(entries) = fs::read_dir(workspaces) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(SPARE) {
            remove(&entry.path());
        }
    }
}

/// Removes the workspace of a spare.
pub(super) fn remove(workspace: &Path) {
    if let Err(error) = remove_tree(workspace) {
        log(&format!("cannot remove {}: {error}", workspace.display()));
    }
}

impl Spares {
    /// Notes what spares should be like from now on; false if those there are like something else.
    pub(super) fn want(&mut self, wanted: SparesWanted, kind: Kind) -> bool {
        let SparesWanted { count, idle_ms } = wanted;
        let alike = self.kind.as_ref().is_none_or(|known| *known == kind) && count >= self.count;
        (self.count, self.kind) = (count, Some(kind));
        self.due = (count > 0).then(|| now() + QUIET);
        self.until = Some(now() + Duration::from_millis(idle_ms));
        alike
    }

    /// When something is to be done next.
    pub(super) fn deadline(&self) -> Option<Duration> {
        [self.due, self.until].into_iter().flatten().min()
    }

    /// Whether nobody has wanted a sandbox for so long that none is kept any more.
    pub(super) fn idle(&mut self) -> bool {
        let idle = self.until.take_if(|until| now() >= *until).is_some();
        if idle {
            self.forgo();
        }
        idle
    }

    /// Gives spares up until somebody wants them again: one could not be made.
    pub(super) fn forgo(&mut self) {
        (self.kind, self.due, self.until) = (None, None, None);
    }

    /// A spare of this kind that is ready.
    pub(super) fn find(
        &self,
        kind: &Kind,
        members: &BTreeMap<SandboxKey, Member>,
    ) -> Option<SandboxKey> {
        if self.kind.as_ref() != Some(kind) {
            return None;
        }
        let ready = |member: &Member| member.starting.is_none() && !member.has_ended();
        let mut spares = members.iter().filter(|(key, _)| is_spare(key));
        spares.find(|(_, member)| ready(member)).map(|(key, _)| key.clone())
    }

    /// The spare to make now, if it is time for one.
    pub(super) fn next(
        &mut self,
        busy: bool,
        members: &BTreeMap<SandboxKey, Member>,
    ) -> Option<(SandboxKey, Kind)> {
        self.due.take_if(|due| now() >= *due)?;
        let kind = self.kind.clone()?;
        let there = members.keys().filter(|key| is_spare(key)).count();
        if u32::try_from(there).is_ok_and(|there| there >= self.count) {
            return None;
        }
        self.due = Some(now() + QUIET);
        if busy || members.values().any(|member| member.starting.is_some()) {
            return None;
        }
        self.made += 1;
        Some((SandboxKey::default_of(format!("{SPARE}{}", self.made)), kind))
    }
}

/// Moves a spare's workspace to its new session. What is mounted in the sandbox stays mounted, whatever its directory is called.
pub(super) fn give(workspaces: &Path, spare: &SandboxKey, session: &str) -> io::Result<()> {
    fs::rename(workspaces.join(&spare.session), workspaces.join(session))
}
