//! A StatefulSet that is made anew: what its pods keep, and how many there are.

use super::*;
use crate::{
    plan::{
        fixtures::{now, operation_lease},
        plan,
        tests::{carried_out, made, set_of},
    },
    validate::{Settings, validate},
};
use holdfast_core::{Database, crd::database::ReplicaSource, names};
use std::sync::Arc;

fn edit(seen: &mut Observed, change: impl FnOnce(&mut Database)) {
    change(Arc::make_mut(&mut seen.database));
}

fn newer() -> Settings {
    Settings {
        agent_image: "holdfast/agent:9".into(),
        postgres_images: [("17".to_string(), "postgres:17.99".to_string())].into(),
    }
}

fn made_by(seen: &Observed, settings: &Settings) -> Plan {
    plan(seen, validate(&seen.database, settings).as_ref(), settings, now())
}

/// Every claim asks for, and has, 2 GiB, as the spec does.
fn grown(mut seen: Observed) -> Observed {
    edit(&mut seen, |d| d.spec.storage.size.0 = "2Gi".into());
    for claim in &mut seen.claims {
        let claim = Arc::make_mut(claim);
        let spec = claim.spec.as_mut().unwrap();
        spec.storage_class_name = Some("fast".into());
        let requests = spec.resources.as_mut().unwrap().requests.as_mut().unwrap();
        requests.get_mut("storage").unwrap().0 = "2Gi".into();
        let capacity = claim.status.as_mut().unwrap().capacity.as_mut().unwrap();
        capacity.get_mut("storage").unwrap().0 = "2Gi".into();
    }
    seen
}

#[test]
fn growth_after_an_operator_upgrade_restarts_nothing() {
    let mut seen = carried_out("");
    for instance in &mut seen.instances {
        let pod = Arc::make_mut(&mut instance.pod);
        pod.annotations_mut().insert(names::ANNOTATION_RESTARTED.into(), "in May".into());
    }
    let mut seen = grown(seen);
    seen.stateful_set = None;
    let set = set_of(&made_by(&seen, &newer()));
    let images = stateful_set::images(&set).unwrap();
    assert_eq!((images.agent.as_str(), images.postgres.as_str()), ("holdfast/agent:1", "postgres:17"));
    let restarted = stateful_set::template_annotation(&set, names::ANNOTATION_RESTARTED);
    assert_eq!(restarted.as_deref(), Some("in May"));
    // A restart that is asked for meanwhile takes the new images, and so does a set under pods that differ.
    let mut asked = seen.clone();
    edit(&mut asked, |d| {
        drop(d.annotations_mut().insert(names::ANNOTATION_RESTART.into(), "in June".into()))
    });
    let images = stateful_set::images(&set_of(&made_by(&asked, &newer()))).unwrap();
    assert_eq!(images.agent, "holdfast/agent:9");
    let pod = Arc::make_mut(&mut seen.instances[1].pod);
    pod.annotations_mut().remove(names::ANNOTATION_RESTARTED);
    let images = stateful_set::images(&set_of(&made_by(&seen, &newer()))).unwrap();
    assert_eq!(images.agent, "holdfast/agent:9");
    // Nothing runs: nothing can restart.
    seen.instances.clear();
    let images = stateful_set::images(&set_of(&made_by(&seen, &newer()))).unwrap();
    assert_eq!(images.agent, "holdfast/agent:9");
}

#[test]
fn the_set_is_made_anew_only_once_its_pods_are_as_it_wants_them() {
    let delete = SetStep::Delete { uid: "set-1".into(), orphan: true };
    let seen = grown(carried_out(""));
    assert_eq!(made(&seen).stateful_set, delete);
    let mut restart = seen.clone();
    edit(&mut restart, |d| {
        drop(d.annotations_mut().insert(names::ANNOTATION_RESTART.into(), "today".into()))
    });
    assert!(matches!(made(&restart).stateful_set, SetStep::Update(_)), "its template first");
    let mut behind = seen.clone();
    behind.instances[0].revision = "old".into();
    let waits = made(&behind);
    assert_eq!(waits.stateful_set, SetStep::Leave);
    assert!(waits.facts.settled, "or the rollout that it waits for would not go on");
}

#[test]
fn a_set_made_anew_and_scaled_up_gets_its_clones() {
    let mut seen = grown(carried_out(""));
    edit(&mut seen, |d| {
        d.spec.instances = 4;
        d.spec.storage.replica_source = ReplicaSource::VolumeClone;
    });
    let old = seen.stateful_set.take().unwrap();
    let anew = made(&seen);
    let mut set = set_of(&anew);
    assert_eq!((replicas(&set), anew.clones.len()), (3, 0), "first the pods that run");
    set.metadata.uid = Some("set-2".into());
    set.status = old.status.clone();
    seen.stateful_set = Some(Arc::new(set));
    let scaled = made(&seen);
    assert_eq!((replicas(&set_of(&scaled)), scaled.clones.len()), (4, 1));
    // Fewer than run: at once.
    seen.stateful_set = None;
    edit(&mut seen, |d| d.spec.instances = 2);
    assert_eq!(replicas(&set_of(&made(&seen))), 2);
}

#[test]
fn exclusive_work_ends_pods_that_have_no_set() {
    let mut seen = carried_out("");
    seen.stateful_set = None;
    seen.operation_lease = Some(operation_lease("Exclusive", "t1"));
    let stopping = made(&seen);
    assert_eq!(replicas(&set_of(&stopping)), 0);
    assert!(stopping.needs_live_view);
    seen.instances.clear();
    let quiet = made(&seen);
    assert_eq!(quiet.stateful_set, SetStep::Leave);
    assert_eq!(quiet.facts.operation, Some(Operation::Quiesced { token: "t1".into() }));
}

#[test]
fn a_scale_that_is_refused_stays_refused_while_the_set_is_made_anew() {
    let mut seen = carried_out("");
    edit(&mut seen, |d| d.spec.instances = 1);
    seen.stateful_set = None;
    let anew = made(&seen);
    assert_eq!(anew.facts.problem.as_ref().unwrap().reason, "DurabilityUnreachable");
    assert_eq!(replicas(&set_of(&anew)), 3, "no promised copy goes");
}
