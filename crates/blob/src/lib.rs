//! Large bytes: a directory, or any store that speaks S3. What is stored has a name and never changes under it; bytes stream in and out in pieces.

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ObjectStore, PutPayload, WriteMultipart, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path as ObjectPath, prefix::PrefixStore,
};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Bytes of one part of an upload in parts; S3 takes no smaller ones than 5 MiB.
const PART: usize = 8 << 20;
/// Parts of one upload under way at once.
const PARTS: usize = 4;

/// Why bytes could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The URL is wrong.
    #[error("the blob URL cannot be used: {0}")]
    Url(String),
    /// There is nothing of this name.
    #[error("there is no blob `{0}`")]
    NotFound(String),
    /// The store failed.
    #[error("the blob store failed: {}", chain(.0))]
    Store(object_store::Error),
    /// What was to be stored could not be read.
    #[error("the bytes to store could not be read")]
    Source(#[source] std::io::Error),
}

/// An error with its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

/// A store of blobs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    place: String,
    shared: bool,
}

/// A blob as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// How long ago it was stored.
    pub age: Duration,
}

fn failed(name: &str, error: object_store::Error) -> BlobError {
    match error {
        object_store::Error::NotFound { .. } => BlobError::NotFound(name.to_owned()),
        error => BlobError::Store(error),
    }
}

fn at(name: &str) -> ObjectPath {
    ObjectPath::from(name)
}

impl Blobs {
    /// A directory, made if it does not exist.
    pub fn directory(directory: &Path) -> Result<Self, BlobError> {
        let wrong = |what: &dyn std::fmt::Display| {
            BlobError::Url(format!("{}: {what}", directory.display()))
        };
        std::fs::create_dir_all(directory).map_err(|error| wrong(&error))?;
        let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| wrong(&error))?;
        let place = directory.display().to_string();
        Ok(Self { store: Arc::new(store.with_automatic_cleanup(true)), place, shared: false })
    }

    /// `s3://bucket/prefix?endpoint=…&region=…`, or `file:///directory` for one that all servers see. Keys come from the usual `AWS_…` variables.
    pub fn open(url: &str) -> Result<Self, BlobError> {
        if let Some(directory) = url.strip_prefix("file://") {
            return Ok(Self { shared: true, ..Self::directory(Path::new(directory))? });
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(BlobError::Url("it must begin with s3:// or file://".to_owned()));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            return Err(BlobError::Url("it names no bucket".to_owned()));
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            builder = match name.as_ref() {
                "endpoint" => builder
                    .with_allow_http(value.starts_with("http://"))
                    .with_endpoint(value)
                    .with_virtual_hosted_style_request(false),
                "region" => builder.with_region(value),
                other => {
                    let message = format!("`{other}` is not one of endpoint, region");
                    return Err(BlobError::Url(message));
                }
            };
        }
        let store = builder.build().map_err(|error| BlobError::Url(chain(&error)))?;
        let store: Arc<dyn ObjectStore> = if prefix.is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, prefix.trim_end_matches('/')))
        };
        Ok(Self { store, place: format!("s3://{path}"), shared: true })
    }

    /// Where the bytes are, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether other servers see the same bytes.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Stores bytes that are at hand.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), BlobError> {
        let put = self.store.put(&at(name), PutPayload::from_bytes(bytes)).await;
        put.map(drop).map_err(|error| failed(name, error))
    }

    /// Stores bytes as they come; its size. Nothing is there under the name until all of it is.
    pub async fn put_stream(
        &self,
        name: &str,
        mut bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
    ) -> Result<u64, BlobError> {
        let upload = self.store.put_multipart(&at(name)).await;
        let mut upload =
            WriteMultipart::new_with_chunk_size(upload.map_err(|e| failed(name, e))?, PART);
        let mut size = 0;
        while let Some(piece) = bytes.next().await {
            match piece {
                Ok(piece) => {
                    size += piece.len() as u64;
                    upload.wait_for_capacity(PARTS).await.map_err(|error| failed(name, error))?;
                    upload.put(piece);
                }
                Err(error) => {
                    upload.abort().await.map_err(|error| failed(name, error))?;
                    return Err(BlobError::Source(error));
                }
            }
        }
        upload.finish().await.map_err(|error| failed(name, error))?;
        Ok(size)
    }

    /// A blob that is known to be small.
    pub async fn get(&self, name: &str) -> Result<Bytes, BlobError> {
        let found = self.store.get(&at(name)).await.map_err(|error| failed(name, error))?;
        found.bytes().await.map_err(|error| failed(name, error))
    }

    /// A blob in pieces.
    pub async fn get_stream(
        &self,
        name: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        let found = self.store.get(&at(name)).await.map_err(|error| failed(name, error))?;
        Ok(found.into_stream().map_err(BlobError::Store).boxed())
    }

    /// Whether there is a blob of this name.
    pub async fn exists(&self, name: &str) -> Result<bool, BlobError> {
        match self.store.head(&at(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(BlobError::Store(error)),
        }
    }

    /// Everything below a prefix.
    pub fn list(&self, prefix: &str) -> BoxStream<'static, Result<Listed, BlobError>> {
        #[expect(
            clippy::disallowed_methods,
            reason = "ages are measured against the store's own times"
        )]
        let now = SystemTime::now();
        let listed = self.store.list(Some(&at(prefix))).map_ok(move |found| Listed {
            name: found.location.to_string(),
            size: found.size,
            age: now.duration_since(found.last_modified.into()).unwrap_or_default(),
        });
        listed.map_err(BlobError::Store).boxed()
    }

    /// The names of what lies directly below a prefix, one level deep.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>, BlobError> {
        let found = self.store.list_with_delimiter(Some(&at(prefix))).await;
        let folders = found.map_err(|error| failed(prefix, error))?.common_prefixes;
        Ok(folders.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes a blob; one that is not there is no error.
    pub async fn remove(&self, name: &str) -> Result<(), BlobError> {
        match self.store.delete(&at(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BlobError::Store(error)),
        }
    }

    /// Removes everything below a prefix; how many there were.
    pub async fn remove_all(&self, prefix: &str) -> Result<usize, BlobError> {
        let names = self.store.list(Some(&at(prefix))).map_ok(|found| found.location).boxed();
        let removed = self.store.delete_stream(names).try_collect::<Vec<_>>().await;
        removed.map(|removed| removed.len()).map_err(|error| failed(prefix, error))
    }
}
