//! What is asked of a sandbox, before anything is made: checked, and completed with what its packages need.

use std::collections::BTreeMap;

use crate::error::SandboxError;
use crate::seam::{Limits, SandboxSpec};

/// Most bytes of names and values in a sandbox's environment.
const MAX_ENV: usize = 32 << 10;

/// The variables of a sandbox, with what its packages need to be found.
pub(super) fn variables(spec: &SandboxSpec) -> BTreeMap<String, String> {
    let mut env = spec.env.clone();
    if spec.provision.as_ref().is_some_and(|provision| !provision.packages.npm.is_empty()) {
        let modules = || "/usr/local/lib/node_modules".to_owned();
        env.entry("NODE_PATH".to_owned()).or_insert_with(modules);
    }
    env
}

/// Refuses what can never work.
pub(super) fn check_spec(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let invalid = |what: &str| Err(SandboxError::Invalid(what.to_owned()));
    let Limits { memory_bytes, pids, cpu_millis, tmp_bytes, workspace_bytes, io_bytes } =
        spec.limits;
    if memory_bytes < 16 << 20 || !(8..=1 << 20).contains(&pids) || cpu_millis < 10 {
        return invalid(
            "a sandbox needs at least 16 MiB of memory, 8 to 1048576 processes and 1% of a core",
        );
    }
    if tmp_bytes < 4096 || workspace_bytes < 4096 || io_bytes < 4096 {
        return invalid(
            "a sandbox needs at least 4 KiB in /tmp, in its workspace, and from its disks in a second",
        );
    }
    let size: usize = spec.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if size > MAX_ENV {
        return invalid("the variables of a sandbox may take 32 KiB together");
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return invalid(
                "a variable's name must not be empty or contain =, and nothing may contain NUL",
            );
        }
    }
    Ok(())
}
