//! `grep`: lines by regular expression.

use super::{Places, Said, glob::walk, open_regular, path, text};
use crate::protocol::ToolResult;
use grep_regex::RegexMatcherBuilder;
use grep_searcher::{BinaryDetection, SearcherBuilder, Sink, SinkMatch};
use serde_json::Value;
use std::{io, path::Path};

/// Most bytes of an answer.
const MAX: usize = 100 << 10;
/// Longer lines are passed over, in bytes.
const LINE_MAX: usize = 2_000;

pub(super) fn run(places: &Places, input: &Value) -> Said {
    let pattern = text(input, "pattern")?;
    let root =
        if input["path"].is_null() { places.workdir.clone() } else { path(places, input, "path")? };
    let matcher = RegexMatcherBuilder::new()
        .size_limit(10 << 20)
        .line_terminator(Some(b'\n'))
        .build(pattern)
        .map_err(|error| format!("the pattern is not a regular expression: {error}"))?;
    let mut searcher = SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(16 << 20))
        .line_number(true)
        .build();
    if !root.exists() {
        return Err(format!("{}: no such file or directory", root.display()));
    }
    let mut lines = Lines { text: String::new(), full: false, name: String::new() };
    let files: Box<dyn Iterator<Item = _>> =
        if root.is_dir() { Box::new(walk(&root)) } else { Box::new(std::iter::once(root.clone())) };
    for file in files {
        let Ok(opened) = open_regular(&file) else { continue };
        lines.name = name(&file);
        // A file that cannot be read to its end has shown what it could.
        let _ = searcher.search_file(&matcher, &opened, &mut lines);
        if lines.full {
            break;
        }
    }
    if lines.text.is_empty() {
        return Ok(ToolResult::text("no matches"));
    }
    if lines.full {
        lines.text.push_str("[output truncated at 102400 bytes]");
    }
    Ok(ToolResult::text(lines.text))
}

fn name(path: &Path) -> String {
    path.display().to_string().replace('\n', "\\n")
}

struct Lines {
    text: String,
    full: bool,
    name: String,
}

impl Sink for Lines {
    type Error = io::Error;

    fn matched(
        &mut self,
        _searcher: &grep_searcher::Searcher,
        found: &SinkMatch<'_>,
    ) -> io::Result<bool> {
        let line = found.bytes();
        if line.len() > LINE_MAX {
            return Ok(true);
        }
        let line = crate::output::clean(line);
        let line = line.trim_end_matches(['\n', '\r']);
        let shown = format!("{}:{}:{line}\n", self.name, found.line_number().unwrap_or(0));
        if self.text.len() + shown.len() > MAX {
            self.full = true;
            return Ok(false);
        }
        self.text.push_str(&shown);
        Ok(true)
    }
}
