//! One session, many followers: from the `POST` of a message to its arrival at each.

use crate::{Args, instant::Instantly, machine::Times, sessions};
use serde_json::json;
use std::{sync::Arc, time::Instant};
use tokio::{
    sync::{Barrier, broadcast},
    task::JoinSet,
};

pub(crate) async fn measure(args: &Args) -> anyhow::Result<()> {
    let model = Instantly::start().await?;
    let mut server = args.server(&model)?;
    server.start().await?;
    let client = server.client().clone();
    let session = sessions::make(&client, json!([]), 1).await?.remove(0);
    let (rounds, followers) = (20, args.count(1_000));
    let (ring, _) = broadcast::channel::<Instant>(4);
    // A round begins when every follower has seen the end of the one before.
    let ready = Arc::new(Barrier::new(followers + 1));
    let mut readers = JoinSet::new();
    for _ in 0..followers {
        let mut stream = sessions::Following::open(&client, &session).await?;
        let (mut bell, ready) = (ring.subscribe(), Arc::clone(&ready));
        readers.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..rounds {
                ready.wait().await;
                let started = bell.recv().await?;
                stream.until("user.message").await?;
                times.push(started.elapsed());
                stream.until("session.status_idle").await?;
            }
            anyhow::Ok(times)
        });
    }
    for _ in 0..rounds {
        tokio::time::timeout(vaquero_testkit::PATIENCE, ready.wait()).await?;
        let started = Instant::now();
        ring.send(started)?;
        client.say(&session, "go").await?;
        client.idle(&session).await?;
    }
    let mut times = Times::default();
    while let Some(done) = readers.join_next().await {
        times.0.extend(done??);
    }
    println!("POST to each of {followers} followers: {}", times.line());
    Ok(())
}
