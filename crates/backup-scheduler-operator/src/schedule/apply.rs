//! Makes and removes Backups and retention's Jobs, and sets the schedule's finalizer. Touches nothing else.

use crate::{
    backup::observe::namespace_ends,
    context::Context,
    finalizers,
    schedule::{observe::Observed, plan::is_ours, retention},
};
use holdfast_core::{Backup, BackupSchedule, Restore, crd::DeletionPolicy, names};
use holdfast_runtime::apply::{self, bounded};
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{ListParams, PropagationPolicy},
};
use std::sync::Arc;

/// A deleted schedule that cannot release its Backups lets go after so many seconds.
const BOUND: i64 = 60;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Job cannot be built.
    #[error("cannot build retention's Job")]
    Build(#[from] serde_json::Error),
    /// The API refuses.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: kube::Error,
    },
}

fn fail(what: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { what, source }
}

/// What the writes brought to light.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// A Backup was made now, not by an earlier try.
    pub made: bool,
    /// The Backup's name belongs to somebody else's.
    pub name_taken: bool,
}

impl Error {
    /// What a person has to know: the API server refuses this, and will again. The status says so until a later try goes through.
    pub fn refusal(&self) -> Option<String> {
        let Self::Api { what, source } = self else { return None };
        Some(format!("the API server refuses to {what}: {}", apply::refusal(source)?))
    }
}

/// Puts the finalizer on or takes it off, and makes the Backup. Errors: what the status is to say of it did not happen.
pub async fn make(
    ctx: &Context,
    o: &Observed,
    finalizer: Option<bool>,
    create: Option<Backup>,
) -> Result<Said, Error> {
    let schedule = o.schedule.as_ref();
    let namespace = schedule.namespace().unwrap_or_default();
    if let Some(wanted) = finalizer {
        let api = ctx.api::<BackupSchedule>(&namespace);
        finalizers::set(&api, schedule, wanted).await.map_err(fail("set the finalizer"))?;
    }
    let backups = ctx.api::<Backup>(&namespace);
    let mut said = Said::default();
    if let Some(backup) = create {
        match apply::create(&backups, &backup).await.map_err(fail("create the Backup"))? {
            Some(_) => said.made = true,
            None => {
                let there =
                    bounded(backups.get_opt(&backup.name_any())).await.map_err(fail("get the Backup"))?;
                // Ours: made by an earlier try, or by a schedule of this name before. Somebody else's is left alone.
                said.name_taken = there.is_some_and(|b| !is_ours(&b, &schedule.name_any()));
            }
        }
    }
    Ok(said)
}

/// Removes records and starts retention. No Backup depends on it: one that was made is told of, whatever becomes of this.
pub async fn tidy(
    ctx: &Context,
    o: &Observed,
    forget: Vec<Arc<Backup>>,
    old: retention::Plan,
    now: Timestamp,
) -> Result<(), Error> {
    let namespace = o.schedule.namespace().unwrap_or_default();
    let backups = ctx.api::<Backup>(&namespace);
    remove_backups(&backups, &forget).await?;
    let retention::Plan { start, done, expired, status: _, again: _ } = old;
    remove_backups(&backups, &expired).await?;
    let jobs = ctx.api::<Job>(&namespace);
    for job in done {
        let uid = job.uid().unwrap_or_default();
        apply::delete(&jobs, &job.name_any(), &uid, PropagationPolicy::Background)
            .await
            .map_err(fail("delete retention's Job"))?;
    }
    if let Some(start) = start {
        let pinned = retention::pinned(&restores(ctx).await?, o, now);
        // A Restore that has not said what it needs holds retention up; the next look comes in seconds.
        if let Some(pinned) = pinned
            && let Some(job) = retention::job(o, &start, pinned, &ctx.agent_image, now)?
        {
            apply::create(&jobs, &job).await.map_err(fail("create retention's Job"))?;
        }
    }
    Ok(())
}

async fn remove_backups(api: &kube::Api<Backup>, backups: &[Arc<Backup>]) -> Result<(), Error> {
    for backup in backups {
        let uid = backup.uid().unwrap_or_default();
        apply::delete(api, &backup.name_any(), &uid, PropagationPolicy::Background)
            .await
            .map_err(fail("delete a Backup"))?;
    }
    Ok(())
}

/// Restores wherever this process may see them: one in another namespace can read from the same store.
async fn restores(ctx: &Context) -> Result<Vec<Restore>, Error> {
    match bounded(ctx.everywhere::<Restore>().list(&ListParams::default())).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Vec::new()),
        Err(source) => Err(Error::Api { what: "list Restores", source }),
    }
}

/// A schedule that is being deleted: releases its Backups if they are to stay, then lets the object go.
pub async fn let_go(ctx: &Context, schedule: &BackupSchedule, now: Timestamp) -> Result<(), Error> {
    if !schedule.finalizers().iter().any(|f| f == names::FINALIZER) {
        return Ok(());
    }
    let namespace = schedule.namespace().unwrap_or_default();
    if schedule.spec.deletion_policy == DeletionPolicy::Retain && !namespace_ends(ctx, &namespace).await {
        let began = schedule.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
        match release(ctx, schedule, &namespace).await {
            Ok(()) => {}
            Err(error) if now.duration_since(began).as_secs() <= BOUND => return Err(error),
            Err(error) => {
                let note = format!(
                    "its Backups go with it, their data stays: within {BOUND} s it could not release them: {error}"
                );
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a schedule goes without having released its Backups"
                );
                ctx.events.warning(schedule, "BackupsNotReleased", "Delete", &note).await;
            }
        }
    }
    let api = ctx.api::<BackupSchedule>(&namespace);
    let current = bounded(api.get_opt(&schedule.name_any())).await.map_err(fail("get the BackupSchedule"))?;
    if let Some(current) = current.filter(|c| c.uid() == schedule.uid()) {
        finalizers::set(&api, &current, false).await.map_err(fail("remove the finalizer"))?;
    }
    Ok(())
}

async fn release(ctx: &Context, schedule: &BackupSchedule, namespace: &str) -> Result<(), Error> {
    let api = ctx.api::<Backup>(namespace);
    let uid = schedule.uid().unwrap_or_default();
    let all = bounded(api.list(&ListParams::default())).await.map_err(fail("list Backups"))?;
    for backup in all.items.iter().filter(|b| b.owner_references().iter().any(|o| o.uid == uid)) {
        finalizers::disown(&api, backup, &uid).await.map_err(fail("release a Backup"))?;
    }
    Ok(())
}
