//! `glob`: files by pattern, newest first.

use super::{Places, Said, path, text};
use crate::protocol::ToolResult;
use globset::GlobBuilder;
use serde_json::Value;
use std::{
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Most paths in an answer.
const SHOWN: usize = 200;
/// Most files looked at.
const SCANNED: usize = 50_000;

pub(super) fn run(places: &Places, input: &Value) -> Said {
    let pattern = text(input, "pattern")?;
    let root =
        if input["path"].is_null() { places.workdir.clone() } else { path(places, input, "path")? };
    if pattern.starts_with('/') {
        return Err("pattern must be relative; give the directory as path".to_owned());
    }
    if Path::new(pattern).components().any(|part| part == Component::ParentDir) {
        return Err("pattern must not contain `..`".to_owned());
    }
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    let matcher = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| error.to_string())?
        .compile_matcher();
    if !root.is_dir() {
        return Err(format!("{}: no such directory", root.display()));
    }
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in walk(&root).take(SCANNED) {
        let Ok(relative) = entry.strip_prefix(&root) else { continue };
        if matcher.is_match(relative) {
            let modified = entry.symlink_metadata().and_then(|data| data.modified());
            found.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry));
        }
    }
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    if found.is_empty() {
        return Ok(ToolResult::text("no matches"));
    }
    let paths: Vec<String> = found
        .iter()
        .take(SHOWN)
        .map(|(_, path)| path.display().to_string().replace('\n', "\\n"))
        .collect();
    Ok(ToolResult::text(paths.join("\n")))
}

/// Files below `root`, links not followed, `.git` and `node_modules` left out, for at most 30 seconds.
pub(super) fn walk(root: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    #[expect(clippy::disallowed_methods, reason = "a search may take so much real time")]
    let start = std::time::Instant::now();
    ignore::WalkBuilder::new(root)
        .standard_filters(false)
        .follow_links(false)
        .filter_entry(|entry| !matches!(entry.file_name().to_str(), Some(".git" | "node_modules")))
        .build()
        .take_while(move |_| start.elapsed() < Duration::from_secs(30))
        .flatten()
        .filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()))
        .map(ignore::DirEntry::into_path)
}
