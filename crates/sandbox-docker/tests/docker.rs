//! Sandboxes of a real Docker engine: the demands on every provider, and the attacks.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{CreateImageOptionsBuilder, ListContainersOptions};
use futures::StreamExt;
use vaquero_sandbox::conformance;
use vaquero_sandbox::{ComputeProvider, Fence, Limits, SandboxKey, SandboxSpec, attacks};
use vaquero_sandbox_docker::{DockerConfig, start};

/// The engine that `cargo xtask test` started; none where there cannot be one.
fn config(dir: &Path) -> Option<DockerConfig> {
    let host = std::env::var("VAQUERO_TEST_DOCKER").expect(
        "`cargo xtask docker` starts an engine for this; VAQUERO_TEST_DOCKER=none leaves it out",
    );
    if host == "none" {
        return None;
    }
    let mut config = DockerConfig::new(dir, "vaquero-test:latest");
    config.host = host;
    config.hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_docker-fixture"));
    Some(config)
}

/// gVisor, where the engine has it.
fn gvisor(dir: &Path) -> Option<DockerConfig> {
    let runtime = std::env::var("VAQUERO_TEST_DOCKER_RUNTIME").ok();
    let config = config(dir)?;
    Some(DockerConfig { runtime: Some(runtime?), own_kernel: true, ..config })
}

async fn demand(name: &str, config: DockerConfig) {
    let findings = conformance::run(
        &|uplink| {
            let config = config.clone();
            Box::pin(async move {
                Ok(Arc::new(start(config, uplink).await?) as Arc<dyn ComputeProvider>)
            })
        },
        Some("vaquero-test:marked"),
        20,
    )
    .await;
    conformance::keep(name, &findings);
    conformance::all_hold(&findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_do_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    demand("docker", config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_with_a_kernel_of_their_own_do_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = gvisor(dir.path()) else { return };
    demand("gvisor", config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    attack(config, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds_against_gvisor() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = gvisor(dir.path()) else { return };
    // Traced, its kernel is slow, and what fills or spins takes its time: one of each.
    attack(config, |number| number < 38 || [39, 40, 43].contains(&number)).await;
}

async fn attack(config: DockerConfig, which: impl Fn(u8) -> bool) {
    let watcher = Arc::new(attacks::Watcher::default());
    let provider = start(config, Some(watcher)).await.unwrap();
    let verdicts = attacks::run(&provider, which).await;
    provider.shutdown(false).await;
    assert!(verdicts.len() > 25);
    conformance::keep_attacks(provider.capabilities().name, &verdicts);
    let told = |v: &attacks::Verdict| {
        Some(format!("{} {}: {}", v.number, v.name, v.outcome.as_ref().err()?))
    };
    let succeeded: Vec<String> = verdicts.iter().filter_map(told).collect();
    assert!(succeeded.is_empty(), "{}", succeeded.join("\n\n"));
}

/// The running containers of a provider by what their names say of their sessions, with their ids.
async fn containers(host: &str, dir: &Path) -> BTreeMap<String, String> {
    let path = host.trim_start_matches("unix://");
    let engine = bollard::Docker::connect_with_unix(path, 60, bollard::API_DEFAULT_VERSION);
    let engine = engine.unwrap().negotiate_version().await.unwrap();
    let listed = engine.list_containers(None::<ListContainersOptions>).await.unwrap();
    let named = listed.into_iter().filter_map(|container| {
        let sources = container.mounts?.into_iter().filter_map(|mount| mount.source);
        sources.map(PathBuf::from).find(|source| source.starts_with(dir))?;
        let name = container.names?.first()?.clone();
        Some((name.split('.').nth(2)?.to_owned(), container.id?))
    });
    named.collect()
}

fn plain() -> SandboxSpec {
    SandboxSpec {
        env: BTreeMap::from([("OF".to_owned(), "all".to_owned())]),
        ..SandboxSpec::new(1, 1, Limits::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_ready_before_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    let host = config.host.clone();
    let spare = async || {
        for _ in 0..600 {
            let all = containers(&host, dir.path()).await;
            if let Some((_, id)) = all.iter().find(|(session, _)| session.starts_with("spare-")) {
                return id.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("there is none");
    };
    let provider = start(config, None).await.unwrap();
    provider.prepare(&plain());
    let session = format!("spares-{}", std::process::id());
    let key = SandboxKey::default_of(&session);
    let ready = spare().await;
    let sandbox = provider.ensure(&key, &plain()).await.unwrap();
    let now = containers(&host, dir.path()).await;
    assert_eq!(now.get(&session), Some(&ready), "it is the one that was ready");
    let fence = Fence { epoch: 1, generation: 1 };
    let input = serde_json::json!({ "command": "echo hello >file; cat file; echo $OF" });
    let result = sandbox.run("call", fence, "bash", &input, None).await.unwrap();
    assert!(!result.is_error, "{result:?}");
    let file = dir.path().join("docker/workspaces").join(&session).join("workspace/file");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "hello\n", "its files are the session's");
    let next = spare().await;
    assert_ne!(next, ready, "another is ready for the next one");
    assert!(!provider.sessions().await.unwrap().iter().any(|name| name.starts_with("spare-")));
    provider.destroy(&session).await.unwrap();
    provider.shutdown(true).await;
    assert_eq!(containers(&host, dir.path()).await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_environment_has_installed_cannot_be_named_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = config(dir.path()) else { return };
    let engine = bollard::Docker::connect_with_unix(
        config.host.trim_start_matches("unix://"),
        60,
        bollard::API_DEFAULT_VERSION,
    );
    let engine = engine.unwrap().negotiate_version().await.unwrap();
    let options =
        CreateImageOptionsBuilder::default().from_src("-").repo("vaquero/other").tag("layer");
    // An archive without a file, which is an image all the same.
    let empty = bollard::body_full(vec![0; 1024].into());
    let made = engine.create_image(Some(options.build()), Some(empty), None);
    assert!(made.collect::<Vec<_>>().await.iter().all(Result::is_ok));
    let id = engine.inspect_image("vaquero/other:layer").await.unwrap().id.unwrap();
    let provider = start(config, None).await.unwrap();
    let short = id.trim_start_matches("sha256:")[..20].to_owned();
    for name in ["vaquero/other:layer".to_owned(), id, short] {
        let wanted = SandboxSpec { image: Some(name.clone()), ..plain() };
        let refused = provider.ensure(&SandboxKey::default_of("thief"), &wanted).await;
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains("cannot be named"), "{name}: {refused}");
    }
    provider.shutdown(false).await;
}
