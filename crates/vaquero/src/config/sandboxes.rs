//! Settings of sandboxes: where they come from, and what they may use.

use super::Config;
use anyhow::bail;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vaquero_types::AllowedImages;

/// Flags of sandboxes.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct SandboxArgs {
    /// Where sandboxes come from: `local`, `docker`, `gvisor` (with Docker), `e2b`, `modal`, `daytona`, `kubernetes`, `plugin`, or `unsafe-host` for no isolation at all; with commas between several, of which the first is the default and environments may name the others.
    #[arg(long, value_name = "PROVIDER,…")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    /// Where the Docker engine listens [default: `DOCKER_HOST`, else the socket at /var/run/docker.sock].
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) docker_host: Option<String>,
    /// The image of containers whose environment names none [default: debian:stable].
    #[arg(long, value_name = "IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) docker_image: Option<String>,
    /// The engine's runtime that `gvisor` uses [default: runsc].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gvisor_runtime: Option<String>,
    /// With `--sandbox plugin`: the program that makes sandboxes, and its arguments, with spaces between them.
    #[arg(long, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_plugin: Option<String>,
    /// Images that environments may name, such as `python:*,ghcr.io/acme/*` [default: any that the provider has or can get].
    #[arg(long, value_name = "PATTERN,…")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_images: Option<String>,
    /// Where E2B's API is [default: `E2B_API_URL`, else the hosted service]. The key is `e2b_api_key`, or `E2B_API_KEY`.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) e2b_api_url: Option<String>,
    /// Where all of E2B's sandboxes are reached [default: `E2B_SANDBOX_URL`, else each has a host of its own].
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) e2b_sandbox_url: Option<String>,
    /// E2B's template of sandboxes whose environment names no image [default: base].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) e2b_template: Option<String>,
    /// Where Modal's API is [default: `MODAL_SERVER_URL`, else the hosted service]. The token is `modal_token_id` and `modal_token_secret`, or `MODAL_TOKEN_ID` and `MODAL_TOKEN_SECRET`.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) modal_server_url: Option<String>,
    /// Modal's environment [default: `MODAL_ENVIRONMENT`, else the workspace's own].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) modal_environment: Option<String>,
    /// The image of Modal's sandboxes whose environment names none [default: debian:stable].
    #[arg(long, value_name = "IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) modal_image: Option<String>,
    /// Where Daytona's API is [default: `DAYTONA_API_URL`, else the hosted service]. The key is `daytona_api_key`, or `DAYTONA_API_KEY`.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daytona_api_url: Option<String>,
    /// Where Daytona makes sandboxes [default: `DAYTONA_TARGET`, else where the organization's are].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daytona_target: Option<String>,
    /// Daytona's snapshot that sandboxes begin with whose environment names no image [default: the organization's].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daytona_snapshot: Option<String>,
    /// The context of the kubeconfig whose cluster makes pods [default: its current one, else the cluster that this server runs in].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes_context: Option<String>,
    /// The namespace of pods [default: vaquero-sandboxes].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes_namespace: Option<String>,
    /// The image of pods whose environment names none [default: debian:stable].
    #[arg(long, value_name = "IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes_image: Option<String>,
    /// The runtime class of pods, such as `gvisor` [default: the cluster's].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes_runtime_class: Option<String>,
    /// Have the cluster's agent-sandbox controller make the pods, of its `Sandbox` objects [default: this server makes them].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOLEAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes_agent_sandbox: Option<bool>,
    /// `enforced` (by cgroups, or refuse to start) or `degraded` (weaker where there are none).
    #[arg(long, value_name = "MODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_limits: Option<String>,
    /// Seconds without a call after which a sandbox is stopped; its files stay.
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_idle_seconds: Option<u64>,
    /// Megabytes of memory a sandbox may use.
    #[arg(long, value_name = "MEGABYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_memory_mb: Option<u64>,
    /// Processes and threads a sandbox may have at once.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_processes: Option<u32>,
    /// Cores a sandbox may keep busy.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_cpus: Option<u32>,
    /// What sandboxes see instead of this machine's `/usr`: a directory, a tarball, or an image in OCI layout.
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_root: Option<PathBuf>,
    /// Megabytes of files a session may have.
    #[arg(long, value_name = "MEGABYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_disk_mb: Option<u64>,
    /// Megabytes a second a sandbox may read from disks, and write to them.
    #[arg(long, value_name = "MEGABYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_io_mb: Option<u64>,
    /// Sandboxes kept ready for new sessions: made while a first turn's model thinks, and after each new sandbox.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_spares: Option<u32>,
    /// Most sandboxes that environments' warm pools keep ready on this server [default: 32].
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_warm_max: Option<u32>,
    /// With `--sandbox unsafe-host`: environments may install packages and run setup commands on this host itself.
    #[arg(long, value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_packages_ok: Option<bool>,
}

/// Which provider makes sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SandboxChoice {
    /// The local Linux provider.
    Local,
    /// Containers of a Docker engine.
    Docker,
    /// The same, each with a kernel of its own.
    Gvisor,
    /// A program of the operator's.
    Plugin,
    /// Machines of E2B.
    E2b,
    /// Machines of Modal.
    Modal,
    /// Machines of Daytona.
    Daytona,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
    /// No isolation.
    UnsafeHost,
}

impl SandboxChoice {
    const ALL: [Self; 9] = [
        Self::Local,
        Self::Docker,
        Self::Gvisor,
        Self::E2b,
        Self::Modal,
        Self::Daytona,
        Self::Kubernetes,
        Self::Plugin,
        Self::UnsafeHost,
    ];

    /// As operators and environments write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Docker => "docker",
            Self::Gvisor => "gvisor",
            Self::Plugin => "plugin",
            Self::E2b => "e2b",
            Self::Modal => "modal",
            Self::Daytona => "daytona",
            Self::Kubernetes => "kubernetes",
            Self::UnsafeHost => "unsafe-host",
        }
    }
}

/// Those that a list names; else the word that names none.
fn choices(list: &str) -> Result<Vec<SandboxChoice>, &str> {
    let mut chosen = Vec::new();
    for word in list.split(',').map(str::trim) {
        let choice = SandboxChoice::ALL.into_iter().find(|choice| choice.name() == word);
        let choice = choice.filter(|choice| !chosen.contains(choice)).ok_or(word)?;
        chosen.push(choice);
    }
    Ok(chosen)
}

/// How firmly limits must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LimitsChoice {
    /// By cgroups, or refuse to start.
    Enforced,
    /// Weaker where there are none.
    Degraded,
}

/// Each spare is a process and a few namespaces.
const SPARES_MAX: u32 = 64;

impl Config {
    pub(super) fn check_sandboxes(&self, source: &dyn Fn(&str) -> String) -> anyhow::Result<()> {
        if let Err(wrong) = choices(&self.sandbox) {
            let names = SandboxChoice::ALL.map(SandboxChoice::name).join("`, `");
            bail!(
                "sandbox: `{wrong}` is no provider, or named twice; use `{names}`, with commas between several — from {}",
                source("sandbox")
            );
        }
        if self.sandboxes().contains(&SandboxChoice::Plugin) && self.sandbox_plugin.is_none() {
            bail!(
                "sandbox: `plugin` needs the program that makes sandboxes; set sandbox_plugin as well — from {}",
                source("sandbox")
            );
        }
        if self.sandbox_memory_mb < 64 {
            bail!("sandbox_memory_mb: must be at least 64 — from {}", source("sandbox_memory_mb"));
        }
        if self.sandbox_processes < 16 {
            bail!("sandbox_processes: must be at least 16 — from {}", source("sandbox_processes"));
        }
        for (name, value) in
            [("sandbox_disk_mb", self.sandbox_disk_mb), ("sandbox_io_mb", self.sandbox_io_mb)]
        {
            if value < 16 {
                bail!("{name}: must be at least 16 — from {}", source(name));
            }
        }
        if self.sandbox_spares > SPARES_MAX {
            let source = source("sandbox_spares");
            bail!("sandbox_spares: must be at most {SPARES_MAX} — from {source}");
        }
        if let Some(patterns) = &self.sandbox_images
            && let Err(wrong) = AllowedImages::parse(patterns)
        {
            let source = source("sandbox_images");
            bail!(
                "sandbox_images: {wrong}; write names with `*` for any part, such as `python:*`, with commas between several — from {source}"
            );
        }
        Ok(())
    }

    /// Images that environments may name.
    pub(crate) fn allowed_images(&self) -> AllowedImages {
        let patterns = self.sandbox_images.as_deref().map(AllowedImages::parse);
        patterns.and_then(Result::ok).unwrap_or_default()
    }

    /// The providers of sandboxes, the default first.
    pub(crate) fn sandboxes(&self) -> Vec<SandboxChoice> {
        choices(&self.sandbox).unwrap_or_default()
    }

    /// The limits of a sandbox.
    pub(crate) fn sandbox_limits(&self) -> vaquero_sandbox::Limits {
        vaquero_sandbox::Limits {
            memory_bytes: self.sandbox_memory_mb.saturating_mul(1 << 20),
            pids: self.sandbox_processes,
            cpu_millis: self.sandbox_cpus.saturating_mul(1_000),
            workspace_bytes: self.sandbox_disk_mb.saturating_mul(1 << 20),
            io_bytes: self.sandbox_io_mb.saturating_mul(1 << 20),
            ..vaquero_sandbox::Limits::default()
        }
    }
}
