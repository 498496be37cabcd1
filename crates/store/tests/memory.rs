//! The in-memory store keeps the seam's promises.

use std::sync::Arc;
use vaquero_store::{MemoryStore, SharedStore, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    conformance::check(|| async { Arc::new(MemoryStore::new()) as SharedStore }).await;
}
