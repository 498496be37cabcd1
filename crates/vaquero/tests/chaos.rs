//! Three servers on one PostgreSQL, killed, stopped and cut off while sessions run, with clocks that are hours apart. What every client saw is compared with the log.

#![expect(clippy::panic_in_result_fn, reason = "assertions are what a test is for")]

mod cluster;

use cluster::{Chaos, Cluster};
use std::time::Duration;

/// How long the trouble lasts; `VAQUERO_TEST_CHAOS_SECONDS` for more of it.
fn seconds() -> u64 {
    let set = std::env::var("VAQUERO_TEST_CHAOS_SECONDS").ok();
    set.and_then(|seconds| seconds.parse().ok()).unwrap_or(20)
}

/// `VAQUERO_TEST_CHAOS_SEED` to see the same trouble again, as far as real processes repeat themselves.
fn seed() -> u64 {
    let set = std::env::var("VAQUERO_TEST_CHAOS_SEED").ok();
    set.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| u64::from(std::process::id()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_whatever_happens_to_servers_and_connections()
-> anyhow::Result<()> {
    let seed = seed();
    println!("seed {seed}");
    let Some(cluster) = Cluster::start(3, seed).await? else { return Ok(()) };
    let watched = cluster.watch(6).await?;
    cluster.trouble(Duration::from_secs(seconds()), Chaos::everything()).await?;
    let report = watched.finish(&cluster).await?;
    println!("{report}");
    assert!(report.accepted > 10 && report.kills > 0 && report.stops > 0, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_request() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(3, seed()).await? else { return Ok(()) };
    let watched = cluster.watch(6).await?;
    cluster.restart_each().await?;
    let report = watched.finish(&cluster).await?;
    println!("{report}");
    assert!(report.accepted > 10, "{report}");
    Ok(())
}
