//! When a clone is made, from what, and when it is given up.

use super::*;
use crate::plan::fixtures::{claim, claim_with, instance, instance_of, now, observed, running};
use holdfast_core::report::{VolumeReport, VolumeStage};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use std::sync::Arc;

fn data_set(known: bool) -> DataSet {
    let system_identifier = known.then(|| "7501".to_string());
    DataSet { id: "d1".into(), history: "hd1".into(), system_identifier }
}

/// `replicas` instances, the first one primary, all others streaming; class `fast` on every claim.
fn seen(replicas: i32) -> Observed {
    let mut seen = observed("");
    seen.stateful_set = Some(running(replicas, "d1"));
    seen.claims = (0..replicas)
        .map(|i| {
            let mut one = (*claim("d1", i, "current")).clone();
            one.spec.as_mut().unwrap().storage_class_name = Some("fast".into());
            Arc::new(one)
        })
        .collect();
    seen.instances = (0..replicas)
        .map(|i| {
            instance(i, |r| {
                r.volume = Some(VolumeReport::default());
                if i == 0 {
                    r.role = Role::Primary;
                    r.streaming = (1..replicas).map(|i| names::pod("orders", i)).collect();
                }
            })
        })
        .collect();
    seen
}

fn made(seen: &Observed, replicas: i32) -> Vec<(String, String)> {
    let claims = wanted(seen, &running(replicas, "d1"), &data_set(true), AGENT);
    claims.iter().map(|c| (c.name_any(), source(c).unwrap_or_default().to_string())).collect()
}

const AGENT: &str = "holdfast/agent:1";

fn pair(name: &str, source: &str) -> (String, String) {
    (name.into(), source.into())
}

#[test]
fn a_new_replica_gets_a_clone_of_the_last_standbys_volume() {
    let seen = seen(3);
    assert_eq!(made(&seen, 5), [pair("d1-orders-3", "d1-orders-2"), pair("d1-orders-4", "d1-orders-2")]);
    let claim = wanted(&seen, &running(4, "d1"), &data_set(true), AGENT).remove(0);
    // What the StatefulSet's controller would make, and a source.
    assert_eq!(claim.labels()[names::LABEL_DATA_SET], "d1");
    assert_eq!(claim.labels()[names::LABEL_DATA_SET_STATE], "current");
    assert_eq!(claim.labels()[names::LABEL_HISTORY], "hd1");
    assert_eq!(claim.labels()[names::LABEL_COMPONENT], "instance", "of the StatefulSet's selector");
    assert!(claim.owner_references().is_empty(), "it outlives the StatefulSet");
    let spec = claim.spec.unwrap();
    assert_eq!(spec.storage_class_name.as_deref(), Some("fast"));
    let from = spec.data_source.unwrap();
    assert_eq!((from.kind.as_str(), from.name.as_str()), ("PersistentVolumeClaim", "d1-orders-2"));
    assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "1Gi");
}

#[test]
fn a_clone_is_never_smaller_than_its_source() {
    let mut seen = seen(2);
    let large = Arc::make_mut(&mut seen.claims[1]);
    let capacity = large.status.as_mut().unwrap().capacity.as_mut().unwrap();
    capacity.get_mut("storage").unwrap().0 = "3Gi".into();
    let claim = wanted(&seen, &running(3, "d1"), &data_set(true), AGENT).remove(0);
    assert_eq!(claim.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0, "3Gi");
}

#[test]
fn when_there_is_nothing_to_clone() {
    type Case = (&'static str, fn(&mut Observed));
    let table: [Case; 10] = [
        ("an agent that does not mark its volume", |s| s.instances[1].report.volume = None),
        ("no standby streams", |s| s.instances[0].report.streaming.clear()),
        ("no standby is ready", |s| s.instances[1].ready = false),
        ("another timeline", |s| s.instances[1].report.timeline = 7),
        ("no primary", |s| s.instances[0].report.role = Role::Unknown),
        ("the source has no class", |s| {
            Arc::make_mut(&mut s.claims[1]).spec.as_mut().unwrap().storage_class_name = None;
        }),
        ("the source is not bound", |s| {
            Arc::make_mut(&mut s.claims[1]).status.as_mut().unwrap().phase = Some("Pending".into());
        }),
        ("the source is on its way out", |s| {
            Arc::make_mut(&mut s.claims[1]).metadata.deletion_timestamp = Some(Time(now()));
        }),
        ("a copy of a full volume is a full volume", |s| {
            s.instances[1].report.volume =
                Some(VolumeReport { stage: VolumeStage::Full, ..Default::default() });
        }),
        ("all are stopped", |s| s.stateful_set = Some(running(0, "d1"))),
    ];
    for (case, change) in table {
        let mut seen = seen(2);
        change(&mut seen);
        let instead = made(&seen, 3);
        assert!(instead.iter().all(|(_, source)| source == "d1-orders-0"), "{case}: {instead:?}");
        // Nor the primary's, when that is not well either.
        seen.instances[0].ready = false;
        assert_eq!(made(&seen, 3), [], "{case}");
    }
    assert_eq!(wanted(&seen(2), &running(3, "d1"), &data_set(false), AGENT), [], "there is no data yet");
    assert_eq!(made(&seen(3), 2), [], "fewer replicas");
    let alone = seen(1);
    assert_eq!(
        made(&alone, 2),
        [pair("d1-orders-1", "d1-orders-0")],
        "the primary's when there is no standby"
    );
}

#[test]
fn no_clone_for_an_agent_of_another_version() {
    let seen = seen(2);
    assert_eq!(wanted(&seen, &running(3, "d1"), &data_set(true), "holdfast/agent:2"), []);
    assert_eq!(wanted(&seen, &running(3, "d1"), &data_set(true), AGENT).len(), 1);
}

#[test]
fn an_ordinal_with_a_claim_keeps_it() {
    let mut kept = seen(2);
    kept.claims.push(claim("d1", 2, "current"));
    assert_eq!(made(&kept, 4), [pair("d1-orders-3", "d1-orders-1")]);
    kept.claims.push(claim_with("d1", 3, "retired", &[], None));
    assert_eq!(made(&kept, 4), [], "whatever its state is");
}

/// Instance 2, which waits for the clone that is its volume; both are so many seconds old.
fn awaited(claim_age: u64, pod_age: u64, edit: impl FnOnce(&mut PersistentVolumeClaim)) -> Observed {
    let ago = |seconds: u64| now() - std::time::Duration::from_secs(seconds);
    let mut seen = seen(2);
    let mut clone = (*claim("d1", 2, "current")).clone();
    clone.metadata.annotations =
        Some([(ANNOTATION_CLONED_FROM.to_string(), "d1-orders-1".to_string())].into());
    clone.metadata.creation_timestamp = Some(Time(ago(claim_age)));
    clone.status = Some(serde_json::from_value(json!({"phase": "Pending"})).unwrap());
    edit(&mut clone);
    seen.claims.push(Arc::new(clone));
    seen.instances.push(instance_of(json!({
        "metadata": {"name": "orders-2", "namespace": "shop", "uid": "pod-2", "creationTimestamp": ago(pod_age).to_string(),
            "labels": {"holdfast.dev/database": "orders", "holdfast.dev/component": "instance"}},
        "spec": {"containers": [], "volumes": [{"name": "d1", "persistentVolumeClaim": {"claimName": "d1-orders-2"}}]},
    })));
    seen
}

#[test]
fn a_clone_that_does_not_come_is_given_up_once_and_only_if_it_never_came() {
    let failing = |mut seen: Observed| {
        let asked = questions(&seen, now());
        let words = Words { reason: "ProvisioningFailed".into(), message: "cloning is not supported".into() };
        seen.clone_words = asked.into_iter().map(|q| (q.uid, words.clone())).collect();
        seen
    };
    let quiet = |seen: Observed| seen;
    type Edit = fn(&mut PersistentVolumeClaim);
    let plain: Edit = |_| {};
    type Told = fn(Observed) -> Observed;
    let failing: Told = failing;
    let quiet: Told = quiet;
    let table: [(&str, u64, u64, Edit, Told, bool); 10] = [
        ("the driver fails, at first", 59, 59, plain, failing, false),
        ("the driver fails", 61, 61, plain, failing, true),
        ("the driver is quiet", 119, 119, plain, quiet, false),
        ("the driver is quiet for too long", 120, 120, plain, quiet, true),
        ("the pod came later", 900, 59, plain, failing, false),
        (
            "it has its volume",
            900,
            900,
            |c| c.status.as_mut().unwrap().phase = Some("Bound".into()),
            quiet,
            false,
        ),
        (
            "it is being bound",
            900,
            900,
            |c| c.spec.as_mut().unwrap().volume_name = Some("pvc-1".into()),
            quiet,
            false,
        ),
        (
            "it has lost it",
            900,
            900,
            |c| c.status.as_mut().unwrap().phase = Some("Lost".into()),
            quiet,
            false,
        ),
        ("it is no clone", 900, 900, |c| c.metadata.annotations = None, quiet, false),
        ("it goes already", 900, 900, |c| c.metadata.deletion_timestamp = Some(Time(now())), quiet, false),
    ];
    for (case, claim_age, pod_age, edit, told, expected) in table {
        let seen = told(awaited(claim_age, pod_age, edit));
        let gone = given_up(&seen, now());
        assert_eq!(gone.len(), usize::from(expected), "{case}");
        for one in gone {
            assert_eq!((one.claim.name.as_str(), one.pod.uid.as_str()), ("d1-orders-2", "pod-2"));
            assert!(one.why.contains("was to be a clone of d1-orders-1"), "{}", one.why);
        }
    }
    let told = given_up(&failing(awaited(61, 61, plain)), now());
    assert!(told[0].why.contains("cloning is not supported"), "{}", told[0].why);
    let mut without = awaited(900, 900, plain);
    without.instances.pop();
    assert_eq!(given_up(&without, now()), [], "nobody waits for it yet");
}
