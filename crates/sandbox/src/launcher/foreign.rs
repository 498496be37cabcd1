//! A hand on a root file system that is not the host's: what it was linked with comes along, so that whatever libraries are there, or none, it starts.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a hand's own files are in a sandbox.
const PLACE: &str = ".hand";

/// How a hand is started.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    /// From its sealed copy.
    Sealed,
    /// By this program, with these arguments before its own.
    Loaded(CString, Vec<CString>),
}

/// Puts a hand and its libraries below `root`.
pub(crate) fn build(root: &Path) -> io::Result<Start> {
    let linked = Linked::of(Path::new("/proc/self/exe"))?;
    if linked.loader().is_none() {
        // Linked with nothing, it starts anywhere.
        return Ok(Start::Sealed);
    }
    linked.copy(&root.join(PLACE))?;
    let words = linked.start(&Path::new("/").join(PLACE)).into_iter().map(CString::new);
    let words: Vec<CString> = words.collect::<Result<_, _>>()?;
    Ok(Start::Loaded(words[0].clone(), words))
}

/// An executable with all it was linked with.
pub(crate) struct Linked<'a> {
    exe: &'a Path,
    /// Each by the name it is asked for by.
    libraries: Vec<(String, PathBuf)>,
}

impl<'a> Linked<'a> {
    pub(crate) fn of(exe: &'a Path) -> io::Result<Self> {
        Ok(Self { exe, libraries: libraries(exe)? })
    }

    fn loader(&self) -> Option<&str> {
        let names = self.libraries.iter().map(|(name, _)| name.as_str());
        names.into_iter().find(|name| name.starts_with("ld-"))
    }

    /// Copies all of it to a directory.
    pub(crate) fn copy(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for (name, path) in &self.libraries {
            copy(path, &dir.join(name))?;
        }
        copy(self.exe, &dir.join("hand"))
    }

    /// The words that start it from a copy at that place.
    pub(crate) fn start(&self, place: &Path) -> Vec<String> {
        let within = |name: &str| place.join(name).display().to_string();
        match self.loader() {
            Some(loader) => {
                vec![within(loader), "--library-path".to_owned(), within(""), within("hand")]
            }
            None => vec![within("hand")],
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut File::open(from)?, &mut File::create(to)?)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}

/// What an executable was linked with, by the names it asks for, as its loader says.
fn libraries(exe: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let traced = Command::new(exe)
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&traced.stdout).into_owned();
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's own `/lib64/ld-linux.so.2 (0x…)`.
fn library(line: &str) -> Option<(String, PathBuf)> {
    let (left, _) = line.trim().rsplit_once(" (")?;
    let (name, path) = left.split_once(" => ").unwrap_or((left, left));
    let name = name.rsplit('/').next()?;
    Path::new(path).is_absolute().then(|| (name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_loader_says_is_understood() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let found: Vec<_> = said.lines().filter_map(library).collect();
        let pair = |name: &str, path: &str| (name.to_owned(), PathBuf::from(path));
        assert_eq!(
            found,
            [
                pair("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
                pair("ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
            ]
        );
    }
}
