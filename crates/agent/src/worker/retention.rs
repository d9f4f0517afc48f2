//! `WorkerJob::Retention`: removes what the rules no longer keep. What goes is decided by `holdfast_archive::retention`, pure.

use super::{delete, store_failed};
use holdfast_archive::{
    HistoryFolder, Store,
    catalogue::{self, CatalogueError},
    retention,
};
use holdfast_core::{
    BackupStoreSpec,
    crd::schedule::Retention,
    wire::{HistoryPath, WorkerResult},
};
use jiff::Timestamp;

/// Backups removed in one run: their uids have to fit the answer.
const AT_ONCE: usize = 60;

/// Does the job. May be repeated, also after it died half-way.
pub async fn run(
    store: &BackupStoreSpec,
    namespace: &str,
    database: &str,
    rules: &[Retention],
    pinned: &[String],
    now: &str,
) -> WorkerResult {
    let now: Timestamp = match now.parse() {
        Ok(now) => now,
        Err(error) => {
            return WorkerResult::Failed {
                reason: "InvalidJob".into(),
                message: format!("{now:?} is no time: {error}"),
                permanent: true,
            };
        }
    };
    let store = match Store::open(store).await {
        Ok(store) => store,
        Err(error) => return store_failed(&error),
    };
    match expire(&store, namespace, database, rules, pinned, now).await {
        Ok(result) => result,
        Err(error) => WorkerResult::Failed {
            reason: error.reason().into(),
            message: error.to_string(),
            permanent: error.permanent(),
        },
    }
}

async fn expire(
    store: &Store,
    namespace: &str,
    database: &str,
    rules: &[Retention],
    pinned: &[String],
    now: Timestamp,
) -> Result<WorkerResult, CatalogueError> {
    let mut histories = Vec::new();
    for path in catalogue::histories(store, namespace, database).await? {
        histories.push(catalogue::history(store, &path).await?);
    }
    let removal = retention::decide(&histories, rules, pinned, now);
    let more = removal.backups.len() > AT_ONCE;
    let mut expired = Vec::new();
    for (path, uid) in removal.backups.iter().take(AT_ONCE) {
        remove(store, path, uid).await?;
        tracing::info!(backup = %uid, history = ?path, "removed");
        expired.push(uid.clone());
    }
    for (path, uid) in &removal.garbage {
        remove(store, path, uid).await?;
        tracing::info!(backup = %uid, history = ?path, "removed parts without a manifest");
    }
    // WAL goes last, and only when every backup that needed it is gone.
    let wal = if more { &[][..] } else { &removal.wal[..] };
    store.delete_all(wal).await?;
    Ok(WorkerResult::Retained {
        kept: i64::try_from(removal.kept).unwrap_or(i64::MAX),
        expired,
        wal_removed: i64::try_from(wal.len()).unwrap_or(i64::MAX),
        earliest: removal.earliest.map(|t| t.to_string()).unwrap_or_default(),
        more,
    })
}

async fn remove(store: &Store, path: &HistoryPath, uid: &str) -> Result<(), CatalogueError> {
    delete::remove(store, &HistoryFolder::new(path), uid).await?;
    Ok(())
}
