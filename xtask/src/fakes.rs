//! The fakes of those who offer machines: the Python that runs them, with the vendors' own SDKs, which they are held to.

use crate::{
    sdk::{has, install, python_environment, python_is_here},
    tally::{Tally, closing},
};
use std::{path::PathBuf, process::Command};

/// The vendors' SDKs, and what the fakes are made with.
const PACKAGES: [&str; 5] = ["e2b", "modal", "daytona", "kubernetes", "aiohttp"];

/// What runs the fakes; or why nothing can.
pub(crate) fn python() -> anyhow::Result<Result<PathBuf, String>> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|said| said.stdout == b"0\n");
    if !root {
        return Ok(Err("their machines take root".to_owned()));
    }
    for (program, package) in
        [("bwrap", "bubblewrap"), ("nsenter", "util-linux"), ("pgrep", "procps")]
    {
        if !(has(program) || install(&[package])) {
            return Ok(Err(format!("{program} is missing and cannot be installed")));
        }
    }
    if !python_is_here() {
        return Ok(Err("python3 with venv is missing and cannot be installed".to_owned()));
    }
    python_environment("fakes", &PACKAGES).map(Ok)
}

/// Tells tests what runs the fakes.
pub(crate) fn announce(command: &mut Command, python: &Result<PathBuf, String>) {
    match python {
        Ok(python) => command.env("VAQUERO_TEST_FAKES", python),
        Err(_) => command.env("VAQUERO_TEST_FAKES", "none"),
    };
}

/// Holds the fakes to the vendors' SDKs.
pub(crate) fn prove(tally: &mut Tally, python: &Result<PathBuf, String>) -> anyhow::Result<()> {
    let python = match python {
        Ok(python) => python,
        Err(why) => {
            tally.leave_out(format!(
                "machines of E2B, Modal, Daytona and Kubernetes, as fakes offer them: {why}"
            ));
            return Ok(());
        }
    };
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    pytest.arg(crate::root().join("tests/fakes")).current_dir(crate::root());
    pytest.env("PYTHONDONTWRITEBYTECODE", "1");
    tally.run("fakes of E2B, Modal, Daytona and Kubernetes, by their SDKs", pytest, closing)
}
