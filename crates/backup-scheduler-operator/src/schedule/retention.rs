//! Retention: when to have old backups removed, by which rules, and what the answer means. Pure.
//!
//! One Job a Database and store, whoever's schedules there are: the schedule whose name comes first runs it, with the
//! rules of all of them, since a backup is kept when any rule keeps it. A schedule without rules keeps everything.

use crate::{
    backup::{facts, succeeded},
    jobs::{self, RETENTION, Seen},
    schedule::observe::Observed,
};
use holdfast_core::{
    Backup, BackupSchedule, Restore,
    conditions::{self, types},
    crd::schedule::{Retention, RetentionStatus},
    ids,
    pods::{Worker, worker_job},
    wire::{WorkerJob, WorkerResult},
};
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Resource, ResourceExt};
use std::sync::Arc;

/// Annotation of a Job: uid of the newest good Backup when it was made.
const ANNOTATION_NEWEST: &str = "holdfast.dev/newest-backup";
/// Retention runs at least every so many seconds: time passes rules, even without a new backup.
const DAILY: i64 = 86_400;
/// A failed run is tried again after so many seconds.
const AFTER_FAILURE: i64 = 600;
/// A run has so many seconds, its pod's start included; what is left is another run's.
const DEADLINE: i64 = 1800;
/// A Restore that has had no plan for so many seconds no longer holds retention up.
const UNDECIDED: i64 = 3600;

/// The run to start.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// Its number.
    pub round: i64,
    /// The rules of all schedules.
    pub rules: Vec<Retention>,
    /// uid of the newest good Backup.
    pub newest: String,
}

/// What is to be done about retention.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The run to start.
    pub start: Option<Start>,
    /// Jobs of earlier runs, whose results are in status.
    pub done: Vec<Arc<Job>>,
    /// Backups whose data is gone from the store.
    pub expired: Vec<Arc<Backup>>,
    /// What is known.
    pub status: Option<RetentionStatus>,
    /// Seconds until the next look.
    pub again: Option<i64>,
}

/// Name of the Job of a run.
pub fn job_name(uid: &str, round: i64) -> String {
    format!("hfk-{}", ids::short(&format!("retention-{round}"), uid))
}

/// The run that is under way: the one after the last that status speaks of.
pub fn current<'a>(schedule: &BackupSchedule, jobs: &'a [Arc<Job>]) -> Option<&'a Arc<Job>> {
    let round = schedule.status.as_ref().and_then(|s| s.retention.as_ref()).map_or(0, |r| r.round);
    let name = job_name(schedule.metadata.uid.as_deref().unwrap_or_default(), round + 1);
    jobs.iter().find(|j| j.metadata.name.as_deref() == Some(&name))
}

/// The store that a schedule's Backups go to. With the Database gone, the one that they went to: retention goes on.
pub fn store_of(schedule: &BackupSchedule, o: &Observed) -> Option<String> {
    let own = schedule.spec.template.store_ref.as_ref();
    let archive = o.database.as_ref().and_then(|d| d.spec.archive.as_ref()).map(|a| &a.store_ref);
    let newest = o.backups.iter().filter(|b| succeeded(b)).max_by_key(|b| completed(b));
    let written = newest.and_then(|b| b.status.as_ref()?.store.as_ref());
    own.or(archive).or(written).map(|r| r.name.clone())
}

/// When a Backup was over.
pub fn completed(backup: &Backup) -> Option<Timestamp> {
    backup.status.as_ref().and_then(|s| s.completion_time.as_ref()).map(|t| t.0)
}

/// The rules of all schedules that write to this one's store; none if it is another schedule's turn, or one has no rules.
fn rules(o: &Observed) -> Option<Vec<Retention>> {
    let store = store_of(&o.schedule, o)?;
    let mut peers: Vec<_> = o
        .peers
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none() && store_of(p, o).as_ref() == Some(&store))
        .collect();
    peers.sort_by_key(|p| p.name_any());
    if peers.first().is_none_or(|p| p.name_any() != o.schedule.name_any()) {
        return None;
    }
    peers.iter().map(|p| p.spec.retention.clone()).collect()
}

/// Decides.
pub fn plan(o: &Observed, now: Timestamp) -> Plan {
    let old = o.schedule.status.as_ref().and_then(|s| s.retention.clone());
    let last = old.clone().unwrap_or_default();
    let job = current(&o.schedule, &o.jobs);
    let done = o.jobs.iter().filter(|j| job.is_none_or(|c| c.name_any() != j.name_any())).cloned().collect();
    let mut plan = Plan { done, status: old, ..Plan::default() };
    if let Some(job) = job {
        let over = RetentionStatus { round: last.round + 1, time: Some(Time(now)), ..last };
        match &o.seen {
            Some(Seen::Ended(WorkerResult::Retained { kept, expired, more, .. })) => {
                plan.expired = o.backups.iter().filter(|b| is_among(b, expired)).cloned().collect();
                plan.status = Some(RetentionStatus {
                    kept: *kept,
                    expired: over.expired + i64::try_from(expired.len()).unwrap_or(0),
                    newest: job.annotations().get(ANNOTATION_NEWEST).cloned(),
                    more: *more,
                    error: None,
                    ..over
                });
                plan.again = Some(1);
            }
            Some(Seen::Ended(result)) => {
                let error = match result {
                    WorkerResult::Failed { reason, message, .. } => format!("{reason}: {message}"),
                    other => format!("UnexpectedResult: the worker answered {other:?}"),
                };
                plan.status = Some(RetentionStatus { error: Some(error), ..over });
                plan.again = Some(1);
            }
            _ => plan.again = Some(20),
        }
        return plan;
    }
    let Some(rules) = rules(o) else { return plan };
    let good = o.backups.iter().filter(|b| succeeded(b) && went_to(b, o));
    let Some(newest) = good.max_by_key(|b| completed(b)).and_then(|b| b.uid()) else { return plan };
    let since = last.time.as_ref().map(|t| now.duration_since(t.0).as_secs());
    let left = match since {
        None => 0,
        Some(since) if last.error.is_some() => AFTER_FAILURE - since,
        Some(_) if last.more || last.newest.as_deref() != Some(newest.as_str()) => 0,
        Some(since) => DAILY - since,
    };
    let ready = o.store.as_deref().is_some_and(|s| {
        let conditions = s.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        s.metadata.deletion_timestamp.is_none()
            && conditions::is_true_for(conditions, types::READY, s.metadata.generation)
    });
    match (left > 0, ready) {
        (true, _) => plan.again = Some(left),
        // A store that becomes Ready is news.
        (false, false) => {}
        (false, true) => {
            plan.start = Some(Start { round: last.round + 1, rules, newest });
            plan.again = Some(20);
        }
    }
    plan
}

fn went_to(backup: &Backup, o: &Observed) -> bool {
    let store = backup.status.as_ref().and_then(|s| s.store.as_ref());
    store.map(|s| &s.name) == store_of(&o.schedule, o).as_ref()
}

fn is_among(backup: &Backup, expired: &[String]) -> bool {
    let uid = backup.uid().unwrap_or_default();
    // One that still runs cannot have expired; its uid in the answer would be a mistake not to be followed.
    succeeded(backup) && backup.metadata.deletion_timestamp.is_none() && expired.contains(&uid)
}

/// The uids that must stay because a Restore reads them. `None`: a Restore has not said yet which it needs.
pub fn pinned(restores: &[Restore], o: &Observed, now: Timestamp) -> Option<Vec<String>> {
    let (namespace, database) =
        (o.schedule.namespace().unwrap_or_default(), &o.schedule.spec.database_ref.name);
    let mut uids = Vec::new();
    for restore in restores.iter().filter(|r| facts::is_unfinished(r)) {
        let here = restore.namespace().as_deref() == Some(&namespace);
        let planned = restore.status.as_ref().and_then(|s| s.plan.as_ref()).map(|p| p.backup.clone());
        let source = restore.spec.source.as_ref();
        let named = source
            .and_then(|s| s.backup_ref.as_ref())
            .filter(|_| here)
            .and_then(|r| o.backups.iter().find(|b| b.name_any() == r.name).and_then(|b| b.uid()));
        let by_name = source.and_then(|s| s.database.as_ref()).is_some_and(|d| {
            d.name == *database
                && d.namespace.clone().or_else(|| restore.namespace()).as_deref() == Some(&namespace)
        });
        let in_place = here && restore.spec.database_ref.as_ref().is_some_and(|r| r.name == *database);
        let age = restore.creation_timestamp().map_or(0, |t| now.duration_since(t.0).as_secs());
        match planned.filter(|p| !p.is_empty()).or(named) {
            Some(uid) => uids.push(uid),
            None if (by_name || in_place) && age < UNDECIDED => return None,
            None => {}
        }
    }
    Some(uids)
}

/// The Job of a run.
pub fn job(
    o: &Observed,
    start: &Start,
    pinned: Vec<String>,
    agent_image: &str,
    now: Timestamp,
) -> Result<Option<Job>, serde_json::Error> {
    let schedule = &o.schedule;
    let (Some(store), Some(owner), Some(uid)) =
        (&o.store, schedule.controller_owner_ref(&()), schedule.uid())
    else {
        return Ok(None);
    };
    let namespace = schedule.namespace().unwrap_or_default();
    // From the schedule: the Database may be gone.
    let database = &schedule.spec.database_ref.name;
    let work = WorkerJob::Retention {
        store: store.spec.clone(),
        namespace: namespace.clone(),
        database: database.clone(),
        rules: start.rules.clone(),
        pinned,
        now: now.to_string(),
    };
    let mut job = worker_job(&Worker {
        name: job_name(&uid, start.round),
        namespace: &namespace,
        database: Some(database),
        owner,
        image: agent_image,
        agent_image,
        image_pull_secrets: &[],
        job: &work,
        store: &store.spec,
        connects_to: None,
        claim: None,
        token: None,
        deadline_seconds: Some(DEADLINE),
        resources: None,
    })?;
    jobs::mark(&mut job, RETENTION, &store.name_any(), &uid, start.round);
    job.annotations_mut().insert(ANNOTATION_NEWEST.into(), start.newest.clone());
    Ok(Some(job))
}
