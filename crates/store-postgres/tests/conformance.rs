//! PostgreSQL keeps the seam's promises, and agrees with the in-memory store on random histories.

use std::sync::{Arc, Mutex};
use vaquero_store::{MemoryStore, SharedStore, conformance};
use vaquero_store_postgres::{Clock, PostgresConfig, PostgresStore};
use vaquero_testkit::Database;

async fn opened(database: &Database) -> SharedStore {
    let config = PostgresConfig { clock: Clock::Caller, ..PostgresConfig::new(&database.url) };
    Arc::new(PostgresStore::open(&config, "worker").await.expect("it opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let Some(_) = Database::create().await.expect("a server") else { return };
    let databases = Mutex::new(Vec::new());
    conformance::check(|| async {
        let database = Database::create().await.expect("a server").expect("it was there");
        let store = opened(&database).await;
        databases.lock().expect("not poisoned").push(database);
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_histories_on_several_servers_are_linearizable() {
    for seed in 1..=8 {
        let Some(database) = Database::create().await.expect("a server") else { return };
        let stores = [opened(&database).await, opened(&database).await, opened(&database).await];
        conformance::linearizable(seed, 9, 40, &stores).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_an_empty_database_at_once() {
    let Some(database) = Database::create().await.expect("a server") else { return };
    let opening = (0..8).map(|_| opened(&database));
    let stores = futures::future::join_all(opening).await;
    conformance::linearizable(1, 8, 10, &stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agrees_with_memory_on_random_histories() {
    for seed in 1..=12 {
        let Some(database) = Database::create().await.expect("a server") else { return };
        let memory = Arc::new(MemoryStore::new());
        conformance::agree(seed * 7_919, 150, memory, opened(&database).await).await;
    }
}
