//! One type for S3 buckets and volumes. Touches the network and the files below the mounts that `holdfast_core::wire` names.
//!
//! Every call has a deadline. A request that fails for reasons that may pass is tried again for a bounded time: [`Store::open`]
//! gives up within about half a minute (archiving: PostgreSQL asks again by itself), [`Store::open_patient`] within three minutes
//! (backups and restores: hours of work should survive a short outage).
//!
//! Memory: an [`Upload`] holds at most ([`UPLOADS_AT_ONCE`] + 1) × [`UPLOAD_CHUNK`] = 40 MiB, whatever the object's size.

mod error;
mod s3;
mod upload;

pub use error::StoreError;
pub use upload::{UPLOAD_CHUNK, UPLOADS_AT_ONCE, Upload};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use holdfast_core::{BackupStoreSpec, wire};
use jiff::Timestamp;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, local::LocalFileSystem, path::Path as Key,
};
use std::{future::Future, path::Path, sync::Arc, time::Duration};

/// Longest time for one small request with all its retries.
const DEADLINE: Duration = Duration::from_secs(60);
/// The same for a patient store.
const PATIENT_DEADLINE: Duration = Duration::from_secs(240);
/// Requests at once where many objects are deleted.
const DELETES_AT_ONCE: usize = 8;

/// A place for backups and WAL. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// In front of every key inside the bucket.
    prefix: Key,
    /// For people: `s3://bucket/prefix`, `volume://claim/path`.
    location: String,
    deadline: Duration,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Key below the store's prefix.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

impl Store {
    /// Opens a store with the credentials and the CA that are mounted where `holdfast_core::wire` says.
    ///
    /// Sends no request: whether the bucket is there shows at the first use.
    ///
    /// # Errors
    /// `CredentialsMissing`, `InvalidCa`, `InvalidStore`; for a volume also what the file system says.
    pub async fn open(spec: &BackupStoreSpec) -> Result<Self, StoreError> {
        Self::open_with(spec, false).await
    }

    /// Like [`Self::open`], for work that took long: bears an outage of three minutes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_patient(spec: &BackupStoreSpec) -> Result<Self, StoreError> {
        Self::open_with(spec, true).await
    }

    async fn open_with(spec: &BackupStoreSpec, patient: bool) -> Result<Self, StoreError> {
        let deadline = if patient { PATIENT_DEADLINE } else { DEADLINE };
        match (&spec.s3, &spec.volume) {
            (Some(bucket), None) => {
                let inner = s3::open(bucket, patient).await?;
                let prefix = Key::parse(&bucket.prefix)
                    .map_err(|e| StoreError::new("InvalidStore", format!("spec.s3.prefix: {e}"), true))?;
                let slash = if bucket.prefix.is_empty() { "" } else { "/" };
                let location = format!("s3://{}{slash}{}", bucket.bucket, bucket.prefix);
                Ok(Self { inner: Arc::new(inner), prefix, location, deadline })
            }
            (None, Some(volume)) => {
                let inside = volume.path.trim_matches('/');
                if inside.split('/').any(|part| part == "..") {
                    return Err(StoreError::new(
                        "InvalidStore",
                        "spec.volume.path must not contain ..",
                        true,
                    ));
                }
                let folder = Path::new(wire::STORE_VOLUME_FOLDER).join(inside);
                let location = format!("volume://{}/{inside}", volume.claim_name);
                Ok(Self { location: location.trim_end_matches('/').into(), deadline, ..Self::at(&folder)? })
            }
            _ => {
                Err(StoreError::new("InvalidStore", "exactly one of spec.volume, spec.s3 must be set", true))
            }
        }
    }

    /// A store in a folder, which is made if it does not exist.
    ///
    /// # Errors
    /// What the file system says.
    pub fn at(folder: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|e| StoreError::file(folder, &e))?;
        // Without fsync an object that PostgreSQL was told is safe could be lost with the node's page cache.
        let inner = LocalFileSystem::new_with_prefix(folder).map_err(StoreError::of)?.with_fsync(true);
        Ok(Self {
            inner: Arc::new(inner),
            prefix: Key::default(),
            location: format!("file://{}", folder.display()),
            deadline: DEADLINE,
        })
    }

    /// Where a key lies, for people.
    pub fn location(&self, key: &str) -> String {
        format!("{}/{key}", self.location)
    }

    fn key(&self, key: &str) -> Result<Key, StoreError> {
        let below = Key::parse(key).map_err(|e| StoreError::new("InvalidKey", e.to_string(), true))?;
        Ok(self.prefix.parts().chain(below.parts()).collect())
    }

    fn below(&self, key: &Key) -> Option<String> {
        Some(Key::from_iter(key.prefix_match(&self.prefix)?).to_string())
    }

    async fn bounded<T>(
        &self,
        what: &str,
        key: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.deadline, work).await {
            Ok(result) => result.map_err(StoreError::of),
            Err(_) => Err(StoreError::late(what, &self.location(key), self.deadline)),
        }
    }

    /// Writes an object whether or not it exists.
    ///
    /// # Errors
    /// What the store says.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.key(key)?;
        self.bounded("writing", key, self.inner.put(&path, PutPayload::from(bytes))).await.map(drop)
    }

    /// Writes an object only if it does not exist, decided by the store itself.
    ///
    /// # Errors
    /// `AlreadyExists` ([`StoreError::already_exists`]) if it does. A lost answer to a request that did its work looks the same:
    /// where that matters use [`Self::put_same`].
    pub async fn put_new(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.put_pieces_new(key, vec![bytes]).await
    }

    /// As [`Self::put_new`], for content that comes in pieces: they are sent as they are, in one request.
    ///
    /// # Errors
    /// As [`Self::put_new`].
    pub async fn put_pieces_new(&self, key: &str, pieces: Vec<Bytes>) -> Result<(), StoreError> {
        let path = self.key(key)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from_iter(pieces);
        self.bounded("creating", key, self.inner.put_opts(&path, payload, options)).await.map(drop)
    }

    /// Writes an object only if it does not exist; the very same content counts as done. True: it was not there before.
    ///
    /// # Errors
    /// `AlreadyExists` if there is other content under this key.
    pub async fn put_same(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        match self.put_new(key, bytes.clone()).await {
            Ok(()) => Ok(true),
            Err(error) if error.already_exists() => {
                if self.get(key).await? == bytes {
                    return Ok(false);
                }
                let message = format!("{} exists with other content", self.location(key));
                Err(StoreError::new(StoreError::ALREADY_EXISTS, message, true))
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to write an object of any size. Nothing can be seen under the key before [`Upload::finish`].
    ///
    /// # Errors
    /// What the store says.
    pub async fn upload(&self, key: &str) -> Result<Upload, StoreError> {
        let path = self.key(key)?;
        let upload = self.bounded("beginning to write", key, self.inner.put_multipart(&path)).await?;
        Ok(Upload::new(upload, self.location(key), self.deadline))
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// `NotFound` ([`StoreError::not_found`]) or what the store says.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = self.key(key)?;
        self.bounded("reading", key, async { self.inner.get(&path).await?.bytes().await }).await
    }

    /// Reads a small object whole; None if it does not exist.
    ///
    /// # Errors
    /// What the store says.
    pub async fn find(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        match self.get(key).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object piece by piece; each piece has its own deadline, so the object may be of any size.
    ///
    /// # Errors
    /// `NotFound` or what the store says. Errors on the way come as an item of the stream.
    pub async fn stream(
        &self,
        key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        let path = self.key(key)?;
        let stream = self.bounded("reading", key, self.inner.get(&path)).await?.into_stream();
        Ok(with_deadlines(stream, self.deadline, self.location(key)).boxed())
    }

    /// What the store says of an object; None if it does not exist.
    ///
    /// # Errors
    /// What the store says.
    pub async fn head(&self, key: &str) -> Result<Option<Object>, StoreError> {
        let path = self.key(key)?;
        match self.bounded("looking at", key, self.inner.head(&path)).await {
            Ok(meta) => Ok(self.object(&meta)),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn object(&self, meta: &object_store::ObjectMeta) -> Option<Object> {
        let modified = Timestamp::new(
            meta.last_modified.timestamp(),
            meta.last_modified.timestamp_subsec_nanos() as i32,
        );
        Some(Object { key: self.below(&meta.location)?, size: meta.size, modified: modified.ok()? })
    }

    /// All objects below a folder, at any depth, ordered by key. A folder that does not exist is empty.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, StoreError> {
        let path = self.key(folder)?;
        let stream = with_deadlines(self.inner.list(Some(&path)), self.deadline, self.location(folder));
        let metas: Vec<_> = stream.try_collect().await?;
        let mut objects: Vec<Object> = metas.iter().filter_map(|meta| self.object(meta)).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Names of the folders directly inside a folder, ordered; an empty name means the store's top.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.key(folder)?;
        let found = self.bounded("listing", folder, self.inner.list_with_delimiter(Some(&path))).await?;
        let mut names: Vec<String> =
            found.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_string)).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes an object; one that does not exist is no error.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.key(key)?;
        match self.bounded("deleting", key, self.inner.delete(&path)).await {
            Err(error) if !error.not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes objects, several at once; ends with the first error.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        futures::stream::iter(keys)
            .map(|key| self.delete(key))
            .buffer_unordered(DELETES_AT_ONCE)
            .try_collect()
            .await
    }
}

/// Gives each item of a stream its own deadline: a store that stops in the middle must not hang its reader.
fn with_deadlines<T: 'static>(
    stream: BoxStream<'static, object_store::Result<T>>,
    deadline: Duration,
    location: String,
) -> impl futures::Stream<Item = Result<T, StoreError>> {
    futures::stream::try_unfold(stream, move |mut stream| {
        let location = location.clone();
        async move {
            match tokio::time::timeout(deadline, stream.next()).await {
                Ok(None) => Ok(None),
                Ok(Some(item)) => Ok(Some((item.map_err(StoreError::of)?, stream))),
                Err(_) => Err(StoreError::late("reading", &location, deadline)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(&folder.path().join("deep/store")).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn an_object_can_be_created_once_and_the_same_content_counts_as_done() {
        let (_folder, store) = store();
        store.put_new("a/b", Bytes::from_static(b"one")).await.unwrap();
        assert!(store.put_new("a/b", Bytes::from_static(b"one")).await.unwrap_err().already_exists());
        assert!(!store.put_same("a/b", Bytes::from_static(b"one")).await.unwrap());
        assert!(store.put_same("a/b", Bytes::from_static(b"two")).await.unwrap_err().already_exists());
        assert_eq!(store.get("a/b").await.unwrap(), "one");
        assert_eq!(store.head("a/b").await.unwrap().unwrap().size, 3);
    }

    #[tokio::test]
    async fn what_is_not_there_is_none_or_empty_and_can_be_deleted() {
        let (_folder, store) = store();
        assert!(store.get("x").await.unwrap_err().not_found());
        assert_eq!(store.find("x").await.unwrap(), None);
        assert_eq!(store.head("x").await.unwrap(), None);
        assert_eq!(store.list("x").await.unwrap(), []);
        assert!(store.list_folders("x").await.unwrap().is_empty());
        store.delete("x").await.unwrap();
    }

    #[tokio::test]
    async fn lists_objects_at_any_depth_and_folders_one_deep() {
        let (_folder, store) = store();
        for key in ["f/b/2", "f/a/1", "f/z", "other"] {
            store.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        let keys: Vec<String> = store.list("f").await.unwrap().into_iter().map(|o| o.key).collect();
        assert_eq!(keys, ["f/a/1", "f/b/2", "f/z"]);
        assert_eq!(store.list_folders("f").await.unwrap(), ["a", "b"]);
        assert_eq!(store.list_folders("").await.unwrap(), ["f"]);
        store.delete_all(&keys).await.unwrap();
        assert!(store.list("f").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_large_object_goes_up_in_pieces_and_is_seen_only_when_it_is_whole() {
        let (_folder, store) = store();
        let block = Bytes::from(vec![7_u8; 1_000_003]);
        let mut upload = store.upload("big").await.unwrap();
        for _ in 0..20 {
            upload.write(block.clone()).await.unwrap();
        }
        assert_eq!(store.head("big").await.unwrap(), None);
        assert_eq!(upload.finish().await.unwrap(), 20_000_060);
        assert_eq!(store.head("big").await.unwrap().unwrap().size, 20_000_060);
        let read: Vec<Bytes> = store.stream("big").await.unwrap().try_collect().await.unwrap();
        assert_eq!(read.concat(), block.repeat(20));
        let mut given_up = store.upload("other").await.unwrap();
        given_up.write(block).await.unwrap();
        given_up.abort().await;
        assert!(store.list("other").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_key_cannot_leave_the_store() {
        let (_folder, store) = store();
        assert_eq!(store.get("../x").await.unwrap_err().reason, "InvalidKey");
    }

    #[tokio::test]
    async fn a_spec_without_or_with_two_places_is_refused() {
        let spec = BackupStoreSpec { volume: None, s3: None, max_parallel_backups: 1 };
        assert_eq!(Store::open(&spec).await.unwrap_err().reason, "InvalidStore");
    }
}
