//! What users are told, case by case.

use super::*;
use crate::plan::{fixtures::*, rollout::Rollout, volumes::DataSet};
use holdfast_core::{
    crd::database::Durability,
    report::{ArchiveReport, VolumeReport},
};
use std::sync::Arc;

fn facts(replicas: i32) -> Facts {
    Facts {
        data_set: Some(DataSet {
            id: "d1".into(),
            history: "h1".into(),
            system_identifier: Some("7501".into()),
        }),
        durability: Some(Durability { mode: DurabilityMode::Required, standbys: 1 }),
        instances: replicas,
        replicas,
        operation: Some(Operation::None),
        config_hash: "c1".into(),
        settled: true,
        ..Facts::default()
    }
}

/// Three instances as they should be.
fn healthy() -> Observed {
    let mut seen = observed("");
    seen.stateful_set = Some(running(3, "d1"));
    seen.claims = (0..3).map(|i| claim("d1", i, "current")).collect();
    seen.instances = (0..3)
        .map(|i| {
            instance(i, |r| {
                r.config_hash = "c1".into();
                r.server_version = "17.11".into();
                if i == 0 {
                    r.role = Role::Primary;
                    r.streaming = vec!["orders-1".into(), "orders-2".into()];
                    r.synchronous = r.streaming.clone();
                }
            })
        })
        .collect();
    seen
}

fn said(seen: &Observed, facts: &Facts) -> DatabaseStatus {
    status(seen, facts, None, true, now())
}

fn is(status: &DatabaseStatus, type_: &str) -> (String, String) {
    let found = conditions::find(&status.conditions, type_).unwrap();
    (found.status.clone(), found.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

#[test]
fn a_healthy_database() {
    let status = said(&healthy(), &facts(3));
    assert_eq!(is(&status, "Ready"), pair("True", "AllInstancesReady"));
    assert_eq!(is(&status, "Available"), pair("True", "PrimaryReady"));
    assert_eq!(is(&status, "Consistent"), pair("True", "InSync"));
    let figures = conditions::find(&status.conditions, "Consistent").unwrap().message.clone();
    for figure in
        ["3 of 3 instances", "timeline 1", "within 30 s", "synchronous standbys: 2, promised: 1", "checksums"]
    {
        assert!(figures.contains(figure), "{figure}: {figures}");
    }
    assert_eq!((is(&status, "Reconciling").0, is(&status, "Stalled").0), ("False".into(), "False".into()));
    assert_eq!(is(&status, "Archiving"), pair("False", "NotConfigured"));
    assert_eq!((status.phase.as_deref(), status.primary.as_deref()), (Some("Ready"), Some("orders-0")));
    assert_eq!(status.instances, Some(InstanceCounts { desired: 3, ready: 3, synchronous: 2 }));
    assert_eq!(status.system_identifier.as_deref(), Some("7501"));
    assert_eq!(status.storage.as_ref().unwrap().capacity.as_ref().unwrap().0, "1Gi");
    assert_eq!(status.binding.as_ref().unwrap().name, "orders-app");
    assert!(status.conditions.iter().all(|c| c.observed_generation == Some(3)));
    // Saying it again changes nothing, so nothing is written.
    let mut again = healthy();
    let mut database = (*again.database).clone();
    database.status = Some(status.clone());
    again.database = Arc::new(database);
    assert_eq!(
        super::status(&again, &facts(3), None, false, now() + std::time::Duration::from_secs(99)),
        status
    );
}

#[test]
fn what_keeps_it_from_being_ready() {
    let edit = |change: fn(&mut Observed, &mut Facts)| {
        let (mut seen, mut facts) = (healthy(), facts(3));
        change(&mut seen, &mut facts);
        said(&seen, &facts)
    };
    type Case = (fn(&mut Observed, &mut Facts), &'static str, &'static str);
    let table: [Case; 9] = [
        (|_, f| f.pending = true, "Applying", "Updating"),
        (|_, f| f.settled = false, "Applying", "Updating"),
        (|s, _| s.instances[2].ready = false, "InstancesNotReady", "Degraded"),
        (|s, _| drop(s.instances.pop()), "InstancesNotReady", "Degraded"),
        (|s, _| s.instances[0].report.role = Role::Unknown, "NoPrimary", "Creating"),
        (|s, _| s.instances[1].report.config_hash = "c0".into(), "ConfigurationPending", "Updating"),
        (|_, f| f.growing = vec![Default::default()], "VolumesGrowing", "Updating"),
        (
            |_, f| f.rollout = Rollout { outdated: vec!["orders-1".into()], next: None },
            "Updating",
            "Updating",
        ),
        (|_, f| f.problem = Some(Problem::new("ImageUnknown", "spec.version")), "ImageUnknown", "Degraded"),
    ];
    for (change, reason, phase) in table {
        let status = edit(change);
        assert_eq!(is(&status, "Ready"), pair("False", reason));
        assert_eq!(status.phase.as_deref(), Some(phase), "{reason}");
        let stalled = reason == "ImageUnknown";
        assert_eq!(is(&status, "Stalled").0 == "True", stalled);
        assert_eq!(
            is(&status, "Reconciling").0 == "True",
            !stalled,
            "kstatus: in progress or failed, never both"
        );
    }
}

#[test]
fn the_promise_of_durability() {
    type Case = (fn(&mut Observed, &mut Facts), &'static str, &'static str);
    let table: [Case; 6] = [
        (|s, _| s.instances[0].report.streaming.clear(), "False", "SingleCopy"),
        (|s, _| s.instances[0].report.synchronous.clear(), "False", "NotSynchronous"),
        (|s, _| s.instances[2].report.timeline = 2, "False", "TimelinesDiffer"),
        (|s, _| s.instances[2].ready = false, "False", "InstancesMissing"),
        (
            |s, f| {
                s.instances[0].report.synchronous.clear();
                f.durability = Some(Durability { mode: DurabilityMode::Asynchronous, standbys: 1 });
            },
            "True",
            "InSync",
        ),
        (
            |s, f| {
                s.instances.truncate(1);
                f.replicas = 1;
                f.instances = 1;
            },
            "True",
            "SingleInstance",
        ),
    ];
    for (change, truth, reason) in table {
        let (mut seen, mut facts) = (healthy(), facts(3));
        change(&mut seen, &mut facts);
        assert_eq!(is(&said(&seen, &facts), "Consistent"), pair(truth, reason));
    }
}

#[test]
fn the_archive_in_the_stores_own_words() {
    let mut seen = healthy();
    let mut database = (*seen.database).clone();
    database.spec.archive = crate::plan::fixtures::database("archive: {storeRef: {name: main}}").spec.archive;
    seen.database = Arc::new(database);
    let mut known = facts(3);
    assert_eq!(is(&said(&seen, &known), "Archiving"), pair("False", "StoreNotFound"));
    assert_eq!(is(&said(&seen, &known), "Ready").0, "True", "nothing is blocked");
    known.store_found = true;
    assert_eq!(is(&said(&seen, &known), "Archiving"), pair("Unknown", "Waiting"));
    let report = ArchiveReport {
        last_segment: "000000010000000000000005".into(),
        last_archived_time: "2026-11-21T08:59:00Z".into(),
        ..ArchiveReport::default()
    };
    seen.instances[0].report.archive = Some(report);
    let good = said(&seen, &known);
    assert_eq!(is(&good, "Archiving"), pair("True", "Archiving"));
    assert_eq!(good.archive.unwrap().last_segment.as_deref(), Some("000000010000000000000005"));
    seen.instances[0].report.archive.as_mut().unwrap().error = "NoSuchBucket: b".into();
    let bad = said(&seen, &known);
    assert_eq!(is(&bad, "Archiving"), pair("False", "ArchiveFailed"));
    assert!(conditions::find(&bad.conditions, "Archiving").unwrap().message.contains("NoSuchBucket: b"));
}

#[test]
fn stopped_and_quiesced() {
    let mut seen = observed("stopped: true");
    let down = said(&seen, &Facts { replicas: 0, ..facts(3) });
    assert_eq!(
        (is(&down, "Ready"), is(&down, "Available")),
        (pair("True", "Stopped"), pair("False", "Stopped"))
    );
    assert_eq!(down.phase.as_deref(), Some("Stopped"));
    seen = observed("");
    let token = Operation::Quiesced { token: "t1".into() };
    let status = said(&seen, &Facts { replicas: 0, operation: Some(token), settled: false, ..facts(3) });
    assert_eq!(is(&status, "Quiesced").0, "True");
    let message = &conditions::find(&status.conditions, "Quiesced").unwrap().message;
    assert!(operation::message_has_token(message, "t1"));
    assert_eq!((is(&status, "Ready").0.as_str(), status.phase.as_deref()), ("False", Some("Quiesced")));
    seen.instances = vec![instance(0, |_| {})];
    let left = Operation::Stopping { token: "t1".into(), left: vec!["orders-0".into()] };
    let status = said(&seen, &Facts { replicas: 0, operation: Some(left), settled: false, ..facts(3) });
    assert_eq!(is(&status, "Quiesced"), pair("False", "Stopping"));
}

#[test]
fn a_failover_is_news_and_a_lost_primary_is_remembered_until_then() {
    let mut seen = healthy();
    let first = said(&seen, &facts(3));
    let with = |seen: &mut Observed, status: &DatabaseStatus| {
        let mut database = (*seen.database).clone();
        database.status = Some(status.clone());
        seen.database = Arc::new(database);
    };
    with(&mut seen, &first);
    seen.instances.remove(0);
    let lost = said(&seen, &facts(3));
    assert_eq!((lost.primary.as_deref(), lost.phase.as_deref()), (Some("orders-0"), Some("FailingOver")));
    assert_eq!(is(&lost, "Available"), pair("False", "NoPrimary"));
    assert!(news(&first, &lost).iter().any(|n| n.warning && n.reason == "NoPrimary"));
    with(&mut seen, &lost);
    seen.instances[0].report.role = Role::Primary;
    seen.instances[0].report.timeline = 2;
    let over = said(&seen, &facts(3));
    assert_eq!((over.primary.as_deref(), over.timeline), (Some("orders-1"), Some(2)));
    assert!(failed_over(&lost, &over));
    assert!(
        news(&lost, &over)
            .iter()
            .any(|n| n.reason == "FailedOver" && n.note.contains("before it was orders-0"))
    );
    assert!(!failed_over(&over, &over) && news(&over, &over).is_empty());
}

#[test]
fn of_two_that_say_primary_the_lease_decides() {
    let mut seen = healthy();
    seen.instances[2].report.role = Role::Primary;
    seen.primary_lease = Some(Arc::new(
        serde_json::from_value(serde_json::json!({"metadata": {"name": "orders-primary"}, "spec": {"holderIdentity": "orders-2"}}))
            .unwrap(),
    ));
    assert_eq!(primary(&seen).unwrap().name, "orders-2");
}

#[test]
fn a_restart_is_handled_when_every_instance_runs_from_its_template() {
    let mut seen = healthy();
    let mut set = (*running(3, "d1")).clone();
    let template = set.spec.as_mut().unwrap().template.metadata.as_mut().unwrap();
    template.annotations.get_or_insert_default().insert(names::ANNOTATION_RESTARTED.into(), "today".into());
    seen.stateful_set = Some(Arc::new(set));
    let mut known = Facts { restart: Some("today".into()), ..facts(3) };
    known.rollout.outdated = vec!["orders-0".into()];
    assert_eq!(said(&seen, &known).handled, None);
    known.rollout.outdated.clear();
    assert_eq!(said(&seen, &known).handled.unwrap().restart.as_deref(), Some("today"));
}

#[test]
fn what_became_of_a_switchover_is_in_the_lease() {
    let lease = |switchover: serde_json::Value| {
        let record =
            serde_json::json!({"synchronous": [], "confirmations": 0, "switchover": switchover}).to_string();
        let lease = serde_json::json!({"metadata": {"name": "orders-primary", "annotations": {names::ANNOTATION_RECORD: record}}});
        Some(Arc::new(serde_json::from_value(lease).unwrap()))
    };
    let mut seen = healthy();
    seen.primary_lease = lease(serde_json::json!(null));
    let none = said(&seen, &facts(3));
    assert_eq!(none.handled, None);
    seen.primary_lease = lease(serde_json::json!({"asked": "orders-1"}));
    let done = said(&seen, &facts(3));
    assert_eq!(done.handled.as_ref().unwrap().switchover.as_deref(), Some("orders-1"));
    assert!(news(&none, &done).iter().all(|n| n.reason != "SwitchoverRefused"));
    seen.primary_lease = lease(serde_json::json!({"asked": "orders-9", "refused": "it does not stream"}));
    let refused = said(&seen, &facts(3));
    let told = news(&done, &refused);
    let told = told.iter().find(|n| n.reason == "SwitchoverRefused").unwrap();
    assert!(
        told.warning && told.note.contains("\"orders-9\" was refused: it does not stream"),
        "{}",
        told.note
    );
    assert!(news(&refused, &refused).is_empty());
}

/// Of 1 GiB so much is left, in MiB.
fn space_of(available: i64, stage: &str) -> Option<VolumeReport> {
    let report = serde_json::json!({"capacityBytes": 1_i64 << 30, "availableBytes": available << 20,
        "walBytes": 400 << 20, "stage": stage});
    serde_json::from_value(report).unwrap()
}

fn message(status: &DatabaseStatus, type_: &str) -> String {
    conditions::find(&status.conditions, type_).unwrap().message.clone()
}

#[test]
fn a_volume_that_gets_full_is_told_and_blocks_nothing() {
    let mut seen = healthy();
    seen.instances[0].report.volume = space_of(512, "Ample");
    let before = said(&seen, &facts(3));
    assert_eq!(message(&before, "Ready"), "3 of 3 instances are ready");
    let volume = before.members[0].volume.clone().unwrap();
    assert_eq!(
        (
            volume.capacity.0.as_str(),
            volume.available.0.as_str(),
            volume.wal.0.as_str(),
            volume.stage.as_str()
        ),
        ("1024Mi", "512Mi", "400Mi", "Ample")
    );
    assert_eq!(before.members[1].volume, None, "it has not measured");
    seen.instances[0].report.volume = space_of(72, "Low");
    let low = said(&seen, &facts(3));
    assert_eq!(is(&low, "Ready"), pair("True", "AllInstancesReady"));
    assert!(
        message(&low, "Ready").contains("volume of orders-0: 7 % left, WAL takes 400 MiB of it"),
        "{}",
        message(&low, "Ready")
    );
    let told = news(&before, &low);
    assert!(
        told.iter().any(|n| n.warning && n.reason == "DiskLow" && n.note.contains("orders-0")),
        "{told:?}"
    );
    assert!(news(&low, &low).is_empty());
}

#[test]
fn a_full_primary_is_not_available_until_it_has_room() {
    let mut seen = healthy();
    seen.instances[0].report.volume = space_of(10, "Full");
    let full = said(&seen, &facts(3));
    for (type_, truth) in [("Available", "False"), ("Ready", "False"), ("Stalled", "True")] {
        assert_eq!(is(&full, type_), pair(truth, "DiskFull"));
        assert!(message(&full, type_).contains("raise spec.storage.size"), "{}", message(&full, type_));
    }
    assert_eq!((is(&full, "Reconciling").0.as_str(), full.phase.as_deref()), ("False", Some("DiskFull")));
    assert!(news(&said(&healthy(), &facts(3)), &full).iter().any(|n| n.warning && n.reason == "DiskFull"));
    // The volume grows: nothing is left for a person to do.
    let growing = Facts { growing: vec![Default::default()], ..facts(3) };
    let helped = said(&seen, &growing);
    assert_eq!((is(&helped, "Stalled").0.as_str(), is(&helped, "Reconciling").0.as_str()), ("False", "True"));
    assert_eq!(is(&helped, "Available"), pair("False", "DiskFull"));
    // A full standby does not keep the primary from accepting writes.
    let mut standby = healthy();
    standby.instances[2].report.volume = space_of(10, "Full");
    let said = said(&standby, &facts(3));
    assert_eq!(is(&said, "Available"), pair("True", "PrimaryReady"));
    assert!(message(&said, "Ready").contains("volume of orders-2: 0 % left"));
}

#[test]
fn volumes_that_grow_are_named_with_their_sizes() {
    let one = crate::plan::growth::Growing {
        claim: "d1-orders-0".into(),
        progress: "1Gi of 2Gi".into(),
        ..Default::default()
    };
    let status = said(&healthy(), &Facts { growing: vec![one], ..facts(3) });
    assert_eq!(is(&status, "Reconciling"), pair("True", "VolumesGrowing"));
    assert_eq!(message(&status, "Reconciling"), "volume claims that are growing: d1-orders-0 (1Gi of 2Gi)");
}

#[test]
fn an_archive_that_fails_says_how_much_room_is_left() {
    let mut seen = healthy();
    let mut database = (*seen.database).clone();
    database.spec.archive = crate::plan::fixtures::database("archive: {storeRef: {name: main}}").spec.archive;
    seen.database = Arc::new(database);
    let known = Facts { store_found: true, ..facts(3) };
    let failing =
        ArchiveReport { behind_segments: 3, error: "AccessDenied".into(), ..ArchiveReport::default() };
    seen.instances[0].report.archive = Some(failing);
    let without = message(&said(&seen, &known), "Archiving");
    assert_eq!(without, "3 segment(s) (48 MiB) wait for BackupStore main: AccessDenied");
    seen.instances[0].report.volume = space_of(72, "Low");
    let with = message(&said(&seen, &known), "Archiving");
    assert_eq!(
        with,
        "3 segment(s) (48 MiB) wait for BackupStore main, 72 MiB are left on the volume of orders-0: AccessDenied"
    );
}
