//! Storage: claims are bound to new volumes, grow, and volumes go with their claims.

use super::{
    Knobs,
    desk::{Desk, EXPANSION, VOLUMES, is_going},
};
use crate::{builtin, rest::meta};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

pub(super) const PROVISIONER: &str = "testkit.local/volumes";
pub(super) const SELECTED: &str = "volume.kubernetes.io/selected-node";
/// How long a volume takes to make, to grow, and its filesystem to grow.
const MAKING: Duration = Duration::from_millis(100);
const GROWING: Duration = Duration::from_millis(300);
const FILESYSTEM: Duration = Duration::from_millis(200);

/// The StorageClasses: `standard` is the default and grows, `fixed` does not.
pub(super) fn classes() -> [Value; 2] {
    let class = |name: &str, default: bool, grows: bool| {
        json!({"metadata": {"name": name, "annotations": {
                "storageclass.kubernetes.io/is-default-class": default.to_string()}},
            "provisioner": PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": grows})
    };
    [class("standard", true, true), class("fixed", false, false)]
}

pub(super) fn sync(desk: &mut Desk<'_>, knobs: &Knobs) {
    for claim in desk.all(desk.at.claims) {
        if claim["status"]["phase"] == "Bound" {
            grow(desk, knobs, &claim);
        } else if !is_going(&claim) {
            bind(desk, knobs, &claim);
        }
    }
    for volume in desk.all(desk.at.volumes) {
        reclaim(desk, &volume);
    }
}

fn asked(claim: &Value) -> &Value {
    &claim["spec"]["resources"]["requests"]["storage"]
}

fn size(quantity: &Value) -> u128 {
    quantity.as_str().and_then(builtin::bytes).unwrap_or(0)
}

fn class_of(desk: &Desk<'_>, claim: &Value) -> Option<Arc<Value>> {
    desk.get(desk.at.classes, "", claim["spec"]["storageClassName"].as_str()?)
}

/// Whether a claim is bound only when the scheduler has chosen a node for a pod that mounts it.
pub(super) fn waits_for_pod(desk: &Desk<'_>, claim: &Value) -> bool {
    class_of(desk, claim).is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer")
}

pub(super) fn is_bound(claim: &Value) -> bool {
    claim["status"]["phase"] == "Bound"
}

fn bind(desk: &mut Desk<'_>, knobs: &Knobs, claim: &Arc<Value>) {
    if let Some(volume) = claim["spec"]["volumeName"].as_str() {
        // Somebody chose the volume.
        if let Some(volume) = desk.get(desk.at.volumes, "", volume) {
            bound(desk, claim, &volume["spec"]["capacity"]);
        }
        return;
    }
    let Some(class) = class_of(desk, claim) else {
        match claim["spec"]["storageClassName"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => {
                let words = format!("storageclass.storage.k8s.io {name:?} not found");
                desk.tell(VOLUMES, claim, "Warning", "ProvisioningFailed", &words);
            }
            None => {
                let words = "no persistent volumes available for this claim and no storage class is set";
                desk.tell(VOLUMES, claim, "Normal", "FailedBinding", words);
            }
        }
        return;
    };
    let node = claim["metadata"]["annotations"][SELECTED].as_str();
    if node.is_none() && class["volumeBindingMode"] == "WaitForFirstConsumer" {
        return;
    }
    let source = &claim["spec"]["dataSource"];
    let copied = source["kind"] == "PersistentVolumeClaim";
    let from =
        source["name"].as_str().and_then(|name| desk.get(desk.at.claims, meta(claim, "namespace"), name));
    if knobs.hold_claims || (copied && !from.is_some_and(|from| is_bound(&from))) {
        let words = format!(
            "Waiting for a volume to be created either by the external provisioner '{PROVISIONER}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        desk.tell(VOLUMES, claim, "Normal", "ExternalProvisioning", &words);
        return;
    }
    if desk.waited(format!("volume of {}", meta(claim, "uid")), MAKING) {
        provision(desk, claim, &class);
    }
}

fn provision(desk: &mut Desk<'_>, claim: &Arc<Value>, class: &Value) {
    let uid = meta(claim, "uid");
    let name = format!("pvc-{uid}");
    let reference = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": meta(claim, "namespace"),
        "name": meta(claim, "name"), "uid": uid, "resourceVersion": meta(claim, "resourceVersion")});
    let capacity = json!({"storage": asked(claim)});
    let volume = json!({"metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {"capacity": capacity, "accessModes": claim["spec"]["accessModes"], "claimRef": reference,
            "persistentVolumeReclaimPolicy": class["reclaimPolicy"], "storageClassName": class["metadata"]["name"],
            "volumeMode": claim["spec"]["volumeMode"], "csi": {"driver": PROVISIONER, "volumeHandle": name}}});
    if let Ok(volume) = desk.create(VOLUMES, desk.at.volumes, "", volume) {
        desk.set_status(VOLUMES, desk.at.volumes, &volume, json!({"phase": "Bound"}));
    }
    let mut new = Value::clone(claim);
    new["spec"]["volumeName"] = name.into();
    for (key, value) in [
        ("pv.kubernetes.io/bind-completed", "yes"),
        ("pv.kubernetes.io/bound-by-controller", "yes"),
        ("volume.beta.kubernetes.io/storage-provisioner", PROVISIONER),
        ("volume.kubernetes.io/storage-provisioner", PROVISIONER),
    ] {
        new["metadata"]["annotations"][key] = value.into();
    }
    desk.update(VOLUMES, desk.at.claims, new, "");
    if let Some(claim) = desk.get(desk.at.claims, meta(claim, "namespace"), meta(claim, "name")) {
        bound(desk, &claim, &capacity);
    }
}

fn bound(desk: &mut Desk<'_>, claim: &Arc<Value>, capacity: &Value) {
    let modes = &claim["spec"]["accessModes"];
    let status = json!({"phase": "Bound", "accessModes": modes, "capacity": capacity});
    desk.set_status(VOLUMES, desk.at.claims, claim, status);
}

/// One step of a growth: asked for, done by the controller, done on the node where a pod uses the volume.
fn grow(desk: &mut Desk<'_>, knobs: &Knobs, claim: &Arc<Value>) {
    let name = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    let Some(volume) = desk.get(desk.at.volumes, "", name) else {
        let mut status = claim["status"].clone();
        status["phase"] = "Lost".into();
        desk.set_status(VOLUMES, desk.at.claims, claim, status);
        return;
    };
    let (wanted, has) = (size(asked(claim)), size(&claim["status"]["capacity"]["storage"]));
    let uid = meta(claim, "uid").to_string();
    let is = |condition: &str| super::desk::condition(claim, condition) == "True";
    let mut status = claim["status"].clone();
    if is("FileSystemResizePending") {
        if is_used(desk, claim) && desk.waited(format!("filesystem of {uid}"), FILESYSTEM) {
            status["capacity"] = volume["spec"]["capacity"].clone();
            calm(&mut status);
        }
    } else if wanted <= has {
        calm(&mut status);
    } else if is("Resizing") {
        if !knobs.hold_expansion && desk.waited(format!("growth of {uid}"), GROWING) {
            let mut new = Value::clone(&volume);
            new["spec"]["capacity"]["storage"] = asked(claim).clone();
            desk.update(EXPANSION, desk.at.volumes, new, "");
            status["allocatedResourceStatuses"] = json!({"storage": "NodeResizePending"});
            let words =
                "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
            status["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True",
                "lastTransitionTime": desk.stamp(), "message": words}]);
        }
    } else {
        status["allocatedResources"] = json!({"storage": asked(claim)});
        status["allocatedResourceStatuses"] = json!({"storage": "ControllerResizeInProgress"});
        status["conditions"] =
            json!([{"type": "Resizing", "status": "True", "lastTransitionTime": desk.stamp()}]);
    }
    desk.set_status(EXPANSION, desk.at.claims, claim, status);
}

fn calm(status: &mut Value) {
    if let Some(status) = status.as_object_mut() {
        status.remove("conditions");
        status.remove("allocatedResourceStatuses");
    }
}

/// Whether a pod that runs mounts a claim.
fn is_used(desk: &Desk<'_>, claim: &Value) -> bool {
    let pods = desk.within(desk.at.pods, meta(claim, "namespace"));
    pods.iter().any(|pod| {
        pod["status"]["phase"] == "Running" && mounted(pod).any(|name| claim["metadata"]["name"] == name)
    })
}

/// The claims that a pod mounts.
pub(super) fn mounted(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod["spec"]["volumes"].as_array();
    volumes.into_iter().flatten().filter_map(|v| v["persistentVolumeClaim"]["claimName"].as_str())
}

/// A volume whose claim is gone goes too, or waits for a person.
fn reclaim(desk: &mut Desk<'_>, volume: &Arc<Value>) {
    let of = &volume["spec"]["claimRef"];
    let text = |field: &str| of[field].as_str().unwrap_or_default();
    let claim = desk.get(desk.at.claims, text("namespace"), text("name"));
    if text("uid").is_empty() || claim.is_some_and(|claim| meta(&claim, "uid") == text("uid")) {
        return;
    }
    if volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
        if !is_going(volume) {
            desk.delete(VOLUMES, desk.at.volumes, volume, None, "");
        }
    } else {
        desk.set_status(VOLUMES, desk.at.volumes, volume, json!({"phase": "Released"}));
    }
}
