//! The same promises on a directory and on a store that speaks S3: another project's server, which checks signatures.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use std::path::Path;
use tokio::{net::TcpListener, task::JoinHandle};
use vaquero_blob::{BlobError, Blobs};

async fn holds(blobs: &Blobs) {
    assert!(matches!(blobs.get("none").await, Err(BlobError::NotFound(name)) if name == "none"));
    assert!(!blobs.exists("a/one").await.expect("asked"));
    blobs.put("a/one", Bytes::from_static(b"1")).await.expect("stored");
    blobs.put("a/b/two", Bytes::from_static(b"22")).await.expect("stored");
    blobs.put("c/three", Bytes::new()).await.expect("stored");
    assert_eq!(blobs.get("a/one").await.expect("there"), "1");
    assert!(blobs.exists("c/three").await.expect("asked"));
    let mut listed: Vec<_> = blobs.list("a").try_collect().await.expect("listed");
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<_> = listed.iter().map(|found| (found.name.as_str(), found.size)).collect();
    assert_eq!(names, [("a/b/two", 2), ("a/one", 1)]);
    assert_eq!(blobs.folders("a").await.expect("listed"), ["b"]);

    // Larger than a part of an upload, in pieces that do not fit its parts.
    let pieces = (0..200_u8).map(|n| Ok(Bytes::from(vec![n; 100_003])));
    let size = blobs.put_stream("large", stream::iter(pieces)).await.expect("stored");
    assert_eq!(size, 200 * 100_003);
    let mut read = blobs.get_stream("large").await.expect("there");
    let mut place = 0_usize;
    while let Some(piece) = read.next().await {
        for byte in piece.expect("read") {
            assert_eq!(usize::from(byte), place / 100_003);
            place += 1;
        }
    }
    assert_eq!(place, 200 * 100_003);
    // An upload that is cut off leaves nothing.
    let cut = vec![Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("cut"))];
    let refused = blobs.put_stream("cut", stream::iter(cut)).await;
    assert!(matches!(refused, Err(BlobError::Source(_))), "{refused:?}");
    assert!(!blobs.exists("cut").await.expect("asked"));

    blobs.remove("a/one").await.expect("removed");
    blobs.remove("a/one").await.expect("nothing there is no error");
    assert_eq!(blobs.remove_all("a").await.expect("removed"), 1);
    assert!(blobs.list("a").next().await.is_none());
    assert!(blobs.exists("c/three").await.expect("asked"), "others stay");
}

#[tokio::test]
async fn a_directory_holds() {
    let place = tempfile::tempdir().expect("made");
    let blobs = Blobs::directory(&place.path().join("blobs")).expect("opened");
    assert!(!blobs.is_shared());
    holds(&blobs).await;
    let url = format!("file://{}", place.path().join("shared").display());
    assert!(Blobs::open(&url).expect("opened").is_shared());
}

/// Serves a directory as S3 until the task is aborted; its address.
async fn serve(directory: &Path) -> (String, JoinHandle<()>) {
    let mut service = S3ServiceBuilder::new(FileSystem::new(directory).expect("a directory"));
    service.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    #[expect(clippy::disallowed_methods, reason = "aborted at the end of the test")]
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let server = Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (address, task)
}

/// The child half of `s3_holds`: keys come from the environment, which a test must not change for others.
#[tokio::test]
async fn child_with_keys() {
    let Ok(url) = std::env::var("VAQUERO_TEST_BLOB_URL") else { return };
    let blobs = Blobs::open(&url).expect("opened");
    if std::env::var("AWS_SECRET_ACCESS_KEY").is_ok_and(|secret| secret == "secret") {
        holds(&blobs).await;
    } else {
        let error = blobs.put("x", Bytes::new()).await.expect_err("a wrong key").to_string();
        assert!(error.contains("SignatureDoesNotMatch") || error.contains("403"), "{error}");
        assert!(!error.contains("wrong-secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_holds() {
    let place = tempfile::tempdir().expect("made");
    std::fs::create_dir(place.path().join("bucket")).expect("made");
    let (address, task) = serve(place.path()).await;
    for secret in ["secret", "wrong-secret"] {
        let url = format!("s3://bucket/some/prefix?endpoint={address}&region=here");
        let status = tokio::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_with_keys", "--nocapture"])
            .env("VAQUERO_TEST_BLOB_URL", url)
            .envs([("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", secret)])
            .status()
            .await
            .expect("it runs");
        assert!(status.success(), "{secret}");
    }
    assert!(place.path().join("bucket/some/prefix/c/three").exists(), "below the prefix");
    task.abort();
}

#[test]
fn wrong_urls_are_named() {
    for (url, why) in [
        ("gs://bucket", "must begin with s3:// or file://"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket?colour=red", "`colour` is not one of"),
        ("file:///proc/nowhere", "/proc/nowhere"),
    ] {
        let error = Blobs::open(url).expect_err(url).to_string();
        assert!(error.contains(why), "{url}: {error}");
    }
}
