//! BackupSchedule: makes Backups at its slots, says when they are overdue, and has old ones removed.

pub mod apply;
pub mod observe;
pub mod plan;
pub mod retention;
pub mod slots;
pub mod status;

#[cfg(test)]
mod tests;

use crate::context::Context;
use holdfast_core::BackupSchedule;
use kube::runtime::controller::Action;
use std::sync::Arc;

/// Why a reconcile of a BackupSchedule failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be read.
    #[error(transparent)]
    Observe(#[from] observe::Error),
    /// Something could not be written.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] status::Error),
}

/// Brings one BackupSchedule a step further. Asks the API server for nothing while there is nothing to do.
pub async fn reconcile(schedule: Arc<BackupSchedule>, ctx: Arc<Context>) -> Result<Action, Error> {
    let now = ctx.now();
    if schedule.metadata.deletion_timestamp.is_some() {
        apply::let_go(&ctx, &schedule, now).await?;
        return Ok(Action::await_change());
    }
    let cached = observe::cached(&ctx, schedule, now).await?;
    let plan = plan::plan(&cached, now);
    if plan.is_nothing(&cached) {
        return Ok(Action::requeue(plan.again));
    }
    // The cache may be old: what is written rests on what is there now.
    let Some(observed) = observe::live(&ctx, &cached.schedule, now).await? else {
        return Ok(Action::await_change());
    };
    let plan::Plan { finalizer, create, forget, retention, status: wanted, again } =
        plan::plan(&observed, now);
    let old = observed.schedule.status.clone().unwrap_or_default();
    let generation = observed.schedule.metadata.generation;
    // Backups first: if a crash comes before status is written, their names are found taken, and by whom.
    let said = match apply::make(&ctx, &observed, finalizer, create).await {
        Ok(said) => said,
        Err(error) => {
            if let Some(words) = error.refusal() {
                // The run is still due: nothing else of the status moves on.
                let status = status::refused(old.clone(), &old, &words, generation, now);
                status::write(&ctx, &observed, status, apply::Said::default()).await?;
            }
            // Or a quota on Backups that is reached would keep away what makes room.
            if let Err(error) = apply::tidy(&ctx, &observed, forget, retention, now).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "retention, after a Backup was refused"
                );
            }
            return Err(error.into());
        }
    };
    let tidied = apply::tidy(&ctx, &observed, forget, retention, now).await;
    let status = match tidied.as_ref().err().and_then(apply::Error::refusal) {
        Some(words) => status::refused(wanted, &old, &words, generation, now),
        None => wanted,
    };
    status::write(&ctx, &observed, status, said).await?;
    tidied?;
    Ok(Action::requeue(again))
}
