//! Tables of steps: Database orders in namespace shop, store main.

use super::{
    facts::Facts,
    observe::{Observed, Removal},
    plan::{Outcome, Step, backoff, next_step},
    removal::history_of,
    status, work,
};
use crate::jobs::{self, BACKUP, REMOVAL, Seen};
use holdfast_core::{
    Backup, BackupStore, Database, conditions,
    conditions::types,
    crd::backup::BackupTarget,
    names, operation,
    wire::{JOB_VARIABLE, WorkerJob, WorkerResult},
};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobStatus},
        coordination::v1::Lease,
    },
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};
use std::sync::Arc;

const UID: &str = "b-1";
const NOW: i64 = 100_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn yes(type_: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": "x", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2026-11-21T00:00:00Z"})
}

fn backup(meta: Value, spec: Value, status: Value) -> Arc<Backup> {
    let mut all = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": "before-migration", "namespace": "shop", "uid": UID, "generation": 1},
        "spec": {"databaseRef": {"name": "orders"}}, "status": status});
    for (part, extra) in [("metadata", meta), ("spec", spec)] {
        for (key, value) in extra.as_object().unwrap() {
            all[part][key] = value.clone();
        }
    }
    Arc::new(serde_json::from_value(all).unwrap())
}

fn database(change: impl FnOnce(&mut Value)) -> Option<Arc<Database>> {
    let mut all = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "db-1"},
        "spec": {"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"},
            "archive": {"storeRef": {"name": "main"}}},
        "status": {"conditions": [yes("Available")], "systemIdentifier": "7501", "history": "d9", "timeline": 2,
            "members": [
                {"name": "orders-0", "role": "Primary", "ready": true, "timeline": 2},
                {"name": "orders-1", "role": "Replica", "ready": true, "timeline": 2, "lagBytes": 900},
                {"name": "orders-2", "role": "Replica", "ready": true, "timeline": 2, "lagBytes": 10}]}});
    change(&mut all);
    Some(Arc::new(serde_json::from_value(all).unwrap()))
}

fn store(conditions: Value) -> Option<Arc<BackupStore>> {
    Some(Arc::new(
        serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore",
            "metadata": {"name": "main", "namespace": "shop", "uid": "s-1", "generation": 1},
            "spec": {"s3": {"bucket": "b", "prefix": "prod"}}, "status": {"conditions": conditions}}))
        .unwrap(),
    ))
}

fn lease(holder: &str) -> Option<Arc<Lease>> {
    let owner = OwnerReference {
        kind: "Backup".into(),
        name: "x".into(),
        uid: holder.into(),
        ..OwnerReference::default()
    };
    let mut lease = operation::lease("orders", "shop", owner, operation::Mode::Shared, at(NOW));
    lease.metadata.uid = Some("l-1".into());
    Some(Arc::new(lease))
}

fn job(number: i64, ended: Option<i64>) -> Arc<Job> {
    let mut job = Job::default();
    job.metadata.name = Some(work::attempt_name(UID, number));
    job.metadata.uid = Some(format!("j-{number}"));
    job.metadata.creation_timestamp = Some(Time(at(NOW - 50)));
    jobs::mark(&mut job, BACKUP, "main", UID, number);
    job.status = ended.map(|second| JobStatus {
        conditions: Some(vec![JobCondition {
            type_: "Failed".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(second))),
            ..JobCondition::default()
        }]),
        ..JobStatus::default()
    });
    Arc::new(job)
}

fn failed(permanent: bool) -> Option<Seen> {
    Some(Seen::Ended(WorkerResult::Failed {
        reason: "Unreachable".into(),
        message: "refused".into(),
        permanent,
    }))
}

fn done() -> Option<Seen> {
    let result = json!({"outcome": "backedUp", "location": "shop/orders/7501/d9/base/b-1", "size": 10, "storedSize": 5,
        "backupTime": "2026-11-21T03:00:00Z", "postgresql": {"systemIdentifier": "7501", "timeline": 2,
        "startLSN": "0/2000028", "stopLSN": "0/2000120", "serverVersion": "17.11"}});
    Some(Seen::Ended(serde_json::from_value(result).unwrap()))
}

fn good() -> Observed {
    Observed {
        backup: backup(json!({}), json!({}), json!({})),
        database: database(|_| {}),
        store: store(json!([yes("Ready")])),
        lease: None,
        jobs: vec![],
        seen: None,
        busy: 0,
        facts: Some(Facts { image: Some("postgres:17".into()), ..Facts::default() }),
        removal: None,
    }
}

/// A step in a few words.
fn name(step: &Step) -> String {
    match step {
        Step::Wait(w) => format!("Wait {}{}", w.reason, if w.stalled { " stalled" } else { "" }),
        Step::Finish(Outcome::Succeeded { .. }) => "Finish Succeeded".into(),
        Step::Finish(Outcome::Failed { reason, .. }) => format!("Finish {reason}"),
        Step::Abandon(_, reason, _) => format!("Abandon {reason}"),
        Step::Watch(None) => "Watch".into(),
        Step::Watch(Some((reason, _))) => format!("Watch {reason}"),
        Step::RemoveJobs(jobs) => format!("RemoveJobs {}", jobs.len()),
        Step::LetGo(Some((reason, _))) => format!("LetGo {reason}"),
        other => format!("{other:?}"),
    }
}

fn step(o: &Observed) -> String {
    name(&next_step(o, at(NOW)))
}

#[test]
fn a_backup_waits_for_what_it_needs_and_says_so() {
    type Change = fn(&mut Observed);
    let table: &[(&str, Change)] = &[
        ("TakeLease", |_| {}),
        ("TakeLease", |o| o.facts = None),
        ("Start(1)", |o| o.lease = lease(UID)),
        ("Wait DatabaseNotFound stalled", |o| o.database = None),
        ("Wait DatabaseDeleting stalled", |o| {
            o.database = database(|d| d["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z"));
        }),
        ("Wait DatabaseStopped stalled", |o| o.database = database(|d| d["spec"]["stopped"] = json!(true))),
        ("Wait DatabaseQuiesced", |o| {
            o.database = database(|d| d["status"]["conditions"] = json!([yes("Quiesced")]))
        }),
        ("Wait DatabaseNotAvailable", |o| o.database = database(|d| d["status"]["conditions"] = json!([]))),
        ("Wait DatabaseNotReported", |o| o.database = database(|d| d["status"]["history"] = json!(null))),
        ("Wait ArchiveRequired stalled", |o| o.database = database(|d| d["spec"]["archive"] = json!(null))),
        ("Wait ArchiveRequired stalled", |o| {
            o.backup = backup(json!({}), json!({"storeRef": {"name": "other"}}), json!({}));
        }),
        ("Wait StoreNotFound stalled", |o| o.store = None),
        ("Wait StoreNotReady", |o| o.store = store(json!([]))),
        ("Wait StoreNotReady stalled", |o| o.store = store(json!([yes("Stalled")]))),
        ("Wait OperationInProgress", |o| o.lease = lease("somebody")),
        ("Wait OperationInProgress", |o| {
            o.facts = Some(Facts { image: Some("i".into()), restore: Some("undo".into()), pod: None });
        }),
        ("Wait OperationInProgress", |o| {
            o.facts = Some(Facts { image: Some("i".into()), restore: None, pod: Some("hfb-x".into()) });
        }),
        ("Wait StoreBusy", |o| o.busy = 2),
        ("Wait DatabaseNotReported", |o| o.facts = Some(Facts::default())),
        // Whoever waits lets others have the Lease.
        ("ReleaseLease(\"l-1\")", |o| {
            o.lease = lease(UID);
            o.busy = 2;
        }),
        ("SetFinalizer(true)", |o| {
            o.backup = backup(json!({}), json!({"deletionPolicy": "Delete"}), json!({}))
        }),
        ("SetFinalizer(false)", |o| {
            o.backup = backup(json!({"finalizers": [names::FINALIZER]}), json!({}), json!({}));
        }),
    ];
    for (number, (expected, change)) in table.iter().enumerate() {
        let mut observed = good();
        change(&mut observed);
        assert_eq!(step(&observed), *expected, "line {number}");
    }
}

#[test]
fn attempts_are_counted_whatever_crashed() {
    type Line = (&'static str, Vec<Arc<Job>>, Option<Seen>, Value);
    let table: Vec<Line> = vec![
        ("Watch", vec![job(1, None)], Some(Seen::Running), json!({})),
        ("Finish Succeeded", vec![job(1, Some(NOW - 1))], done(), json!({"attempts": 1})),
        ("Wait Unreachable", vec![job(1, Some(NOW - 1))], failed(false), json!({"attempts": 1})),
        ("Start(2)", vec![job(1, Some(NOW - 10))], failed(false), json!({"attempts": 1})),
        ("Wait Unreachable", vec![job(1, Some(NOW - 90)), job(2, Some(NOW - 10))], failed(false), json!({})),
        ("Start(3)", vec![job(2, Some(NOW - 20))], failed(false), json!({"attempts": 2})),
        ("Finish Unreachable", vec![job(3, Some(NOW - 900))], failed(false), json!({"attempts": 3})),
        ("Finish Unreachable", vec![job(1, Some(NOW - 1))], failed(true), json!({"attempts": 1})),
        (
            "Finish UnexpectedResult",
            vec![job(3, Some(NOW))],
            Some(Seen::Ended(WorkerResult::Deleted)),
            json!({}),
        ),
        // The Job was deleted: one attempt the fewer.
        ("Start(2)", vec![], None, json!({"attempts": 1})),
        ("Finish WorkerVanished", vec![], None, json!({"attempts": 3})),
    ];
    for (number, (expected, jobs, seen, status)) in table.into_iter().enumerate() {
        let observed = Observed {
            lease: lease(UID),
            jobs,
            seen,
            backup: backup(json!({}), json!({}), status),
            ..good()
        };
        assert_eq!(step(&observed), expected, "line {number}");
    }
    assert_eq!((1..=4).map(backoff).collect::<Vec<_>>(), [10, 20, 40, 80]);
}

#[test]
fn a_pod_that_never_starts_ends_the_attempt_with_kubernetes_words() {
    let waiting = |seconds| {
        Some(Seen::Waiting {
            seconds,
            reason: "Unschedulable".into(),
            message: "0/3 nodes".into(),
            wrong: true,
        })
    };
    let mut o = Observed { lease: lease(UID), jobs: vec![job(1, None)], seen: waiting(60), ..good() };
    assert_eq!(step(&o), "Watch Unschedulable");
    o.seen = waiting(601);
    assert_eq!(step(&o), "Abandon Unschedulable");
    o.jobs = vec![job(3, None)];
    let last = next_step(&o, at(NOW));
    let status = status::of(&o, &last, at(NOW));
    let said = conditions::find(&status.conditions, types::SUCCEEDED).unwrap();
    assert!(said.message.contains("0/3 nodes") && said.status == "False", "{said:?}");
    assert!(conditions::is_true(&status.conditions, types::STALLED));
}

#[test]
fn the_result_is_written_before_anything_is_cleaned_up_and_never_touched_again() {
    let mut o = Observed { lease: lease(UID), jobs: vec![job(1, Some(NOW - 1))], seen: done(), ..good() };
    let finish = next_step(&o, at(NOW));
    let written = status::of(&o, &finish, at(NOW));
    assert_eq!(written.backup_location.as_deref(), Some("s3://b/prod/shop/orders/7501/d9/base/b-1"));
    assert_eq!(written.backup_time.as_ref().unwrap().0.to_string(), "2026-11-21T03:00:00Z");
    assert_eq!(written.store.as_ref().unwrap().name, "main");
    o.backup = backup(json!({}), json!({}), serde_json::to_value(&written).unwrap());
    assert_eq!(step(&o), "ReleaseLease(\"l-1\")");
    o.lease = None;
    assert_eq!(step(&o), "RemoveJobs 1");
    o.jobs = vec![];
    assert_eq!(step(&o), "Rest");
    assert!(!status::differs(&o, &Step::Rest, at(NOW + 999)));
    // Whatever happens to database and store.
    o.database = None;
    o.store = None;
    assert_eq!(step(&o), "Rest");
    o.backup = backup(json!({"generation": 2}), json!({}), serde_json::to_value(&written).unwrap());
    assert_eq!(step(&o), "Restamp");
}

#[test]
fn a_failures_jobs_stay_for_their_logs() {
    let status = json!({"observedGeneration": 1, "conditions": [{"type": "Succeeded", "status": "False", "reason": "x",
        "message": "", "lastTransitionTime": "2026-11-21T00:00:00Z"}]});
    let mut o =
        Observed { backup: backup(json!({}), json!({}), status), jobs: vec![job(1, Some(5))], ..good() };
    assert_eq!(step(&o), "Rest");
    o.jobs.push(job(2, None));
    assert_eq!(step(&o), "RemoveJobs 1");
}

#[test]
fn a_worker_is_told_everything_and_reads_from_the_standby_least_behind() {
    let o = Observed { lease: lease(UID), ..good() };
    let job = work::attempt(&o, 1, "agent:dev").unwrap();
    let pod = job.spec.unwrap().template;
    assert_eq!(pod.metadata.unwrap().labels.unwrap()[names::LABEL_OPERATION_TOKEN], "l-1");
    let container = &pod.spec.unwrap().containers[0];
    assert_eq!(container.image.as_deref(), Some("postgres:17"));
    let told = container.env.as_ref().unwrap().iter().find(|e| e.name == JOB_VARIABLE).unwrap();
    let WorkerJob::Backup { connection, history, backup_uid, .. } =
        serde_json::from_str(told.value.as_deref().unwrap()).unwrap()
    else {
        panic!("another job")
    };
    assert_eq!(connection.host, "orders-2.orders-pods.shop.svc");
    assert_eq!(connection.primary_host, "orders-rw.shop.svc");
    assert_eq!(
        (history.system_identifier.as_str(), history.history.as_str(), backup_uid.as_str()),
        ("7501", "d9", UID)
    );

    let alone = database(|d| {
        d["status"]["members"] = json!([{"name": "orders-1", "role": "Replica", "ready": false}])
    });
    assert_eq!(work::host(&alone.unwrap(), BackupTarget::PreferStandby), "orders-rw.shop.svc");
    assert_eq!(work::host(&database(|_| {}).unwrap(), BackupTarget::Primary), "orders-rw.shop.svc");
}

fn removal_job(number: i64, ended: Option<i64>) -> Arc<Job> {
    let mut job = job(number, ended).as_ref().clone();
    jobs::mark(&mut job, REMOVAL, "main", UID, number);
    Arc::new(job)
}

#[test]
fn a_deletion_takes_the_data_along_or_says_why_not() {
    let succeeded = json!({"backupLocation": "s3://b/prod/shop/orders/7501/d9/base/b-1", "store": {"name": "main"},
        "conditions": [yes("Succeeded")]});
    let deleted = |seconds_ago: i64, status: &Value| {
        let meta =
            json!({"finalizers": [names::FINALIZER], "deletionTimestamp": at(NOW - seconds_ago).to_string()});
        backup(meta, json!({"deletionPolicy": "Delete"}), status.clone())
    };
    let base = |removal: Removal| Observed {
        backup: deleted(5, &succeeded),
        removal: Some(removal),
        database: None,
        ..good()
    };
    type Change = Box<dyn Fn(&mut Observed)>;
    let with = |f: fn(&mut Removal)| -> Change {
        Box::new(move |o: &mut Observed| {
            if let Some(r) = &mut o.removal {
                f(r);
            }
        })
    };
    let (old, nothing) = (deleted(601, &succeeded), deleted(5, &json!({})));
    let table: Vec<(&str, Change)> = vec![
        ("StartRemoval(1)", Box::new(|_| {})),
        ("LetGo DataKept", with(|r| r.kept_by = Some("nightly".into()))),
        ("LetGo DataKept", with(|r| r.namespace_ends = true)),
        ("Wait InUse", with(|r| r.pinned_by = Some("undo".into()))),
        ("Wait StoreNotFound", Box::new(|o| o.store = None)),
        ("RemoveJobs 1", Box::new(|o| o.jobs = vec![job(1, None)])),
        ("LetGo(None)", Box::new(move |o| o.backup = Arc::clone(&nothing))),
        ("Wait RemovingData", with(|r| r.jobs = vec![removal_job(1, None)])),
        (
            "LetGo(None)",
            with(|r| {
                r.jobs = vec![removal_job(1, Some(NOW))];
                r.seen = Some(Seen::Ended(WorkerResult::Deleted));
            }),
        ),
        (
            "Wait Unreachable",
            with(|r| {
                r.jobs = vec![removal_job(1, Some(NOW - 5))];
                r.seen = failed(false);
            }),
        ),
        (
            "StartRemoval(2)",
            with(|r| {
                r.jobs = vec![removal_job(1, Some(NOW - 10))];
                r.seen = failed(false);
            }),
        ),
        (
            "LetGo DataLeft",
            Box::new({
                let old = Arc::clone(&old);
                move |o: &mut Observed| {
                    o.backup = Arc::clone(&old);
                    o.removal = Some(Removal {
                        jobs: vec![removal_job(1, Some(NOW - 10))],
                        seen: failed(false),
                        ..Removal::default()
                    });
                }
            }),
        ),
        // The operator was away for the whole time: it still tries once.
        ("StartRemoval(1)", Box::new(move |o| o.backup = Arc::clone(&old))),
    ];
    for (number, (expected, change)) in table.iter().enumerate() {
        let mut observed = base(Removal::default());
        change(&mut observed);
        assert_eq!(step(&observed), *expected, "line {number}");
    }
    let unfinalized = backup(json!({"deletionTimestamp": at(NOW).to_string()}), json!({}), json!({}));
    assert_eq!(step(&Observed { backup: unfinalized, ..good() }), "Rest");
}

#[test]
fn a_location_leads_back_to_its_history() {
    let history = history_of("volume://backups/a/shop/orders/7501/d9/base/b-1").unwrap();
    assert_eq!(
        (history.namespace.as_str(), history.database.as_str(), history.history.as_str()),
        ("shop", "orders", "d9")
    );
    assert_eq!(history_of("s3://b/orders/base/b-1"), None);
    assert_eq!(history_of(""), None);
}

#[test]
fn what_the_api_server_refuses_is_a_case_for_a_person() {
    let error = |code: u16, reason: &str| {
        let status = kube::core::Status {
            code,
            reason: reason.into(),
            message: "exceeded quota".into(),
            ..kube::core::Status::default()
        };
        super::apply::Error::Api {
            what: "create the worker's Job",
            source: kube::Error::Api(Box::new(status)),
        }
    };
    for (code, reason) in [(400, "BadRequest"), (403, "Forbidden"), (422, "Invalid")] {
        let wait = error(code, reason).refusal().unwrap();
        assert!(wait.stalled && wait.message.contains("exceeded quota"), "{wait:?}");
    }
    for code in [409, 429, 500, 503] {
        assert_eq!(error(code, "").refusal(), None, "{code}");
    }
}
