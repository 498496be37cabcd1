//! A provider of one's own: the example of the documentation, held to what every provider is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vaquero_sandbox::conformance::{self, Outcome};
use vaquero_sandbox::{ComputeProvider, SandboxError, attacks};
use vaquero_sandbox_plugin::{PluginConfig, start};

/// The example; none where its program is missing, or may not make what it is asked for.
fn example(dir: &Path) -> Option<PluginConfig> {
    let there = |program: &str| {
        Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success())
    };
    let root = Command::new("id").arg("-u").output().is_ok_and(|said| said.stdout == b"0\n");
    if !(there("bwrap") && there("python3") && root) {
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/bubblewrap.py");
    let mut config = PluginConfig::new(dir, vec!["python3".to_owned(), script.to_owned()]);
    config.hand_exe = PathBuf::from(env!("CARGO_BIN_EXE_plugin-fixture"));
    config.degraded = true;
    Some(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_does_all_that_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = example(dir.path()) else { return };
    let findings = conformance::run(
        &|uplink| {
            let config = config.clone();
            Box::pin(async move {
                Ok(Arc::new(start(config, uplink).await?) as Arc<dyn ComputeProvider>)
            })
        },
        None,
        50,
    )
    .await;
    let outcome = |wanted: fn(&Outcome) -> bool| {
        findings.iter().filter(move |finding| wanted(&finding.outcome))
    };
    let fails: Vec<_> =
        outcome(|o| matches!(o, Outcome::Fails(_))).map(ToString::to_string).collect();
    let refused: Vec<_> =
        outcome(|o| matches!(o, Outcome::Refused(_))).map(|f| f.demand.as_str()).collect();
    assert!(fails.is_empty(), "{}", fails.join("\n"));
    let not_its = [
        "A sandbox is paused, and goes on with the next call",
        "Sandboxes are ready before they are wanted",
        "An environment is set up once, for all its sessions",
        "An image of one's own",
    ];
    assert_eq!(refused, not_its);
}

/// All but those that limits hold off: it has none.
#[tokio::test(flavor = "multi_thread")]
async fn no_attack_succeeds_against_the_example() {
    let dir = tempfile::tempdir().unwrap();
    let Some(config) = example(dir.path()) else { return };
    let watcher = Arc::new(attacks::Watcher::default());
    let provider = start(config, Some(watcher)).await.unwrap();
    let verdicts = attacks::run(&provider, |number| number < 38).await;
    provider.shutdown(false).await;
    let succeeded: Vec<_> = verdicts.iter().filter(|verdict| verdict.outcome.is_err()).collect();
    assert!(verdicts.len() > 30 && succeeded.is_empty(), "{succeeded:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_plugin_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (command, says) in [
        (vec!["/no/such/program"], "cannot be started"),
        (vec!["false"], "the plug-in"),
        (vec!["sh", "-c", "read x; echo '{\"id\":1,\"error\":\"no luck\"}'"], "no luck"),
        (vec!["sh", "-c", "read x; echo '{\"id\":1,\"ok\":{\"version\":9}}'"], "version 9"),
        (vec!["sh", "-c", "read x; echo '{\"id\":1,\"ok\":{\"version\":1}}'"], "keeps no limits"),
        (vec!["sh", "-c", "read x; echo '{\"id\":1,\"ok\":[]}'"], "another than was asked for"),
    ] {
        let command = command.into_iter().map(str::to_owned).collect();
        let error = start(PluginConfig::new(dir.path(), command), None).await.err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
        assert!(!matches!(error, SandboxError::Protocol(_)), "{error}");
    }
}
