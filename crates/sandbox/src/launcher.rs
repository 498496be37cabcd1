//! The launcher: a small single-threaded process that makes sandboxes, keeps their control sockets,
//! and outlives the server. It runs no tokio, reads nothing a sandbox says, and holds no secret.

mod bare;
mod cgroup;
mod child;
mod debian;
mod disk;
pub(crate) mod foreign;
pub(crate) mod layer;
pub(crate) mod lockdown;
pub(crate) mod members;
pub(crate) mod mounts;
pub(crate) mod network;
mod office;
mod probe;
mod public;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod seed;
pub(crate) mod session;
pub(crate) mod skeleton;
mod start;
pub(crate) mod sys;
mod truststore;
mod uids;
pub(crate) mod wire;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::seam::LimitsBy;
use cgroup::Cgroups;
pub(crate) use disk::BYTES_PER_FILE;
use wire::Started;

/// The socket's name in the launcher's directory.
pub(crate) const SOCKET: &str = "launcher.sock";

/// What the command line asks of a launcher.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Its own directory, mode 0700: socket, lock, skeleton.
    pub(crate) dir: PathBuf,
    /// Where sessions' workspaces are.
    pub(crate) workspaces: PathBuf,
    /// How long to live on without a server.
    pub(crate) linger: Duration,
    /// Without isolation, tools run on the host.
    pub(crate) isolated: bool,
    /// Whether to go on without cgroups.
    pub(crate) degraded: bool,
    /// A root file system instead of the host's `/usr`.
    pub(crate) root: Option<PathBuf>,
    pub(crate) left_out: LeftOut,
}

/// A wall that a test leaves out, to see that an attack then succeeds. No server can: the feature is for tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOut {
    #[cfg(feature = "attacks")]
    pub(crate) wall: Option<String>,
}

impl LeftOut {
    /// Whether it is this one.
    #[cfg_attr(not(feature = "attacks"), expect(clippy::unused_self, reason = "there is none"))]
    pub(crate) fn is(&self, wall: &str) -> bool {
        #[cfg(feature = "attacks")]
        return self.wall.as_deref() == Some(wall);
        #[cfg(not(feature = "attacks"))]
        return wall.is_empty();
    }
}

/// Why a launcher cannot work here, and what the operator can do about it.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) fix: String,
}

impl Trouble {
    pub(crate) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    fn io(what: &str, error: &io::Error) -> Self {
        Self::new(
            format!("{what}: {error}"),
            "check that the data directory exists, has free space and belongs to the server's user",
        )
    }
}

/// The `launcher` subcommand: everything after its name. Returns the process's exit code.
///
/// `--probe` prints one line of JSON about this machine and ends; `--bare N` measures bare sandboxes.
pub fn launcher_main(args: impl IntoIterator<Item = std::ffi::OsString>) -> i32 {
    let args: Vec<std::ffi::OsString> = args.into_iter().collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("--probe") => return print_line(&probe::examine()),
        Some("--bare") => {
            let count = args.get(1).and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            return match bare::measure(count.unwrap_or(100)) {
                Ok(micros) => print_line(&micros),
                Err(trouble) => report(&trouble),
            };
        }
        _ => {}
    }
    let options = match parse(&args) {
        Ok(options) => options,
        Err(what) => return report(&Trouble::new(what, "let the server start its launcher")),
    };
    match open(&options) {
        Ok(office) => {
            if print_line(&Started::Ready {}) != 0 {
                return 1;
            }
            // The server's pipe ends here; from now on both streams are the log.
            let log = io::stderr();
            if sys::dup_to(log.as_fd(), io::stdout().as_raw_fd()).is_err() {
                return 1;
            }
            office.run()
        }
        Err(trouble) => report(&trouble),
    }
}

fn print_line(line: &impl serde::Serialize) -> i32 {
    let Ok(mut text) = serde_json::to_string(line) else { return 1 };
    text.push('\n');
    let mut out = io::stdout();
    i32::from(out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err())
}

fn report(trouble: &Trouble) -> i32 {
    log(&format!("{}. Fix: {}", trouble.what, trouble.fix));
    print_line(&Started::Failed { what: trouble.what.clone(), fix: trouble.fix.clone() });
    1
}

/// One line in the launcher's log.
pub(crate) fn log(line: &str) {
    // A full disk must not end the sandboxes.
    drop(writeln!(io::stderr(), "launcher[{}]: {line}", std::process::id()));
}

/// Time since some fixed moment, for deadlines.
pub(crate) fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Options {
    /// The options as arguments, the way `parse` reads them.
    pub(crate) fn to_args(&self) -> Vec<std::ffi::OsString> {
        let mut args: Vec<std::ffi::OsString> = vec![
            "--dir".into(),
            self.dir.clone().into(),
            "--workspaces".into(),
            self.workspaces.clone().into(),
            "--linger-ms".into(),
            self.linger.as_millis().to_string().into(),
        ];
        if !self.isolated {
            args.push("--unsafe-host".into());
        }
        if self.degraded {
            args.push("--degraded".into());
        }
        if let Some(root) = &self.root {
            args.extend(["--root".into(), root.into()]);
        }
        #[cfg(feature = "attacks")]
        if let Some(wall) = &self.left_out.wall {
            args.extend(["--leave-out".into(), wall.into()]);
        }
        args
    }
}

fn parse(args: &[std::ffi::OsString]) -> Result<Options, String> {
    let mut options = Options {
        dir: PathBuf::new(),
        workspaces: PathBuf::new(),
        linger: Duration::ZERO,
        isolated: true,
        degraded: false,
        root: None,
        left_out: LeftOut::default(),
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy();
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        match &*name {
            "--dir" => options.dir = PathBuf::from(value()?),
            "--workspaces" => options.workspaces = PathBuf::from(value()?),
            "--linger-ms" => {
                let text = value()?.to_string_lossy();
                let millis = text.parse().map_err(|_| format!("{text} is no number"))?;
                options.linger = Duration::from_millis(millis);
            }
            "--unsafe-host" => options.isolated = false,
            "--degraded" => options.degraded = true,
            "--root" => options.root = Some(PathBuf::from(value()?)),
            #[cfg(feature = "attacks")]
            "--leave-out" => {
                options.left_out.wall = Some(value()?.to_string_lossy().into_owned());
            }
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    if !options.dir.is_absolute() || !options.workspaces.is_absolute() {
        return Err("--dir and --workspaces must be absolute".to_owned());
    }
    Ok(options)
}

/// Takes over the directory and makes ready for the first sandbox.
fn open(options: &Options) -> Result<office::Office, Trouble> {
    let reserved =
        start::settle().map_err(|e| Trouble::io("cannot set the launcher's process up", &e))?;
    let lock = lock(options)?;
    let exe = start::sealed_exe().map_err(|e| {
        Trouble::new(
            format!("cannot copy the executable to a sealed memfd: {e}"),
            "set sysctl vm.memfd_noexec to 0, or mount /proc",
        )
    })?;
    let filter = seccomp::program();
    let cgroups = open_cgroups(options)?;
    let skeleton = start::fresh_skeleton(&options.dir, options.root.as_deref())
        .map_err(|e| Trouble::io("cannot make the root skeleton", &e))?;
    let disks = open_disks(options);
    let listener = start::listen(&options.dir)
        .map_err(|e| Trouble::io("cannot listen on the launcher's socket", &e))?;
    let left_out = options.left_out.clone();
    let made =
        start::Ready { reserved, lock, exe, filter, cgroups, skeleton, disks, listener, left_out };
    Ok(office::Office::new(options.clone(), made))
}

fn lock(options: &Options) -> Result<File, Trouble> {
    let path = options.dir.join("launcher.lock");
    let open = || -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?.into())
    };
    let file = open().map_err(|e| Trouble::io("cannot open the launcher's lock", &e))?;
    let deadline = now() + Duration::from_secs(15);
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // An earlier launcher may still be ending its sandboxes.
            Err(rustix::io::Errno::WOULDBLOCK) if now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => {
                return Err(Trouble::new(
                    format!("another launcher holds {}: {error}", path.display()),
                    "stop the other server of this data directory, or end its launcher",
                ));
            }
        }
    }
}

fn open_cgroups(options: &Options) -> Result<Option<Cgroups>, Trouble> {
    if !options.isolated || options.left_out.is("limits") {
        return Ok(None);
    }
    let files = [std::path::Path::new("/usr"), &options.dir];
    match Cgroups::open(&tag(&options.dir), &files) {
        Ok(cgroups) => Ok(Some(cgroups)),
        Err(none) if options.degraded => {
            log(&format!("limits are degraded: {}", none.what));
            Ok(None)
        }
        Err(none) => Err(Trouble::new(none.what, none.fix)),
    }
}

/// Disks for sessions, where root can make them.
fn open_disks(options: &Options) -> Option<disk::Disks> {
    let none = !options.isolated || options.left_out.is("disks");
    if none || uids::IdMapping::detect() == uids::IdMapping::Single {
        return None;
    }
    match disk::Disks::open(&options.dir) {
        Ok(disks) => Some(disks),
        Err(error) => {
            log(&format!("sessions have no disks of their own: {error}"));
            None
        }
    }
}

/// A short name for this data directory, so that two servers' cgroups never meet.
fn tag(dir: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Which limits a launcher enforces, for its greeting.
fn limits_by(cgroups: Option<&Cgroups>) -> Option<LimitsBy> {
    cgroups.map(Cgroups::by)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_command_line() {
        let options = Options {
            dir: "/a b/launcher".into(),
            workspaces: "/a b/workspaces".into(),
            linger: Duration::from_millis(1234),
            isolated: false,
            degraded: true,
            root: Some("/a b/root".into()),
            left_out: LeftOut::default(),
        };
        let parsed = parse(&options.to_args()).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{options:?}"));
    }

    #[test]
    fn relative_and_unknown_arguments_are_refused() {
        let args = |list: &[&str]| list.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        assert!(parse(&args(&["--dir", "x", "--workspaces", "/y"])).is_err());
        assert!(parse(&args(&["--frobnicate"])).is_err());
    }
}
