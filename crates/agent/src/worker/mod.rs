//! The worker in all Jobs: one order in, one result out.

pub mod backup;
pub mod delete;
pub mod plan;
pub mod probe;
pub mod restore;
pub mod retention;

use holdfast_archive::StoreError;
use holdfast_core::wire::{WorkerJob, WorkerResult};

/// Does the job. Every failure is a result, with a reason and a sentence.
pub async fn run(job: WorkerJob) -> WorkerResult {
    match job {
        WorkerJob::Probe { store, uid } => probe::run(&store, &uid).await,
        job @ WorkerJob::Backup { .. } => backup::run(job).await,
        WorkerJob::Retention { store, namespace, database, rules, pinned, now } => {
            retention::run(&store, &namespace, &database, &rules, &pinned, &now).await
        }
        WorkerJob::DeleteBackup { store, history, backup_uid } => {
            delete::run(&store, &history, &backup_uid).await
        }
        WorkerJob::Plan { store, source, target, connection } => {
            plan::run(&store, &source, &target, connection.as_ref()).await
        }
        WorkerJob::Restore {
            store,
            history,
            follows,
            backup_uid,
            timeline,
            target,
            data_set,
            new_history,
            database_uid: _,
            checks,
            app_database,
        } => {
            let follows = follows.unwrap_or_else(|| history.clone());
            restore::run(restore::RestoreJob {
                store,
                history,
                follows,
                backup_uid,
                timeline,
                target,
                data_set,
                new_history,
                checks,
                app_database,
            })
            .await
        }
    }
}

/// A failure in the store's own words.
pub fn store_failed(error: &StoreError) -> WorkerResult {
    WorkerResult::Failed {
        reason: error.reason.into(),
        message: error.message.clone(),
        permanent: error.permanent,
    }
}
