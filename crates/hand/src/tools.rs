//! The file and search tools. They run as the sandbox sees the world: the sandbox is the wall, not these checks.

mod edit;
mod glob;
mod grep;
mod read;
mod write;

use crate::protocol::{Block, ToolResult};
use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Where relative paths start.
    pub(crate) workdir: PathBuf,
    /// Where results too large to show go.
    pub(crate) spill: PathBuf,
}

/// What a tool has to say, or why it failed.
type Said = Result<ToolResult, String>;

/// Runs a tool by name.
pub(crate) fn run(places: &Places, call: &str, tool: &str, input: &Value) -> ToolResult {
    let said = match tool {
        "read" => read::run(places, input),
        "write" => write::run(places, input),
        "edit" => edit::run(places, input),
        "glob" => glob::run(places, input),
        "grep" => grep::run(places, input),
        _ => Err("there is no such tool".to_owned()),
    };
    match said {
        Ok(result) => ToolResult {
            content: result.content.into_iter().map(|block| fit(places, call, block)).collect(),
            ..result
        },
        Err(message) => ToolResult::error(crate::output::shown(
            &places.spill,
            call,
            &format!("{tool}: {message}"),
        )),
    }
}

fn fit(places: &Places, call: &str, block: Block) -> Block {
    match block {
        Block::Text { text } if text.is_empty() => Block::Text { text: "(no output)".to_owned() },
        Block::Text { text } => {
            Block::Text { text: crate::output::shown(&places.spill, call, &text) }
        }
        other => other,
    }
}

fn text<'a>(input: &'a Value, name: &str) -> Result<&'a str, String> {
    match &input[name] {
        Value::String(text) => Ok(text),
        Value::Null => Err(format!("{name} is required")),
        _ => Err(format!("{name} must be a string")),
    }
}

fn path(places: &Places, input: &Value, name: &str) -> Result<PathBuf, String> {
    let given = text(input, name)?;
    if given.is_empty() {
        return Err(format!("{name} is required"));
    }
    if given.contains('\0') {
        return Err(format!("{name} cannot hold NUL characters"));
    }
    Ok(places.workdir.join(given))
}

/// Opens a regular file for reading and nothing else; never waits for a FIFO's other end.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// An error as the model reads it.
fn reason(path: &Path, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ if error.raw_os_error() == Some(libc::ENXIO) => "not a regular file".to_owned(),
        _ => error.to_string(),
    };
    format!("{}: {what}", path.display())
}
