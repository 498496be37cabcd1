//! What engines of containers share: a hand that starts on any root file system, the files of a session, and the line that the hand dials.

mod inside;
mod kit;
mod line;
mod place;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use self::inside::WayOut;
pub(crate) use self::inside::{FAILED, Inside, PROXY_SOCKET, READY, contained_main};
pub use self::kit::Kit;
pub use self::line::Port;
pub(crate) use self::line::{CARRIED, SAID, SOCKET};
pub use self::place::{Mount, Place};
use crate::engine::Order;
use crate::launcher::rootfs::{MASKED_DIRS, MASKED_FILES};
use crate::launcher::seed;
use crate::launcher::session::{UNSEEDED, make_session_dirs, standard_variables};
use crate::launcher::skeleton::{HOST_BUNDLE, SESSION_DIRS, write_trust};
use crate::seam::Trust;

/// Where a session's directories are in a container, by their names on disk.
fn session_dirs() -> impl Iterator<Item = (&'static str, String)> {
    SESSION_DIRS.iter().map(|(name, place)| (*name, format!("/{}", place.to_string_lossy())))
}

/// What no container may see of the machine.
pub fn masked_paths() -> Vec<String> {
    let all = MASKED_FILES.iter().chain(&MASKED_DIRS);
    all.map(|place| format!("/{}", place.to_string_lossy())).collect()
}

/// Which of them a session begins with when its environment was set up.
pub const SEEDS: [&str; 2] = ["workspace", "home"];

/// Makes a session's directories, for that user id. What `seeds` hold is copied into new ones.
fn make_files(session: &Path, owner: Option<u32>, seeds: Option<&Path>) -> io::Result<()> {
    let fresh = make_session_dirs(session, owner, seeds.is_some())?;
    if let (true, Some(seeds)) = (fresh, seeds) {
        for name in SEEDS {
            let from = seeds.join(name);
            if from.is_dir() {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let from = rustix::fs::open(&from, flags, Mode::empty())?;
                let to = CString::new(session.join(name).as_os_str().as_bytes())?;
                seed::copy(std::os::fd::AsFd::as_fd(&from), &to)?;
            }
        }
        fs::remove_file(session.join(UNSEEDED))?;
    }
    Ok(())
}

/// Writes the files of certificates that a container is to trust; each with its place.
pub(crate) fn trust_files(dir: &Path, trust: &Trust) -> io::Result<Vec<(PathBuf, String)>> {
    let bundle = fs::read(HOST_BUNDLE).unwrap_or_default();
    let files = write_trust(dir, bundle, &trust.certificate)?;
    Ok(files.into_iter().map(|(path, place)| (path, format!("/{place}"))).collect())
}

/// The variables of a container's processes. `PATH` is the image's.
pub fn variables(order: &Order<'_>) -> BTreeMap<String, String> {
    let mut all = standard_variables("/root", order.network, order.trust.is_some());
    all.extend(order.env.clone());
    all
}
