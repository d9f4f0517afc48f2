//! From a Database in YAML to the plan.

use super::{children::Write, fixtures::*, *};
use crate::validate::validate;
use holdfast_core::{
    BackupStore,
    crd::database::{DurabilityMode, Handled},
    ids,
    report::Role,
    wire::AgentConfig,
};
use serde_json::json;
use std::sync::Arc;

pub(super) fn made(observed: &Observed) -> Plan {
    let valid = validate(&observed.database, &settings());
    plan(observed, valid.as_ref(), &settings(), now())
}

fn take<K: Clone>(write: &Write<K>) -> K {
    match write {
        Write::Create(object) | Write::Update(object) => object.clone(),
        _ => panic!("nothing to write"),
    }
}

pub(super) fn set_of(plan: &Plan) -> StatefulSet {
    match &plan.stateful_set {
        SetStep::Create(set) | SetStep::Update(set) => (**set).clone(),
        other => panic!("{other:?}"),
    }
}

fn config_of(plan: &Plan) -> AgentConfig {
    config_map::told(&take(&plan.config_map)).unwrap()
}

/// Carries a plan out, as the API server, the StatefulSet controller and the agents would.
pub(super) fn carry_out(seen: &mut Observed, plan: &Plan) {
    fn put<K: Clone>(slot: &mut Option<Arc<K>>, write: &Write<K>) {
        if let Write::Create(object) | Write::Update(object) = write {
            *slot = Some(Arc::new(object.clone()));
        }
    }
    put(&mut seen.service_account, &plan.service_account);
    put(&mut seen.role, &plan.role);
    put(&mut seen.role_binding, &plan.role_binding);
    put(&mut seen.config_map, &plan.config_map);
    for service in &plan.services {
        let mut slot = None;
        put(&mut slot, service);
        seen.services.extend(slot.map(|s| (s.name_any(), s)));
    }
    seen.endpoint_slice = plan.endpoint_slice.clone().map(Arc::new).or(seen.endpoint_slice.take());
    put(&mut seen.budget, &plan.budget);
    if let SetStep::Create(set) | SetStep::Update(set) = &plan.stateful_set {
        let mut set = (**set).clone();
        set.metadata.uid = Some("set-1".into());
        set.metadata.generation = Some(1);
        let replicas = set.spec.as_ref().unwrap().replicas.unwrap();
        let status = json!({"replicas": replicas, "observedGeneration": 1, "updateRevision": "new"});
        set.status = Some(serde_json::from_value(status).unwrap());
        let id = stateful_set::data_set(&set).unwrap().to_string();
        let history = ids::history(UID);
        seen.claims = (0..replicas)
            .map(|i| claim_with(&id, i, "current", &[(names::LABEL_HISTORY, &history)], None))
            .collect();
        seen.instances = (0..replicas)
            .map(|i| {
                let mut one = instance(i, |r| {
                    r.volume = Some(Default::default());
                    r.role = if i == 0 { Role::Primary } else { Role::Replica };
                    r.streaming = (1..replicas).filter(|_| i == 0).map(|i| names::pod("orders", i)).collect();
                    r.system_identifier = "7501".into();
                });
                let template = set.spec.as_ref().unwrap().template.clone();
                let pod = Arc::make_mut(&mut one.pod);
                pod.annotations_mut().extend(template.metadata.unwrap().annotations.unwrap_or_default());
                pod.spec = template.spec;
                one
            })
            .collect();
        seen.stateful_set = Some(Arc::new(set));
    }
    for patch in &plan.claims {
        for claim in seen.claims.iter_mut().filter(|c| c.name_any() == patch.name) {
            let label =
                patch.system_identifier.clone().map(|id| (names::LABEL_SYSTEM_IDENTIFIER.to_string(), id));
            Arc::make_mut(claim).labels_mut().extend(label);
        }
    }
    let mut database = (*seen.database).clone();
    database.status.get_or_insert_default().binding = Some(Default::default());
    seen.database = Arc::new(database);
}

/// As after the StatefulSet's controller has seen that no pods are wanted.
fn scale_down(seen: &mut Observed) {
    let set = Arc::make_mut(seen.stateful_set.as_mut().unwrap());
    set.spec.as_mut().unwrap().replicas = Some(0);
    set.status.as_mut().unwrap().replicas = 0;
}

/// What is there when everything has been carried out.
pub(super) fn carried_out(extra: &str) -> Observed {
    let mut seen = observed(extra);
    for _ in 0..5 {
        let plan = made(&seen);
        if !plan.facts.pending {
            return seen;
        }
        carry_out(&mut seen, &plan);
    }
    panic!("it does not settle: {:#?}", made(&seen));
}

#[test]
fn a_database_from_nothing() {
    let plan = made(&observed(""));
    assert!(plan.needs_live_view, "volumes that the cache does not show yet would be passed over");
    assert_eq!(plan.secrets, Some(false));
    let config = config_of(&plan);
    assert_eq!((config.instances, config.system_identifier.as_str()), (3, ""));
    assert_eq!(config.durability.mode, DurabilityMode::Required);
    assert_eq!(config.data_set, ids::data_set(UID));
    let set = set_of(&plan);
    let spec = set.spec.as_ref().unwrap();
    assert_eq!((spec.replicas, spec.service_name.as_deref()), (Some(3), Some("orders-pods")));
    let claim = &spec.volume_claim_templates.as_ref().unwrap()[0];
    assert_eq!(claim.metadata.name, Some(ids::data_set(UID)));
    assert_eq!(claim.labels()[names::LABEL_DATA_SET_STATE], "current");
    let pod = spec.template.spec.as_ref().unwrap();
    let container = &pod.containers[0];
    assert_eq!(container.image.as_deref(), Some("postgres:17"));
    assert_eq!(container.command.as_ref().unwrap().join(" "), "/holdfast/bin/holdfast-agent run");
    assert!(container.env.iter().flatten().all(|e| e.value.is_none()), "nothing but the downward API");
    assert_eq!(pod.init_containers.as_ref().unwrap()[0].image.as_deref(), Some("holdfast/agent:1"));
    assert_eq!(plan.services.len(), 4);
    let rw = take(&plan.services[0]);
    assert_eq!((rw.name_any().as_str(), rw.spec.unwrap().selector), ("orders-rw", None));
    let budget = take(&plan.budget);
    assert_eq!(budget.spec.as_ref().unwrap().unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
    let role = take(&plan.role);
    let pods = role.rules.unwrap().into_iter().find(|r| r.resources == Some(vec!["pods".into()])).unwrap();
    assert_eq!(pods.resource_names.unwrap(), ["orders-0", "orders-1", "orders-2"]);
    assert!(plan.endpoint_slice.is_none(), "it waits for the Service's address family");
}

#[test]
fn a_database_that_is_as_wanted_needs_no_write() {
    let plan = made(&carried_out(""));
    assert!(!plan.facts.pending, "{plan:#?}");
    assert_eq!((plan.secrets, plan.replace, plan.needs_live_view), (None, None, false));
    assert_eq!(plan.finalizer, Finalizer::Leave);
}

#[test]
fn the_system_identifier_forbids_initdb_and_restarts_nothing() {
    let mut seen = carried_out("");
    for claim in &mut seen.claims {
        Arc::make_mut(claim).labels_mut().remove(names::LABEL_SYSTEM_IDENTIFIER);
    }
    let plan = made(&seen);
    assert_eq!(plan.claims.len(), 3);
    assert!(plan.claims.iter().all(|c| c.system_identifier.as_deref() == Some("7501")));
    assert!(matches!(plan.stateful_set, SetStep::Leave), "{:?}", plan.stateful_set);
    assert_eq!(plan.replace, None);
}

#[test]
fn a_new_operator_restarts_nothing() {
    let seen = carried_out("");
    let newer = Settings {
        agent_image: "holdfast/agent:2".into(),
        postgres_images: [("17".to_string(), "postgres:17.99".to_string())].into(),
    };
    let valid = validate(&seen.database, &newer);
    let same = plan(&seen, valid.as_ref(), &newer, now());
    assert_eq!(same.stateful_set, SetStep::Leave);
    // Together with another change the new images are taken.
    let mut seen = seen;
    let mut database = (*seen.database).clone();
    database.annotations_mut().insert(names::ANNOTATION_RESTART.into(), "today".into());
    seen.database = Arc::new(database);
    let valid = validate(&seen.database, &newer);
    let set = set_of(&plan(&seen, valid.as_ref(), &newer, now()));
    let images = stateful_set::images(&set).unwrap();
    assert_eq!((images.agent.as_str(), images.postgres.as_str()), ("holdfast/agent:2", "postgres:17.99"));
    assert_eq!(
        stateful_set::template_annotation(&set, names::ANNOTATION_RESTARTED).as_deref(),
        Some("today")
    );
}

#[test]
fn a_switchover_is_told_to_the_agents_until_it_is_handled_and_restarts_nothing() {
    let mut seen = carried_out("instances: 3");
    let before = made(&seen).facts.config_hash;
    let mut database = (*seen.database).clone();
    database.annotations_mut().insert(names::ANNOTATION_SWITCHOVER.into(), "any@2".into());
    seen.database = Arc::new(database.clone());
    let asked = made(&seen);
    assert_eq!(config_of(&asked).switchover.as_deref(), Some("any@2"));
    assert_eq!(asked.stateful_set, SetStep::Leave);
    assert_eq!(asked.facts.config_hash, before, "what is asked for once is no configuration");
    carry_out(&mut seen, &asked);
    let handled = Handled { switchover: Some("any@2".into()), ..Handled::default() };
    database.status.get_or_insert_default().handled = Some(handled);
    seen.database = Arc::new(database);
    assert_eq!(config_of(&made(&seen)).switchover, None);
}

#[test]
fn a_watch_that_does_not_show_the_volumes_yet_changes_no_history() {
    let mut seen = carried_out("instances: 3");
    let mut set = (**seen.stateful_set.as_ref().unwrap()).clone();
    let template = &mut set.spec.as_mut().unwrap().volume_claim_templates.as_mut().unwrap()[0].metadata;
    template.name = Some("drestored".into());
    template.labels.get_or_insert_default().insert(names::LABEL_HISTORY.into(), "drestored-history".into());
    seen.stateful_set = Some(Arc::new(set.clone()));
    seen.claims.clear();
    let said = made(&seen).facts.data_set.unwrap();
    assert_eq!((said.id.as_str(), said.history.as_str()), ("drestored", "drestored-history"));
    // Nor does anything else that does not know it.
    let template = &mut set.spec.as_mut().unwrap().volume_claim_templates.as_mut().unwrap()[0].metadata;
    template.labels = None;
    seen.stateful_set = Some(Arc::new(set));
    assert_eq!(made(&seen).facts.problem.unwrap().reason, "HistoryUnknown");
    let mut database = (*seen.database).clone();
    let status = database.status.get_or_insert_default();
    status.data_set = Some("drestored".into());
    status.history = Some("hstatus".into());
    seen.database = Arc::new(database);
    assert_eq!(made(&seen).facts.data_set.unwrap().history, "hstatus");
}

#[test]
fn the_image_of_the_spec_changes_at_once() {
    let mut seen = carried_out("image: registry.example/postgres:17.1");
    let mut database = (*seen.database).clone();
    database.spec.image = Some("registry.example/postgres:17.2".into());
    seen.database = Arc::new(database);
    let images = stateful_set::images(&set_of(&made(&seen))).unwrap();
    assert_eq!(images.postgres, "registry.example/postgres:17.2");
}

#[test]
fn the_superusers_secret_goes_when_it_is_wanted_no_more_and_only_then() {
    let mut seen = carried_out("postgresql: {superuser: Enabled}");
    assert!(!made(&seen).remove_superuser);
    let mut database = (*seen.database).clone();
    database.spec.postgresql.superuser = Superuser::Disabled;
    seen.database = Arc::new(database);
    let plan = made(&seen);
    assert!(plan.remove_superuser, "the pods' template still has it");
    assert_ne!(plan.secrets, Some(true), "what is deleted is not made in the same breath");
    // Told to the agents, and then the operator died: the template as it is asks for it again.
    seen.config_map = Some(Arc::new(take(&plan.config_map)));
    assert!(made(&seen).remove_superuser);
    carry_out(&mut seen, &plan);
    assert!(!made(&seen).remove_superuser);
    assert!(!made(&carried_out("")).remove_superuser, "one that never had it");
}

#[test]
fn more_room_first_for_the_volumes_then_in_the_template() {
    let mut seen = carried_out("");
    let mut database = (*seen.database).clone();
    database.spec.storage.size.0 = "2Gi".into();
    seen.database = Arc::new(database);
    let first = made(&seen);
    assert_eq!(first.claims.iter().filter(|c| c.size.is_some()).count(), 3);
    assert_eq!(first.stateful_set, SetStep::Leave);
    for claim in &mut seen.claims {
        let claim = Arc::make_mut(claim);
        let requests = claim.spec.as_mut().unwrap().resources.as_mut().unwrap().requests.as_mut().unwrap();
        requests.get_mut("storage").unwrap().0 = "2Gi".into();
    }
    let second = made(&seen);
    assert_eq!(second.stateful_set, SetStep::Delete { uid: "set-1".into(), orphan: true });
    assert_eq!(second.facts.growing.len(), 3);
    seen.stateful_set = None;
    let set = set_of(&made(&seen));
    assert_eq!(stateful_set::template_bytes(&set), Some(2 << 30));
}

#[test]
fn a_growth_that_is_refused_stops_nothing_else() {
    let mut seen = carried_out("");
    let mut database = (*seen.database).clone();
    database.spec.storage.size.0 = "2Gi".into();
    database.spec.instances = 4;
    database.spec.postgresql.parameters = [("work_mem".to_string(), "8MB".to_string())].into();
    seen.database = Arc::new(database);
    let asked = made(&seen);
    let words = "the storageclass must support resize".to_string();
    let refusal = growth::Refusal { size: asked.claims[0].size.clone().unwrap(), at: now(), words };
    seen.refusals = asked.claims.iter().map(|c| (c.uid.clone(), refusal.clone())).collect();
    let refused = made(&seen);
    assert!(refused.claims.is_empty(), "not asked again at once");
    assert_eq!((refused.facts.asks.len(), refused.facts.growing.len()), (3, 0));
    assert_eq!(set_of(&refused).spec.unwrap().replicas, Some(4), "scaled, and not made anew");
    assert_eq!(config_of(&refused).instances, 4);
    // Later it is asked for once more; taken back, nothing is left of it.
    let valid = validate(&seen.database, &settings());
    let later = now() + std::time::Duration::from_secs(60);
    assert_eq!(plan(&seen, valid.as_ref(), &settings(), later).claims.len(), 3);
    let mut database = (*seen.database).clone();
    database.spec.storage.size.0 = "1Gi".into();
    seen.database = Arc::new(database);
    let back = made(&seen);
    assert!(back.claims.is_empty() && back.facts.asks.is_empty());
    assert!(growth::standing(&back.facts.asks, &seen.refusals).is_empty());
}

#[test]
fn clones_are_made_from_what_the_api_server_says_now_and_only_on_request() {
    let mut seen = carried_out("");
    for claim in &mut seen.claims {
        Arc::make_mut(claim).spec.as_mut().unwrap().storage_class_name = Some("fast".into());
    }
    let scaled = |source: ReplicaSource, mut seen: Observed| {
        let mut database = (*seen.database).clone();
        database.spec.instances = 4;
        database.spec.storage.replica_source = source;
        seen.database = Arc::new(database);
        made(&seen)
    };
    let plain = scaled(ReplicaSource::Stream, seen.clone());
    assert!(plain.clones.is_empty() && !plain.needs_live_view);
    let cloned = scaled(ReplicaSource::VolumeClone, seen.clone());
    assert_eq!(cloned.clones.len(), 1);
    assert!(cloned.needs_live_view);
    assert_eq!(set_of(&cloned).spec.unwrap().replicas, Some(4), "in the same round");
    // Cut off between the two: the claim is there, and what is left is to scale.
    seen.claims.push(Arc::new(cloned.clones[0].clone()));
    let again = scaled(ReplicaSource::VolumeClone, seen);
    assert!(again.clones.is_empty());
    assert_eq!(set_of(&again).spec.unwrap().replicas, Some(4));
}

#[test]
fn a_set_made_anew_under_running_pods_does_not_wait_for_a_backup() {
    let mut seen = carried_out("");
    seen.stateful_set = None;
    seen.workers = vec![worker("hfb-1", "t1", "Running")];
    assert!(matches!(made(&seen).stateful_set, SetStep::Create(_)));
    seen.instances.clear();
    assert_eq!(made(&seen).stateful_set, SetStep::Leave);
}

#[test]
fn one_instance_needs_no_disruption_budget() {
    let mut seen = carried_out("");
    assert!(seen.budget.is_some());
    let mut database = (*seen.database).clone();
    database.spec.instances = 1;
    database.spec.durability = Some(Durability { mode: DurabilityMode::Asynchronous, standbys: 1 });
    seen.database = Arc::new(database);
    let plan = made(&seen);
    assert!(plan.remove_budget.is_some());
    // The pods that are about to end still report on themselves.
    assert!(matches!(plan.role, Write::Nothing));
}

#[test]
fn stopped_keeps_everything_but_the_pods() {
    let mut seen = carried_out("");
    let mut database = (*seen.database).clone();
    database.spec.stopped = true;
    seen.database = Arc::new(database);
    let plan = made(&seen);
    assert_eq!(set_of(&plan).spec.unwrap().replicas, Some(0));
    assert!(!plan.needs_live_view);
}

#[test]
fn exclusive_work() {
    // Case: Lease, live pods of the set, workers (token, phase); expected: operation, step.
    let running = carried_out("");
    let mut seen = running.clone();
    seen.operation_lease = Some(operation_lease("Shared", "t1"));
    assert_eq!(made(&seen).stateful_set, SetStep::Leave, "a backup stops nothing");

    seen.operation_lease = Some(operation_lease("Exclusive", "t1"));
    let stopping = made(&seen);
    assert_eq!(stopping.stateful_set, SetStep::Stop { uid: "set-1".into() });
    assert!(matches!(stopping.facts.operation, Some(Operation::Stopping { .. })));

    let mut down = seen.clone();
    scale_down(&mut down);
    assert!(matches!(made(&down).facts.operation, Some(Operation::Stopping { .. })), "pods are still there");
    down.instances.clear();
    let quiet = made(&down);
    assert_eq!(quiet.facts.operation, Some(Operation::Quiesced { token: "t1".into() }));
    assert!(quiet.needs_live_view, "a cache may not show a pod yet");
    down.workers = vec![worker("hfb-1", "t0", "Running"), worker("hfr-1", "t1", "Running")];
    let Some(Operation::Stopping { left, .. }) = made(&down).facts.operation else {
        panic!("another token's pod")
    };
    assert_eq!(left, ["hfb-1"]);

    // The Lease is gone, but its pod still writes.
    down.operation_lease = None;
    let waits = made(&down);
    assert!(waits.needs_live_view);
    assert_eq!(waits.stateful_set, SetStep::Leave);
    assert!(waits.facts.waiting.unwrap().contains("hfr-1"));
    down.workers = vec![worker("hfr-1", "t1", "Succeeded")];
    let starts = made(&down);
    assert!(starts.needs_live_view);
    assert_eq!(set_of(&starts).spec.unwrap().replicas, Some(3));
}

#[test]
fn exclusive_work_is_let_in_even_when_the_spec_cannot_be_carried_out() {
    let mut seen = carried_out("");
    let mut database = (*seen.database).clone();
    database.spec.version = "15".into();
    seen.database = Arc::new(database);
    let invalid = made(&seen);
    assert_eq!(
        (invalid.stateful_set, invalid.facts.problem.unwrap().reason),
        (SetStep::Leave, "ImageUnknown".into())
    );
    seen.operation_lease = Some(operation_lease("Exclusive", "t1"));
    assert_eq!(made(&seen).stateful_set, SetStep::Stop { uid: "set-1".into() });
}

#[test]
fn after_a_restore_the_set_is_made_anew_on_the_new_volumes() {
    let mut seen = carried_out("");
    let old = ids::data_set(UID);
    seen.claims.push(claim_with(
        "d0restor",
        0,
        "current",
        &[(names::LABEL_SYSTEM_IDENTIFIER, "7501")],
        Some(&old),
    ));
    let first = made(&seen);
    assert_eq!(
        first.stateful_set,
        SetStep::Stop { uid: "set-1".into() },
        "nothing runs on the old volumes any more"
    );
    scale_down(&mut seen);
    assert_eq!(made(&seen).stateful_set, SetStep::Leave, "not before the pods are gone");
    seen.instances.clear();
    let second = made(&seen);
    assert_eq!(second.stateful_set, SetStep::Delete { uid: "set-1".into(), orphan: false });
    assert!(second.needs_live_view);
    seen.stateful_set = None;
    let third = made(&seen);
    assert_eq!(stateful_set::data_set(&set_of(&third)), Some("d0restor"));
    assert_eq!(config_of(&third).history, "hd0restor");
}

#[test]
fn a_store_that_is_not_there_blocks_nothing_and_stops_nothing() {
    let plan = made(&observed("archive: {storeRef: {name: main}}"));
    assert!(config_of(&plan).archive.is_none() && !plan.facts.store_found);
    let mut seen = observed("archive: {storeRef: {name: main}}");
    let store: BackupStore = serde_json::from_value(json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore",
        "metadata": {"name": "main", "namespace": "shop"}, "spec": {"s3": {"bucket": "b", "credentialsSecretRef": {"name": "s3"}}}}))
    .unwrap();
    seen.store = Some(Arc::new(store));
    let plan = made(&seen);
    assert_eq!(config_of(&plan).archive.unwrap().store_name, "main");
    assert!(stateful_set::secrets(&set_of(&plan).spec.unwrap().template).contains(&"s3".to_string()));
    // It vanishes: what agents were told stays.
    seen.config_map = Some(Arc::new(take(&plan.config_map)));
    seen.store = None;
    assert_eq!(made(&seen).config_map, Write::Nothing);
}

#[test]
fn the_finalizer_follows_the_deletion_policy() {
    let mut seen = observed("deletionPolicy: Delete");
    assert_eq!(made(&seen).finalizer, Finalizer::Add);
    let mut database = (*seen.database).clone();
    database.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
    database.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    seen.database = Arc::new(database);
    seen.stateful_set = Some(running(3, "d1"));
    seen.claims = vec![claim("d1", 0, "current"), claim("d0", 0, "retired")];
    seen.instances = vec![instance(0, |_| {})];
    assert_eq!(made(&seen).stateful_set, SetStep::Delete { uid: "set-1".into(), orphan: false });
    seen.stateful_set = None;
    assert!(made(&seen).remove_claims.is_empty(), "the pods first");
    seen.instances.clear();
    let plan = made(&seen);
    assert_eq!((plan.remove_claims.len(), plan.finalizer), (2, Finalizer::Leave));
    seen.claims.clear();
    assert_eq!(made(&seen).finalizer, Finalizer::Remove);
}

#[test]
fn children_of_a_database_that_was_just_deleted_go_first() {
    let mut seen = carried_out("");
    let mut database = (*seen.database).clone();
    database.metadata.uid = Some("another".into());
    seen.database = Arc::new(database);
    let plan = made(&seen);
    assert_eq!((&plan.stateful_set, &plan.config_map), (&SetStep::Wait, &Write::Wait));
    assert!(plan.waits_for_others());
}
