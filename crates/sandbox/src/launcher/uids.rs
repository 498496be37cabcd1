//! Which host ids a sandbox runs as: as root a 64 k range of its own per session, else the user's own id.
//! It must never give one range to two sandboxes that live at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Ids in one range: enough for every id a package manager hands out, `nobody` included.
pub(crate) const RANGE: u32 = 1 << 16;
/// First id of the first range: above what distributions give to users, containers and systemd.
const FIRST: u32 = 0x4000_0000;
/// First id past the last range; ids from 2^31 on confuse programs that think them signed.
const END: u32 = 0x7fff_0000;

/// How ids are mapped into sandboxes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdMapping {
    /// Ids 0–65535 of the sandbox are a range of host ids.
    Ranges,
    /// Id 0 of the sandbox is the user who runs the launcher; it has no other ids.
    Single,
}

impl IdMapping {
    /// Ranges if this process may map them: real root whose own ids reach that far.
    pub(crate) fn detect() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Single;
        }
        let covers =
            |file: &str| fs::read_to_string(file).is_ok_and(|map| map.lines().any(covers_ranges));
        if covers("/proc/self/uid_map") && covers("/proc/self/gid_map") {
            Self::Ranges
        } else {
            Self::Single
        }
    }
}

fn covers_ranges(line: &str) -> bool {
    let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
    let (inside, _outside, count) = (
        numbers.next().unwrap_or(u64::MAX),
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
    );
    inside <= u64::from(FIRST) && inside + count >= u64::from(END)
}

/// Hands out ranges.
#[derive(Debug)]
pub(crate) struct Ranges {
    next: u32,
}

impl Ranges {
    /// Starts behind every range that a workspace below `workspaces` is already owned by.
    pub(crate) fn after(workspaces: &Path) -> Self {
        let highest = owners(workspaces).into_iter().max();
        let next = highest.map_or(FIRST, |base| base.saturating_add(RANGE));
        Self { next: if next < END { next } else { FIRST } }
    }

    /// A range for a new session: not in `live`, and, while there are any, one that no workspace has.
    pub(crate) fn take(&mut self, workspaces: &Path, live: &BTreeSet<u32>) -> io::Result<u32> {
        let count = (END - FIRST) / RANGE;
        let mut owned: Option<BTreeSet<u32>> = None;
        for round in 0..2 * count {
            let base = self.next;
            self.next = if base + RANGE < END { base + RANGE } else { FIRST };
            if live.contains(&base) {
                continue;
            }
            // Before the first wrap, every range from `next` on is known to be free.
            if base == FIRST && owned.is_none() {
                owned = Some(owners(workspaces));
            }
            let taken = owned.as_ref().is_some_and(|o| o.contains(&base));
            if !taken || round >= count {
                return Ok(base);
            }
        }
        Err(io::Error::other("every range of user ids is in use by a living sandbox"))
    }
}

/// The ranges that workspaces are owned by.
fn owners(workspaces: &Path) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(workspaces) else { return BTreeSet::new() };
    entries.flatten().filter_map(|entry| range_of(&entry.path().join("workspace"))).collect()
}

/// The range that owns a session's workspace, if one does.
pub(crate) fn range_of(workspace: &Path) -> Option<u32> {
    let uid = fs::symlink_metadata(workspace).ok()?.uid();
    let inside = (FIRST..END).contains(&uid) && (uid - FIRST).is_multiple_of(RANGE);
    inside.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_skip_the_living() {
        let empty = Path::new("/nonexistent");
        let mut ranges = Ranges { next: FIRST };
        let live = BTreeSet::from([FIRST + RANGE]);
        let first = ranges.take(empty, &live).unwrap();
        let second = ranges.take(empty, &live).unwrap();
        assert_eq!(first, FIRST);
        assert_eq!(second, FIRST + 2 * RANGE);
    }

    #[test]
    fn ranges_wrap_around() {
        let mut ranges = Ranges { next: END - RANGE };
        let live = BTreeSet::new();
        assert_eq!(ranges.take(Path::new("/nonexistent"), &live).unwrap(), END - RANGE);
        assert_eq!(ranges.take(Path::new("/nonexistent"), &live).unwrap(), FIRST);
    }

    #[test]
    fn only_a_full_map_covers_the_ranges() {
        assert!(covers_ranges("         0          0 4294967295"));
        assert!(!covers_ranges("         0     100000      65536"));
    }
}
