//! What the engine is asked for: one container, with everything taken from it that its hand does not need, and that the hand itself gives up before it serves.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountType,
};
use vaquero_sandbox::container::{self, Kit, Port, WayOut, masked_paths, variables};
use vaquero_sandbox::{Order, SandboxKey, contained_command_line};

/// Labels: whose container it is, and of which generation. Which sandbox it is, its name says.
pub(crate) const OWNER: &str = "vaquero.owner";
pub(crate) const GENERATION: &str = "vaquero.generation";

/// What a hand keeps.
const KEPT: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETUID", "SETGID", "NET_BIND_SERVICE"];
/// What it needs only to make the way out, and to give up all others.
const GIVEN_UP: [&str; 2] = ["NET_ADMIN", "SETPCAP"];

/// What a kernel of its own may take for itself.
const KERNEL_THREADS: u32 = 512;

/// What a container is made of, beside what was ordered.
pub(crate) struct Parts<'a> {
    pub(crate) owner: &'a str,
    pub(crate) image: &'a str,
    pub(crate) kit: &'a Kit,
    pub(crate) mounts: Vec<container::Mount>,
    pub(crate) runtime: Option<&'a str>,
    /// It runs on a kernel of its own.
    pub(crate) own_kernel: bool,
    pub(crate) way_out: WayOut,
    pub(crate) linger: Duration,
}

/// The name of a sandbox's container: the engine allows no two of one name.
pub(crate) fn name(owner: &str, key: &SandboxKey) -> String {
    format!("vaquero.{owner}.{}.{}", key.session, key.name)
}

/// Which sandbox a container of that name is.
pub(crate) fn key_of(owner: &str, name: &str) -> Option<SandboxKey> {
    let rest = name.strip_prefix("vaquero.")?.strip_prefix(owner)?.strip_prefix('.')?;
    let (session, name) = rest.split_once('.')?;
    Some(SandboxKey { session: session.to_owned(), name: name.to_owned() })
}

/// The container of an order.
pub(crate) fn body(order: &Order<'_>, parts: &Parts<'_>) -> ContainerCreateBody {
    let building = order.layer.as_ref().is_some_and(|layer| layer.building);
    let labels = [(OWNER, parts.owner.to_owned()), (GENERATION, order.generation.to_string())];
    let mut words = parts.kit.start().to_vec();
    words.extend(contained_command_line(order, &Port::address(), parts.way_out, parts.linger));
    let variables = variables(order).into_iter().map(|(name, value)| format!("{name}={value}"));
    ContainerCreateBody {
        hostname: Some("sandbox".to_owned()),
        user: Some("0:0".to_owned()),
        env: Some(variables.collect()),
        entrypoint: Some(words),
        cmd: Some(Vec::new()),
        image: Some(parts.image.to_owned()),
        working_dir: Some("/workspace".to_owned()),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        host_config: Some(host(order, parts, building)),
        ..ContainerCreateBody::default()
    }
}

fn host(order: &Order<'_>, parts: &Parts<'_>, building: bool) -> HostConfig {
    let limits = order.limits;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    // A kernel of its own is made of threads itself, and of one more for each of its processes' threads.
    let pids = if parts.own_kernel { limits.pids * 2 + KERNEL_THREADS } else { limits.pids };
    let tmp = |size: u64, mode: &str| format!("rw,nosuid,nodev,exec,size={size},mode={mode}");
    let tmpfs = [
        ("/tmp", tmp(limits.tmp_bytes, "1777")),
        ("/var/tmp", tmp(limits.tmp_bytes / 4, "1777")),
        // What the kernel says of the machine is nobody's business.
        ("/sys", "ro,nosuid,nodev,noexec,size=4096,mode=0555".to_owned()),
    ];
    let given_up: &[&str] = if parts.own_kernel { &[] } else { &GIVEN_UP };
    let capabilities = KEPT.iter().chain(given_up);
    let tmpfs = tmpfs.map(|(place, options)| (place.to_owned(), options));
    HostConfig {
        memory: Some(bytes(limits.memory_bytes)),
        memory_swap: Some(bytes(limits.memory_bytes)),
        nano_cpus: Some(i64::from(limits.cpu_millis) * 1_000_000),
        pids_limit: Some(pids.into()),
        masked_paths: Some(masked_paths()),
        mounts: Some(parts.mounts.iter().map(bind).collect()),
        tmpfs: Some(HashMap::from(tmpfs)),
        shm_size: Some(bytes((limits.tmp_bytes / 4).max(1))),
        network_mode: Some("none".to_owned()),
        readonly_rootfs: Some(!building),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(capabilities.map(|name| (*name).to_owned()).collect()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".to_owned()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        runtime: parts.runtime.map(str::to_owned),
        ..HostConfig::default()
    }
}

fn bind(mount: &container::Mount) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(mount.source.display().to_string()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        ..Mount::default()
    }
}
