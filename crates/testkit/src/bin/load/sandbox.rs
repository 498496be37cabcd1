//! The first tool call of a session, on a cold sandbox and with a spare one ready, against the bare cost of the same namespaces on the same machine.

use crate::{Args, machine::Times, others};
use serde_json::json;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use vaquero_sandbox::{
    Arrivals, ComputeProvider, Fence, LimitsMode, LocalConfig, LocalProvider, Meter, Outbound,
    Reach, SandboxKey, SandboxSpec, Traffic, Trust, Uplink, measure_bare,
};

/// Longer than it takes to make a spare.
const PAUSE: Duration = Duration::from_millis(30);

/// Sandboxes over which the memory of one is measured: they share most of it.
const IDLE: u64 = 20;

#[derive(Default)]
struct Calls {
    bare: Times,
    first: Times,
    second: Times,
    /// Of one idle sandbox, in KiB.
    memory: u64,
}

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let exe = std::path::absolute(&args.exe)?;
    let mut cold = calls(&exe, 0, args.count(200)).await?;
    let mut ready = calls(&exe, 1, args.count(200)).await?;
    for (name, calls) in [("cold sandbox", &mut cold), ("a spare one ready", &mut ready)] {
        let ratio = calls.first.median().as_secs_f64() / calls.bare.median().as_secs_f64();
        println!("first tool call, {name}: {}", calls.first.line());
        println!(
            "  bare namespaces, clone to exit: {}; ratio of the medians {ratio:.2}",
            calls.bare.line()
        );
        println!("  second call, warm: {}", calls.second.line());
    }
    println!("an idle sandbox, its hand and its shell: {} KiB", cold.memory);
    others::measure(args.count(50));
    Ok(())
}

/// A network is made for every sandbox, and nobody uses it.
#[derive(Debug)]
struct Nowhere;

impl Uplink for Nowhere {
    fn authority(&self) -> std::io::Result<Trust> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn serve(
        &self,
        _key: &SandboxKey,
        _outbound: &Outbound,
        _kept: Option<&str>,
        _arrivals: Arrivals,
        _over: CancellationToken,
    ) -> std::io::Result<Arc<dyn Meter>> {
        Ok(Arc::new(Traffic::default()))
    }
}

async fn calls(exe: &Path, spares: u32, count: usize) -> anyhow::Result<Calls> {
    let data = tempfile::tempdir()?;
    let mut config = LocalConfig::new(data.path());
    exe.clone_into(&mut config.launcher_exe);
    config.limits_mode = LimitsMode::Degraded;
    config.spares = spares;
    let provider = LocalProvider::start(config, Some(Arc::new(Nowhere))).await?;
    let spec = SandboxSpec {
        outbound: Some(Outbound { reach: Reach::Unrestricted, vaults: None }),
        ..SandboxSpec::new(1, 1, vaquero_sandbox::Limits::default())
    };
    let fence = Fence { epoch: 1, generation: 1 };
    let mut calls = Calls::default();
    let input = json!({ "command": "true" });
    for index in 0..=count {
        let key = SandboxKey::default_of(format!("sesn_{index}"));
        calls.bare.0.extend(measure_bare(exe, 1).await?);
        let started = Instant::now();
        let sandbox = provider.ensure(&key, &spec).await?;
        sandbox.run("a", fence, "bash", &input, None).await?;
        // The very first has no spare yet.
        if index > 0 {
            calls.first.0.push(started.elapsed());
        }
        let started = Instant::now();
        sandbox.run("b", fence, "bash", &input, None).await?;
        calls.second.0.push(started.elapsed());
        provider.destroy(&key.session).await?;
        tokio::time::sleep(PAUSE).await;
    }
    for index in 0..IDLE {
        let key = SandboxKey::default_of(format!("idle_{index}"));
        let sandbox = provider.ensure(&key, &spec).await?;
        sandbox.run("a", fence, "bash", &input, None).await?;
    }
    calls.memory = others::memory_of(data.path()) / IDLE;
    provider.shutdown(false).await;
    Ok(calls)
}
