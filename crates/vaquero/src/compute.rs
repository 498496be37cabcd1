//! Where sandboxes come from: every provider that the settings name, made and wired.

use crate::{
    config::{Config, LimitsChoice, SandboxChoice},
    uplink::Egress,
};
use anyhow::Context;
use std::{path::Path, sync::Arc, time::Duration};
use vaquero_api::{Provider, Sandboxes};
use vaquero_sandbox::{
    ComputeProvider, LimitsMode, LocalConfig, LocalProvider, Providers, UnsafeHost, Uplink,
};
use vaquero_sandbox_plugin::PluginConfig;

/// What makes the sandboxes.
pub(crate) async fn compute(
    config: &Config,
    egress: Egress,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let egress: Arc<dyn Uplink> = Arc::new(egress);
    let mut providers = Vec::new();
    for choice in config.sandboxes() {
        let provider = provider(config, choice, Some(Arc::clone(&egress))).await;
        providers.push(provider.with_context(|| format!("--sandbox {}", choice.name()))?);
    }
    let default = providers.remove(0);
    // Also where there is only one: an environment may name another.
    Ok(Arc::new(Providers::new(default, providers, config.allowed_images())))
}

/// Proves that a provider makes sandboxes here, in a place of its own: nothing of a server's is touched, and nothing stays.
pub(crate) async fn try_out(config: &Config, choice: SandboxChoice) -> anyhow::Result<()> {
    let beside = config.data_dir.parent().filter(|parent| parent.is_dir());
    let place = beside.map_or_else(std::env::temp_dir, Path::to_owned);
    let place = tempfile::Builder::new().prefix(".vaquero-doctor-").tempdir_in(place)?;
    let config = Config { data_dir: place.path().to_owned(), ..config.clone() };
    // It is open once its first sandbox has shown that the walls stand.
    provider(&config, choice, None).await?.shutdown(false).await;
    Ok(())
}

async fn provider(
    config: &Config,
    choice: SandboxChoice,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let mut local = LocalConfig::new(&config.data_dir);
    local.idle_stop = Duration::from_secs(config.sandbox_idle_seconds);
    local.spares = config.sandbox_spares;
    local.root.clone_from(&config.sandbox_root);
    local.limits_mode = match config.sandbox_limits {
        LimitsChoice::Enforced => LimitsMode::Enforced,
        LimitsChoice::Degraded => LimitsMode::Degraded,
    };
    match choice {
        SandboxChoice::Local => Ok(Arc::new(LocalProvider::start(local, egress).await?)),
        SandboxChoice::Docker => docker(config, None, egress).await,
        SandboxChoice::Gvisor => docker(config, Some(config.gvisor_runtime.clone()), egress).await,
        SandboxChoice::Plugin => {
            let command = config.sandbox_plugin.as_deref().unwrap_or_default();
            let command = command.split_whitespace().map(str::to_owned).collect();
            let mut plugin = PluginConfig::new(&config.data_dir, command);
            plugin.degraded = config.sandbox_limits == LimitsChoice::Degraded;
            plugin.idle_stop = Duration::from_secs(config.sandbox_idle_seconds);
            Ok(Arc::new(vaquero_sandbox_plugin::start(plugin, egress).await?))
        }
        SandboxChoice::E2b => e2b(config, egress).await,
        SandboxChoice::Modal => modal(config, egress).await,
        SandboxChoice::Daytona => daytona(config, egress).await,
        SandboxChoice::Kubernetes => kubernetes(config, egress).await,
        SandboxChoice::UnsafeHost => {
            tracing::warn!(
                "--sandbox=unsafe-host: THE MODEL'S COMMANDS RUN ON THIS HOST WITH THE SERVER'S RIGHTS. Nothing isolates them."
            );
            if config.sandboxes().len() > 1 {
                // It has the same files as the local provider, and another way to treat them.
                local.data_dir = config.data_dir.join("unsafe-host");
            }
            Ok(Arc::new(UnsafeHost::start(local, config.host_packages_ok).await?))
        }
    }
}

#[cfg(feature = "docker")]
async fn docker(
    config: &Config,
    runtime: Option<String>,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let mut docker =
        vaquero_sandbox_docker::DockerConfig::new(&config.data_dir, &config.docker_image);
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    docker.host = config.docker_host.clone().or(host).unwrap_or(docker.host);
    docker.own_kernel = runtime.is_some();
    docker.runtime = runtime;
    docker.degraded = config.sandbox_limits == LimitsChoice::Degraded;
    docker.idle_stop = Duration::from_secs(config.sandbox_idle_seconds);
    docker.spares = config.sandbox_spares;
    Ok(Arc::new(vaquero_sandbox_docker::start(docker, egress).await?))
}

/// What the providers of machines elsewhere have in common.
#[cfg(any(feature = "e2b", feature = "modal", feature = "daytona", feature = "kubernetes"))]
fn remote(config: &Config) -> vaquero_sandbox::remote::RemoteConfig {
    let mut remote = vaquero_sandbox::remote::RemoteConfig::new(&config.data_dir);
    remote.idle_stop = Duration::from_secs(config.sandbox_idle_seconds);
    remote
}

/// What the vendors' own tools read as well.
#[cfg(any(feature = "e2b", feature = "modal", feature = "daytona"))]
fn or_variable(setting: Option<&String>, variable: &str) -> Option<String> {
    let from_variable = || std::env::var(variable).ok().filter(|value| !value.is_empty());
    setting.cloned().or_else(from_variable)
}

#[cfg(feature = "e2b")]
async fn e2b(
    config: &Config,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let key = or_variable(config.e2b_api_key.as_ref(), "E2B_API_KEY");
    let key = key.context("E2B's key is missing: set VAQUERO_E2B_API_KEY or E2B_API_KEY")?;
    let mut e2b = vaquero_sandbox_e2b::E2bConfig::new(key);
    if let Some(domain) = or_variable(None, "E2B_DOMAIN") {
        e2b.api_url = format!("https://api.{domain}");
        e2b.domain = domain;
    }
    e2b.api_url = or_variable(config.e2b_api_url.as_ref(), "E2B_API_URL").unwrap_or(e2b.api_url);
    e2b.sandbox_url = or_variable(config.e2b_sandbox_url.as_ref(), "E2B_SANDBOX_URL");
    e2b.template.clone_from(&config.e2b_template);
    Ok(Arc::new(vaquero_sandbox_e2b::start(e2b, remote(config), egress).await?))
}

#[cfg(feature = "modal")]
async fn modal(
    config: &Config,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let missing = "Modal's token is missing: set VAQUERO_MODAL_TOKEN_ID and VAQUERO_MODAL_TOKEN_SECRET, or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET";
    let id = or_variable(config.modal_token_id.as_ref(), "MODAL_TOKEN_ID").context(missing)?;
    let secret = or_variable(config.modal_token_secret.as_ref(), "MODAL_TOKEN_SECRET");
    let mut modal = vaquero_sandbox_modal::ModalConfig::new(id, secret.context(missing)?);
    let url = or_variable(config.modal_server_url.as_ref(), "MODAL_SERVER_URL");
    modal.server_url = url.unwrap_or(modal.server_url);
    let environment = or_variable(config.modal_environment.as_ref(), "MODAL_ENVIRONMENT");
    modal.environment = environment.unwrap_or_default();
    modal.image.clone_from(&config.modal_image);
    Ok(Arc::new(vaquero_sandbox_modal::start(modal, remote(config), egress).await?))
}

#[cfg(feature = "daytona")]
async fn daytona(
    config: &Config,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let key = or_variable(config.daytona_api_key.as_ref(), "DAYTONA_API_KEY");
    let key =
        key.context("Daytona's key is missing: set VAQUERO_DAYTONA_API_KEY or DAYTONA_API_KEY")?;
    let mut daytona = vaquero_sandbox_daytona::DaytonaConfig::new(key);
    let url = or_variable(config.daytona_api_url.as_ref(), "DAYTONA_API_URL");
    daytona.api_url = url.unwrap_or(daytona.api_url);
    daytona.target = or_variable(config.daytona_target.as_ref(), "DAYTONA_TARGET");
    daytona.snapshot = config.daytona_snapshot.clone().unwrap_or_default();
    Ok(Arc::new(vaquero_sandbox_daytona::start(daytona, remote(config), egress).await?))
}

#[cfg(feature = "kubernetes")]
async fn kubernetes(
    config: &Config,
    egress: Option<Arc<dyn Uplink>>,
) -> anyhow::Result<Arc<dyn ComputeProvider>> {
    let kubernetes = vaquero_sandbox_kubernetes::KubernetesConfig {
        kubeconfig: None,
        context: config.kubernetes_context.clone(),
        namespace: config.kubernetes_namespace.clone(),
        image: config.kubernetes_image.clone(),
        runtime_class: config.kubernetes_runtime_class.clone(),
        agent_sandbox: config.kubernetes_agent_sandbox,
    };
    let started = vaquero_sandbox_kubernetes::start(kubernetes, remote(config), egress);
    Ok(Arc::new(started.await?))
}

/// What this program was built without.
macro_rules! left_out {
    ($feature:literal, $($arguments:ty),* => $name:ident) => {
        #[cfg(not(feature = $feature))]
        async fn $name($(_: $arguments),*) -> anyhow::Result<Arc<dyn ComputeProvider>> {
            anyhow::bail!(concat!(
                "this program was built without it: build it with `cargo build --release --features ",
                $feature,
                "`"
            ))
        }
    };
}

left_out!("docker", &Config, Option<String>, Option<Arc<dyn Uplink>> => docker);
left_out!("e2b", &Config, Option<Arc<dyn Uplink>> => e2b);
left_out!("modal", &Config, Option<Arc<dyn Uplink>> => modal);
left_out!("daytona", &Config, Option<Arc<dyn Uplink>> => daytona);
left_out!("kubernetes", &Config, Option<Arc<dyn Uplink>> => kubernetes);

/// What sessions can ask of them, the default first.
pub(crate) fn offers(config: &Config) -> Sandboxes {
    let offer = |choice: SandboxChoice| Provider {
        name: choice.name().to_owned(),
        isolated: choice != SandboxChoice::UnsafeHost,
        images: match choice {
            SandboxChoice::Local | SandboxChoice::UnsafeHost => None,
            _ => Some(config.allowed_images()),
        },
        installs: match choice {
            SandboxChoice::Plugin | SandboxChoice::Kubernetes => false,
            SandboxChoice::UnsafeHost => config.host_packages_ok,
            _ => true,
        },
        keeps_ready: !matches!(choice, SandboxChoice::Plugin | SandboxChoice::UnsafeHost),
    };
    Sandboxes(config.sandboxes().into_iter().map(offer).collect())
}
