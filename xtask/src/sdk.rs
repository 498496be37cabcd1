//! The official SDKs against the running server, each generation in an environment of its own below `target/sdk`.

use crate::{
    postgres::Postgres,
    tally::{Tally, closing},
};
use anyhow::{Context, bail};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const KEY: &str = "sdk-suite-key-0123456789";
/// Any 32 bytes.
const VAULT_KEY: &str = "dmFxdWVybyBzZGsgc3VpdGUgdmF1bHQga2V5IDAwMTI=";
/// Generations of the Python SDK: the newest, and one from before the majors of autumn 2026.
const PYTHON: [(&str, &str); 2] = [("new", "anthropic"), ("old", "anthropic<1")];
/// The same for TypeScript.
const TYPESCRIPT: [(&str, &str); 2] =
    [("new", "@anthropic-ai/sdk@latest"), ("old", "@anthropic-ai/sdk@0")];

/// A process that ends with the value.
struct Process {
    child: Child,
    base: String,
}

impl Process {
    /// Starts a server of ours and waits until it says where it listens.
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child =
            command.stdout(Stdio::piped()).spawn().context("the server cannot be started")?;
        let output = child.stdout.take().context("its output is piped")?;
        for line in BufReader::new(output).lines() {
            if let Some((_, base)) = line?.split_once("listens on ") {
                let base = base.trim().to_owned();
                return Ok(Self { child, base });
            }
        }
        bail!("the server ended at its start")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The shell's own `kill`: a small Debian has no other.
        drop(Command::new("sh").args(["-c", &format!("kill {}", self.child.id())]).status());
        drop(self.child.wait());
    }
}

/// Runs every generation against the embedded store, and again, if PostgreSQL is here, against two servers on it that take turns.
pub(crate) fn run(tally: &mut Tally, postgres: Option<&Postgres>) -> anyhow::Result<()> {
    against(tally, "embedded", None)?;
    match postgres {
        Some(postgres) => {
            against(tally, "two servers on PostgreSQL", Some(&postgres.create("sdk")?))
        }
        None => Ok(()),
    }
}

fn against(tally: &mut Tally, store: &str, database: Option<&str>) -> anyhow::Result<()> {
    let exe = crate::target().join("debug/vaquero");
    let model =
        Process::start(Command::new(&exe).args(["scripted-model", "--listen", "127.0.0.1:0"]))?;
    let count = if database.is_some() { 2 } else { 1 };
    let (mut servers, mut places) = (Vec::new(), Vec::new());
    for number in 0..count {
        let data = crate::target().join(format!("sdk/data-{number}"));
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        servers.push(server(&exe, &model.base, &data, database)?);
        places.push(data);
    }
    let base = if count > 1 {
        in_turn(servers.iter().map(|server| server.base.clone()).collect())?
    } else {
        servers[0].base.clone()
    };
    let (model, store) = (model.base.clone(), store.to_owned());
    let (data, database) = (places[0].clone(), database.map(str::to_owned));
    let target = Target { base, data, database, model, store };
    // The workers in TypeScript are tried from Python.
    typescript(tally, &target)?;
    python(tally, &target)?;
    drop(servers);
    for data in &places {
        end_launcher(data);
    }
    Ok(())
}

fn server(exe: &Path, model: &str, data: &Path, database: Option<&str>) -> anyhow::Result<Process> {
    let mut command = Command::new(exe);
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--sandbox-limits", "degraded", "--data-dir"])
        .arg(data)
        .env("VAQUERO_API_KEY", KEY)
        .env("VAQUERO_VAULT_KEY", VAULT_KEY)
        .env("VAQUERO_ANTHROPIC_BASE_URL", model)
        .env("VAQUERO_ANTHROPIC_API_KEY", "scripted")
        .env("VAQUERO_MODEL_BACKOFF_MS", "20")
        .env("VAQUERO_WORK_LEASE_SECONDS", "5")
        .env("VAQUERO_LOG", "error");
    if let Some(database) = database {
        command.env("VAQUERO_DATABASE_URL", database);
    }
    Process::start(&mut command)
}

/// An address whose requests go to one server after the other, for as long as this program runs.
fn in_turn(bases: Vec<String>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let base = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let address = bases[number % bases.len()].trim_start_matches("http://");
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(address)) else { continue };
            std::thread::spawn(move || drop(one_request(client, server)));
        }
    });
    Ok(base)
}

/// Passes a connection on, and asks the server to close it after its answer: the client's next request is a new connection.
fn one_request(client: TcpStream, mut server: TcpStream) -> std::io::Result<()> {
    let mut request = BufReader::new(client.try_clone()?);
    let answer = server.try_clone()?;
    std::thread::spawn(move || pass(answer, client));
    let mut line = Vec::new();
    request.read_until(b'\n', &mut line)?;
    server.write_all(&line)?;
    server.write_all(b"connection: close\r\n")?;
    while line != b"\r\n" && !line.is_empty() {
        line.clear();
        request.read_until(b'\n', &mut line)?;
        if !line.to_ascii_lowercase().starts_with(b"connection:") {
            server.write_all(&line)?;
        }
    }
    pass(request, server);
    Ok(())
}

fn pass(mut from: impl Read, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

/// The launcher lingers for the next server on this directory; here there is none.
fn end_launcher(data: &Path) {
    let script = r#"for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q -F "launcher" || continue
        tr '\0' ' ' < $p/cmdline | grep -q -F "$0" && kill -9 ${p#/proc/}; done"#;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(data.join("launcher")).stderr(Stdio::null());
    drop(shell.status());
}

/// Writes the ledger and the OpenAPI document anew, from the newest SDK.
pub(crate) fn ledger() -> anyhow::Result<bool> {
    let (name, package) = PYTHON[0];
    let python = python_environment(name, &[package])?;
    let status = Command::new(python).arg(crate::root().join("tests/sdk/ledger.py")).status()?;
    Ok(status.success())
}

struct Target {
    base: String,
    /// Of the first server, for the commands of its operator.
    data: PathBuf,
    /// The servers' database, if they share one.
    database: Option<String>,
    model: String,
    store: String,
}

impl Target {
    fn apply(&self, command: &mut Command) {
        command
            .env("VAQUERO_TEST_BASE_URL", &self.base)
            .env("VAQUERO_TEST_MODEL_URL", &self.model)
            .env("VAQUERO_TEST_API_KEY", KEY)
            .env("VAQUERO_TEST_EXE", crate::target().join("debug/vaquero"))
            .env("VAQUERO_TEST_DATA", &self.data)
            .env("VAQUERO_TEST_DATABASE", self.database.as_deref().unwrap_or_default())
            .env_remove("ANTHROPIC_API_KEY")
            .env_remove("ANTHROPIC_BASE_URL");
    }
}

pub(crate) fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Installs Debian packages if this is root on such a machine.
pub(crate) fn install(packages: &[&str]) -> bool {
    let root =
        Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0"));
    if !root || !has("apt-get") {
        return false;
    }
    let quiet = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    quiet(&["update"]) && quiet(&arguments)
}

pub(crate) fn succeed(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{what} cannot be started"))?;
    if !output.status.success() {
        bail!(
            "{what} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// A virtual environment with these packages, and pytest.
pub(crate) fn python_environment(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let place = crate::target().join("sdk").join(format!("python-{name}"));
    let python = place.join("bin/python");
    if !python.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&place), "python3 -m venv")?;
    }
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--upgrade",
        "--disable-pip-version-check",
        "pytest",
    ]);
    pip.args(packages);
    succeed(&mut pip, "pip install")?;
    Ok(python)
}

fn python(tally: &mut Tally, target: &Target) -> anyhow::Result<()> {
    if !python_is_here() {
        tally.leave_out("the Python SDK suites: python3 with venv is missing and cannot be installed without root".to_owned());
        return Ok(());
    }
    let suite = crate::root().join("tests/sdk/python");
    for (name, package) in PYTHON {
        let python = python_environment(name, &[package])?;
        if name == "new" && target.store == "embedded" {
            let mut ledger = Command::new(&python);
            ledger.arg(crate::root().join("tests/sdk/ledger.py")).arg("--check");
            tally.run("the ledger and the code", ledger, |line| {
                let agrees = line.contains(" operations, ") || line.starts_with("the SDK ");
                agrees.then_some((1, 0))
            })?;
        }
        let mut pytest = Command::new(python);
        pytest
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            .arg(&suite)
            .current_dir(crate::root());
        pytest.env("PYTHONDONTWRITEBYTECODE", "1").env("VAQUERO_TEST_GENERATION", name);
        let typescript = crate::target().join("sdk").join(format!("ts-{name}"));
        pytest.env("VAQUERO_TEST_TYPESCRIPT", typescript);
        target.apply(&mut pytest);
        tally.run(&format!("Python SDK, {name}, {}", target.store), pytest, closing)?;
    }
    Ok(())
}

fn typescript(tally: &mut Tally, target: &Target) -> anyhow::Result<()> {
    if !node_is_here() {
        tally.leave_out("the TypeScript SDK suites: node and npm are missing and cannot be installed without root".to_owned());
        return Ok(());
    }
    for (name, package) in TYPESCRIPT {
        let place = node_packages(name, package)?;
        copy_suite(&crate::root().join("tests/sdk/ts"), &place)?;
        let mut node = Command::new("node");
        node.args(["--test", "--test-reporter=tap", "suite.test.mjs"]).current_dir(&place);
        node.env("VAQUERO_TEST_GENERATION", name);
        target.apply(&mut node);
        tally.run(&format!("TypeScript SDK, {name}, {}", target.store), node, |line| {
            if let Some(passed) = line.strip_prefix("# pass ") {
                return Some((passed.trim().parse().unwrap_or(0), 0));
            }
            line.strip_prefix("# fail ").map(|failed| (0, failed.trim().parse().unwrap_or(0)))
        })?;
    }
    Ok(())
}

/// A directory where programs find this package.
fn node_packages(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let place = crate::target().join("sdk").join(format!("ts-{name}"));
    fs::create_dir_all(&place)?;
    if !place.join("package.json").exists() {
        fs::write(place.join("package.json"), "{ \"private\": true, \"type\": \"module\" }\n")?;
    }
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", package]).current_dir(&place);
    succeed(&mut npm, "npm install")?;
    Ok(place)
}

/// Tells a program where the newest SDKs are, as far as they are to be had.
pub(crate) fn announce(command: &mut Command) -> anyhow::Result<()> {
    if python_is_here() {
        let (name, package) = PYTHON[0];
        command.env("VAQUERO_TEST_PYTHON", python_environment(name, &[package])?);
    }
    if node_is_here() {
        let (name, package) = TYPESCRIPT[0];
        command.env("VAQUERO_TEST_TYPESCRIPT", node_packages(name, package)?);
    }
    Ok(())
}

fn node_is_here() -> bool {
    let usable = || has("node") && has("npm");
    usable() || (install(&["nodejs", "npm"]) && usable())
}

/// With what virtual environments are made of.
pub(crate) fn python_is_here() -> bool {
    let usable = || {
        let mut command = Command::new("python3");
        command.args(["-c", "import venv, ensurepip"]).output().is_ok_and(|it| it.status.success())
    };
    usable() || (install(&["python3", "python3-venv"]) && usable())
}

fn copy_suite(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
