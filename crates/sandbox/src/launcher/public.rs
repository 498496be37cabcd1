//! Copies of the host's public files: what not everybody may read is left out.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Copies a file or link that anyone may read; anything else is left out.
pub(crate) fn copy_public(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if meta.is_file() && meta.permissions().mode() & 0o004 != 0 {
        fs::copy(from, to)?;
    }
    Ok(())
}

pub(crate) fn copy_public_dir(from: &Path, to: &Path, depth: u8) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for entry in entries.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if depth > 0 {
                copy_public_dir(&from, &to, depth - 1)?;
            }
        } else {
            copy_public(&from, &to)?;
        }
    }
    Ok(())
}
