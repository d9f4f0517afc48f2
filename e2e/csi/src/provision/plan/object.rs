//! The PersistentVolume that stands for a new volume.

use super::{
    names::{FINALIZER, FS_TYPE, IDENTITY, PROVISIONED_BY},
    quantity,
};
use crate::wire::{Topology, Volume};
use k8s_openapi::{
    api::{
        core::v1::{
            CSIPersistentVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
            VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Builds it. `name` is that of the volume, `asked` the bytes of the claim, which count when the driver does not say more;
/// `identity` tells which provisioner made it.
pub fn persistent_volume(
    name: &str,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    (driver, identity): (&str, &str),
    asked: i64,
    volume: &Volume,
) -> PersistentVolume {
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let size = if volume.capacity_bytes > 0 { volume.capacity_bytes } else { asked };
    let mut attributes: BTreeMap<String, String> = volume.volume_context.clone().into_iter().collect();
    attributes.insert(IDENTITY.into(), identity.into());
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some([(PROVISIONED_BY.to_string(), driver.to_string())].into()),
            // A volume that is to be kept must not keep its object from going.
            finalizers: (policy == "Delete").then(|| vec![FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: claim.spec.as_ref().and_then(|s| s.access_modes.clone()),
            capacity: Some([("storage".to_string(), quantity::of_bytes(size))].into()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: Some(claim.name_any()),
                namespace: claim.namespace(),
                // With the uid a later claim of the same name never gets this one's data.
                uid: claim.uid(),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: driver.into(),
                volume_handle: volume.volume_id.clone(),
                fs_type: Some(FS_TYPE.into()),
                volume_attributes: Some(attributes),
                ..CSIPersistentVolumeSource::default()
            }),
            mount_options: class.mount_options.clone().filter(|options| !options.is_empty()),
            node_affinity: affinity(&volume.accessible_topology),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: Some(class.name_any()),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// Each place is one alternative.
fn affinity(places: &[Topology]) -> Option<VolumeNodeAffinity> {
    let term = |place: &Topology| {
        let requirement = |(key, value): (&String, &String)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".into(),
            values: Some(vec![value.clone()]),
        };
        let sorted: BTreeMap<_, _> = place.segments.iter().collect();
        NodeSelectorTerm {
            match_expressions: Some(sorted.into_iter().map(requirement).collect()),
            match_fields: None,
        }
    };
    let terms: Vec<_> = places.iter().filter(|p| !p.segments.is_empty()).map(term).collect();
    // The API server refuses a selector without terms.
    (!terms.is_empty())
        .then_some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DRIVER: &str = "disks.example.com";

    fn claim() -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "pgdata-orders-0", "namespace": "shop", "uid": "0b5a", "resourceVersion": "12"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap()
    }

    fn built(class: Value, zones: &[&str], bytes: i64) -> Value {
        let place = |zone: &&str| Topology {
            segments: [("topology.kubernetes.io/zone".to_string(), zone.to_string())].into(),
        };
        let volume = Volume {
            capacity_bytes: bytes,
            volume_id: "vol-00112233aabb".into(),
            volume_context: [("name".to_string(), "pvc-0b5a".to_string())].into(),
            content_source: None,
            accessible_topology: zones.iter().map(place).collect(),
        };
        let class = serde_json::from_value(class).unwrap();
        let made = persistent_volume("pvc-0b5a", &claim(), &class, (DRIVER, "17-disks"), 1 << 30, &volume);
        serde_json::to_value(made).unwrap()
    }

    #[test]
    fn the_whole_object() {
        let class = json!({"metadata": {"name": "fast"}, "provisioner": DRIVER, "mountOptions": ["noatime"]});
        assert_eq!(
            built(class, &["b"], 2 << 30),
            json!({
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {
                    "name": "pvc-0b5a",
                    "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER},
                    "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"],
                },
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": {"storage": "2Gi"},
                    "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "pgdata-orders-0",
                        "namespace": "shop", "uid": "0b5a"},
                    "csi": {"driver": DRIVER, "volumeHandle": "vol-00112233aabb", "fsType": "xfs",
                        "volumeAttributes": {"name": "pvc-0b5a",
                            "storage.kubernetes.io/csiProvisionerIdentity": "17-disks"}},
                    "mountOptions": ["noatime"],
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}]}]}},
                    "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": "fast",
                    "volumeMode": "Filesystem",
                },
            })
        );
    }

    #[test]
    fn kept_volumes_have_no_finalizer_and_silence_about_size_means_as_asked() {
        let class = json!({"metadata": {"name": "kept"}, "provisioner": DRIVER, "reclaimPolicy": "Retain"});
        let made = built(class, &[], 0);
        assert_eq!(made["metadata"]["finalizers"], Value::Null);
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(made["spec"]["nodeAffinity"], Value::Null);
        assert_eq!(made["spec"]["mountOptions"], Value::Null);
    }

    #[test]
    fn several_places_are_alternatives() {
        let class = json!({"metadata": {"name": "fast"}, "provisioner": DRIVER});
        let made = built(class, &["a", "b"], 1 << 30);
        let terms = made.pointer("/spec/nodeAffinity/required/nodeSelectorTerms").unwrap();
        assert_eq!(terms.as_array().unwrap().len(), 2);
    }
}
