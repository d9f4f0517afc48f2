//! `WorkerJob::DeleteBackup`: removes one backup. The manifest goes first: a half-deleted backup must not look whole.

use super::store_failed;
use holdfast_archive::{HistoryFolder, Store, StoreError};
use holdfast_core::{
    BackupStoreSpec,
    wire::{HistoryPath, WorkerResult},
};

/// Does the job. May be repeated.
pub async fn run(store: &BackupStoreSpec, history: &HistoryPath, backup_uid: &str) -> WorkerResult {
    let work = async {
        let store = Store::open(store).await?;
        remove(&store, &HistoryFolder::new(history), backup_uid).await
    };
    match work.await {
        Ok(()) => WorkerResult::Deleted,
        Err(error) => store_failed(&error),
    }
}

/// Removes a backup, or the parts of one that never got its manifest.
pub async fn remove(store: &Store, folder: &HistoryFolder, backup_uid: &str) -> Result<(), StoreError> {
    store.delete(&folder.manifest(backup_uid)).await?;
    let keys: Vec<String> = store.list(&folder.base(backup_uid)).await?.into_iter().map(|o| o.key).collect();
    store.delete_all(&keys).await
}
