//! What people are told, case by case.

use super::*;
use crate::plan::fixtures::{claim, instance_of, now, observed, running};
use serde_json::json;

fn facts() -> Facts {
    Facts { replicas: 1, config_hash: "c1".into(), ..Facts::default() }
}

fn stuck(status: serde_json::Value) -> Observed {
    let mut seen = observed("instances: 1");
    seen.stateful_set = Some(running(1, "d1"));
    seen.instances = vec![instance_of(json!({
        "metadata": {"name": "orders-0", "namespace": "shop", "uid": "pod-0", "creationTimestamp": "2026-11-21T08:59:00Z",
            "labels": {"holdfast.dev/database": "orders", "holdfast.dev/component": "instance"}},
        "spec": {"containers": [], "volumes": [{"name": "d1", "persistentVolumeClaim": {"claimName": "d1-orders-0"}}]},
        "status": status
    }))];
    seen
}

#[test]
fn an_image_that_does_not_exist_is_told_at_once() {
    let seen =
        stuck(json!({"containerStatuses": [{"name": "postgres", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}));
    let problem = diagnose(&seen, &facts(), &BTreeMap::new(), now()).unwrap();
    assert_eq!(
        (problem.reason.as_str(), problem.message.as_str()),
        ("ErrImagePull", "pod orders-0: not found")
    );
}

#[test]
fn a_volume_that_cannot_be_made_speaks_before_the_scheduler() {
    let status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "unbound claims", "lastTransitionTime": "2026-11-21T08:59:00Z"}]});
    let mut seen = stuck(status);
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()).unwrap().reason, "Unschedulable");
    let mut pending = (*claim("d1", 0, "current")).clone();
    pending.status.get_or_insert_default().phase = Some("Pending".into());
    seen.claims = vec![std::sync::Arc::new(pending)];
    let asked = questions(&seen, &facts(), now());
    assert_eq!(asked[0].what, "volume claim d1-orders-0");
    let words =
        Words { reason: "ProvisioningFailed".into(), message: "storageclass \"fast\" not found".into() };
    let problem = diagnose(&seen, &facts(), &[(asked[0].uid.clone(), words)].into(), now()).unwrap();
    assert_eq!(problem.reason, "ProvisioningFailed");
    assert!(problem.message.contains("\"fast\" not found"));
}

#[test]
fn a_missing_secret_names_those_that_are_needed() {
    let seen =
        stuck(json!({"containerStatuses": [{"name": "postgres", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}));
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()), None);
    let asked = questions(&seen, &facts(), now());
    assert_eq!(asked[0].what, "pod orders-0");
    let words = Words { reason: "FailedMount".into(), message: "secret \"orders-app\" not found".into() };
    let problem = diagnose(&seen, &facts(), &[("pod-0".to_string(), words)].into(), now()).unwrap();
    assert!(problem.message.contains("orders-app, orders-replication, orders-tls"), "{}", problem.message);
}

#[test]
fn the_agents_error_is_passed_on_with_its_reason() {
    let mut seen = stuck(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
    seen.instances[0].report.error = "DiskFull: 12 MiB are left on the volume".into();
    seen.errors_since = [("pod-0".to_string(), now())].into();
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()), None, "it may get over it");
    seen.errors_since = [("pod-0".to_string(), now() - std::time::Duration::from_secs(6))].into();
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()).unwrap().reason, "DiskFull");
    seen.instances[0].report.error = "pg_rewind: could not read".into();
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()).unwrap().reason, "InstanceError");
    seen.instances[0].report.config_hash = "c1".into();
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()), None, "it serves as it should");
}

/// A pod that no node takes, in the scheduler's words, with its claim.
fn unplaced(words: &str, phase: &str, class: Option<&str>) -> Observed {
    let mut seen =
        stuck(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": words, "lastTransitionTime": "2026-11-21T08:59:00Z"}]}));
    let mut one = (*claim("d1", 0, "current")).clone();
    one.status.as_mut().unwrap().phase = Some(phase.into());
    one.spec.as_mut().unwrap().storage_class_name = class.map(Into::into);
    seen.claims = vec![std::sync::Arc::new(one)];
    seen
}

const UNBOUND: &str = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.";

#[test]
fn claims_that_get_no_volume() {
    type Said = Option<(&'static str, &'static str)>;
    // Class, the claim's events, the scheduler's words; expected: reason, words of the message.
    type Case = (Option<&'static str>, Said, &'static str, &'static str, &'static [&'static str]);
    let table: [Case; 7] = [
        (
            Some("fast"),
            Some(("ProvisioningFailed", "storageclass.storage.k8s.io \"fast\" not found")),
            UNBOUND,
            "ProvisioningFailed",
            &["claim d1-orders-0", "\"fast\" not found", "create StorageClass fast"],
        ),
        (
            None,
            Some((
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            )),
            UNBOUND,
            "FailedBinding",
            &["claim d1-orders-0", "no default StorageClass", "mark one as the default"],
        ),
        (
            Some("fast"),
            Some(("ProvisioningFailed", "rpc error: the pool is full")),
            UNBOUND,
            "ProvisioningFailed",
            &["claim d1-orders-0 of pod orders-0: rpc error: the pool is full"],
        ),
        (
            Some("fast"),
            Some(("ExternalProvisioning", "Waiting for a volume to be created")),
            UNBOUND,
            "ExternalProvisioning",
            &["claim d1-orders-0"],
        ),
        (Some("fast"), None, UNBOUND, "Unschedulable", &["claim d1-orders-0 of StorageClass fast"]),
        (None, None, UNBOUND, "Unschedulable", &["claim d1-orders-0 without a StorageClass"]),
        // The claim waits for its first consumer: what the scheduler says is the cause.
        (
            Some("zonal"),
            None,
            "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints.",
            "Unschedulable",
            &["pod orders-0: 0/3 nodes", "topology spread constraints"],
        ),
    ];
    for (class, events, scheduler, reason, parts) in table {
        let seen = unplaced(scheduler, "Pending", class);
        let asked = questions(&seen, &facts(), now());
        assert_eq!(asked[0].counts, Counts::Unbound { slow: true }, "{reason}");
        let words = events.map(|(reason, message)| {
            (asked[0].uid.clone(), Words { reason: reason.into(), message: message.into() })
        });
        let problem = diagnose(&seen, &facts(), &words.into_iter().collect(), now()).unwrap();
        assert_eq!(problem.reason, reason);
        for part in parts {
            assert!(problem.message.contains(part), "{part}: {}", problem.message);
        }
    }
}

#[test]
fn a_volume_in_a_zone_without_a_node_is_named() {
    for words in [
        "0/3 nodes are available: 3 node(s) had volume node affinity conflict.",
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match PersistentVolume's node affinity.",
    ] {
        let seen = unplaced(words, "Bound", Some("zonal"));
        assert!(questions(&seen, &facts(), now()).is_empty(), "the scheduler has said it");
        let problem = diagnose(&seen, &facts(), &BTreeMap::new(), now()).unwrap();
        assert_eq!(problem.reason, "Unschedulable");
        for part in ["pod orders-0", words, "volume of claim d1-orders-0 can be used only from the zone"] {
            assert!(problem.message.contains(part), "{part}: {}", problem.message);
        }
    }
}

#[test]
fn a_clone_that_is_awaited_is_no_case_for_a_person() {
    let mut seen = unplaced(UNBOUND, "Pending", Some("fast"));
    let mut one = (*seen.claims[0]).clone();
    one.metadata.annotations = Some([(clones::ANNOTATION_CLONED_FROM.into(), "d1-orders-1".into())].into());
    seen.claims = vec![std::sync::Arc::new(one)];
    assert!(questions(&seen, &facts(), now()).is_empty());
    assert_eq!(diagnose(&seen, &facts(), &BTreeMap::new(), now()), None);
}

#[test]
fn a_growth_that_fails_is_asked_about_and_told() {
    let mut seen = stuck(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
    seen.instances[0].report.error = "DiskFull: 1 MiB of 1Gi is left".into();
    seen.errors_since = [("pod-0".to_string(), now() - std::time::Duration::from_secs(60))].into();
    let growing = growth::Growing {
        claim: "d1-orders-0".into(),
        uid: "claim-0".into(),
        progress: "1Gi of 2Gi".into(),
        ..growth::Growing::default()
    };
    let facts = Facts { growing: vec![growing], ..facts() };
    assert_eq!(questions(&seen, &facts, now())[0].counts, Counts::Growth { since: None, on_node: false });
    assert_eq!(diagnose(&seen, &facts, &BTreeMap::new(), now()), None, "more room is on its way");
    let words = Words { reason: "VolumeResizeFailed".into(), message: "rpc error: no room".into() };
    let problem = diagnose(&seen, &facts, &[("claim-0".to_string(), words)].into(), now()).unwrap();
    assert_eq!(problem.reason, "ExpansionFailed");
    assert!(problem.message.contains("rpc error: no room"), "{}", problem.message);
}
