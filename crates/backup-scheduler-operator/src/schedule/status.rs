//! Writes the status of a BackupSchedule, and tells of its changes. Touches only that.

use crate::{
    context::Context,
    schedule::{apply::Said, observe::Observed},
};
use holdfast_core::{BackupSchedule, BackupScheduleStatus, conditions, conditions::types, names::managers};
use holdfast_runtime::apply;
use kube::ResourceExt;

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the BackupSchedule")]
pub struct Error(#[source] kube::Error);

/// Writes the status, if it says something new.
pub async fn write(
    ctx: &Context,
    o: &Observed,
    mut new: BackupScheduleStatus,
    said: Said,
) -> Result<(), Error> {
    let schedule = o.schedule.as_ref();
    let old = schedule.status.clone().unwrap_or_default();
    let name = new.last_backup.as_ref().map(|b| b.name.clone()).unwrap_or_default();
    if said.name_taken {
        new.last_backup = old.last_backup.clone();
        new.missed_runs = Some(new.missed_runs.unwrap_or(0).saturating_add(1));
        let note = format!(
            "a run is missed: Backup {name} exists, and this schedule has not made it; rename or delete it"
        );
        ctx.events.warning(schedule, "NameTaken", "Schedule", &note).await;
    }
    if schedule.status.as_ref() != Some(&new) {
        let api = ctx.api::<BackupSchedule>(&schedule.namespace().unwrap_or_default());
        apply::status(&api, managers::BACKUP, &schedule.name_any(), &new).await.map_err(Error)?;
    }
    if said.made {
        ctx.events.normal(schedule, "BackupCreated", "Schedule", &format!("made Backup {name}")).await;
    }
    let missed = new.missed_runs.unwrap_or(0) - old.missed_runs.unwrap_or(0);
    if missed > 0 && !said.name_taken {
        let note = format!("{missed} slots passed without a run");
        ctx.events.warning(schedule, "MissedRuns", "Schedule", &note).await;
    }
    let error = |s: &BackupScheduleStatus| s.retention.as_ref().and_then(|r| r.error.clone());
    if let Some(words) = error(&new).filter(|_| error(&new) != error(&old)) {
        ctx.events.warning(schedule, "RetentionFailed", "Retention", &words).await;
    }
    for (type_, bad) in [(types::READY, "False"), (types::OVERDUE, "True")] {
        let was = conditions::find(&old.conditions, type_).is_some_and(|c| c.status == bad);
        if let Some(c) = conditions::find(&new.conditions, type_).filter(|c| c.status == bad && !was) {
            ctx.events.warning(schedule, &c.reason, "Schedule", &c.message).await;
        }
    }
    Ok(())
}
