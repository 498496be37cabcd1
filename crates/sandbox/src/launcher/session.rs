//! What every sandbox of a session has, whoever makes it: directories of its own, and variables.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::network::PROXY_PORT;
use super::skeleton::SESSION_DIRS;
use crate::remove::remove_tree;

/// In a session's directory until what it begins with has been copied.
pub(crate) const UNSEEDED: &str = "unseeded";

/// Where programs are told to look for certificates, by the names under which they ask.
const TRUST: &str = "/etc/ssl/certs/ca-certificates.crt";
const TRUSTING: [&str; 12] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
];

/// The same for Java, which asks only itself.
const JAVA_TRUST: &str = "-Djavax.net.ssl.trustStore=/etc/ssl/certs/java/cacerts";

/// Makes the session's directories, owned by the sandbox's ids; whether nothing has run in them yet.
///
/// With `seeded`, they count as new until [`UNSEEDED`] is removed.
pub(crate) fn make_session_dirs(
    session: &Path,
    base: Option<u32>,
    seeded: bool,
) -> io::Result<bool> {
    let mut fresh = make_dir(session, 0o700)?;
    let unseeded = session.join(UNSEEDED);
    if !fresh && unseeded.exists() {
        for (name, _) in SESSION_DIRS {
            remove_tree(&session.join(name))?;
        }
        fresh = true;
        if !seeded {
            // Nothing would take the mark away once there are files.
            fs::remove_file(&unseeded)?;
        }
    }
    if fresh && seeded {
        fs::write(unseeded, "")?;
    }
    for (name, _) in SESSION_DIRS {
        let dir = session.join(name);
        if make_dir(&dir, 0o755)?
            && let Some(base) = base
        {
            std::os::unix::fs::lchown(&dir, Some(base), Some(base))?;
        }
    }
    Ok(fresh)
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !dir.is_symlink() => Ok(false),
        Err(e) => Err(e),
    }
}

/// The variables of every sandbox's processes, beside `PATH`.
pub(crate) fn standard_variables(
    home: &str,
    network: bool,
    trust: bool,
) -> BTreeMap<String, String> {
    let fixed = [("HOME", home), ("LANG", "C.UTF-8"), ("TERM", "dumb")];
    let mut all: BTreeMap<&str, &str> = fixed.into();
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    if network {
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            all.insert(name, &proxy);
        }
        if trust {
            all.extend(TRUSTING.map(|name| (name, TRUST)));
            all.insert("JAVA_TOOL_OPTIONS", JAVA_TRUST);
        }
        for name in ["NO_PROXY", "no_proxy"] {
            all.insert(name, "localhost,127.0.0.1,::1");
        }
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
