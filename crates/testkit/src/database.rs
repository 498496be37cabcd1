//! A PostgreSQL database of a test's own, on the throw-away server that `cargo xtask test` (or `cargo xtask postgres`) starts.

use anyhow::Context;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio_postgres::{Client, NoTls};

/// A database; it goes with the value.
pub struct Database {
    /// How to reach it.
    pub url: String,
    admin: String,
    name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("the test database server")?;
    #[expect(clippy::disallowed_methods, reason = "it ends with its client")]
    tokio::spawn(async move {
        drop(connection.await);
    });
    Ok(client)
}

impl Database {
    /// A new, empty database; none where the suites of PostgreSQL were left out by name (`VAQUERO_TEST_POSTGRES=none`).
    pub async fn create() -> anyhow::Result<Option<Self>> {
        let admin = std::env::var("VAQUERO_TEST_POSTGRES").context(
            "VAQUERO_TEST_POSTGRES is not set: run `cargo xtask test`, or `cargo xtask postgres` and what it prints",
        )?;
        if admin == "none" {
            return Ok(None);
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", std::process::id());
        let client = connect(&admin).await?;
        client.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let base = admin.rsplit_once('/').context("the URL ends with a database")?.0;
        Ok(Some(Self { url: format!("{base}/{name}"), admin, name }))
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.url).await
    }

    /// Runs statements in it; `CURRENT_NAME` stands for its name.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let sql = &sql.replace("CURRENT_NAME", &self.name);
        Ok(self.connect().await?.batch_execute(sql).await?)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        // On a thread and a runtime of its own: the test's may be ending, and connections that are just being made on it must be able to go on, or the server waits for them.
        // Nobody waits for it; what it does not get done goes with the server.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                connect(&admin).await?.batch_execute(&sql).await?;
                anyhow::Ok(())
            })
        });
    }
}
