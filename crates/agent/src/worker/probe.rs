//! `WorkerJob::Probe`: writes an object, reads it back and deletes it. Each of the three rights is needed, and each may be missing.

use super::store_failed;
use bytes::Bytes;
use holdfast_archive::{Store, StoreError};
use holdfast_core::{BackupStoreSpec, wire::WorkerResult};

/// Does the job.
pub async fn run(store: &BackupStoreSpec, uid: &str) -> WorkerResult {
    match probe(store, uid).await {
        Ok(()) => WorkerResult::Probed,
        Err(error) => store_failed(&named(store, error)),
    }
}

/// Servers say that the bucket does not exist, and not which.
fn named(store: &BackupStoreSpec, error: StoreError) -> StoreError {
    match &store.s3 {
        Some(s3) if !error.message.contains(&s3.bucket) => {
            StoreError { message: format!("{} (spec.s3.bucket is {:?})", error.message, s3.bucket), ..error }
        }
        _ => error,
    }
}

async fn probe(store: &BackupStoreSpec, uid: &str) -> Result<(), StoreError> {
    let store = Store::open(store).await?;
    let key = format!(".holdfast-probe/{uid}");
    let content = Bytes::from(format!("probe {uid}"));
    // Left by an attempt that died half-way.
    store.delete(&key).await?;
    store.put_new(&key, content.clone()).await?;
    let back = store.get(&key).await?;
    if back != content {
        return Err(StoreError::new(
            "ContentDiffers",
            format!("{} gives back something else than was written", store.location(&key)),
            true,
        ));
    }
    // The manifest of a backup relies on this: a second writer must be refused.
    match store.put_new(&key, content).await {
        Err(error) if error.already_exists() => {}
        Err(error) => return Err(error),
        Ok(()) => {
            return Err(StoreError::new(
                "NoConditionalWrites",
                "the store overwrites an object that was to be created only if absent; backups cannot be made safe on it",
                true,
            ));
        }
    }
    store.delete(&key).await
}
