//! The `hand` subcommand: what whoever starts a hand puts on its command line, read back on the other side.
//! It must add nothing of its own, since it runs inside the sandbox.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vaquero_hand::HandArgs;

use crate::container::{Inside, WayOut, contained_main};
use crate::engine::Order;
use crate::remote::relay_main;
use crate::seam::Limits;

/// Where tools start, and where results too large to show are kept, in an isolated sandbox.
const WORKDIR: &str = "/workspace";
const SPILL: &str = "/tmp/tool-results";

const RELAY: &str = "--relay";
const TEXT: &str = "text";

/// The `hand` subcommand: everything after its name. Returns the process's exit code.
pub fn hand_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    if let [name, dir, text] = args.as_slice()
        && name == RELAY
    {
        return relay_main(Path::new(dir), text == TEXT);
    }
    let Some(Parsed { control, generation, places: (workdir, spill) }) = parse(args) else {
        return 2;
    };
    let args = |control| HandArgs { control, generation, workdir, spill };
    match control {
        Control::Descriptor(control) => vaquero_hand::main(args(control)),
        Control::Dialled(inside) => contained_main(inside, args),
    }
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

/// The arguments of a hand that is a container's first process, and dials its server.
pub fn contained_command_line(
    order: &Order<'_>,
    dial: &Path,
    way_out: WayOut,
    linger: Duration,
) -> Vec<String> {
    let limits = serde_json::to_string(&order.limits).expect("plain numbers");
    let way_out = serde_json::to_string(&way_out).expect("a word");
    let mut line = vec![
        "hand".to_owned(),
        "--dial".to_owned(),
        dial.display().to_string(),
        "--generation".to_owned(),
        order.generation.to_string(),
        "--limits".to_owned(),
        limits,
        "--linger-ms".to_owned(),
        linger.as_millis().to_string(),
        "--way-out".to_owned(),
        way_out,
    ];
    let building = order.layer.as_ref().is_some_and(|layer| layer.building);
    line.extend(["--writable".to_owned(), building.to_string()]);
    line
}

/// The arguments of the relay beside a hand, between its directory and a server.
pub(crate) fn relay_command_line(dir: &Path, as_text: bool) -> Vec<String> {
    let words = if as_text { TEXT } else { "bytes" };
    ["hand", RELAY, &dir.display().to_string(), words].map(str::to_owned).into()
}

struct Parsed {
    control: Control,
    generation: u64,
    places: (PathBuf, PathBuf),
}

/// Where connections come from.
enum Control {
    /// A socket that was left open.
    Descriptor(i32),
    Dialled(Inside),
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Parsed> {
    let (mut control, mut generation, mut dial) = (None, None, None);
    let (mut workdir, mut spill) = (PathBuf::from(WORKDIR), PathBuf::from(SPILL));
    let (mut limits, mut way_out, mut writable) = (Limits::default(), WayOut::None, false);
    let mut linger = Duration::ZERO;
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let value = args.next()?;
        match name.as_bytes() {
            b"--control-fd" => control = parsed(&value),
            b"--generation" => generation = parsed(&value),
            b"--workdir" => workdir = value.into(),
            b"--spill" => spill = value.into(),
            b"--dial" => dial = Some(PathBuf::from(value)),
            b"--limits" => limits = serde_json::from_str(value.to_str()?).ok()?,
            b"--linger-ms" => linger = Duration::from_millis(parsed(&value)?),
            b"--way-out" => way_out = serde_json::from_str(value.to_str()?).ok()?,
            b"--writable" => writable = parsed(&value)?,
            _ => return None,
        }
    }
    let control = match (control, dial) {
        (Some(control), None) => Control::Descriptor(control),
        (None, Some(dial)) => Control::Dialled(Inside { dial, limits, way_out, writable, linger }),
        _ => return None,
    };
    Some(Parsed { control, generation: generation?, places: (workdir, spill) })
}

fn parsed<T: std::str::FromStr>(value: &OsStr) -> Option<T> {
    value.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::Layer;
    use crate::seam::SandboxKey;

    fn back(line: Vec<CString>) -> Option<Parsed> {
        parse(line.into_iter().skip(2).map(|arg| OsString::from_vec(arg.into_bytes())))
    }

    #[test]
    fn the_command_line_is_read_back() {
        let inside = back(command_line(3, u64::MAX, None).unwrap()).unwrap();
        assert!(matches!(inside.control, Control::Descriptor(3)));
        assert_eq!(inside.generation, u64::MAX);
        assert_eq!(inside.places.0, Path::new(WORKDIR));
        let places = (Path::new("/data dir/w"), Path::new("/data dir/s"));
        let host = back(command_line(3, 7, Some(places)).unwrap()).unwrap();
        assert_eq!((host.places.0.as_path(), host.places.1.as_path()), places);
    }

    #[test]
    fn that_of_a_container_too() {
        let (key, env) = (SandboxKey::default_of("sesn_1"), BTreeMap::new());
        let limits = Limits { pids: 77, ..Limits::default() };
        let layer = Layer { name: "x".to_owned(), building: true, workspace: true };
        let order = Order {
            key: &key,
            generation: 5,
            limits,
            env: &env,
            network: true,
            trust: None,
            layer: Some(layer),
            image: None,
        };
        let (dial, linger) = (Path::new("/x/y.sock"), Duration::from_secs(3));
        let line = contained_command_line(&order, dial, WayOut::Sockets, linger);
        let parsed = parse(line.into_iter().skip(1).map(OsString::from)).unwrap();
        let Control::Dialled(inside) = parsed.control else { panic!("it has no descriptor") };
        assert_eq!((parsed.generation, inside.limits), (5, limits));
        assert_eq!((inside.dial.as_path(), inside.linger.as_secs()), (Path::new("/x/y.sock"), 3));
        assert!(inside.way_out == WayOut::Sockets && inside.writable);
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
