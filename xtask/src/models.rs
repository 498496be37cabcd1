//! The models in `models/`, checked by spin: the protocol as it is must hold, and each of its named faults must be found.

use crate::{
    sdk::{has, install, succeed},
    tally::Tally,
};
use anyhow::Context;
use std::{fs, path::Path, process::Command};

/// Faults that the check must find, or it proves nothing.
const FAULTS: [&str; 5] = ["NO_FENCE", "EARLY_REPLY", "DOUBLE_CLAIM", "NO_GUARD", "NO_POLL"];

pub(crate) fn run(tally: &mut Tally) -> anyhow::Result<()> {
    let usable = || has_spin() && has("gcc");
    let ready = usable() || (install(&["spin", "gcc", "libc6-dev"]) && usable());
    if !ready {
        tally.leave_out(
            "the model of leases: spin and gcc are missing and cannot be installed without root"
                .to_owned(),
        );
        return Ok(());
    }
    crate::show("\n=== the model of leases\n");
    let model = crate::root().join("models/lease.pml");
    let place = crate::target().join("models");
    fs::create_dir_all(&place)?;
    tally.check("lease.pml holds", errors(&model, &place, None)? == 0);
    for fault in FAULTS {
        let found = errors(&model, &place, Some(fault))? > 0;
        tally.check(&format!("lease.pml with {fault} does not"), found);
    }
    Ok(())
}

fn has_spin() -> bool {
    Command::new("spin").arg("-V").output().is_ok_and(|output| output.status.success())
}

/// How many errors an exhaustive search finds, at most one for safety and one for liveness.
fn errors(model: &Path, place: &Path, fault: Option<&str>) -> anyhow::Result<u64> {
    let mut spin = Command::new("spin");
    spin.arg("-a").args(fault.map(|fault| format!("-D{fault}"))).arg(model).current_dir(place);
    succeed(&mut spin, "spin")?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-DNFAIR=4", "-o", "pan", "pan.c"]).current_dir(place);
    succeed(&mut gcc, "gcc")?;
    let mut errors = 0;
    for search in [&["-noclaim", "-E"][..], &["-a", "-f", "-N", "taken_up", "-E"]] {
        let output = Command::new("./pan")
            .args(search)
            .arg("-m1000000")
            .current_dir(place)
            .output()
            .context("the search cannot be started")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text
            .split_once("errors: ")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
        let found = found.with_context(|| format!("the search says nothing: {text}"))?;
        anyhow::ensure!(!text.contains("max search depth too small"), "the search was cut short");
        errors += found;
    }
    Ok(errors)
}
