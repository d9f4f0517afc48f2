//! Writes the status of a BackupSchedule, and tells of its changes. Touches only that.

use crate::{
    context::Context,
    schedule::{apply::Said, observe::Observed},
};
use holdfast_core::{
    BackupSchedule, BackupScheduleStatus,
    conditions::{self, Truth, condition, types},
    names::managers,
};
use holdfast_runtime::apply;
use jiff::Timestamp;
use kube::ResourceExt;

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the BackupSchedule")]
pub struct Error(#[source] kube::Error);

/// The status of a schedule of which something is refused by the API server. The words of a refusal that stands already stay: those of a
/// webhook can change at every try.
pub fn refused(
    mut status: BackupScheduleStatus,
    old: &BackupScheduleStatus,
    words: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> BackupScheduleStatus {
    const REASON: &str = "Refused";
    for (type_, truth) in [(types::READY, Truth::False), (types::STALLED, Truth::True)] {
        let stands = conditions::find(&old.conditions, type_)
            .filter(|c| c.reason == REASON && c.observed_generation == generation);
        let said = stands.cloned();
        let said = said.unwrap_or_else(|| condition(type_, truth, REASON, words, generation, now));
        conditions::set(&mut status.conditions, said);
    }
    status.observed_generation = generation;
    status
}

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
        apply::status(&api, managers::BACKUP, schedule, &new).await.map_err(Error)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_once_however_its_words_change_and_ends_with_the_next_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ready = |truth, reason, when| BackupScheduleStatus {
            conditions: vec![
                condition(types::READY, truth, reason, "", Some(3), at(when)),
                condition(types::STALLED, Truth::False, reason, "", Some(3), at(when)),
            ],
            ..BackupScheduleStatus::default()
        };
        let old = ready(Truth::True, "Scheduled", 10);
        let first = refused(ready(Truth::True, "Scheduled", 10), &old, "try 1 denied", Some(3), at(50));
        for (type_, truth) in [(types::READY, "False"), (types::STALLED, "True")] {
            let found = conditions::find(&first.conditions, type_).unwrap();
            let seen = (&*found.status, &*found.reason, &*found.message);
            assert_eq!(seen, (truth, "Refused", "try 1 denied"));
        }
        // What the plan makes of it is ready again, as of now.
        let again = refused(ready(Truth::True, "Scheduled", 90), &first, "try 2 denied", Some(3), at(90));
        assert_eq!(again, first);
        let newer = refused(ready(Truth::True, "Scheduled", 90), &first, "try 3 denied", Some(4), at(90));
        assert_eq!(conditions::find(&newer.conditions, types::READY).unwrap().message, "try 3 denied");
    }
}
