//! A thousand running sessions, `kill -9`, and the time until all of them are at work again.

use crate::{Args, instant::Instantly, sessions};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use std::time::Instant;

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let mut model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    server.set("VAQUERO_TURNS", "2000");
    server.start().await?;
    let client = server.client().clone();
    let count = args.count(1_000);
    let found = sessions::make(&client, json!([]), count).await?;
    stream::iter(&found)
        .map(|session| async { client.say(session, "#hold").await.map(drop) })
        .buffer_unordered(64)
        .try_collect::<()>()
        .await?;
    for _ in 0..count {
        model.arrivals.recv().await;
    }
    server.kill().await?;
    let started = Instant::now();
    server.start().await?;
    let healthy = started.elapsed();
    for _ in 0..count {
        model.arrivals.recv().await;
    }
    println!(
        "kill -9 with {count} running sessions: healthy after {healthy:.2?}, all at work again {:.2?} after that",
        started.elapsed().saturating_sub(healthy)
    );
    server.kill().await
}
