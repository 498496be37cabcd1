//! Memory of an empty server, and what ten thousand parked sessions add.

use crate::{Args, instant::Instantly, machine, sessions};
use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use vaquero_testkit::eventually;

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    server.start().await?;
    let client = server.client().clone();
    let empty = machine::memory(server.pid().context("it runs")?)?;
    let schema = json!({ "type": "object", "properties": {} });
    let ask =
        json!([{ "type": "custom", "name": "ask", "description": "asks", "input_schema": schema }]);
    let count = args.count(10_000);
    let found = sessions::make(&client, ask, count).await?;
    stream::iter(&found)
        .map(|session| async { client.say(session, "#tool").await.map(drop) })
        .buffer_unordered(64)
        .try_collect::<()>()
        .await?;
    let last = found.last().context("a session")?;
    for session in [&found[0], last] {
        eventually("parked", || async {
            let events = client.events(session).await.ok()?;
            let idle = events.iter().any(|event| event["stop_reason"]["type"] == "requires_action");
            idle.then_some(())
        })
        .await?;
    }
    let parked = machine::memory(server.pid().context("it runs")?)?;
    println!(
        "memory: empty {:.1} MB; with {count} parked sessions {:.1} MB more",
        machine::megabytes(empty),
        machine::megabytes(parked.saturating_sub(empty))
    );
    server.kill().await?;
    server.start().await?;
    let again = machine::memory(server.pid().context("it runs")?)?;
    println!("  after a restart: {:.1} MB in all", machine::megabytes(again));
    Ok(())
}
