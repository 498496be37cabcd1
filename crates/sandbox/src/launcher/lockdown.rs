//! The last walls, put up by the child right before it becomes PID 1: rlimits, capabilities,
//! no new privileges, Landlock, seccomp. Each only takes away; nothing here may grant anything.

use std::io;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::seam::Limits;

/// What is left of root's powers, and only over the sandbox's own namespaces: enough to install packages.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::NET_BIND_SERVICE);

const MAX_FILES: u64 = 16_384;

/// Processes and threads beyond the limit, so that a PID 1 that keeps its children to the limit can
/// still answer when they have used it up.
pub(crate) const PIDS_RESERVE: u32 = 32;

/// Lowers what one process may use. Hard limits can only go down: where the host's is lower, that one stays.
pub(crate) fn limit_resources(limits: &Limits, degraded: bool) -> io::Result<()> {
    lower(Resource::Core, 0)?;
    lower(Resource::Nofile, MAX_FILES)?;
    // Each process may only use the limit; the reserve above it is for PID 1, should it raise its own.
    let most = lower(Resource::Nproc, (limits.pids + PIDS_RESERVE).into())?;
    let current = Some(most.min(limits.pids.into()));
    setrlimit(Resource::Nproc, Rlimit { current, maximum: Some(most) })?;
    lower(Resource::Fsize, limits.workspace_bytes)?;
    lower(Resource::Memlock, 8 << 20)?;
    lower(Resource::Msgqueue, 819_200)?;
    if degraded {
        lower(Resource::Data, limits.memory_bytes)?;
    }
    Ok(())
}

fn lower(resource: Resource, wanted: u64) -> io::Result<u64> {
    let now = getrlimit(resource);
    let hard = now.maximum.map_or(wanted, |hard| hard.min(wanted));
    let lowered = Rlimit { current: Some(hard), maximum: Some(hard) };
    // Not every kernel lets the limits be set that it has set itself.
    if now != lowered {
        setrlimit(resource, lowered)?;
    }
    Ok(hard)
}

/// Refuses to go on with any capability but the kept ones: for kernels that have no way to give them up.
pub(crate) fn hold_only_kept() -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    if KEPT.contains(held.permitted) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{:?} are held", held.permitted)))
}

/// Gives up every capability but the kept ones, for good.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if KEPT.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel knows no capability of that number: nor will any program.
            Err(rustix::io::Errno::INVAL) => break,
            other => other?,
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let sets =
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

/// Restricts writing to the writable mounts once more, independent of mount flags, and keeps signals
/// and abstract sockets inside. Kernels without Landlock go without: it is a second wall, not the first.
///
/// With `everywhere`, everything may be written that mounts let write.
pub(crate) fn landlock(everywhere: bool) -> io::Result<bool> {
    const NEWEST: ABI = ABI::V6;
    let all = AccessFs::from_all(NEWEST);
    let read = AccessFs::from_read(NEWEST);
    let build = || -> Result<RulesetStatus, Box<dyn std::error::Error>> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new("/")?, read))?;
        let whole = everywhere.then_some("/");
        let places = ["/workspace", "/tmp", "/var/tmp", "/root", "/mnt/session", "/dev", "/proc"];
        for place in places.into_iter().chain(whole) {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(place)?, all))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match build() {
        Ok(status) => Ok(status != RulesetStatus::NotEnforced),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}
