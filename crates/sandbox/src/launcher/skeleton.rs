//! What every sandbox's root is made of, made anew with each launcher: directories to mount on, names, and public files of the host; or what a chosen root file system lacks.
//! Nothing of the host's `/etc`, `/home`, `/root`, `/var`, `/run` or `/sys` is ever in it, but a few public files.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::debian;
use super::foreign::{self, Start};
use super::mounts::c_path;
use super::public::{copy_public, copy_public_dir};
use super::truststore;

/// The host's top-level entries that belong to `/usr`, wherever a distribution keeps them.
const USR_ALIASES: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What there is in `/dev`.
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// A session's directories: name on disk, place in the sandbox.
pub(crate) const SESSION_DIRS: [(&str, &CStr); 4] = [
    ("workspace", c"workspace"),
    ("home", c"root"),
    ("uploads", c"mnt/session/uploads"),
    ("outputs", c"mnt/session/outputs"),
];
/// Host files every program may read, copied so that no host directory is mounted for them.
const PUBLIC_ETC: [&str; 10] = [
    "ld.so.cache",
    "ld.so.conf",
    "os-release",
    "debian_version",
    "protocols",
    "services",
    "mime.types",
    "localtime",
    "timezone",
    "ssl/openssl.cnf",
];
/// Host directories of public files and links, copied likewise.
const PUBLIC_ETC_DIRS: [&str; 5] =
    ["alternatives", "ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted", "ca-certificates"];

/// Where programs find the certificates they trust.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// The host's.
pub(crate) const HOST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where Java's programs do, on Debian and on what comes of it.
const JAVA_STORE: &str = "etc/ssl/certs/java/cacerts";
/// The skeleton on disk, and which parts of the host are mounted on it.
#[derive(Debug)]
pub(crate) struct Skeleton {
    root: PathBuf,
    /// Directories outside `/usr` that a host without merged `/usr` needs.
    aliases: Vec<(CString, CString)>,
    /// What package managers need beside it.
    extras: PathBuf,
    chosen: Option<Chosen>,
}

/// A root file system that takes the place of the host's.
#[derive(Debug)]
struct Chosen {
    dir: PathBuf,
    /// Its own libraries may be others than those a hand needs.
    start: Start,
}

impl Skeleton {
    /// Makes the skeleton in `root`, which must not exist.
    pub(crate) fn build(root: &Path, chosen: Option<&Path>) -> io::Result<Self> {
        let dir = |path: &str| make_dir(&root.join(path));
        for path in [
            "proc",
            "dev/pts",
            "dev/shm",
            "etc/ssl/certs",
            "tmp",
            "workspace",
            "root",
            "run",
            "mnt/session/uploads",
            "mnt/session/outputs",
            "var",
        ] {
            dir(path)?;
        }
        if chosen.is_none() {
            for path in ["usr", "home", "var/lib/dpkg", "var/cache", "var/log", "opt"] {
                dir(path)?;
            }
            symlink("/run", root.join("var/run"))?;
        }
        symlink("/tmp", root.join("var/tmp"))?;
        for device in DEVICES {
            fs::write(root.join("dev").join(device), "")?;
        }
        for (link, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            symlink(target, root.join("dev").join(link))?;
        }
        let extras = root.with_extension("debian");
        if let Some(chosen) = chosen {
            write_names(&root.join("etc"))?;
            // The host's, where it has none.
            let bundles = [chosen.join(BUNDLE), Path::new("/").join(BUNDLE)];
            let bundle = bundles.iter().find_map(|path| fs::read(path).ok()).unwrap_or_default();
            fs::write(root.join(BUNDLE), bundle)?;
            write_java_store(root)?;
            debian::settings(&root.join("etc"))?;
            let chosen = Chosen { dir: chosen.to_owned(), start: foreign::build(root)? };
            return Ok(Self {
                root: root.to_owned(),
                aliases: Vec::new(),
                extras,
                chosen: Some(chosen),
            });
        }
        write_etc(&root.join("etc"))?;
        // Something to mount certificates on, also where the host has none.
        let bundle = root.join(BUNDLE);
        if bundle.is_symlink() {
            // It may lead anywhere: the file itself takes its place.
            fs::remove_file(&bundle)?;
            drop(fs::copy(Path::new("/").join(BUNDLE), &bundle));
        }
        if !bundle.exists() {
            fs::write(bundle, "")?;
        }
        write_java_store(root)?;
        let aliases = link_aliases(root)?;
        debian::build(&extras)?;
        Ok(Self { root: root.to_owned(), aliases, extras, chosen: None })
    }

    /// Directories of the host that have to be mounted beside `/usr`: each with its place.
    pub(crate) fn aliases(&self) -> &[(CString, CString)] {
        &self.aliases
    }

    /// Whether the root is another than the host's, which is always joined from parts.
    pub(crate) fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }

    /// How a hand is started on it.
    pub(crate) fn start(&self) -> &Start {
        self.chosen.as_ref().map_or(&Start::Sealed, |chosen| &chosen.start)
    }

    /// What a layer's part lies over, the topmost first.
    pub(crate) fn below(&self, part: &str) -> Vec<PathBuf> {
        match (part, &self.chosen) {
            ("root", Some(chosen)) => vec![self.root.clone(), chosen.dir.clone()],
            (_, Some(_)) => Vec::new(),
            ("root", None) => vec![self.extras.clone(), self.root.clone()],
            ("usr", None) => vec![PathBuf::from("/usr")],
            ("dpkg", None) => vec![PathBuf::from("/var/lib/dpkg")],
            (_, None) => Vec::new(),
        }
    }

    /// The certificates that its programs trust.
    pub(crate) fn bundle(&self) -> io::Result<Vec<u8>> {
        fs::read(self.root.join(BUNDLE))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }
}

/// Writes files of certificates and another one, in each of the two formats that programs read; each with its place.
pub(crate) fn write_trust(
    dir: &Path,
    mut bundle: Vec<u8>,
    certificate: &str,
) -> io::Result<[(PathBuf, &'static str); 2]> {
    bundle.push(b'\n');
    bundle.extend_from_slice(certificate.as_bytes());
    let files = [(dir.join("trust.pem"), BUNDLE), (dir.join("trust.jks"), JAVA_STORE)];
    let java = truststore::java(&bundle, 0);
    for ((path, _), bytes) in files.iter().zip([bundle, java]) {
        fs::write(path, bytes)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(files)
}

/// Repeats the host's `/bin`, `/lib64`, … : links as links, directories to be mounted.
fn link_aliases(root: &Path) -> io::Result<Vec<(CString, CString)>> {
    let mut mounts = Vec::new();
    for alias in USR_ALIASES {
        let host = Path::new("/").join(alias);
        let Ok(meta) = fs::symlink_metadata(&host) else { continue };
        if meta.is_symlink() {
            symlink(fs::read_link(&host)?, root.join(alias))?;
        } else if meta.is_dir() {
            fs::create_dir(root.join(alias))?;
            mounts.push((c_path(&host)?, CString::new(alias)?));
        }
    }
    Ok(mounts)
}

/// Where the host has no Java, a package may bring one.
fn write_java_store(root: &Path) -> io::Result<()> {
    let store = root.join(JAVA_STORE);
    if fs::symlink_metadata(&store).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    drop(fs::remove_file(&store));
    make_dir(store.parent().unwrap_or(root))?;
    fs::write(&store, truststore::java(&fs::read(root.join(BUNDLE))?, 0))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// What says by which name a sandbox goes, and who answers for others.
fn write_names(etc: &Path) -> io::Result<()> {
    for (name, text) in [
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
        ("hostname", "sandbox\n"),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
    ] {
        fs::write(etc.join(name), text)?;
    }
    Ok(())
}

fn write_etc(etc: &Path) -> io::Result<()> {
    write_names(etc)?;
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        ),
        ("group", "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n"),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        ),
        ("shells", "/bin/sh\n/bin/bash\n"),
        ("host.conf", "multi on\n"),
    ] {
        fs::write(etc.join(name), text)?;
    }
    let host = Path::new("/etc");
    for name in PUBLIC_ETC {
        copy_public(&host.join(name), &etc.join(name))?;
    }
    for name in PUBLIC_ETC_DIRS {
        copy_public_dir(&host.join(name), &etc.join(name), 3)?;
    }
    // Each version of Java has its settings in a directory of its own, and does nothing without.
    for entry in fs::read_dir(host).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("java") && entry.file_type()?.is_dir() {
            copy_public_dir(&entry.path(), &etc.join(name), 3)?;
        }
    }
    Ok(())
}
