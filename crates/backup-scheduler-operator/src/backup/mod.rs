//! Backup: one run, from waiting for its turn to the facts of what lies in the store.

pub mod apply;
pub mod facts;
pub mod observe;
pub mod plan;
pub mod ready;
pub mod removal;
pub mod status;
pub mod work;

#[cfg(test)]
mod tests;

use crate::{cache::PackedBackup, context::Context};
use holdfast_core::{Backup, conditions, conditions::types};
use kube::runtime::controller::Action;
use std::{sync::Arc, time::Duration};

/// Steps that one reconcile may take before it lets others have their turn.
const STEPS: usize = 8;

/// Why a reconcile of a Backup failed.
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

/// Whether a Backup is over, well or not.
pub fn is_final(backup: &Backup) -> bool {
    let conditions = backup.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::is_true(conditions, types::SUCCEEDED) || conditions::is_false(conditions, types::SUCCEEDED)
}

/// Whether a Backup ended well.
pub fn succeeded(backup: &Backup) -> bool {
    backup.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, types::SUCCEEDED))
}

/// Takes away what nobody reads from the cache of Backups that are over, which may be tens of thousands. Whoever writes reads
/// them from the API again.
pub fn lighten(backup: &mut Backup) {
    if !is_final(backup) || backup.metadata.deletion_timestamp.is_some() {
        return;
    }
    backup.metadata.annotations = None;
    backup.metadata.owner_references = None;
    if let Some(labels) = &mut backup.metadata.labels {
        labels.retain(|name, _| name == holdfast_core::names::LABEL_SCHEDULE);
    }
    let Some(status) = &mut backup.status else { return };
    status.conditions.retain(|c| c.type_ == types::SUCCEEDED);
    for condition in &mut status.conditions {
        condition.message = String::new();
    }
    status.conditions.shrink_to_fit();
    status.backup_location = None;
    status.phase = None;
    status.start_time = None;
    if let Some(facts) = &mut status.postgresql {
        *facts = holdfast_core::crd::backup::PostgresqlBackup {
            system_identifier: std::mem::take(&mut facts.system_identifier),
            ..Default::default()
        };
    }
}

/// Brings one Backup a step further. Asks the API server for nothing while there is nothing to do.
pub async fn reconcile(backup: Arc<PackedBackup>, ctx: Arc<Context>) -> Result<Action, Error> {
    let now = ctx.now();
    let Some(backup) = backup.unpack().map(Arc::new) else { return Ok(Action::await_change()) };
    let cached = observe::cached(&ctx, backup, now).await?;
    let step = plan::next_step(&cached, now);
    if let Some(rest) = step.is_rest()
        && !status::differs(&cached, &step, now)
    {
        return Ok(rest);
    }
    // Counting a store's places and taking one must not interleave with another Backup's doing so.
    let mut place = None;
    for _ in 0..STEPS {
        let now = ctx.now();
        // The cache may be old: what is written rests on what is there now.
        let Some(observed) = observe::live(&ctx, &cached.backup, now).await? else {
            return Ok(Action::await_change());
        };
        let step = plan::next_step(&observed, now);
        match (&step, &place) {
            (plan::Step::TakeLease | plan::Step::Start(_), None) => {
                place = Some(ctx.places.lock().await);
                continue;
            }
            (plan::Step::TakeLease | plan::Step::Start(_), Some(_)) => {}
            _ => place = None,
        }
        status::write(&ctx, &observed, &step, now).await?;
        if let Some(rest) = step.is_rest() {
            return Ok(rest);
        }
        match apply::apply(&ctx, &observed, step, now).await {
            Ok(apply::Then::Rest) => return Ok(Action::requeue(Duration::from_secs(5))),
            Ok(apply::Then::Again) => {}
            Err(error) => {
                if let Some(wait) = error.refusal() {
                    status::write(&ctx, &observed, &plan::Step::Wait(wait), now).await?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}
