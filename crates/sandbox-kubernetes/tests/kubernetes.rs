//! Pods of a cluster, as the fake offers them: the demands on every provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vaquero_sandbox::ComputeProvider;
use vaquero_sandbox::conformance::{self, Finding, Outcome};
use vaquero_sandbox::remote::RemoteConfig;
use vaquero_sandbox_kubernetes::{KubernetesConfig, start};
use vaquero_testkit::Fake;

fn config(fake: &Fake, dir: &Path) -> (KubernetesConfig, RemoteConfig) {
    let file = dir.join("kubeconfig");
    std::fs::write(&file, fake.kubeconfig()).expect("it is written");
    let hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_kubernetes-fixture"));
    let config = KubernetesConfig { kubeconfig: Some(file), ..KubernetesConfig::default() };
    (config, RemoteConfig { hand_exe, ..RemoteConfig::new(dir) })
}

async fn demand_all(agent_sandbox: bool, rounds: u32) -> Vec<Finding> {
    let Some(fake) = Fake::start("kubernetes") else { return Vec::new() };
    let dir = tempfile::tempdir().expect("a directory");
    let (config, remote) = config(&fake, dir.path());
    let config = KubernetesConfig { agent_sandbox, ..config };
    let findings = conformance::run(
        &|uplink| {
            let (config, remote) = (config.clone(), remote.clone());
            Box::pin(async move {
                Ok(Arc::new(start(config, remote, uplink).await?) as Arc<dyn ComputeProvider>)
            })
        },
        Some("marked"),
        rounds,
    )
    .await;
    let (refused, others): (Vec<_>, Vec<_>) =
        findings.iter().cloned().partition(|it| matches!(it.outcome, Outcome::Refused(_)));
    conformance::all_hold(&others);
    let refused: Vec<_> = refused.iter().map(|it| it.demand.as_str()).collect();
    let not_its = [
        "A sandbox that ends in the middle of a call says so, and its files stay",
        "A sandbox is paused, and goes on with the next call",
        "An environment is set up once, for all its sessions",
    ];
    assert_eq!(refused, not_its);
    findings
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_do_all_that_is_demanded() {
    let findings = demand_all(false, 10).await;
    if !findings.is_empty() {
        conformance::keep("kubernetes", &findings);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_a_controller_makes_do_the_same() {
    demand_all(true, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let Some(fake) = Fake::start("kubernetes") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (good, remote) = config(&fake, dir.path());
    let wrong = |change: fn(&mut KubernetesConfig)| {
        let mut config = good.clone();
        change(&mut config);
        start(config, remote.clone(), None)
    };
    for (started, says) in [
        (wrong(|config| "no-such/image".clone_into(&mut config.image)).await, "ErrImagePull"),
        (wrong(|config| config.context = Some("other".to_owned())).await, "no Kubernetes cluster"),
        (
            wrong(|config| config.kubeconfig = Some("/nowhere".into())).await,
            "no Kubernetes cluster",
        ),
    ] {
        let error = started.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}
