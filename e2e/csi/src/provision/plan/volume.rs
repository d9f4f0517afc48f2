//! What is to be done about a PersistentVolume. The question behind it: may what is behind it be deleted?

use super::names::{FINALIZER, PROVISIONED_BY};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeStep {
    /// Nothing.
    Ignore,
    /// Put our finalizer on: whoever deletes the object first must not leave the volume behind.
    Protect,
    /// Take our finalizer off: the volume is to be kept, its object may go.
    Release,
    /// Delete the volume, then the object.
    Delete,
}

/// Decides. Only a volume that no claim is bound to is ever deleted, and only if its policy says so.
pub fn volume(volume: &PersistentVolume, driver: &str) -> VolumeStep {
    let Some(spec) = volume.spec.as_ref() else { return VolumeStep::Ignore };
    let made_here = volume.annotations().get(PROVISIONED_BY).is_some_and(|name| name == driver);
    if !made_here || spec.csi.as_ref().is_none_or(|csi| csi.driver != driver) {
        return VolumeStep::Ignore;
    }
    let protected = volume.finalizers().iter().any(|name| name == FINALIZER);
    let deleting = volume.metadata.deletion_timestamp.is_some();
    if spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
        return if protected { VolumeStep::Release } else { VolumeStep::Ignore };
    }
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    match (phase, deleting, protected) {
        // Our part of the deletion is done; others hold the object.
        (_, true, false) => VolumeStep::Ignore,
        ("Released", _, _) | ("Available", true, true) => VolumeStep::Delete,
        (_, false, false) => VolumeStep::Protect,
        _ => VolumeStep::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DRIVER: &str = "disks.example.com";

    fn object(policy: &str, phase: &str, deleting: bool, protected: bool) -> Value {
        let finalizers = if protected { vec!["kubernetes.io/pv-protection", FINALIZER] } else { vec![] };
        json!({"metadata": {"name": "pvc-u1", "annotations": {PROVISIONED_BY: DRIVER}, "finalizers": finalizers,
                "deletionTimestamp": deleting.then_some("2026-11-21T10:00:00Z")},
            "spec": {"csi": {"driver": DRIVER, "volumeHandle": "vol-1"}, "persistentVolumeReclaimPolicy": policy},
            "status": {"phase": phase}})
    }

    fn step(value: Value) -> VolumeStep {
        volume(&serde_json::from_value(value).unwrap(), DRIVER)
    }

    #[test]
    fn every_phase_policy_and_deletion() {
        use VolumeStep::*;
        for (policy, phase, deleting, protected, wanted) in [
            ("Delete", "Released", false, true, Delete),
            ("Delete", "Released", true, true, Delete),
            ("Delete", "Released", false, false, Delete),
            ("Delete", "Released", true, false, Ignore),
            ("Delete", "Available", true, true, Delete),
            ("Delete", "Available", true, false, Ignore),
            ("Delete", "Available", false, true, Ignore),
            ("Delete", "Bound", false, true, Ignore),
            ("Delete", "Bound", false, false, Protect),
            ("Delete", "Bound", true, true, Ignore),
            ("Delete", "Pending", false, true, Ignore),
            ("Delete", "Pending", true, true, Ignore),
            ("Delete", "", false, true, Ignore),
            ("Delete", "Failed", false, true, Ignore),
            ("Retain", "Released", false, true, Release),
            ("Retain", "Released", true, true, Release),
            ("Retain", "Released", false, false, Ignore),
            ("Retain", "Bound", false, true, Release),
            ("Retain", "Available", true, false, Ignore),
        ] {
            let got = step(object(policy, phase, deleting, protected));
            assert_eq!(got, wanted, "{policy} {phase} deleting={deleting} protected={protected}");
        }
    }

    #[test]
    fn what_others_made_is_never_touched() {
        let mut by_hand = object("Delete", "Released", false, true);
        by_hand["metadata"]["annotations"] = json!({});
        assert_eq!(step(by_hand), VolumeStep::Ignore);
        let mut other = object("Delete", "Released", false, true);
        other["spec"]["csi"]["driver"] = json!("other.example.com");
        assert_eq!(step(other), VolumeStep::Ignore);
        let mut nfs = object("Delete", "Released", false, true);
        nfs["spec"]["csi"] = Value::Null;
        assert_eq!(step(nfs), VolumeStep::Ignore);
    }
}
