//! `write`: a whole file at once.

use super::{Places, Said, path, reason, text};
use crate::protocol::ToolResult;
use serde_json::Value;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

pub(super) fn run(places: &Places, input: &Value) -> Said {
    let path = path(places, input, "file_path")?;
    let content = text(input, "content")?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| reason(parent, &error))?;
    }
    replace(&path, content.as_bytes()).map_err(|error| reason(&path, &error))?;
    Ok(ToolResult::text(format!("wrote {} bytes to {}", content.len(), path.display())))
}

/// Replaces a regular file's content.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    file.set_len(0)?;
    file.write_all(content)
}
