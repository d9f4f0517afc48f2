//! What a BackupSchedule needs next: Backups to make, records to remove, retention, conditions. Pure.

use crate::{
    backup::{is_final, succeeded},
    schedule::{
        observe::Observed,
        retention,
        slots::{self, Decision, Parsed},
    },
};
use holdfast_core::{
    Backup, BackupScheduleStatus,
    conditions::{self, Truth, condition, types},
    crd::{DeletionPolicy, LocalRef, schedule::ConcurrencyPolicy},
    names,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::{Resource, ResourceExt};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// A schedule is looked at every so many seconds at least.
const LONGEST: i64 = 300;
/// Reason of condition Ready while suspended. Read back: slots that pass until resumption is seen are suspended ones.
const SUSPENDED: &str = "Suspended";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether the finalizer is to be put on (true) or taken off (false).
    pub finalizer: Option<bool>,
    /// The Backup to make.
    pub create: Option<Backup>,
    /// Records of failed Backups beyond `spec.history.failed`.
    pub forget: Vec<Arc<Backup>>,
    /// Retention.
    pub retention: retention::Plan,
    /// What is known of the schedule.
    pub status: BackupScheduleStatus,
    /// When to look again.
    pub again: Duration,
}

impl Plan {
    /// Whether nothing is to be written.
    pub fn is_nothing(&self, o: &Observed) -> bool {
        self.finalizer.is_none()
            && self.create.is_none()
            && self.forget.is_empty()
            && self.retention.start.is_none()
            && self.retention.done.is_empty()
            && self.retention.expired.is_empty()
            && o.schedule.status.as_ref() == Some(&self.status)
    }
}

/// Whether this schedule, or one of the same name before it, made the Backup.
pub fn is_ours(backup: &Backup, schedule: &str) -> bool {
    backup.labels().get(names::LABEL_SCHEDULE).is_some_and(|s| s == schedule)
}

/// The Backup of a slot.
pub fn backup(o: &Observed, slot: Timestamp) -> Option<Backup> {
    let (schedule, spec) = (&o.schedule, &o.schedule.spec);
    let template = &spec.template;
    // Through the API's own names, so that what the template does not say gets the kind's defaults.
    let mut body = json!({"databaseRef": spec.database_ref, "method": template.method, "type": template.type_,
        "target": template.target, "compression": template.compression});
    if let Some(store) = &template.store_ref {
        body["storeRef"] = json!(store);
    }
    let mut labels = names::labels(&spec.database_ref.name);
    labels.insert(names::LABEL_SCHEDULE.into(), schedule.name_any());
    Some(Backup {
        metadata: ObjectMeta {
            name: Some(slots::backup_name(&schedule.name_any(), slot)),
            namespace: schedule.namespace(),
            labels: Some(labels),
            // Never blocking: a deletion in the foreground would wait for Backups that are to stay.
            owner_references: Some(vec![OwnerReference {
                controller: Some(false),
                block_owner_deletion: None,
                ..schedule.owner_ref(&())?
            }]),
            ..ObjectMeta::default()
        },
        spec: serde_json::from_value(body).ok()?,
        status: None,
    })
}

/// Failed Backups beyond the number to keep, oldest first.
fn forget(o: &Observed) -> Vec<Arc<Backup>> {
    let name = o.schedule.name_any();
    let mut failed: Vec<_> = o
        .backups
        .iter()
        .filter(|b| {
            is_ours(b, &name) && is_final(b) && !succeeded(b) && b.metadata.deletion_timestamp.is_none()
        })
        .cloned()
        .collect();
    failed.sort_by_key(|b| (b.creation_timestamp(), b.name_any()));
    let keep = usize::try_from(o.schedule.spec.history.failed).unwrap_or(0);
    failed.truncate(failed.len().saturating_sub(keep));
    failed
}

fn verdict(
    status: &mut BackupScheduleStatus,
    o: &Observed,
    type_: &str,
    truth: Truth,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let generation = o.schedule.metadata.generation;
    conditions::set(&mut status.conditions, condition(type_, truth, reason, message, generation, now));
}

/// Decides.
pub fn plan(o: &Observed, now: Timestamp) -> Plan {
    let (schedule, spec) = (&o.schedule, &o.schedule.spec);
    let retains = spec.deletion_policy == DeletionPolicy::Retain;
    let has = schedule.finalizers().iter().any(|f| f == names::FINALIZER);
    let old = schedule.status.clone().unwrap_or_default();
    let created = schedule.creation_timestamp().map_or(now, |t| t.0);
    let retention = retention::plan(o, now);
    let mut status = BackupScheduleStatus { retention: retention.status.clone(), ..old.clone() };
    let mut again = retention.again.unwrap_or(LONGEST);
    let name = schedule.name_any();

    let good = o
        .backups
        .iter()
        .filter(|b| is_ours(b, &name) && succeeded(b))
        .filter_map(|b| retention::completed(b));
    let success = good.max().max(old.last_success_time.as_ref().map(|t| t.0));
    status.last_success_time = success.map(Time);
    let mut active: Vec<_> =
        o.backups.iter().filter(|b| is_ours(b, &name) && !is_final(b)).map(|b| b.name_any()).collect();
    active.sort();
    status.active = active.into_iter().map(|name| LocalRef { name }).collect();

    let mut create = None;
    match slots::parse(schedule) {
        Err(error) => {
            let reason = match error {
                crate::cron::CronError::Zone(_) => "InvalidTimeZone",
                _ => "InvalidSchedule",
            };
            status.next_schedule_time = None;
            conclude(&mut status, o, Some((reason, error.to_string())), None, now);
            verdict(
                &mut status,
                o,
                types::OVERDUE,
                Truth::Unknown,
                reason,
                "the schedule cannot be read",
                now,
            );
        }
        Ok(parsed) => {
            let turn = turn(o, &parsed, created, now);
            create = turn.decision.run.and_then(|slot| backup(o, slot));
            if let Some(made) = &create {
                status.last_backup = Some(LocalRef { name: made.name_any() });
            }
            // Nothing is written down before the first slot: an immediate run is told by that.
            if turn.decision.handled != created || turn.first_is_over {
                status.last_schedule_time = Some(Time(turn.decision.handled));
            }
            status.schedule = Some(parsed.text.clone());
            status.missed_runs = Some(old.missed_runs.unwrap_or(0).saturating_add(turn.decision.missed));
            let next = slots::next_due(&parsed, turn.decision.handled);
            status.next_schedule_time = next.filter(|_| !spec.suspend).map(Time);
            // What is due already waits for a change, which is heard of, or for the end of its wait.
            let next = next.filter(|due| *due > now);
            for moment in next.into_iter().chain(turn.decision.waits_until) {
                again = again.min(moment.duration_since(now).as_secs() + 1);
            }
            let waits = turn.decision.waits_until.map(|until| waiting(o, until));
            conclude(&mut status, o, turn.problem, waits, now);
            again = again.min(overdue(&mut status, o, &parsed, success.unwrap_or(created), now));
        }
    }
    status.observed_generation = schedule.metadata.generation;
    Plan {
        finalizer: (has != retains).then_some(retains),
        create,
        forget: forget(o),
        retention,
        status,
        again: Duration::from_secs(again.clamp(1, LONGEST).unsigned_abs()),
    }
}

/// What this look at the clock came to.
struct Turn {
    decision: Decision,
    /// The creation itself is dealt with as a slot.
    first_is_over: bool,
    problem: Option<(&'static str, String)>,
}

fn turn(o: &Observed, parsed: &Parsed, created: Timestamp, now: Timestamp) -> Turn {
    let (schedule, spec) = (&o.schedule, &o.schedule.spec);
    let old = schedule.status.clone().unwrap_or_default();
    let written = old.last_schedule_time.as_ref().map(|t| t.0);
    let handled = written.unwrap_or(created);
    let still = |handled| Decision { run: None, handled, missed: 0, waits_until: None };
    let was_suspended =
        conditions::find(&old.conditions, types::READY).is_some_and(|c| c.reason == SUSPENDED);
    let changed = old.schedule.as_deref().is_some_and(|s| s != parsed.text);
    if spec.suspend || was_suspended || changed {
        let decision = still(slots::skip(parsed, handled, now));
        return Turn { decision, first_is_over: true, problem: None };
    }
    if let Some(problem) = impossible(o) {
        let (decision, problem) = (still(handled), Some(problem));
        return Turn { decision, first_is_over: written.is_some(), problem };
    }
    let blocked = o.backups.iter().any(|b| !is_final(b) && b.metadata.deletion_timestamp.is_none());
    if spec.immediate && written.is_none() {
        let decision = slots::decide_immediate(schedule, created, blocked, now);
        let first_is_over = decision.waits_until.is_none();
        return Turn { decision, first_is_over, problem: None };
    }
    let decision = slots::decide(parsed, schedule, handled, blocked, now);
    Turn { decision, first_is_over: written.is_some(), problem: None }
}

/// Why every Backup would only wait for a person: told here, before the first slot, and none is made.
fn impossible(o: &Observed) -> Option<(&'static str, String)> {
    let spec = &o.schedule.spec;
    let name = &spec.database_ref.name;
    let Some(database) = o.database.as_deref().filter(|d| d.metadata.deletion_timestamp.is_none()) else {
        let message = format!("spec.databaseRef: there is no Database {name} in this namespace");
        return Some(("DatabaseNotFound", message));
    };
    let archive = database.spec.archive.as_ref().map(|a| &a.store_ref.name);
    let message = match (spec.template.store_ref.as_ref().map(|s| &s.name), archive) {
        (None, Some(_)) => return None,
        (Some(own), Some(archive)) if own == archive => return None,
        (Some(own), Some(archive)) => format!(
            "spec.template.storeRef is {own}, and Database {name} archives its WAL to {archive}: a backup is of use only beside \
             that WAL; leave spec.template.storeRef out"
        ),
        (_, None) => format!(
            "spec.databaseRef: Database {name} archives no WAL, without which a backup is of no use: set its spec.archive.storeRef"
        ),
    };
    Some(("ArchiveRequired", message))
}

fn waiting(o: &Observed, until: Timestamp) -> String {
    let mut others: Vec<_> = o.backups.iter().filter(|b| !is_final(b)).map(|b| b.name_any()).collect();
    others.sort();
    format!(
        "a run is due and waits until {until} for Backup {} (spec.concurrencyPolicy is {:?})",
        others.first().map(String::as_str).unwrap_or_default(),
        ConcurrencyPolicy::Forbid
    )
}

/// Ready, Stalled and the phase.
fn conclude(
    status: &mut BackupScheduleStatus,
    o: &Observed,
    problem: Option<(&str, String)>,
    waits: Option<String>,
    now: Timestamp,
) {
    let suspended = o.schedule.spec.suspend;
    let (ready, reason, message, phase) = match (problem, waits) {
        (Some((reason, message)), _) => (Truth::False, reason.to_string(), message, "Failed"),
        _ if suspended => {
            (Truth::True, SUSPENDED.into(), "spec.suspend is true: no Backups are made".into(), "Suspended")
        }
        (None, Some(message)) => (Truth::True, "WaitingForBackup".into(), message, "Active"),
        (None, None) => {
            (Truth::True, "Active".into(), "Backups are made at the slots of spec.schedule".into(), "Active")
        }
    };
    status.phase = Some(phase.into());
    verdict(status, o, types::READY, ready, &reason, &message, now);
    let stalled = ready == Truth::False;
    verdict(status, o, types::STALLED, stalled.into(), &reason, if stalled { &message } else { "" }, now);
}

/// Overdue. Returns the seconds until it may become so.
fn overdue(
    status: &mut BackupScheduleStatus,
    o: &Observed,
    parsed: &Parsed,
    since: Timestamp,
    now: Timestamp,
) -> i64 {
    let created = o.schedule.creation_timestamp().map_or(now, |t| t.0);
    let (true, Some(interval)) = (!o.schedule.spec.suspend, slots::expected_interval(parsed, created)) else {
        verdict(status, o, types::OVERDUE, Truth::False, SUSPENDED, "", now);
        return LONGEST;
    };
    let promised = interval + SignedDuration::from_secs(o.schedule.spec.starting_deadline_seconds);
    let at = since + promised;
    if now > at {
        let message = format!("no Backup has succeeded since {since}; one was due by {at}");
        verdict(status, o, types::OVERDUE, Truth::True, "NoRecentBackup", &message, now);
        if status.phase.as_deref() == Some("Active") {
            status.phase = Some("Overdue".into());
        }
        return LONGEST;
    }
    verdict(status, o, types::OVERDUE, Truth::False, "InTime", "", now);
    at.duration_since(now).as_secs() + 1
}
