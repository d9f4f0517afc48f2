//! Writing an object of any size with a fixed amount of memory. Touches the store.

use super::StoreError;
use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, PutPayload};
use std::time::Duration;
use tokio::task::JoinSet;

/// Bytes of one request of an upload. S3 allows 10,000 of them: 78 GiB an object, while PostgreSQL's files end at 1 GiB.
pub const UPLOAD_CHUNK: usize = 8 * 1024 * 1024;
/// Requests of one upload under way at once.
pub const UPLOADS_AT_ONCE: usize = 4;

/// An object that is being written. Dropped without [`Self::finish`] it leaves nothing that can be seen; on S3 the pieces sent so
/// far stay until [`Self::abort`] or the bucket's lifecycle rule for unfinished uploads removes them.
#[derive(Debug)]
pub struct Upload {
    inner: Box<dyn MultipartUpload>,
    location: String,
    deadline: Duration,
    pending: BytesMut,
    running: JoinSet<object_store::Result<()>>,
    written: u64,
}

impl Upload {
    pub(super) fn new(inner: Box<dyn MultipartUpload>, location: String, deadline: Duration) -> Self {
        let pending = BytesMut::with_capacity(UPLOAD_CHUNK);
        Self { inner, location, deadline, pending, running: JoinSet::new(), written: 0 }
    }

    /// Bytes given so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds bytes. Waits while [`UPLOADS_AT_ONCE`] requests are under way.
    ///
    /// # Errors
    /// What the store says, also of an earlier piece.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = UPLOAD_CHUNK - self.pending.len();
            self.pending.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if self.pending.len() == UPLOAD_CHUNK {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), StoreError> {
        while self.running.len() >= UPLOADS_AT_ONCE {
            self.wait_for_one().await?;
        }
        let chunk = std::mem::replace(&mut self.pending, BytesMut::with_capacity(UPLOAD_CHUNK)).freeze();
        self.running.spawn(self.inner.put_part(PutPayload::from(chunk)));
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<(), StoreError> {
        match tokio::time::timeout(self.deadline, self.running.join_next()).await {
            Ok(None) => Ok(()),
            Ok(Some(Ok(result))) => result.map_err(StoreError::of),
            Ok(Some(Err(lost))) => Err(StoreError::new("UploadFailed", lost.to_string(), false)),
            Err(_) => Err(StoreError::late("writing", &self.location, self.deadline)),
        }
    }

    /// Ends the object: from now on it can be seen, whole. Gives its size.
    ///
    /// # Errors
    /// What the store says; nothing can be seen then.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        let result = self.complete().await;
        if result.is_err() {
            self.abort().await;
        }
        result
    }

    async fn complete(&mut self) -> Result<u64, StoreError> {
        // An object without a byte needs one empty piece: S3 refuses an upload without any.
        if !self.pending.is_empty() || self.written == 0 {
            self.send().await?;
        }
        while !self.running.is_empty() {
            self.wait_for_one().await?;
        }
        match tokio::time::timeout(self.deadline, self.inner.complete()).await {
            Ok(result) => result.map(|_| self.written).map_err(StoreError::of),
            Err(_) => Err(StoreError::late("completing", &self.location, self.deadline)),
        }
    }

    /// Gives up and removes the pieces, as far as the store answers.
    pub async fn abort(mut self) {
        self.running.shutdown().await;
        if !matches!(tokio::time::timeout(self.deadline, self.inner.abort()).await, Ok(Ok(()))) {
            tracing::warn!(object = %self.location, "the pieces of an unfinished upload could not be removed");
        }
    }
}
