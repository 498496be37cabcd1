//! Spare sandboxes: made while nothing else is to be done, so that a new session's first call finds one running.
//! A spare has run nothing and belongs to nobody; whoever gets it gets its empty workspace along with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::members::Member;
use super::office::Office;
use super::{SPARE, log, now};
use crate::remove::remove_tree;
use crate::seam::{Limits, SandboxKey};

/// The only generation a spare can be: the first of a session.
const GENERATION: u64 = 1;
/// How long nobody must have asked for a sandbox before a spare is made.
const QUIET: Duration = Duration::from_millis(10);

/// Which spares there should be.
#[derive(Debug, Default)]
pub(super) struct Spares {
    pattern: Option<Pattern>,
    made: u64,
    /// When the next one may be made, if one is missing.
    pub(super) due: Option<Duration>,
}

/// What every spare is like, and how many there should be.
#[derive(Debug, PartialEq)]
struct Pattern {
    count: u32,
    limits: Limits,
    env: BTreeMap<String, String>,
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

pub(super) fn remove(workspace: &Path) {
    if let Err(error) = remove_tree(workspace) {
        log(&format!("cannot remove {}: {error}", workspace.display()));
    }
}

impl Office {
    /// Gives a new session a spare that is like what it asks for, if one is ready.
    pub(super) fn take_spare(
        &mut self,
        key: &SandboxKey,
        generation: u64,
        limits: Limits,
        env: &BTreeMap<String, String>,
    ) -> bool {
        let alike = self
            .spares
            .pattern
            .as_ref()
            .is_some_and(|pattern| pattern.limits == limits && pattern.env == *env);
        let session = self.options.workspaces.join(&key.session);
        if !alike || generation != GENERATION || session.exists() {
            return false;
        }
        let ready = |(key, member): &(&SandboxKey, &Member)| {
            is_spare(key) && member.starting.is_none() && !member.has_ended()
        };
        let Some(spare) = self.members.iter().find(ready).map(|(key, _)| key.clone()) else {
            return false;
        };
        let workspace = self.options.workspaces.join(&spare.session);
        // What is mounted in the sandbox stays mounted, whatever its directory is called.
        if let Err(error) = fs::rename(workspace, session) {
            log(&format!("{spare} cannot be given to {key}: {error}"));
            return false;
        }
        if let Some(member) = self.members.remove(&spare) {
            self.members.insert(key.clone(), member);
        }
        true
    }

    /// Notes what spares should be like from now on.
    pub(super) fn want_spares(
        &mut self,
        count: u32,
        limits: Limits,
        env: &BTreeMap<String, String>,
    ) {
        let pattern = Pattern { count, limits, env: env.clone() };
        if self.spares.pattern.as_ref() != Some(&pattern) {
            self.kill(is_spare);
            self.spares.pattern = Some(pattern);
        }
        self.spares.due = (count > 0 && self.options.isolated).then(|| now() + QUIET);
    }

    /// Gives spares up: one could not be made.
    pub(super) fn forgo_spares(&mut self) {
        self.spares.pattern = None;
        self.spares.due = None;
    }

    /// Makes a spare if one is missing and nothing else is to be done.
    pub(super) fn make_spare(&mut self) {
        if self.spares.due.is_none_or(|due| now() < due) {
            return;
        }
        self.spares.due = None;
        let Some(pattern) = self.spares.pattern.take_if(|_| self.quit_by.is_none()) else { return };
        let busy = !self.waiting.is_empty() || self.members.values().any(|m| m.starting.is_some());
        let spares = self.members.keys().filter(|key| is_spare(key)).count();
        if busy {
            self.spares.due = Some(now() + QUIET);
        } else if u32::try_from(spares).is_ok_and(|spares| spares < pattern.count) {
            self.spares.made += 1;
            let key = SandboxKey::default_of(format!("{SPARE}{}", self.spares.made));
            if let Err(trouble) = self.create(&key, GENERATION, pattern.limits, &pattern.env) {
                log(&format!("{key}: {}", trouble.what));
                remove(&self.options.workspaces.join(&key.session));
                return;
            }
            self.spares.due = Some(now() + QUIET);
        }
        self.spares.pattern = Some(pattern);
    }
}
