//! The first tool call of a session on a cold sandbox, against the bare cost of the same namespaces on the same machine.

use crate::{Args, machine::Times};
use serde_json::json;
use std::{collections::BTreeMap, time::Instant};
use vaquero_sandbox::{
    ComputeProvider, Fence, LimitsMode, LocalConfig, LocalProvider, SandboxKey, SandboxSpec,
    measure_bare,
};

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let exe = std::path::absolute(&args.exe)?;
    let data = tempfile::tempdir()?;
    let mut config = LocalConfig::new(data.path());
    config.launcher_exe.clone_from(&exe);
    config.limits_mode = LimitsMode::Degraded;
    let provider = LocalProvider::start(config).await?;
    let spec = SandboxSpec {
        generation: 1,
        epoch: 1,
        limits: vaquero_sandbox::Limits::default(),
        env: BTreeMap::new(),
    };
    let fence = Fence { epoch: 1, generation: 1 };
    let (mut bare, mut cold, mut warm) = (Times::default(), Times::default(), Times::default());
    let input = json!({ "command": "true" });
    for index in 0..args.count(200) {
        bare.0.extend(measure_bare(&exe, 1).await?);
        let key = SandboxKey::default_of(format!("sesn_cold{index}"));
        let started = Instant::now();
        let sandbox = provider.ensure(&key, &spec).await?;
        sandbox.run("a", fence, "bash", &input, None).await?;
        cold.0.push(started.elapsed());
        let started = Instant::now();
        sandbox.run("b", fence, "bash", &input, None).await?;
        warm.0.push(started.elapsed());
        provider.destroy(&key.session).await?;
    }
    provider.shutdown(false).await;
    let ratio = cold.median().as_secs_f64() / bare.median().as_secs_f64();
    println!("first tool call, cold sandbox: {}", cold.line());
    println!("  bare namespaces, clone to exit: {}; ratio of the medians {ratio:.2}", bare.line());
    println!("  second call, warm: {}", warm.line());
    Ok(())
}
