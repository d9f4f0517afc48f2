//! Objects for tests: Database `orders` in namespace `shop`.
#![allow(missing_docs)]

use crate::{
    observe::{Instance, Observed},
    plan::stateful_set,
    validate::{Settings, ValidatedDatabase, validate},
};
use holdfast_core::{
    Database, names,
    report::{InstanceReport, Role},
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    jiff::Timestamp,
};
use serde_json::{Value, json};
use std::sync::Arc;

pub const UID: &str = "0b5ab4a6-7a4d-4f0e-9f5c-0a40fca0c1ff";

pub fn now() -> Timestamp {
    "2026-11-21T09:00:00Z".parse().unwrap()
}

pub fn settings() -> Settings {
    Settings {
        agent_image: "holdfast/agent:1".into(),
        postgres_images: [("16", "postgres:16"), ("17", "postgres:17")]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
    }
}

/// A Database; `extra` are lines of its spec.
pub fn database(extra: &str) -> Database {
    let extra: String = extra.lines().map(|line| format!("  {line}\n")).collect();
    let engine = "apiVersion: holdfast.dev/v1alpha1\nkind: Database\n";
    let meta = format!(
        "metadata: {{name: orders, namespace: shop, uid: {UID}, generation: 3, resourceVersion: \"7\"}}\n"
    );
    let spec = "spec:\n  engine: PostgreSQL\n  version: \"17\"\n  storage: {size: 1Gi}\n";
    serde_saphyr::from_str(&format!("{engine}{meta}{spec}{extra}")).unwrap()
}

pub fn valid(extra: &str) -> ValidatedDatabase {
    validate(&database(extra), &settings()).unwrap()
}

pub fn observed(extra: &str) -> Observed {
    Observed::alone(Arc::new(database(extra)))
}

pub fn claim(data_set: &str, ordinal: i32, state: &str) -> Arc<PersistentVolumeClaim> {
    claim_with(data_set, ordinal, state, &[], None)
}

pub fn claim_with(
    data_set: &str,
    ordinal: i32,
    state: &str,
    labels: &[(&str, &str)],
    replaces: Option<&str>,
) -> Arc<PersistentVolumeClaim> {
    let name = names::claim(data_set, "orders", ordinal);
    let mut claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {
            "holdfast.dev/database": "orders", "holdfast.dev/data-set": data_set, "holdfast.dev/data-set-state": state,
            "holdfast.dev/history": format!("h{data_set}")}},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    }))
    .unwrap();
    let all = claim.metadata.labels.get_or_insert_default();
    all.extend(labels.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())));
    if let Some(replaces) = replaces {
        claim.metadata.annotations =
            Some([(names::ANNOTATION_REPLACES.to_string(), replaces.to_string())].into());
    }
    Arc::new(claim)
}

pub fn lease(name: &str, labels: &[(&str, &str)]) -> Arc<Lease> {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels}})).unwrap())
}

pub fn operation_lease(mode: &str, token: &str) -> Arc<Lease> {
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": "orders-operation", "namespace": "shop", "uid": token,
            "annotations": {"holdfast.dev/operation-mode": mode}}}),
        )
        .unwrap(),
    )
}

pub fn instance_of(pod: Value) -> Instance {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Instance::of("orders", Arc::new(pod)).unwrap()
}

/// A ready instance of revision `new`.
pub fn instance(ordinal: i32, edit: impl FnOnce(&mut InstanceReport)) -> Instance {
    let mut report =
        InstanceReport { ready: true, timeline: 1, role: Role::Replica, ..InstanceReport::default() };
    edit(&mut report);
    let name = names::pod("orders", ordinal);
    instance_of(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("pod-{ordinal}"), "creationTimestamp": "2026-11-21T08:00:00Z",
            "labels": {"holdfast.dev/database": "orders", "holdfast.dev/component": "instance", "controller-revision-hash": "new"},
            "annotations": {"holdfast.dev/report": serde_json::to_string(&report).unwrap()}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}
    }))
}

pub fn worker(name: &str, token: &str, phase: &str) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "labels": {
            "holdfast.dev/database": "orders", "holdfast.dev/component": "worker", "holdfast.dev/operation-token": token}},
            "status": {"phase": phase}}))
        .unwrap(),
    )
}

/// The StatefulSet as its controller left it, on this data set.
pub fn running(replicas: i32, data_set: &str) -> Arc<StatefulSet> {
    running_for(&valid(""), replicas, data_set)
}

pub fn running_for(db: &ValidatedDatabase, replicas: i32, data_set: &str) -> Arc<StatefulSet> {
    let settings = settings();
    let decided = stateful_set::Decided {
        replicas,
        data_set,
        history: &format!("h{data_set}"),
        store: None,
        agent_image: &settings.agent_image,
        kept: None,
    };
    let wanted = stateful_set::stateful_set(db, decided, None);
    let crate::plan::children::Write::Create(mut set) = crate::plan::children::change(wanted, None, &db.uid)
    else {
        panic!("not created")
    };
    set.metadata.uid = Some("set-1".into());
    set.metadata.generation = Some(1);
    set.status = Some(
        serde_json::from_value(
            json!({"replicas": replicas, "observedGeneration": 1, "updateRevision": "new"}),
        )
        .unwrap(),
    );
    Arc::new(set)
}
