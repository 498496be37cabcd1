//! SQLite keeps the seam's promises, agrees with the in-memory store on random histories, and keeps its own: durability, one holder, known schema, room.

use std::{path::Path, sync::Arc};
use tempfile::TempDir;
use vaquero_store::{
    Document, Expect, MemoryStore, SharedStore, Store, StoreError, Write, conformance,
};
use vaquero_store_sqlite::{OpenError, SqliteStore};
use vaquero_types::{Timestamp, WorkspaceId};

fn opened(directory: &TempDir) -> SharedStore {
    Arc::new(SqliteStore::open(directory.path()).expect("it opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let directories = std::sync::Mutex::new(Vec::new());
    conformance::check(|| async {
        let directory = tempfile::tempdir().expect("a directory");
        let store = opened(&directory);
        directories.lock().expect("not poisoned").push(directory);
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_histories_are_linearizable() {
    for seed in 1..=8 {
        let directory = tempfile::tempdir().expect("a directory");
        conformance::linearizable(seed, 9, 60, &[opened(&directory)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agrees_with_memory_on_random_histories() {
    for seed in 1..=12 {
        let directory = tempfile::tempdir().expect("a directory");
        let memory = Arc::new(MemoryStore::new());
        conformance::agree(seed * 7_919, 150, memory, opened(&directory)).await;
    }
}

fn document(id: &str, size: usize) -> Write {
    let document = Document {
        workspace: WorkspaceId::from_wire("wrkspc_a"),
        kind: "thing".to_owned(),
        id: id.to_owned(),
        parent: None,
        unique_key: None,
        created_at: Timestamp::from_micros(1),
        archived_at: None,
        revision: 0,
        body: "x".repeat(size),
    };
    Write::PutDocument { document, expect: Expect::Any }
}

async fn has(store: &dyn Store, id: &str) -> bool {
    let workspace = WorkspaceId::from_wire("wrkspc_a");
    store.document(&workspace, "thing", id).await.expect("readable").is_some()
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(directory.path()).expect("it opens");
    store.commit(vec![document("kept", 10)], Timestamp::from_micros(1)).await.expect("committed");
    store.close();
    let closed = store.commit(vec![document("late", 10)], Timestamp::from_micros(2)).await;
    assert!(closed.is_err(), "a closed store says so");
    drop(store);
    let store = SqliteStore::open(directory.path()).expect("it opens again");
    assert!(has(&store, "kept").await && !has(&store, "late").await);
}

#[tokio::test]
async fn a_second_holder_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let _store = SqliteStore::open(directory.path()).expect("it opens");
    match SqliteStore::open(directory.path()) {
        Err(OpenError::Locked { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(SqliteStore::open(directory.path()).expect("it opens"));
    let connection =
        rusqlite::Connection::open(directory.path().join("vaquero.db")).expect("it opens");
    connection.pragma_update(None, "user_version", 99).expect("written");
    drop(connection);
    let refused = SqliteStore::open(directory.path());
    assert!(matches!(refused, Err(OpenError::Newer { found: 99, .. })));
}

/// The child half of `acknowledged_commits_survive_a_kill`: commits and says so, until it is killed.
#[tokio::test]
async fn child_that_commits_until_it_is_killed() {
    let Ok(directory) = std::env::var("VAQUERO_TEST_COMMIT_INTO") else { return };
    let store = SqliteStore::open(Path::new(&directory)).expect("it opens");
    for number in 0_u64.. {
        store
            .commit(vec![document(&number.to_string(), 100)], Timestamp::from_micros(1))
            .await
            .expect("committed");
        println!("committed {number}");
    }
}

#[tokio::test]
async fn acknowledged_commits_survive_a_kill() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_that_commits_until_it_is_killed", "--nocapture"])
        .env("VAQUERO_TEST_COMMIT_INTO", directory.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut last = None;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("readable");
        if let Some(number) = line.trim().strip_prefix("committed ") {
            last = number.parse::<u64>().ok();
        }
        if last >= Some(100) {
            child.kill().expect("killed");
            break;
        }
    }
    child.wait().expect("reaped");
    let last = last.expect("some were committed");
    let store = SqliteStore::open(directory.path()).expect("it opens");
    for number in 0..=last {
        assert!(has(&store, &number.to_string()).await, "commit {number} was acknowledged");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    // A file system of two megabytes, where there is one to be had.
    let directory = tempfile::tempdir().expect("a directory");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(directory.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("left out: mounting needs root");
        return;
    }
    let data = directory.path().join("data");
    let store = SqliteStore::open(&data).expect("it opens");
    let mut refused = None;
    for number in 0..100 {
        let id = format!("d{number}");
        if let Err(error) =
            store.commit(vec![document(&id, 100_000)], Timestamp::from_micros(1)).await
        {
            refused = Some((id, error));
            break;
        }
    }
    let (id, error) = refused.expect("two megabytes are soon full");
    assert!(matches!(error, vaquero_store::CommitError::Store(StoreError::Full(_))), "{error:?}");
    assert!(!has(&store, &id).await, "nothing of it is there");
    assert!(has(&store, "d0").await, "reads go on");
    std::process::Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(directory.path())
        .status()
        .expect("there is room again");
    store
        .commit(vec![document(&id, 100_000)], Timestamp::from_micros(2))
        .await
        .expect("it works again");
    assert!(has(&store, &id).await);
    drop(store);
    std::process::Command::new("umount").arg(directory.path()).status().expect("unmounted");
}
