//! Output of any size in bounded memory: all of it if it is small, else its beginning and end, with the whole in a file of the sandbox.

use std::{
    collections::VecDeque,
    fs::{DirBuilder, File, OpenOptions},
    io::Write,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Characters a result may have before it is cut.
pub(crate) const SHOWN_MAX: usize = 100_000;
/// What is shown of the beginning of a longer one, in bytes.
const HEAD: usize = 20_000;
/// What is shown of its end, in bytes.
const TAIL: usize = 60_000;
/// Most bytes kept in the file.
const FILE_MAX: u64 = 32 << 20;

/// Output being collected.
pub(crate) struct Output {
    all: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    file: Option<File>,
    path: PathBuf,
}

impl Output {
    /// Nothing yet; what does not fit will go to a file for this call.
    pub(crate) fn new(spill: &Path, call: &str) -> Self {
        let name: String =
            call.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(80).collect();
        let path = spill.join(format!("{name}.txt"));
        Self { all: Vec::new(), tail: VecDeque::new(), total: 0, file: None, path }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let before = self.total;
        self.total += bytes.len() as u64;
        if self.file.is_none() && self.all.len() + bytes.len() <= SHOWN_MAX * 4 {
            self.all.extend_from_slice(bytes);
            return;
        }
        if self.file.is_none() {
            self.file = create(&self.path);
            let all = std::mem::take(&mut self.all);
            self.write(&all, 0);
            self.keep_tail(&all);
            self.all = all;
            self.all.truncate(HEAD);
        }
        self.write(bytes, before);
        self.keep_tail(bytes);
    }

    fn write(&mut self, bytes: &[u8], at: u64) {
        let room = usize::try_from(FILE_MAX.saturating_sub(at)).unwrap_or(usize::MAX);
        if let Some(file) = &mut self.file {
            // A full disk costs the file, not the call.
            let _ = file.write_all(&bytes[..bytes.len().min(room)]);
        }
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(TAIL);
        self.tail.extend(&bytes[from..]);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }

    /// The text for the model.
    pub(crate) fn finish(mut self) -> String {
        if self.tail.is_empty() {
            let text = clean(&self.all);
            if text.chars().count() <= SHOWN_MAX {
                return text;
            }
            let all = std::mem::take(&mut self.all);
            self.file = create(&self.path);
            self.write(&all, 0);
            self.keep_tail(&all);
            self.all = all;
            self.all.truncate(HEAD);
        }
        let head = clean(&self.all);
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        let tail = clean(&tail);
        let left_out = self.total.saturating_sub((HEAD + TAIL) as u64);
        let kept = match &self.file {
            Some(_) if self.total > FILE_MAX => {
                format!("its first {FILE_MAX} bytes are in {}", self.path.display())
            }
            Some(_) => format!("all of it is in {}", self.path.display()),
            None => "it could not be kept".to_owned(),
        };
        format!(
            "{head}\n[output truncated: {left_out} of {} bytes left out here; {kept}]\n{tail}",
            self.total
        )
    }
}

/// Reads what is there; false at the end.
pub(crate) fn drain(from: &OwnedFd, output: &mut Output) -> bool {
    let mut chunk = vec![0; 64 << 10];
    for _ in 0..64 {
        match rustix::io::read(from, &mut chunk) {
            Ok(0) => return false,
            Ok(count) => output.push(&chunk[..count]),
            Err(_) => return true,
        }
    }
    true
}

fn create(path: &Path) -> Option<File> {
    let directory = path.parent()?;
    let _ = DirBuilder::new().mode(0o700).create(directory);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .ok()
}

/// Text of any length as a result shows it.
pub(crate) fn shown(spill: &Path, call: &str, text: &str) -> String {
    if text.chars().count() <= SHOWN_MAX {
        return text.replace('\0', "");
    }
    let mut output = Output::new(spill, call);
    output.push(text.as_bytes());
    output.finish()
}

/// Bytes as text: terminal sequences and NULs left out, what is not UTF-8 replaced.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            0 => {}
            0x1b => match rest.next() {
                Some(b'[') => {
                    while rest.next().is_some_and(|byte| !(0x40..=0x7e).contains(&byte)) {}
                }
                Some(b']' | b'P' | b'_' | b'^') => {
                    while let Some(byte) = rest.next() {
                        if byte == 7 || (byte == 0x1b && rest.next_if_eq(&b'\\').is_some()) {
                            break;
                        }
                    }
                }
                Some(b'(' | b')') => drop(rest.next()),
                _ => {}
            },
            byte => kept.push(byte),
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sequences_and_nuls_go() {
        assert_eq!(
            clean(b"\x1b[31mred\x1b[0m\x1b]0;title\x07 a\0b \xff\ttab"),
            "red ab \u{fffd}\ttab"
        );
    }

    #[test]
    fn a_flood_keeps_both_ends_and_the_whole_in_a_file() {
        let place = tempfile::tempdir().expect("a directory");
        let mut output = Output::new(&place.path().join("spill"), "sevt_1");
        for number in 0..200_000 {
            output.push(format!("{number}\n").as_bytes());
        }
        let path = output.path.clone();
        let text = output.finish();
        assert!(text.starts_with("0\n1\n") && text.ends_with("199999\n"));
        assert!(text.len() < SHOWN_MAX);
        let whole = std::fs::read_to_string(path).expect("the file");
        assert_eq!(whole.lines().count(), 200_000);
    }
}
