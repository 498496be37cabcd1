//! The `hand` subcommand: what the launcher puts on the command line, read back on the other side.
//! It must add nothing of its own, since it runs inside the sandbox.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vaquero_hand::HandArgs;

/// Where tools start, and where results too large to show are kept, in an isolated sandbox.
const WORKDIR: &str = "/workspace";
const SPILL: &str = "/tmp/tool-results";

/// The `hand` subcommand: everything after its name. Returns the process's exit code.
pub fn hand_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    parse(args).map_or(2, vaquero_hand::main)
}

/// The whole command line of a hand, its own name included. `places` is for the host itself, where
/// the directories of a sandbox do not exist: where tools start, and where large results go.
pub(crate) fn command_line(
    control: i32,
    generation: u64,
    places: Option<(&Path, &Path)>,
) -> io::Result<Vec<CString>> {
    let mut line: Vec<OsString> = vec![
        "vaquero".into(),
        "hand".into(),
        "--control-fd".into(),
        control.to_string().into(),
        "--generation".into(),
        generation.to_string().into(),
    ];
    if let Some((workdir, spill)) = places {
        line.extend(["--workdir".into(), workdir.into(), "--spill".into(), spill.into()]);
    }
    line.into_iter().map(|arg| Ok(CString::new(arg.into_vec())?)).collect()
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Option<HandArgs> {
    let (mut control, mut generation) = (None, None);
    let (mut workdir, mut spill) = (PathBuf::from(WORKDIR), PathBuf::from(SPILL));
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let value = args.next()?;
        match name.as_bytes() {
            b"--control-fd" => control = number(&value),
            b"--generation" => generation = number(&value),
            b"--workdir" => workdir = value.into(),
            b"--spill" => spill = value.into(),
            _ => return None,
        }
    }
    Some(HandArgs { control: control?, generation: generation?, workdir, spill })
}

fn number<T: std::str::FromStr>(value: &OsStr) -> Option<T> {
    value.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(line: Vec<CString>) -> Option<HandArgs> {
        parse(line.into_iter().skip(2).map(|arg| OsString::from_vec(arg.into_bytes())))
    }

    #[test]
    fn the_command_line_is_read_back() {
        let inside = back(command_line(3, u64::MAX, None).unwrap()).unwrap();
        assert_eq!((inside.control, inside.generation), (3, u64::MAX));
        assert_eq!(inside.workdir, Path::new(WORKDIR));
        let places = (Path::new("/data dir/w"), Path::new("/data dir/s"));
        let host = back(command_line(3, 7, Some(places)).unwrap()).unwrap();
        assert_eq!((host.workdir.as_path(), host.spill.as_path()), places);
    }

    #[test]
    fn a_broken_command_line_is_refused() {
        for bad in
            [&["--control-fd"][..], &["--generation", "1"], &["--control-fd", "x"], &["--x", "1"]]
        {
            assert!(parse(bad.iter().map(OsString::from)).is_none(), "{bad:?}");
        }
    }
}
