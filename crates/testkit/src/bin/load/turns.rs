//! Turns per second: each session sends a message, reads its stream to the idle event and sends the next.

use crate::{Args, instant::Instantly, machine, sessions};
use anyhow::Context;
use serde_json::json;
use std::time::Instant;
use tokio::task::JoinSet;

pub(crate) async fn measure(args: &Args, at_once: usize) -> anyhow::Result<()> {
    let model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    server.start().await?;
    let client = server.client().clone();
    let pid = server.pid().context("it runs")?;
    let found = sessions::make(&client, json!([]), at_once).await?;
    let each = args.count(8_000).div_ceil(at_once);
    let mut streams = Vec::new();
    for session in found {
        streams.push((sessions::Following::open(&client, &session).await?, session));
    }
    let (started, used) = (Instant::now(), machine::processor_time(pid)?);
    let own = machine::processor_time(std::process::id())?;
    let mut tasks = JoinSet::new();
    for (mut stream, session) in streams {
        let client = client.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..each {
                let started = Instant::now();
                client.say(&session, "go").await?;
                stream.until("session.status_idle").await?;
                times.push(started.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = machine::Times::default();
    while let Some(done) = tasks.join_next().await {
        times.0.extend(done??);
    }
    let took = started.elapsed();
    let turns = u32::try_from(at_once * each)?;
    let server_cpu = machine::processor_time(pid)?.saturating_sub(used) / turns;
    let own_cpu = machine::processor_time(std::process::id())?.saturating_sub(own) / turns;
    let rate = f64::from(turns) / took.as_secs_f64();
    println!(
        "turns, {at_once} sessions at once: {rate:.0} per second, server CPU per turn {server_cpu:.2?}"
    );
    println!(
        "  a turn as its client sees it: {}; CPU per turn of this program, model included: {own_cpu:.2?}",
        times.line()
    );
    Ok(())
}
