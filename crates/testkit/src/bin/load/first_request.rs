//! From the `POST` of a message to the request it makes of the model, on an idle server.

use crate::{Args, instant::Instantly, machine, sessions};
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let mut model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    server.start().await?;
    let client = server.client().clone();
    let found = sessions::make(&client, json!([]), 1).await?;
    let (mut times, mut synced) = (machine::Times::default(), machine::Times::default());
    for index in 0..args.count(400) {
        // Interleaved, so that both see the same disk.
        synced.0.extend(machine::fdatasync(1)?.0);
        let started = Instant::now();
        client.say(&found[0], "go").await?;
        let arrived = model.arrivals.recv().await.unwrap_or(started);
        if index >= 10 {
            times.0.push(arrived - started);
        }
        client.idle(&found[0]).await?;
    }
    let (median, disk) = (times.median(), synced.median());
    println!("POST to model request: {}", times.line());
    println!(
        "  fdatasync in the same run: {}; beyond two of them: {:.2?}",
        synced.line(),
        median.checked_sub(disk * 2).unwrap_or(Duration::ZERO)
    );
    Ok(())
}
