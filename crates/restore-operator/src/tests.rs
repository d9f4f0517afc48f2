//! The procedure as a whole: a world in memory in which every step is carried out and the others answer. The next step is
//! worked out from that world alone, so every one of these runs is also a run with a crash after each step.

mod world;

use crate::{
    desired::{self, Purpose},
    observe::LivePod,
    plan::{ATTEMPTS, Step, next_step},
    status,
};
use holdfast_core::{
    conditions::{Truth, types},
    ids, names, operation,
    pods::WorkerState,
    wire::{JOB_VARIABLE, PlanSource, WorkerJob, WorkerResult},
};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

use world::*;

#[test]
fn in_place_goes_through_its_steps_in_order_and_ends() {
    let mut w = in_place();
    w.run();
    assert_eq!(
        w.acts(),
        "+job, +finalizer, +lease, +volume, +job, hand over, retire, retire, retire, -lease, -finalizer, +backup"
    );
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
    assert_eq!(w.is(types::READY).as_deref(), Some("True Succeeded"));
    assert_eq!(w.is(types::STALLED).as_deref(), Some("False Succeeded"));
    let status = w.o.restore.status.clone().unwrap();
    assert_eq!(status.previous_data_set.as_deref(), Some("dold"));
    assert_eq!(status.reached.unwrap().lsn.as_deref(), Some("0/7000000"));
    assert!(status.recovery_seconds.unwrap() > 0);
    let own = w.o.claim().unwrap();
    assert_eq!(own.labels()[names::LABEL_SYSTEM_IDENTIFIER], SYSTEM);
    assert_eq!(own.annotations()[names::ANNOTATION_REPLACES], "dold");
    // Finished: whatever happens around it, nothing more is written.
    w.o.database = None;
    w.o.claims.clear();
    assert!(matches!(next_step(&settings(), &w.o, w.now).unwrap(), Step::Done));
}

#[test]
fn a_new_database_is_made_only_from_a_volume_that_is_current() {
    let mut w = anew();
    w.run();
    assert_eq!(w.acts(), "+job, +finalizer, +volume, +job, hand over, +database, -finalizer, +backup");
    let made = w.o.database.clone().unwrap();
    assert_eq!(made.name_any(), "orders-copy");
    assert_eq!(
        (made.spec.instances, made.spec.durability.clone()),
        (1, None),
        "Required cannot hold with one instance"
    );
    assert_eq!(made.spec.archive.as_ref().unwrap().store_ref.name, "main");
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
    assert!(!w.o.claim().unwrap().annotations().contains_key(names::ANNOTATION_REPLACES));
}

#[test]
fn the_source_of_a_new_database_need_not_exist_any_more() {
    let mut w = anew();
    (w.o.source_database, w.o.image) = (None, None);
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
    assert_eq!(w.o.database.unwrap().spec.version, "17");
}

#[test]
fn status_lost_at_any_step_does_not_change_the_end() {
    let steps = {
        let mut calm = in_place();
        calm.run();
        calm.trace.len()
    };
    for lost in 0..steps {
        let mut w = in_place();
        // Once it is finished, a lost status makes it finish again, without touching anything but itself.
        w.run_until(|w| w.trace.len() == lost);
        w.o.restore.status = None;
        w.run();
        assert_eq!(
            w.is(types::SUCCEEDED).as_deref(),
            Some("True Succeeded"),
            "lost after step {lost}: {:?}",
            w.trace
        );
        assert_eq!(w.trace.iter().filter(|t| *t == "hand over").count(), 1);
        assert_eq!(w.trace.iter().filter(|t| *t == "retire").count(), 3);
    }
}

#[test]
fn deleting_it_before_the_hand_over_takes_everything_back_and_after_it_nothing() {
    for make in [in_place as fn() -> World, anew] {
        let steps = {
            let mut calm = make();
            calm.run();
            calm.trace.len()
        };
        for at in 0..=steps {
            let mut w = make();
            w.run_until(|w| w.trace.len() == at);
            if !has_finalizer(&w) {
                // The API server removes it at once, and the garbage collector its Jobs.
                continue;
            }
            let handed_over = w.trace.iter().any(|t| t == "hand over");
            let made = w.trace.iter().any(|t| t == "+database");
            w.o.restore.metadata.deletion_timestamp = Some(Time(w.now));
            w.run();
            assert!(!has_finalizer(&w) && w.o.lease.is_none(), "deleted after {at}: {:?}", w.trace);
            let kept = w.o.claim().is_some();
            if w.o.restore.spec.database_ref.is_some() {
                assert_eq!(kept, handed_over, "deleted after {at}: {:?}", w.trace);
                let old = w.o.claims.iter().filter(|c| c.labels()[names::LABEL_DATA_SET] == "dold");
                let wanted = if handed_over { "retired" } else { "current" };
                assert!(old.into_iter().all(|c| c.labels()[names::LABEL_DATA_SET_STATE] == wanted));
            } else {
                assert_eq!(kept, made, "deleted after {at}: {:?}", w.trace);
            }
        }
    }
}

#[test]
fn a_failure_before_the_hand_over_rolls_back_and_says_so() {
    let mut w = in_place();
    w.fill = WorkerResult::Failed {
        reason: "CheckFailed".into(),
        message: "rows: 3, not 1000".into(),
        permanent: true,
    };
    w.run();
    assert_eq!(w.acts(), "+job, +finalizer, +lease, +volume, +job, -job, -job, -volume, -lease, -finalizer");
    w.assert_as_before();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False CheckFailed"));
    assert_eq!(w.is(types::STALLED).as_deref(), Some("True CheckFailed"));
    assert_eq!(w.is(types::ROLLED_BACK).as_deref(), Some("True RolledBack"));
    assert!(status::finished(&w.o.restore));
}

#[test]
fn what_may_pass_is_tried_again_on_the_same_volume_and_at_last_given_up() {
    let mut w = in_place();
    w.fill =
        WorkerResult::Failed { reason: "Unreachable".into(), message: "no route".into(), permanent: false };
    w.run();
    assert_eq!(w.trace.iter().filter(|t| *t == "+job").count(), 1 + ATTEMPTS as usize);
    assert_eq!(w.trace.iter().filter(|t| *t == "+volume").count(), 1);
    w.assert_as_before();
    let mut w = in_place();
    w.plan = WorkerResult::Failed { reason: "NoBackup".into(), message: "none".into(), permanent: true };
    w.run();
    assert_eq!(w.acts(), "+job", "nothing was stopped for a plan that failed");
    assert_eq!(w.is(types::VALIDATED).as_deref(), Some("False NoBackup"));
    assert_eq!(w.is(types::STALLED).as_deref(), Some("True NoBackup"));
}

#[test]
fn no_second_worker_while_the_first_ones_pod_lives() {
    let mut w = in_place();
    w.run_until(|w| w.job(Purpose::Restore));
    let name = w.o.workers.last().unwrap().name.clone();
    let failed =
        WorkerResult::Failed { reason: "WorkerDied".into(), message: String::new(), permanent: false };
    w.o.workers.last_mut().unwrap().state = WorkerState::Ended(failed);
    w.now = w.now.checked_add(Duration::from_secs(3600)).unwrap();
    let held = |w: &mut World| {
        (0..20).all(|_| w.step() != Some(Duration::ZERO) || w.trace.last().unwrap() == "report")
    };
    assert!(held(&mut w), "{:?}", w.trace);
    w.o.pods.retain(|p| p.job != name);
    assert!(!held(&mut w));
    assert_eq!(w.trace.iter().filter(|t| *t == "+job").count(), 3);
}

#[test]
fn a_dry_run_stops_nothing_until_it_is_approved() {
    let mut w = world(json!({"databaseRef": {"name": "orders"}, "approve": false}));
    w.run();
    assert_eq!(w.acts(), "+job");
    assert_eq!(w.is(types::VALIDATED).as_deref(), Some("True Planned"));
    assert_eq!(w.is(types::READY).as_deref(), Some("True DryRun"));
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("Unknown Validated"));
    w.o.restore.spec.approve = true;
    w.o.restore.metadata.generation = Some(2);
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
    assert!(w.o.restore.status.unwrap().conditions.iter().all(|c| c.observed_generation == Some(2)));
}

#[test]
fn a_finalizer_that_nobody_asked_for_is_no_approval() {
    let mut w = world(json!({"databaseRef": {"name": "orders"}, "approve": false}));
    w.run();
    w.o.restore.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    w.run();
    assert_eq!(w.acts(), "+job, -finalizer", "no Lease, no volume");
    assert_eq!(w.is(types::READY).as_deref(), Some("True DryRun"));
}

#[test]
fn what_is_missing_is_named_and_waited_for() {
    let reason = |w: &mut World| {
        for _ in 0..5 {
            w.step();
        }
        (w.is(types::STALLED).unwrap(), w.acts())
    };
    let mut w = in_place();
    let database = w.o.database.take();
    assert_eq!(reason(&mut w), ("True DatabaseNotFound".into(), String::new()));
    w.o.database = database;
    let store = w.o.store.take();
    assert_eq!(reason(&mut w).0, "True StoreNotFound");
    w.o.store = store;
    w.o.store.as_mut().unwrap().status = None;
    assert_eq!(reason(&mut w).0, "True StoreNotReady");
    w.o.store = in_place().o.store;
    w.o.database.as_mut().unwrap().spec.archive = None;
    assert_eq!(reason(&mut w).0, "True NoArchive");
    w.o.database = in_place().o.database;
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"), "it went on by itself");

    let mut w = anew();
    w.o.database = Some(world::database("orders-copy", "dother"));
    assert_eq!(reason(&mut w), ("True DatabaseExists".into(), String::new()));
    w.o.database = None;
    w.o.claims.push(volume("dother", "orders-copy", 0, "current"));
    assert_eq!(reason(&mut w), ("True VolumesExist".into(), String::new()));

    let mut w =
        world(json!({"databaseRef": {"name": "orders"}, "source": {"backupRef": {"name": "nightly"}}}));
    assert_eq!(reason(&mut w).0, "True BackupNotFound");
}

#[test]
fn another_major_version_and_a_volume_too_small_are_refused_before_anything_stops() {
    let mut w = in_place();
    w.plan = planned("15");
    w.run();
    assert_eq!((w.is(types::STALLED).unwrap().as_str(), w.acts().as_str()), ("True VersionMismatch", "+job"));
    let mut w = in_place();
    let WorkerResult::Planned { bytes, .. } = &mut w.plan else { unreachable!() };
    *bytes = 20 << 30;
    w.run();
    assert_eq!((w.is(types::STALLED).unwrap().as_str(), w.acts().as_str()), ("True VolumeTooSmall", "+job"));
    let mut w =
        world(json!({"databaseRef": {"name": "orders"}, "pointInTime": {"time": "2027-01-01T00:00:00Z"}}));
    w.run();
    assert_eq!((w.is(types::STALLED).unwrap().as_str(), w.acts().as_str()), ("True TargetInFuture", ""));
}

#[test]
fn it_waits_for_its_own_token_and_for_whoever_works_already() {
    let mut w = in_place();
    let mut other: Lease =
        parse(json!({"metadata": {"name": "orders-operation", "uid": "other", "ownerReferences": [
        {"apiVersion": "v1", "kind": "Backup", "name": "b", "uid": "b-uid"}]}}));
    other.spec = Some(Default::default());
    w.o.lease = Some(other);
    for _ in 0..30 {
        w.step();
        if let Some(worker) = w.o.workers.first_mut() {
            worker.state = WorkerState::Ended(planned("17"));
        }
        w.o.pods.clear();
    }
    assert_eq!(w.acts(), "+job, +finalizer");
    // The other one is done; a pod of it lingers; then the database answers with a token that is not ours.
    w.o.lease = None;
    w.o.pods = vec![LivePod { name: "p".into(), job: "hfb-1".into(), token: Some("other".into()) }];
    for _ in 0..5 {
        w.step();
    }
    assert_eq!(w.acts(), "+job, +finalizer");
    w.o.pods.clear();
    w.set_database(types::QUIESCED, Truth::True, &operation::quiesced_message("other"));
    for _ in 0..5 {
        w.step();
    }
    assert_eq!(w.acts(), "+job, +finalizer, +lease", "{:?}", w.trace);
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
}

#[test]
fn a_lease_taken_away_while_the_volume_is_filled_ends_the_restore() {
    let mut w = in_place();
    w.run_until(|w| w.job(Purpose::Restore));
    w.o.lease = None;
    w.run();
    w.assert_as_before();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False OperationLost"));
}

#[test]
fn a_worker_that_cannot_start_does_not_keep_the_database_down() {
    let mut w = in_place();
    w.run_until(|w| w.job(Purpose::Restore));
    w.o.workers.last_mut().unwrap().state = WorkerState::Running(Some("ErrImagePull: no".into()));
    w.run();
    w.assert_as_before();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False WorkerNotStarted"));
}

#[test]
fn two_current_data_sets_are_not_guessed_between_but_a_replaced_one_does_not_count() {
    let mut w = in_place();
    w.o.claims.push(volume("dother", "orders", 0, "current"));
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False DataSetsAmbiguous"));
    let mut w = in_place();
    let mut newer = volume("dnewer", "orders", 0, "current");
    newer.metadata.annotations = Some([(names::ANNOTATION_REPLACES.to_string(), "dold".to_string())].into());
    w.o.claims.push(newer);
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
    assert_eq!(w.o.claim().unwrap().annotations()[names::ANNOTATION_REPLACES], "dnewer");
}

#[test]
fn jobs_say_what_the_worker_needs_and_carry_the_token() {
    let mut w = in_place();
    let mut jobs = Vec::new();
    for _ in 0..60 {
        if let Step::CreateJob(job) = next_step(&settings(), &w.o, w.now).unwrap() {
            jobs.push(job);
        }
        if w.step() != Some(Duration::ZERO) {
            w.others();
        }
    }
    let told = |n: usize| -> WorkerJob {
        let container = &jobs[n].spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0];
        let env = container.env.as_ref().unwrap().iter().find(|e| e.name == JOB_VARIABLE).unwrap();
        serde_json::from_str(env.value.as_ref().unwrap()).unwrap()
    };
    let WorkerJob::Plan { connection, source: PlanSource::History { path }, .. } = told(0) else { panic!() };
    assert_eq!(
        connection.unwrap().host,
        "orders-rw.shop.svc",
        "the second before the accident is not archived yet"
    );
    assert_eq!((path.history.as_str(), path.system_identifier.as_str()), ("dold0001", SYSTEM));
    let WorkerJob::Restore { new_history, data_set, database_uid, backup_uid, timeline, .. } = told(1) else {
        panic!()
    };
    assert_eq!((new_history.history, data_set), (ids::history(UID), ids::data_set(UID)));
    assert_eq!((database_uid.as_str(), backup_uid.as_str(), timeline), ("db-uid", "b-1", 1));
    assert_eq!(jobs[1].labels()[names::LABEL_OPERATION_TOKEN], TOKEN);
    let pod = jobs[1].spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    assert_eq!(pod.containers[0].image.as_deref(), Some("registry.example/postgres:17.2"));
    let claim = w.o.claim_name();
    assert!(
        pod.volumes
            .iter()
            .flatten()
            .any(|v| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == claim))
    );
    assert_eq!(desired::follow_up_name(&w.o.restore), "undo-base");
}

#[test]
fn a_quantity_that_no_pod_could_have_fails_before_anything_is_made() {
    let source = json!({"database": {"name": "orders", "storeRef": {"name": "main"}}});
    for (overrides, field) in [
        (
            json!({"resources": {"limits": {"cpu": ""}}}),
            "spec.newDatabase.overrides.resources.limits.cpu \"\"",
        ),
        (
            json!({"resources": {"requests": {"memory": "-1Gi"}}}),
            "spec.newDatabase.overrides.resources.requests.memory",
        ),
        (json!({"storage": {"size": "much"}}), "spec.newDatabase.overrides.storage.size \"much\""),
    ] {
        let mut w =
            world(json!({"newDatabase": {"name": "orders-copy", "overrides": overrides}, "source": source}));
        w.run();
        assert_eq!(w.acts(), "", "{field}");
        assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False QuantityInvalid"));
        assert!(w.message(types::STALLED).contains(field), "{}", w.message(types::STALLED));
    }
    // In place the Database can still be put right.
    let mut w = in_place();
    let resources = &mut w.o.database.as_mut().unwrap().spec.resources;
    *resources = serde_json::from_value(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})).unwrap();
    w.run();
    assert_eq!((w.acts().as_str(), w.is(types::STALLED).as_deref()), ("", Some("True QuantityInvalid")));
    assert!(
        w.message(types::STALLED).contains("spec.resources.requests.cpu"),
        "{}",
        w.message(types::STALLED)
    );
    w.o.database.as_mut().unwrap().spec.resources = None;
    w.run();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("True Succeeded"));
}

#[test]
fn what_the_api_server_refuses_is_said_once_and_until_it_takes_it() {
    let mut w = in_place();
    w.o.refused = Some("starting a worker is refused by the API server: exceeded quota".into());
    let first = next_step(&settings(), &w.o, w.now).unwrap();
    let Step::Report(status) = first else { panic!("{first:?}") };
    w.o.restore.status = Some(*status);
    assert_eq!(w.is(types::STALLED).as_deref(), Some("True Refused"));
    assert_eq!(w.is(types::READY).as_deref(), Some("False Refused"));
    assert!(w.message(types::STALLED).contains("exceeded quota"));
    let step = next_step(&settings(), &w.o, w.now).unwrap();
    assert!(matches!(step, Step::CreateJob(_)), "it is tried again, and nothing is said twice: {step:?}");
    w.o.refused = None;
    w.run();
    assert_eq!(w.is(types::STALLED).as_deref(), Some("False Succeeded"));
}

#[test]
fn a_refusal_while_the_database_is_down_ends_in_a_rollback() {
    let mut w = in_place();
    let down = |w: &World| matches!(next_step(&settings(), &w.o, w.now), Ok(Step::CreateClaim(_)));
    assert!(w.run_until(down), "{}", w.acts());
    w.o.refused = Some("making a volume is refused by the API server: exceeded quota".into());
    let first = next_step(&settings(), &w.o, w.now).unwrap();
    let Step::Report(status) = first else { panic!("{first:?}") };
    w.o.restore.status = Some(*status);
    assert_eq!(w.is(types::STALLED).as_deref(), Some("True Refused"));
    w.now = w.now.checked_add(Duration::from_secs(59)).unwrap();
    let patient = next_step(&settings(), &w.o, w.now).unwrap();
    assert!(matches!(patient, Step::CreateClaim(_)), "a quota may be made larger in a minute: {patient:?}");
    w.now = w.now.checked_add(Duration::from_secs(1)).unwrap();
    w.run();
    w.assert_as_before();
    assert_eq!(w.is(types::SUCCEEDED).as_deref(), Some("False Refused"));
    assert_eq!(w.is(types::ROLLED_BACK).as_deref(), Some("True RolledBack"));
}

#[test]
fn a_refusal_is_told_from_a_bad_moment() {
    let said = |code: u16, reason: &str| {
        let status = kube::core::Status {
            code,
            reason: reason.into(),
            message: "no".into(),
            ..kube::core::Status::default()
        };
        let source = kube::Error::Api(Box::new(status));
        crate::apply::Error::Write { what: "starting a worker", source }.refusal()
    };
    assert_eq!(
        said(400, "BadRequest").as_deref(),
        Some("starting a worker is refused by the API server: no")
    );
    assert!(said(403, "Forbidden").is_some() && said(422, "Invalid").is_some());
    assert!(
        said(500, "InternalError").is_none()
            && said(409, "Conflict").is_none()
            && said(503, "ServiceUnavailable").is_none()
    );
}

#[test]
fn a_system_identifier_that_is_none_is_named_with_its_field() {
    let mut w = world(json!({"newDatabase": {"name": "orders-copy"},
        "source": {"database": {"name": "orders", "storeRef": {"name": "main"}, "systemIdentifier": " "}}}));
    w.run();
    assert_eq!(
        (w.acts().as_str(), w.is(types::STALLED).as_deref()),
        ("", Some("True SystemIdentifierInvalid"))
    );
    assert!(w.message(types::STALLED).contains("spec.source.database.systemIdentifier"));
}
