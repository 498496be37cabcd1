//! Configuration: flags over environment over `vaquero.toml` over defaults. A value that is wrong is named together with where it came from.

mod sandboxes;
mod sources;

pub(crate) use sandboxes::{LimitsChoice, SandboxArgs, SandboxChoice};

use anyhow::bail;
use clap::Args;
use figment::{
    Figment,
    providers::{Format, Serialized, Toml},
};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use sources::{FromFlags, FromVariable, describe, place};
use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};
use vaquero_api::Rates;
use vaquero_core::Limits;
use vaquero_model::ModelInfo;
use vaquero_worker::Retention;

/// Variables with our prefix that are no settings.
const NOT_SETTINGS: [&str; 3] = ["CONFIG", "CRASH_POINT", "DEMO_MODEL"];

/// Settings that are numbers.
const NUMBERS: [&str; 22] = [
    "retention_archived_days",
    "retention_idle_days",
    "database_connections",
    "sandbox_idle_seconds",
    "sandbox_memory_mb",
    "sandbox_processes",
    "sandbox_cpus",
    "sandbox_disk_mb",
    "sandbox_io_mb",
    "sandbox_spares",
    "sandbox_warm_max",
    "workspace_history",
    "turns",
    "turn_seconds",
    "turn_model_calls",
    "turn_tool_calls",
    "model_attempts",
    "model_backoff_ms",
    "model_window",
    "model_max_tokens",
    "lease_seconds",
    "work_lease_seconds",
];

/// Settings that are true or false.
const BOOLEANS: [&str; 2] = ["host_packages_ok", "kubernetes_agent_sandbox"];

/// Flags of `vaquero serve`. Each has a variable (`VAQUERO_` and its name in capitals) and a key in `vaquero.toml` (its name with underscores).
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct ServeArgs {
    /// Where to listen [default: 127.0.0.1:7777].
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<String>,
    /// Where everything durable is kept [default: ./vaquero-data].
    #[arg(long, value_name = "DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A configuration file [default: ./vaquero.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) sandboxes: SandboxArgs,
    /// Most turns at once.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) turns: Option<usize>,
    /// Seconds a turn may take.
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) turn_seconds: Option<u64>,
    /// Model requests a turn may make.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) turn_model_calls: Option<u32>,
    /// Tool calls a turn may make.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) turn_tool_calls: Option<u32>,
    /// Failed model requests in a row before a turn is given up.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_attempts: Option<u32>,
    /// Milliseconds before a failed model request is repeated the first time.
    #[arg(long, value_name = "MILLISECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_backoff_ms: Option<u64>,
    /// Tokens the model's window holds; the context is compacted when it is nearly full.
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_window: Option<u64>,
    /// Most tokens of one answer of the model.
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_max_tokens: Option<u32>,
    /// Where the Messages API is spoken [default: Anthropic].
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) anthropic_base_url: Option<String>,
    /// Rate limits: `off`, `hosted` (300 creations and 1,200 reads a minute) or `hosted-early` (60 and 600).
    #[arg(long, value_name = "PRESET")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate_limits: Option<String>,
    /// Seconds a worker's claim on a session lasts without renewal.
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease_seconds: Option<u64>,
    /// Seconds an item of a self-hosted environment's queue stays its worker's without a heartbeat.
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) work_lease_seconds: Option<u64>,
    /// Days after which an archived session is deleted [default: never].
    #[arg(long, value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention_archived_days: Option<u64>,
    /// Days without any change after which an idle session is deleted [default: never].
    #[arg(long, value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention_idle_days: Option<u64>,
    /// What to log, such as `info` or `vaquero_worker=debug`.
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
    /// `text` or `json`.
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<String>,
    /// PostgreSQL instead of the embedded store: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, shared by any number of servers.
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database_url: Option<String>,
    /// Most connections to PostgreSQL.
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database_connections: Option<usize>,
    /// Where large bytes are kept: `s3://BUCKET/PREFIX?endpoint=…&region=…` or `file:///DIRECTORY` that all servers see [default: the data directory].
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blob_url: Option<String>,
    /// What this server does: `all`, or with PostgreSQL also `api` or `worker` alone.
    #[arg(long, value_name = "ROLE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    /// The name of this server among those that share a database [default: made once and kept in the data directory].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// Private networks that sandboxes may reach, such as `10.1.0.0/16,192.168.7.9` [default: none].
    #[arg(long, value_name = "CIDR,…")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) egress_allow_private: Option<String>,
    /// Hosts that `allow_package_managers` allows [default: those that this machine's package managers are set up for].
    #[arg(long, value_name = "HOST,…")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) package_registries: Option<String>,
    /// Checkpoints of each session's workspace that are kept for forks [default: 100].
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workspace_history: Option<usize>,
}

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Everything.
    All,
    /// It answers clients and runs nothing.
    Api,
    /// It runs turns and answers no clients.
    Worker,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The settings of a server.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(deserialize_with = "address")]
    pub(crate) listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) api_key: Option<String>,
    pub(crate) vault_key: Option<String>,
    pub(crate) anthropic_api_key: Option<String>,
    pub(crate) anthropic_base_url: String,
    pub(crate) sandbox: String,
    pub(crate) docker_host: Option<String>,
    pub(crate) docker_image: String,
    pub(crate) gvisor_runtime: String,
    pub(crate) sandbox_plugin: Option<String>,
    pub(crate) sandbox_images: Option<String>,
    pub(crate) e2b_api_key: Option<String>,
    pub(crate) e2b_api_url: Option<String>,
    pub(crate) e2b_sandbox_url: Option<String>,
    pub(crate) e2b_template: String,
    pub(crate) daytona_api_key: Option<String>,
    pub(crate) daytona_api_url: Option<String>,
    pub(crate) daytona_target: Option<String>,
    pub(crate) daytona_snapshot: Option<String>,
    pub(crate) modal_token_id: Option<String>,
    pub(crate) modal_token_secret: Option<String>,
    pub(crate) modal_server_url: Option<String>,
    pub(crate) modal_environment: Option<String>,
    pub(crate) modal_image: String,
    pub(crate) kubernetes_context: Option<String>,
    pub(crate) kubernetes_namespace: String,
    pub(crate) kubernetes_image: String,
    pub(crate) kubernetes_runtime_class: Option<String>,
    pub(crate) kubernetes_agent_sandbox: bool,
    pub(crate) sandbox_limits: LimitsChoice,
    pub(crate) sandbox_idle_seconds: u64,
    pub(crate) sandbox_memory_mb: u64,
    pub(crate) sandbox_processes: u32,
    pub(crate) sandbox_cpus: u32,
    pub(crate) sandbox_root: Option<PathBuf>,
    pub(crate) sandbox_disk_mb: u64,
    pub(crate) sandbox_io_mb: u64,
    pub(crate) sandbox_spares: u32,
    pub(crate) sandbox_warm_max: u32,
    pub(crate) turns: usize,
    pub(crate) turn_seconds: u64,
    pub(crate) turn_model_calls: u32,
    pub(crate) turn_tool_calls: u32,
    pub(crate) model_attempts: u32,
    pub(crate) model_backoff_ms: u64,
    pub(crate) model_window: u64,
    pub(crate) model_max_tokens: u32,
    pub(crate) rate_limits: String,
    pub(crate) lease_seconds: u64,
    pub(crate) work_lease_seconds: u64,
    pub(crate) retention_archived_days: Option<u64>,
    pub(crate) retention_idle_days: Option<u64>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    /// More models to list, each `{ id, display_name, created_at }`.
    #[serde(default)]
    pub(crate) models: Vec<ModelInfo>,
    pub(crate) database_url: Option<String>,
    pub(crate) database_connections: usize,
    pub(crate) blob_url: Option<String>,
    pub(crate) role: Role,
    pub(crate) node: Option<String>,
    pub(crate) egress_allow_private: Option<String>,
    pub(crate) package_registries: Option<String>,
    pub(crate) workspace_history: usize,
    pub(crate) host_packages_ok: bool,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        let (limits, sandbox) = (Limits::default(), vaquero_sandbox::Limits::default());
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7777)),
            data_dir: PathBuf::from("vaquero-data"),
            api_key: None,
            vault_key: None,
            anthropic_api_key: None,
            anthropic_base_url: "https://api.anthropic.com".to_owned(),
            sandbox: SandboxChoice::Local.name().to_owned(),
            docker_host: None,
            docker_image: "debian:stable".to_owned(),
            gvisor_runtime: "runsc".to_owned(),
            sandbox_plugin: None,
            sandbox_images: None,
            e2b_api_key: None,
            e2b_api_url: None,
            e2b_sandbox_url: None,
            e2b_template: "base".to_owned(),
            daytona_api_key: None,
            daytona_api_url: None,
            daytona_target: None,
            daytona_snapshot: None,
            modal_token_id: None,
            modal_token_secret: None,
            modal_server_url: None,
            modal_environment: None,
            modal_image: "debian:stable".to_owned(),
            kubernetes_context: None,
            kubernetes_namespace: "vaquero-sandboxes".to_owned(),
            kubernetes_image: "debian:stable".to_owned(),
            kubernetes_runtime_class: None,
            kubernetes_agent_sandbox: false,
            sandbox_limits: LimitsChoice::Enforced,
            sandbox_idle_seconds: 900,
            sandbox_memory_mb: sandbox.memory_bytes >> 20,
            sandbox_processes: sandbox.pids,
            sandbox_cpus: sandbox.cpu_millis / 1_000,
            sandbox_root: None,
            sandbox_disk_mb: sandbox.workspace_bytes >> 20,
            sandbox_io_mb: sandbox.io_bytes >> 20,
            sandbox_spares: 1,
            sandbox_warm_max: 32,
            turns: 256,
            turn_seconds: limits.turn_time.as_secs(),
            turn_model_calls: limits.model_calls,
            turn_tool_calls: limits.tool_calls,
            model_attempts: limits.attempts,
            model_backoff_ms: u64::try_from(limits.backoff.as_millis()).unwrap_or(u64::MAX),
            model_window: limits.window_tokens,
            model_max_tokens: 32_000,
            rate_limits: "off".to_owned(),
            lease_seconds: 30,
            work_lease_seconds: 60,
            retention_archived_days: None,
            retention_idle_days: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            models: Vec::new(),
            database_url: None,
            database_connections: 16,
            blob_url: None,
            role: Role::All,
            node: None,
            egress_allow_private: None,
            package_registries: None,
            workspace_history: 100,
            host_packages_ok: false,
        }
    }
}

impl Config {
    /// Reads all sources and checks the whole.
    pub(crate) fn load(args: &ServeArgs) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        let file =
            args.config.clone().or_else(|| std::env::var_os("VAQUERO_CONFIG").map(PathBuf::from));
        match &file {
            Some(file) if !file.is_file() => {
                bail!("the configuration file {} does not exist", file.display())
            }
            Some(file) => figment = figment.merge(Toml::file_exact(file)),
            None if Path::new("vaquero.toml").is_file() => {
                figment = figment.merge(Toml::file_exact("vaquero.toml"));
            }
            None => {}
        }
        for (name, value) in std::env::vars_os() {
            if let Some(variable) = FromVariable::of(&name, &value)? {
                figment = figment.merge(variable);
            }
        }
        figment = figment.merge(FromFlags(args.clone()));
        let config: Self = figment.extract().map_err(|error| describe(&error))?;
        config.checked(&figment)
    }

    fn checked(mut self, figment: &Figment) -> anyhow::Result<Self> {
        let source = |name: &str| figment.find_metadata(name).map(place).unwrap_or_default();
        if let Some(ranges) = &self.egress_allow_private
            && let Err(wrong) = networks(ranges)
        {
            let source = source("egress_allow_private");
            bail!(
                "egress_allow_private: `{wrong}` is no network; write CIDR, such as 10.1.0.0/16, with commas between several — from {source}"
            );
        }
        if let Some(hosts) = &self.package_registries
            && let Err(wrong) = crate::registries::check(hosts)
        {
            bail!("package_registries: {wrong} — from {}", source("package_registries"));
        }
        if self.role != Role::All && self.database_url.is_none() {
            bail!(
                "role: only servers that share a database can be `api` or `worker` alone; set database_url as well — from {}",
                source("role")
            );
        }
        if self.node.as_ref().is_some_and(|name| !is_name(name)) {
            bail!(
                "node: must be 1 to 64 characters of A-Z a-z 0-9 . _ - — from {}",
                source("node")
            );
        }
        if Rates::preset(&self.rate_limits).is_none() {
            bail!(
                "rate_limits: `{}` is not a preset; use `off`, `hosted` or `hosted-early` — from {}",
                self.rate_limits,
                source("rate_limits")
            );
        }
        let positive = [
            ("turns", self.turns as u64),
            ("sandbox_cpus", self.sandbox_cpus.into()),
            ("turn_seconds", self.turn_seconds),
            ("turn_model_calls", self.turn_model_calls.into()),
            ("model_attempts", self.model_attempts.into()),
            ("model_max_tokens", self.model_max_tokens.into()),
            ("lease_seconds", self.lease_seconds),
            ("work_lease_seconds", self.work_lease_seconds),
        ];
        self.check_sandboxes(&source)?;
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            bail!("{name}: must be at least 1 — from {}", source(name));
        }
        if self.anthropic_api_key.is_none() {
            self.anthropic_api_key =
                std::env::var("ANTHROPIC_API_KEY").ok().filter(|key| !key.is_empty());
        }
        Ok(self)
    }

    /// Private networks that sandboxes may reach.
    pub(crate) fn egress_allow_private(&self) -> Vec<IpNet> {
        self.egress_allow_private
            .as_deref()
            .and_then(|text| networks(text).ok())
            .unwrap_or_default()
    }

    /// How long sessions are kept.
    pub(crate) fn retention(&self) -> Retention {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(24 * 3600));
        Retention {
            archived: self.retention_archived_days.map(days),
            idle: self.retention_idle_days.map(days),
        }
    }

    /// The limits of a turn.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            turn_time: Duration::from_secs(self.turn_seconds),
            model_calls: self.turn_model_calls,
            tool_calls: self.turn_tool_calls,
            attempts: self.model_attempts,
            backoff: Duration::from_millis(self.model_backoff_ms),
            window_tokens: self.model_window,
            ..Limits::default()
        }
    }
}

/// Networks with commas between them; an address alone is a network of its own. Which one is wrong.
fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let one = |text: &str| {
        let text = text.trim();
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(address).ok_or_else(|| text.to_owned())
    };
    text.split(',').map(one).collect()
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// `HOST:PORT`; a name is resolved, and its first address taken.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let found = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.ok_or_else(|| {
        D::Error::custom(format!("`{text}` is no address; write HOST:PORT, such as 127.0.0.1:7777"))
    })
}
