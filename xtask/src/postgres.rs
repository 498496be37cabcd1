//! A throw-away PostgreSQL for the tests: made in a temporary directory, without a care for its files, gone at the end.

use crate::sdk::{install, succeed};
use anyhow::{Context, bail};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const PASSWORD: &str = "throw-away";
/// The oldest version the store works with.
const LEAST: u32 = 15;
/// How often it is asked whether it has started, and how long between.
const TRIES: u32 = 1_200;
const PAUSE: Duration = Duration::from_millis(50);

/// A running server; it ends with the value.
pub(crate) struct Postgres {
    child: Child,
    place: PathBuf,
    port: u16,
    certified: bool,
}

/// Where the server's programs are, newest first.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            (version >= LEAST && bin.join("initdb").exists()).then_some((version, bin))
        })
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return Some(bin);
    }
    let asked = Command::new("pg_config").arg("--bindir").output().ok()?;
    let bin = PathBuf::from(String::from_utf8(asked.stdout).ok()?.trim());
    bin.join("initdb").exists().then_some(bin)
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0"))
}

/// PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

impl Postgres {
    /// Starts one that does not care for its files; none if it is not here and may not be installed.
    pub(crate) fn start() -> anyhow::Result<Option<Self>> {
        Self::start_with(&["fsync=off"])
    }

    /// Starts one that waits for its disk, as a real one does.
    pub(crate) fn durable() -> anyhow::Result<Option<Self>> {
        Self::start_with(&[])
    }

    fn start_with(settings: &[&str]) -> anyhow::Result<Option<Self>> {
        let mut bin = programs();
        if bin.is_none() && install(&["postgresql"]) {
            bin = programs();
        }
        let Some(bin) = bin else { return Ok(None) };
        let made = Command::new("mktemp")
            .args(["-d", "-t", "vaquero-postgres-XXXXXX"])
            .output()
            .context("mktemp cannot be started")?;
        let place = PathBuf::from(String::from_utf8(made.stdout)?.trim());
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        fs::write(place.join("password"), PASSWORD)?;
        let certified = certify(&place).is_ok();
        if is_root() {
            succeed(Command::new("chown").args(["-R", "postgres:"]).arg(&place), "chown")?;
        }
        let data = place.join("data");
        let mut initdb = unprivileged(&bin.join("initdb"));
        initdb
            .arg("-D")
            .arg(&data)
            .args(["-U", "vaquero", "-E", "UTF8", "--locale=C", "-N", "-A", "scram-sha-256"])
            .arg(format!("--pwfile={}", place.join("password").display()));
        succeed(&mut initdb, "initdb")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = unprivileged(&bin.join("postgres"));
        server.arg("-D").arg(&data).args(["-h", "localhost", "-p", &port.to_string()]);
        server.arg("-k").arg(&place);
        for setting in [
            "max_connections=400",
            "shared_buffers=128MB",
            "max_prepared_transactions=0",
            "logging_collector=off",
            "log_min_messages=fatal",
        ]
        .iter()
        .chain(settings)
        {
            server.args(["-c", setting]);
        }
        if certified {
            for (name, file) in [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
                server.args(["-c", &format!("{name}={}", place.join(file).display())]);
            }
            server.args(["-c", "ssl=on"]);
        }
        let log = fs::File::create(place.join("log"))?;
        let child = server
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("PostgreSQL cannot be started")?;
        let mut postgres = Self { child, place, port, certified };
        postgres.wait_for(&bin)?;
        Ok(Some(postgres))
    }

    fn wait_for(&mut self, bin: &Path) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let mut asked = Command::new(bin.join("pg_isready"));
            asked.args(["-q", "-h", "localhost", "-p", &self.port.to_string()]);
            if asked.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.place.join("log")).unwrap_or_default();
                bail!("PostgreSQL ended at its start ({status}): {log}");
            }
            std::thread::sleep(PAUSE);
        }
        bail!("PostgreSQL does not start")
    }

    /// Where tests make their databases.
    pub(crate) fn url(&self) -> String {
        format!("postgres://vaquero:{PASSWORD}@localhost:{}/postgres", self.port)
    }

    /// The certificate its certificate is signed with, if it has one.
    pub(crate) fn roots(&self) -> Option<PathBuf> {
        self.certified.then(|| self.place.join("roots.pem"))
    }

    /// Tells tests where it is.
    pub(crate) fn announce(&self, command: &mut Command) {
        command.env("VAQUERO_TEST_POSTGRES", self.url());
        if let Some(roots) = self.roots() {
            command.env("VAQUERO_TEST_POSTGRES_ROOTS", roots);
        }
    }

    /// A new database, by the server's own programs.
    pub(crate) fn create(&self, name: &str) -> anyhow::Result<String> {
        let bin = programs().context("its programs are there")?;
        let mut psql = Command::new(bin.join("psql"));
        psql.args(["-q", "-c", &format!("CREATE DATABASE {name}")]).arg(self.url());
        succeed(&mut psql, "psql")?;
        let base = self.url();
        Ok(format!("{}/{name}", base.trim_end_matches("/postgres")))
    }
}

/// A certificate for `localhost` and the root that signed it.
fn certify(place: &Path) -> anyhow::Result<()> {
    let script = "set -e; umask 077
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN=throw-away root' -keyout root.key -out roots.pem
        openssl req -newkey rsa:2048 -nodes -subj '/CN=localhost' -keyout server.key -out server.csr
        printf 'subjectAltName=DNS:localhost' > names
        openssl x509 -req -days 30 -in server.csr -CA roots.pem -CAkey root.key -CAcreateserial -extfile names -out server.pem
        chmod 644 roots.pem";
    succeed(Command::new("sh").args(["-c", script]).current_dir(place), "openssl")
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: nothing in it is worth keeping.
        let script = format!("kill -QUIT {}", self.child.id());
        drop(Command::new("sh").args(["-c", &script]).status());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.place));
    }
}
