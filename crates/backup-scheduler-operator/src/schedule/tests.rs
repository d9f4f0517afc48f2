//! Tables of plans: schedule nightly of Database orders in namespace shop.

use super::{
    observe::Observed,
    plan::{Plan, plan},
    retention,
};
use crate::{
    jobs::{self, RETENTION, Seen},
    metrics,
};
use holdfast_core::{
    Backup, BackupSchedule, BackupStore, Database, Restore, conditions, conditions::types,
    crd::DeletionPolicy, names, wire::WorkerResult,
};
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::sync::Arc;

fn at(time: &str) -> Timestamp {
    format!("2026-11-{time}:00Z").parse().unwrap()
}

fn yes(type_: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": "x", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2026-11-21T00:00:00Z"})
}

fn no(type_: &str) -> Value {
    let mut condition = yes(type_);
    condition["status"] = json!("False");
    condition
}

fn schedule_named(name: &str, spec: Value, status: Value) -> Arc<BackupSchedule> {
    let mut all = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupSchedule",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": "2026-11-20T12:00:00Z", "finalizers": [names::FINALIZER]},
        "spec": {"databaseRef": {"name": "orders"}, "schedule": "30 2 * * *"}, "status": status});
    for (key, value) in spec.as_object().unwrap() {
        all["spec"][key] = value.clone();
    }
    Arc::new(serde_json::from_value(all).unwrap())
}

fn schedule(spec: Value, status: Value) -> Arc<BackupSchedule> {
    schedule_named("nightly", spec, status)
}

fn database() -> Option<Arc<Database>> {
    Some(Arc::new(
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"},
                "archive": {"storeRef": {"name": "main"}}}}))
        .unwrap(),
    ))
}

fn backup(name: &str, by: Option<&str>, created: &str, condition: Option<Value>) -> Arc<Backup> {
    let labels = by.map(|s| json!({names::LABEL_SCHEDULE: s})).unwrap_or(json!({}));
    Arc::new(
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels,
                "creationTimestamp": at(created).to_string()},
            "spec": {"databaseRef": {"name": "orders"}},
            "status": {"store": {"name": "main"}, "conditions": condition.iter().collect::<Vec<_>>(),
                "completionTime": condition.as_ref().map(|_| at(created).to_string())}}))
        .unwrap(),
    )
}

fn store() -> Option<Arc<BackupStore>> {
    Some(Arc::new(
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore",
            "metadata": {"name": "main", "namespace": "shop", "generation": 1},
            "spec": {"s3": {"bucket": "b"}}, "status": {"conditions": [yes("Ready")]}}))
        .unwrap(),
    ))
}

fn observed(spec: Value, status: Value) -> Observed {
    let schedule = schedule(spec, status);
    Observed {
        peers: vec![Arc::clone(&schedule)],
        schedule,
        database: database(),
        backups: vec![],
        store: store(),
        jobs: vec![],
        seen: None,
    }
}

fn made(plan: &Plan) -> Option<String> {
    plan.create.as_ref().map(ResourceExt::name_any)
}

/// (Ready's status and reason, Overdue's status, phase)
fn verdict(plan: &Plan) -> (String, String, String) {
    let all = &plan.status.conditions;
    let ready = conditions::find(all, types::READY).unwrap();
    assert_eq!(conditions::is_true(all, types::STALLED), ready.status == "False");
    let overdue = conditions::find(all, types::OVERDUE).unwrap().status.clone();
    (format!("{} {}", ready.status, ready.reason), overdue, plan.status.phase.clone().unwrap())
}

fn after(o: &Observed, plan: &Plan) -> Observed {
    let mut next = o.clone();
    let mut schedule = o.schedule.as_ref().clone();
    schedule.status = Some(plan.status.clone());
    next.schedule = Arc::new(schedule);
    next.peers = vec![Arc::clone(&next.schedule)];
    next
}

#[test]
fn a_slot_becomes_one_backup() {
    let o = observed(json!({}), json!({}));
    let before = plan(&o, at("21T02:29"));
    assert_eq!((made(&before), before.again.as_secs()), (None, 61));
    assert_eq!(before.status.next_schedule_time.as_ref().unwrap().0, at("21T02:30"));
    assert_eq!(verdict(&before), ("True Active".into(), "False".into(), "Active".into()));
    let due = plan(&after(&o, &before), at("21T02:30"));
    let backup = due.create.as_ref().unwrap();
    assert_eq!(backup.name_any(), "nightly-20261121t0230");
    assert_eq!(backup.labels()[names::LABEL_SCHEDULE], "nightly");
    let owner = &backup.owner_references()[0];
    assert_eq!(
        (owner.uid.as_str(), owner.controller, owner.block_owner_deletion),
        ("uid-nightly", Some(false), None)
    );
    assert_eq!((backup.spec.retries, backup.spec.progress_deadline_seconds), (2, 600));
    assert_eq!(backup.spec.deletion_policy, DeletionPolicy::Retain);
    assert_eq!(due.status.last_backup.as_ref().unwrap().name, "nightly-20261121t0230");
    let done = after(&o, &due);
    let again = plan(&done, at("21T02:31"));
    assert!(again.is_nothing(&done), "{:?}", again.status);
    assert_eq!(again.again.as_secs(), 300);
}

#[test]
fn backups_that_could_only_wait_are_not_made() {
    let without = |change: fn(&mut Value)| {
        let mut body = serde_json::to_value(&*database().unwrap()).unwrap();
        change(&mut body["spec"]);
        Some(Arc::new(serde_json::from_value::<Database>(body).unwrap()))
    };
    let message = |p: &Plan| conditions::find(&p.status.conditions, types::READY).unwrap().message.clone();
    let mut o = observed(json!({"immediate": true}), json!({}));
    o.database = without(|spec| spec["archive"] = Value::Null);
    let waiting = plan(&o, at("20T12:00"));
    assert_eq!(verdict(&waiting), ("False ArchiveRequired".into(), "False".into(), "Failed".into()));
    assert!(made(&waiting).is_none() && message(&waiting).contains("Database orders"));
    let mut next = after(&o, &waiting);
    next.database = database();
    assert!(made(&plan(&next, at("20T13:00"))).is_some(), "the run is not lost");
    // Backups go where the WAL goes.
    let other = observed(json!({"template": {"storeRef": {"name": "cellar"}}}), json!({}));
    let elsewhere = plan(&other, at("20T12:00"));
    assert_eq!(verdict(&elsewhere).0, "False ArchiveRequired");
    assert!(message(&elsewhere).contains("spec.template.storeRef is cellar"), "{}", message(&elsewhere));
    let same = observed(json!({"template": {"storeRef": {"name": "main"}}}), json!({}));
    assert_eq!(verdict(&plan(&same, at("20T12:00"))).0, "True Active");
}

#[test]
fn a_database_that_is_not_there_is_waited_for() {
    let mut o = observed(json!({"immediate": true}), json!({}));
    o.database = None;
    let waiting = plan(&o, at("20T12:00"));
    assert_eq!(verdict(&waiting), ("False DatabaseNotFound".into(), "False".into(), "Failed".into()));
    let mut next = after(&o, &waiting);
    next.database = database();
    let came = plan(&next, at("20T13:00"));
    assert_eq!(made(&came).as_deref(), Some("nightly-20261120t1200"), "the immediate run is not lost");
    assert_eq!(verdict(&came).0, "True Active");
}

#[test]
fn immediate_means_once() {
    let o = observed(json!({"immediate": true}), json!({}));
    let first = plan(&o, at("20T12:00"));
    assert_eq!(made(&first).as_deref(), Some("nightly-20261120t1200"));
    // Even when the Backup was deleted meanwhile.
    assert_eq!(made(&plan(&after(&o, &first), at("20T12:05"))), None);
    assert_eq!(made(&plan(&observed(json!({}), json!({})), at("20T12:00"))), None);
}

#[test]
fn resuming_fires_nothing() {
    let o = observed(json!({"suspend": true, "immediate": true}), json!({}));
    let suspended = plan(&o, at("21T02:31"));
    assert_eq!(made(&suspended), None);
    assert_eq!(verdict(&suspended), ("True Suspended".into(), "False".into(), "Suspended".into()));
    assert_eq!(suspended.status.last_schedule_time.as_ref().unwrap().0, at("21T02:30"));
    assert_eq!(suspended.status.next_schedule_time, None);
    // Nobody was looking while a slot passed and the schedule was resumed.
    let mut resumed = after(&o, &suspended);
    let mut schedule = resumed.schedule.as_ref().clone();
    schedule.spec.suspend = false;
    resumed.schedule = Arc::new(schedule);
    let woken = plan(&resumed, at("22T02:45"));
    assert_eq!((made(&woken), woken.status.missed_runs), (None, Some(0)));
    assert_eq!(woken.status.next_schedule_time.as_ref().unwrap().0, at("23T02:30"));
    assert_eq!(verdict(&woken).0, "True Active");
}

#[test]
fn a_changed_schedule_has_missed_nothing() {
    let o = observed(json!({}), json!({}));
    let first = plan(&o, at("20T12:00"));
    let mut changed = after(&o, &first);
    let mut schedule = changed.schedule.as_ref().clone();
    schedule.spec.schedule = "* * * * *".into();
    changed.schedule = Arc::new(schedule);
    let seen = plan(&changed, at("21T02:20"));
    assert_eq!((made(&seen), seen.status.missed_runs), (None, Some(0)));
    assert_eq!(
        made(&plan(&after(&changed, &seen), at("21T02:21"))).as_deref(),
        Some("nightly-20261121t0221")
    );
}

#[test]
fn another_backup_of_the_database_delays_the_run_and_says_so() {
    let mut o = observed(json!({}), json!({}));
    o.backups = vec![backup("by-hand", None, "21T02:00", None)];
    let waits = plan(&o, at("21T02:30"));
    assert_eq!((made(&waits), verdict(&waits).0), (None, "True WaitingForBackup".into()));
    let message = &conditions::find(&waits.status.conditions, types::READY).unwrap().message;
    assert!(message.contains("by-hand"), "{message}");
    assert!(waits.again.as_secs() > 200, "no polling while it waits");
    o.backups = vec![backup("by-hand", None, "21T02:00", Some(no("Succeeded")))];
    assert_eq!(made(&plan(&o, at("21T02:40"))).as_deref(), Some("nightly-20261121t0230"));
    o.backups = vec![backup("by-hand", None, "21T02:00", None)];
    let missed = plan(&o, at("21T03:31"));
    assert_eq!((made(&missed), missed.status.missed_runs), (None, Some(1)));
    assert_eq!(verdict(&missed).0, "True Active");
}

#[test]
fn overdue_counts_from_the_last_success() {
    let mut o = observed(json!({}), json!({"lastScheduleTime": "2026-11-22T02:30:00Z"}));
    // Created at 12:00 on the 20th: a day and an hour later.
    assert_eq!(verdict(&plan(&o, at("21T13:00"))).1, "False");
    let overdue = plan(&o, at("22T02:31"));
    assert_eq!(verdict(&overdue), ("True Active".into(), "True".into(), "Overdue".into()));
    o.backups = vec![backup("nightly-20261122t0230", Some("nightly"), "22T02:35", Some(yes("Succeeded")))];
    let fine = plan(&o, at("22T02:40"));
    assert_eq!(verdict(&fine).1, "False");
    assert_eq!(fine.status.last_success_time.as_ref().unwrap().0, at("22T02:35"));
}

#[test]
fn what_cannot_be_read_is_stalled() {
    for (spec, reason) in [
        (json!({"schedule": "0 0 30 2 *"}), "False InvalidSchedule"),
        (json!({"timeZone": "Mars/Olympus"}), "False InvalidTimeZone"),
    ] {
        let o = observed(spec, json!({}));
        let bad = plan(&o, at("21T02:31"));
        assert_eq!((verdict(&bad).0.as_str(), verdict(&bad).1.as_str()), (reason, "Unknown"));
        let settled = after(&o, &bad);
        assert!(plan(&settled, at("21T02:36")).is_nothing(&settled));
    }
}

#[test]
fn records_of_failures_beyond_the_limit_go_the_oldest_first() {
    let mut o = observed(json!({"history": {"failed": 1}}), json!({}));
    o.backups = vec![
        backup("nightly-b", Some("nightly"), "20T15:00", Some(no("Succeeded"))),
        backup("nightly-a", Some("nightly"), "20T14:00", Some(no("Succeeded"))),
        backup("nightly-c", Some("nightly"), "20T16:00", Some(no("Succeeded"))),
        backup("nightly-d", Some("nightly"), "20T13:00", Some(yes("Succeeded"))),
        backup("weekly-a", Some("weekly"), "20T13:00", Some(no("Succeeded"))),
        backup("by-hand", None, "20T13:00", Some(no("Succeeded"))),
    ];
    let names: Vec<_> = plan(&o, at("20T17:00")).forget.iter().map(|b| b.name_any()).collect();
    assert_eq!(names, ["nightly-a", "nightly-b"]);
}

#[test]
fn the_finalizer_goes_with_the_policy() {
    let o = observed(json!({"deletionPolicy": "Delete"}), json!({}));
    assert_eq!(plan(&o, at("20T13:00")).finalizer, Some(false));
    assert_eq!(plan(&observed(json!({}), json!({})), at("20T13:00")).finalizer, None);
}

fn with_rules() -> Observed {
    let mut o = observed(json!({"retention": {"days": 30}}), json!({}));
    o.backups = vec![
        backup("nightly-1", Some("nightly"), "19T02:30", Some(yes("Succeeded"))),
        backup("nightly-2", Some("nightly"), "20T12:30", Some(yes("Succeeded"))),
    ];
    o
}

#[test]
fn retention_runs_after_a_success_once_and_then_daily() {
    let o = with_rules();
    let start = retention::plan(&o, at("20T13:00")).start.unwrap();
    assert_eq!((start.round, start.newest.as_str(), start.rules.len()), (1, "uid-nightly-2", 1));
    let mut running = o.clone();
    let job = retention::job(&o, &start, vec![], "agent:dev", at("20T13:00")).unwrap().unwrap();
    running.jobs = vec![Arc::new(job)];
    running.seen = Some(Seen::Running);
    let plan_of = |o: &Observed, time| retention::plan(o, at(time));
    assert!(plan_of(&running, "20T13:01").start.is_none());
    running.seen = Some(Seen::Ended(WorkerResult::Retained {
        kept: 1,
        expired: vec!["uid-nightly-1".into(), "uid-gone-before".into()],
        wal_removed: 3,
        earliest: String::new(),
        more: false,
    }));
    let done = plan_of(&running, "20T13:02");
    assert_eq!(done.expired.iter().map(|b| b.name_any()).collect::<Vec<_>>(), ["nightly-1"]);
    assert!(done.done.is_empty(), "the result must be in status before its source goes");
    let status = done.status.clone().unwrap();
    assert_eq!(
        (status.kept, status.expired, status.round, status.newest.as_deref()),
        (1, 2, 1, Some("uid-nightly-2"))
    );

    let base = running.clone();
    let settle = |status| {
        let mut next = base.clone();
        let mut schedule = next.schedule.as_ref().clone();
        schedule.status.get_or_insert_default().retention = Some(status);
        next.schedule = Arc::new(schedule);
        next.peers = vec![Arc::clone(&next.schedule)];
        next.backups.remove(0);
        next.seen = None;
        next
    };
    let mut next = settle(status.clone());
    assert_eq!(plan_of(&next, "20T13:02").done.len(), 1);
    next.jobs = vec![];
    assert!(plan_of(&next, "20T14:00").start.is_none());
    assert_eq!(plan_of(&next, "21T13:03").start.unwrap().round, 2);
    next.backups.push(backup("nightly-3", Some("nightly"), "20T13:30", Some(yes("Succeeded"))));
    assert_eq!(plan_of(&next, "20T14:00").start.unwrap().newest, "uid-nightly-3");
    let mut unfinished =
        settle(holdfast_core::crd::schedule::RetentionStatus { more: true, ..status.clone() });
    unfinished.jobs = vec![];
    assert!(plan_of(&unfinished, "20T13:03").start.is_some());

    running.seen = Some(Seen::Ended(WorkerResult::Failed {
        reason: "AccessDenied".into(),
        message: "no".into(),
        permanent: true,
    }));
    let failed = plan_of(&running, "20T13:02").status.unwrap();
    assert_eq!(failed.error.as_deref(), Some("AccessDenied: no"));
    let mut later = settle(failed);
    later.jobs = vec![];
    assert!(plan_of(&later, "20T13:11").start.is_none());
    assert!(plan_of(&later, "20T13:12").start.is_some());
}

#[test]
fn one_schedule_runs_retention_with_the_rules_of_all() {
    let mut o = with_rules();
    let weekly = schedule_named("weekly", json!({"retention": {"last": 4}}), json!({}));
    o.peers.push(Arc::clone(&weekly));
    assert_eq!(retention::plan(&o, at("20T13:00")).start.unwrap().rules.len(), 2);
    let others = Observed { schedule: weekly, ..o.clone() };
    assert!(retention::plan(&others, at("20T13:00")).start.is_none(), "it is nightly's turn");
    // One that keeps everything: nothing is removed. In another store it has no say.
    let keeps = |spec| {
        let mut o = with_rules();
        o.peers.push(schedule_named("yearly", spec, json!({})));
        retention::plan(&o, at("20T13:00")).start.is_some()
    };
    assert!(!keeps(json!({})));
    assert!(keeps(json!({"template": {"storeRef": {"name": "vault"}}})));
}

#[test]
fn retention_does_not_need_the_database_but_the_store() {
    let mut o = with_rules();
    o.database = None;
    assert!(retention::plan(&o, at("20T13:00")).start.is_some());
    o.store = None;
    assert!(retention::plan(&o, at("20T13:00")).start.is_none());
    let none = observed(json!({"retention": {"days": 1}}), json!({}));
    assert!(retention::plan(&none, at("20T13:00")).start.is_none(), "nothing succeeded yet");
}

#[test]
fn what_a_restore_reads_is_pinned() {
    let restore = |namespace: &str, spec: Value, status: Value| -> Restore {
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "undo", "namespace": namespace, "creationTimestamp": "2026-11-20T12:59:00Z"},
            "spec": spec, "status": status}))
        .unwrap()
    };
    let o = with_rules();
    let pins = |r: Restore, time| retention::pinned(&[r], &o, at(time));
    let (here, now) = (json!({"databaseRef": {"name": "orders"}}), "20T13:00");
    assert_eq!(
        pins(restore("shop", here.clone(), json!({"plan": {"backup": "uid-nightly-1"}})), now).unwrap(),
        ["uid-nightly-1"]
    );
    assert_eq!(pins(restore("shop", here.clone(), json!({})), now), None, "it has not said yet");
    assert_eq!(pins(restore("shop", here.clone(), json!({})), "20T14:00").unwrap(), Vec::<String>::new());
    assert_eq!(
        pins(restore("shop", here, json!({"conditions": [yes("Succeeded")]})), now).unwrap(),
        Vec::<String>::new()
    );
    let named = json!({"newDatabase": {"name": "copy"}, "source": {"backupRef": {"name": "nightly-2"}}});
    assert_eq!(pins(restore("shop", named, json!({})), now).unwrap(), ["uid-nightly-2"]);
    let foreign = json!({"newDatabase": {"name": "copy"},
        "source": {"database": {"name": "orders", "namespace": "shop", "storeRef": {"name": "main"}}}});
    assert_eq!(pins(restore("lab", foreign, json!({})), now), None);
}

#[test]
fn metrics_are_there_from_the_beginning_and_never_claim_1970() {
    let fresh = metrics::figures(&schedule(json!({}), json!({})), at("20T12:01"));
    #[allow(clippy::cast_precision_loss)]
    let created = at("20T12:00").as_second() as f64;
    assert_eq!(
        fresh,
        metrics::Figures { last_success: created, interval: Some(86_400.0), lag: 0.0, missed: 0.0 }
    );
    let late = metrics::figures(&schedule(json!({}), json!({})), at("21T02:40"));
    assert_eq!(late.lag, 600.0);
    let bad = metrics::figures(&schedule(json!({"schedule": "x"}), json!({})), at("21T02:40"));
    assert_eq!((bad.interval, bad.lag), (None, 0.0));
}

#[test]
fn a_job_of_retention_is_told_from_others() {
    let o = with_rules();
    let start = retention::plan(&o, at("20T13:00")).start.unwrap();
    let job: Job =
        retention::job(&o, &start, vec!["uid-x".into()], "agent:dev", at("20T13:00")).unwrap().unwrap();
    assert!(jobs::is_for(&job, RETENTION, "uid-nightly") && !jobs::is_for(&job, RETENTION, "uid-weekly"));
    assert_eq!(jobs::number(&job), 1);
    let text = serde_json::to_string(&job).unwrap();
    assert!(text.contains("uid-x") && text.contains("2026-11-20T13:00:00Z"), "{text}");
}
