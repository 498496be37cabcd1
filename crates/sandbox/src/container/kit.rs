//! A hand with everything it was linked with, in one directory: mounted into a container, it starts on any root file system.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::launcher::foreign::Linked;
use crate::remove::remove_tree;

/// Where a kit is mounted.
const PLACE: &str = "/.hand";

/// A hand for containers.
#[derive(Clone, Debug)]
pub struct Kit {
    dir: PathBuf,
    start: Vec<String>,
}

impl Kit {
    /// Where it has to be mounted.
    pub const PLACE: &'static str = PLACE;

    /// Finds or makes the kit of an executable below a directory, and removes those of others: what runs from one needs its files no more.
    pub fn build(exe: &Path, below: &Path) -> io::Result<Self> {
        let mut hash = Sha256::new();
        io::copy(&mut File::open(exe)?, &mut hash)?;
        let name: String = format!("{:x}", hash.finalize()).chars().take(32).collect();
        fs::create_dir_all(below)?;
        let dir = below.join(&name);
        for other in fs::read_dir(below)?.flatten().filter(|other| other.path() != dir) {
            remove_tree(&other.path())?;
        }
        let linked = Linked::of(exe)?;
        if !dir.is_dir() {
            let making = below.join(format!("{name}.making"));
            linked.copy(&making)?;
            fs::rename(&making, &dir)?;
        }
        Ok(Self { dir, start: linked.start(Path::new(PLACE)) })
    }

    /// Its directory on this machine.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it is started in a container: the first words of a command line.
    pub fn start(&self) -> &[String] {
        &self.start
    }
}
