//! The project's own chores: `cargo xtask test` sets up what the tests need and runs all of them.

mod deps;
mod docker;
mod fakes;
mod machine;
mod models;
mod postgres;
mod providers;
mod sdk;
mod tally;

use anyhow::{Context, bail};
use docker::Docker;
use postgres::Postgres;
use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use tally::Tally;

const HELP: &str = "cargo xtask COMMAND

  test      set up what the tests need and run everything
  deps      check which crate may depend on which
  sdk       run the official SDKs' suites alone
  ledger    write docs/compatibility.md and openapi/openapi.json anew
  postgres  start a throw-away PostgreSQL and say how to reach it, until it is interrupted
  docker    start a throw-away Docker engine and say how to reach it, until it is interrupted
  fakes     hold the fakes of E2B, Modal, Daytona and Kubernetes to their SDKs, and say what runs them
  providers write the table of docs/providers.md anew, from what the last test run found
  models    check the models alone
  machine   try the limits of sandboxes in an emulated machine alone
  load      measure a release build, see docs/performance.md (--quick, --help)
";

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("test") => test(),
        Some("deps") => deps::check().map(|()| true),
        Some("load") => load(),
        Some("ledger") => sdk::ledger(),
        Some("postgres") => throw_away(),
        Some("docker") => throw_away_docker(),
        Some("fakes") => prove_fakes(),
        Some("providers") => providers::write(),
        Some("models") => {
            let mut tally = Tally::default();
            models::run(&mut tally).map(|()| tally.close())
        }
        Some("machine") => {
            let mut tally = Tally::default();
            machine::run(&mut tally).map(|()| tally.close())
        }
        Some("sdk") => build().and_then(|()| {
            let mut tally = Tally::default();
            sdk::run(&mut tally, Postgres::start()?.as_ref())?;
            Ok(tally.close())
        }),
        _ => {
            show(HELP);
            Ok(true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            show(&format!("xtask: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output.
fn show(text: &str) {
    use std::io::Write as _;
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// The repository's root.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or_else(|| here.clone(), Path::to_owned)
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

fn build() -> anyhow::Result<()> {
    let built = cargo(&["build", "--package", "vaquero", "--features", FEATURES])
        .status()
        .context("cargo cannot be started")?;
    if !built.success() {
        bail!("the server does not build");
    }
    Ok(())
}

fn throw_away() -> anyhow::Result<bool> {
    let Some(postgres) = Postgres::start()? else {
        bail!(
            "PostgreSQL 15 or newer is not here, and installing it takes root on a Debian machine"
        )
    };
    show(&format!("export VAQUERO_TEST_POSTGRES={}\n", postgres.url()));
    if let Some(roots) = postgres.roots() {
        show(&format!("export VAQUERO_TEST_POSTGRES_ROOTS={}\n", roots.display()));
    }
    show("It is there until this is interrupted, or its input ends.\n");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(true)
}

fn throw_away_docker() -> anyhow::Result<bool> {
    let docker = Docker::start()?.map_err(|why| anyhow::anyhow!("no Docker engine: {why}"))?;
    let mut told = Command::new("true");
    docker.announce(&mut told);
    for (name, value) in told.get_envs() {
        let value = value.unwrap_or_default().to_string_lossy();
        show(&format!("export {}={value}\n", name.to_string_lossy()));
    }
    show("It is there until this is interrupted, or its input ends.\n");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(true)
}

fn prove_fakes() -> anyhow::Result<bool> {
    let (mut tally, python) = (Tally::default(), fakes::python()?);
    fakes::prove(&mut tally, &python)?;
    if let Ok(python) = &python {
        show(&format!("export VAQUERO_TEST_FAKES={}\n", python.display()));
    }
    Ok(tally.close())
}

fn load() -> anyhow::Result<bool> {
    let asked: Vec<String> = std::env::args().skip(2).collect();
    let providers = asked.iter().any(|word| word == "providers");
    let packages = ["--package", "vaquero", "--package", "vaquero-testkit"];
    let mut build = cargo(&["build", "--release"]);
    build.args(packages);
    if providers {
        build.args(["--features", &format!("vaquero/{FEATURES}")]);
    }
    let built = build.status()?;
    if !built.success() {
        bail!("the release build fails");
    }
    let program = target().join("release/load");
    let arguments = std::env::args().skip(2);
    let server = target().join("release/vaquero");
    let mut load = Command::new(program);
    let named = asked.iter().any(|word| !word.starts_with('-'));
    // The measurements of several servers need a database; the others do not wait for one.
    let postgres = if !named || asked.iter().any(|word| word == "nodes") {
        Postgres::durable()?
    } else {
        None
    };
    if let Some(postgres) = &postgres {
        postgres.announce(&mut load);
    }
    let docker = if providers { Some(Docker::start()?) } else { None };
    if providers {
        match docker.as_ref() {
            Some(Ok(docker)) => docker.announce(&mut load),
            Some(Err(why)) => show(&format!("no Docker engine: {why}\n")),
            None => {}
        }
        fakes::announce(&mut load, &fakes::python()?);
        sdk::announce(&mut load)?;
    }
    load.arg("--exe").arg(server).args(arguments).current_dir(root());
    Ok(load.status()?.success())
}

/// What the server under test has beside its defaults.
const FEATURES: &str = "all-sandboxes";

/// Suites that every kind of sandbox is held to.
const SANDBOXED: [&str; 6] = ["fork", "network", "packages", "recovery", "secrets", "vaults"];

/// How long each fuzzer goes on; alone, a few seconds.
const FUZZ_SECONDS: &str = "60";

fn test() -> anyhow::Result<bool> {
    deps::check()?;
    build()?;
    let mut tally = Tally::default();
    let pip = Path::new("/usr/bin/pip3");
    if !pip.exists() && !sdk::install(&["python3-pip"]) {
        tally.leave_out("what installs Python packages in a sandbox: /usr/bin/pip3 is missing and cannot be installed without root".to_owned());
    }
    if !(sdk::has("bwrap") || sdk::install(&["bubblewrap"])) {
        tally.leave_out("the example of a provider of one's own: bubblewrap is missing and cannot be installed without root".to_owned());
    }
    let postgres = Postgres::start()?;
    let features = format!("vaquero/{FEATURES}");
    let mut all = cargo(&["test", "--workspace", "--features", &features, "--no-fail-fast"]);
    if std::env::var_os("VAQUERO_TEST_FUZZ_SECONDS").is_none() {
        all.env("VAQUERO_TEST_FUZZ_SECONDS", FUZZ_SECONDS);
    }
    match &postgres {
        Some(postgres) => postgres.announce(&mut all),
        None => drop(all.env("VAQUERO_TEST_POSTGRES", "none")),
    }
    let docker = Docker::start()?;
    match &docker {
        Ok(docker) => docker.announce(&mut all),
        Err(why) => {
            tally.leave_out(format!("sandboxes of a Docker engine: {why}"));
            all.env("VAQUERO_TEST_DOCKER", "none");
        }
    }
    let python = fakes::python()?;
    fakes::prove(&mut tally, &python)?;
    fakes::announce(&mut all, &python);
    providers::announce(&mut all)?;
    tally.cargo_test("cargo test", all)?;
    providers::check(&mut tally)?;
    if let Some(postgres) = &postgres {
        let packages = ["--package", "vaquero-api", "--package", "vaquero", "--tests"];
        let mut again = cargo(&["test", "--features", &features, "--no-fail-fast"]);
        again
            .env("VAQUERO_TEST_DOCKER", "none")
            .env("VAQUERO_TEST_FAKES", "none")
            .args(packages)
            .env("VAQUERO_TEST_STORE", "postgres");
        postgres.announce(&mut again);
        tally.cargo_test("the same on PostgreSQL", again)?;
    } else {
        tally.leave_out("the suites on PostgreSQL: version 15 or newer is missing and cannot be installed without root".to_owned());
    }
    if let Ok(docker) = &docker {
        let mut again = cargo(&["test", "--features", &features, "--no-fail-fast"]);
        again.args(["--package", "vaquero"]);
        again.args(SANDBOXED.iter().flat_map(|suite| ["--test", suite]));
        again.env("VAQUERO_TEST_SANDBOX", "docker");
        docker.announce(&mut again);
        tally.cargo_test("the same in containers", again)?;
    }
    drop(docker);
    sdk::run(&mut tally, postgres.as_ref())?;
    models::run(&mut tally)?;
    machine::run(&mut tally)?;
    Ok(tally.close())
}
