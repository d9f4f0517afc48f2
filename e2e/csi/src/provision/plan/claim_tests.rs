//! Decisions about claims.

use super::{
    claim::{Facts, Step, claim},
    names::{SELECTED_NODE, STORAGE_PROVISIONER, STORAGE_PROVISIONER_BETA},
    origin::{Origin, Wanted},
};
use crate::wire::{AccessType, ContentSource, CreateVolumeRequest, Mode, VolumeSource};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::{CSINode, StorageClass},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

const DRIVER: &str = "disks.example.com";
const ZONE: &str = "topology.kubernetes.io/zone";

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A claim, its class and what else there is; each test changes what it is about.
struct World {
    claim: Value,
    class: Value,
    volume: Value,
    origin: Origin,
    zones: Vec<(&'static str, &'static str)>,
}

type Change = fn(&mut World);

impl World {
    fn new() -> Self {
        Self {
            claim: json!({
                "metadata": {"name": "pgdata-orders-1", "namespace": "shop", "uid": "0b5a-17",
                    "annotations": {STORAGE_PROVISIONER: DRIVER, SELECTED_NODE: "n2"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                    "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Pending"},
            }),
            class: json!({"metadata": {"name": "fast"}, "provisioner": DRIVER,
                "volumeBindingMode": "WaitForFirstConsumer",
                "parameters": {"zonal": "true", "csi.storage.k8s.io/fstype": "xfs"}}),
            volume: Value::Null,
            origin: Origin::Unread,
            zones: vec![("n1", "a"), ("n2", "b")],
        }
    }

    fn immediate() -> Self {
        let mut world = Self::new();
        world.class["volumeBindingMode"] = json!("Immediate");
        world.claim["metadata"]["annotations"].as_object_mut().unwrap().remove(SELECTED_NODE);
        world
    }

    fn step(&self) -> Step {
        let nodes: Vec<Arc<Node>> = self
            .zones
            .iter()
            .map(|(name, zone)| Arc::new(read(json!({"metadata": {"name": name, "labels": {ZONE: zone}}}))))
            .collect();
        let csi_nodes: Vec<Arc<CSINode>> = self
            .zones
            .iter()
            .map(|(name, _)| {
                let drivers = json!([{"name": DRIVER, "nodeID": name, "topologyKeys": [ZONE]}]);
                Arc::new(read(json!({"metadata": {"name": name}, "spec": {"drivers": drivers}})))
            })
            .collect();
        let class: Option<StorageClass> = read(self.class.clone());
        let volume: Option<PersistentVolume> = read(self.volume.clone());
        let asking: PersistentVolumeClaim = read(self.claim.clone());
        let facts = Facts {
            driver: DRIVER,
            class: class.as_ref(),
            nodes: &nodes,
            csi_nodes: &csi_nodes,
            volume: volume.as_ref(),
            origin: &self.origin,
        };
        claim(&asking, facts)
    }

    fn request(&self) -> CreateVolumeRequest {
        match self.step() {
            Step::Provision(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self) -> String {
        match self.step() {
            Step::Refuse(words) => words,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_whole_request() {
    let mut world = World::new();
    world.class["mountOptions"] = json!(["noatime"]);
    let request = world.request();
    assert_eq!(request.name, "pvc-0b5a-17");
    let range = request.capacity_range.unwrap();
    assert_eq!((range.required_bytes, range.limit_bytes), (1 << 30, 0));
    assert_eq!(request.parameters, [("zonal".to_string(), "true".to_string())].into());
    assert_eq!(request.volume_content_source, None);
    let places = request.accessibility_requirements.unwrap();
    let zone = |places: &[crate::wire::Topology]| {
        places.iter().map(|place| place.segments[ZONE].clone()).collect::<Vec<_>>()
    };
    assert_eq!((zone(&places.requisite), zone(&places.preferred)), (vec!["b".into()], vec!["b".into()]));
    let [capability] = request.volume_capabilities.as_slice() else { panic!("one capability") };
    let Some(AccessType::Mount(mount)) = &capability.access_type else { panic!("a mount") };
    assert_eq!(
        (mount.fs_type.as_str(), mount.mount_flags.as_slice()),
        ("xfs", ["noatime".to_string()].as_slice())
    );
    assert_eq!(capability.access_mode.clone().unwrap().mode, Mode::SingleNodeMultiWriter as i32);
}

#[test]
fn access_modes_and_limits_are_passed_on() {
    let mut world = World::new();
    world.claim["spec"]["accessModes"] = json!(["ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"]);
    world.claim["spec"]["resources"]["limits"] = json!({"storage": "2Gi"});
    let request = world.request();
    let modes: Vec<i32> =
        request.volume_capabilities.iter().map(|c| c.access_mode.clone().unwrap().mode).collect();
    let wanted = [Mode::SingleNodeSingleWriter, Mode::MultiNodeReaderOnly, Mode::MultiNodeMultiWriter];
    assert_eq!(modes, wanted.map(|mode| mode as i32));
    assert_eq!(request.capacity_range.unwrap().limit_bytes, 2 << 30);
}

#[test]
fn immediate_classes_need_no_node_and_offer_all_zones() {
    let world = World::immediate();
    let places = world.request().accessibility_requirements.unwrap();
    assert_eq!((places.requisite.len(), places.preferred.len()), (2, 2));
    let mut default = World::immediate();
    default.class["volumeBindingMode"] = Value::Null;
    assert!(matches!(default.step(), Step::Provision(_)));
}

#[test]
fn claims_that_are_not_ours_or_not_yet_are_ignored() {
    let changes: [Change; 8] = [
        |w| w.claim["metadata"]["annotations"][STORAGE_PROVISIONER] = json!("other.example.com"),
        |w| w.claim["metadata"]["annotations"] = json!({SELECTED_NODE: "n2"}),
        |w| w.claim["metadata"]["annotations"] = json!({STORAGE_PROVISIONER: DRIVER}),
        |w| w.claim["metadata"]["deletionTimestamp"] = json!("2026-11-21T10:00:00Z"),
        |w| w.claim["spec"]["volumeName"] = json!("pvc-1"),
        |w| w.claim["spec"]["storageClassName"] = json!(""),
        |w| w.claim["metadata"]["uid"] = json!("../x"),
        |w| w.class["provisioner"] = json!("other.example.com"),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut world = World::new();
        change(&mut world);
        assert_eq!(world.step(), Step::Ignore, "change {index}");
    }
}

#[test]
fn the_older_annotation_counts_and_an_empty_volume_name_is_none() {
    let mut world = World::new();
    world.claim["metadata"]["annotations"] = json!({STORAGE_PROVISIONER_BETA: DRIVER, SELECTED_NODE: "n1"});
    world.claim["spec"]["volumeName"] = json!("");
    assert!(matches!(world.step(), Step::Provision(_)));
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let changes: [(Change, &str); 8] = [
        (|w| w.class = Value::Null, "StorageClass fast does not exist"),
        (|w| w.claim["spec"]["volumeMode"] = json!("Block"), "volumeMode Block"),
        (|w| w.claim["spec"]["selector"] = json!({"matchLabels": {"a": "b"}}), "spec.selector"),
        (|w| w.class["parameters"]["csi.storage.k8s.io/fstype"] = json!("ext4"), "ext4"),
        (|w| w.claim["spec"]["accessModes"] = json!(["Sideways"]), "Sideways"),
        (|w| w.claim["spec"]["accessModes"] = json!([]), "no access mode"),
        (|w| w.claim["spec"]["resources"] = json!({}), "requests no storage"),
        (|w| w.zones.clear(), "node n2"),
    ];
    for (change, words) in changes {
        let mut world = World::new();
        change(&mut world);
        match world.step() {
            Step::Refuse(said) | Step::Reschedule(said) => assert!(said.contains(words), "{said}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn a_node_that_is_gone_sends_the_claim_back_to_the_scheduler() {
    let mut world = World::new();
    world.claim["metadata"]["annotations"][SELECTED_NODE] = json!("n9");
    assert!(matches!(world.step(), Step::Reschedule(words) if words.contains("n9")));
}

#[test]
fn a_volume_that_exists_already_is_left_to_kubernetes_or_refused() {
    let mut world = World::new();
    world.volume = json!({"metadata": {"name": "pvc-0b5a-17"}, "spec": {"claimRef": {"uid": "0b5a-17"}}});
    assert_eq!(world.step(), Step::Ignore);
    world.volume["spec"]["claimRef"]["uid"] = json!("other");
    assert!(world.refused().contains("another claim"));
}

#[test]
fn sources_are_read_first_then_waited_for_then_used() {
    let mut world = World::new();
    world.claim["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "first"});
    assert_eq!(world.step(), Step::Read(Wanted::Claim("first".into())));
    world.origin = Origin::Claim(None, None);
    assert!(matches!(world.step(), Step::Wait(words) if words.contains("first does not exist")));
    world.origin = Origin::Claim(
        read(json!({"metadata": {"name": "first", "uid": "u7"}, "status": {"phase": "Bound"}})),
        read(json!({"metadata": {"name": "pvc-u7"}, "spec": {"claimRef": {"uid": "u7"},
            "csi": {"driver": DRIVER, "volumeHandle": "vol-7"}}})),
    );
    let volume = VolumeSource { volume_id: "vol-7".into() };
    let source = world.request().volume_content_source.and_then(|source| source.source);
    assert_eq!(source, Some(ContentSource::Volume(volume)));
}

#[test]
fn foreign_sources_are_left_to_others_and_other_namespaces_refused() {
    let mut world = World::new();
    world.claim["spec"]["dataSourceRef"] =
        json!({"apiGroup": "hello.example.com", "kind": "Hello", "name": "x"});
    assert!(matches!(world.step(), Step::Leave(words) if words.contains("Hello.hello.example.com")));
    world.claim["spec"]["dataSourceRef"] =
        json!({"kind": "PersistentVolumeClaim", "name": "first", "namespace": "other"});
    assert!(world.refused().contains("other/first"));
}
