//! What a new volume begins with: another claim's volume, or a snapshot.

use crate::wire::{ContentSource, SnapshotSource, VolumeContentSource, VolumeSource};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{ResourceExt, core::DynamicObject};

/// API group of snapshots.
pub const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";

/// What a claim names as its data source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: an empty volume.
    Nothing,
    /// A copy of this claim's volume, same namespace.
    Claim(String),
    /// This VolumeSnapshot, same namespace.
    Snapshot(String),
    /// Something that another program fills volumes from.
    Foreign(String),
    /// Something in another namespace.
    Elsewhere(String),
}

/// What the cluster says about it, read afresh.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Not read yet.
    Unread,
    /// The claim that is to be copied, and its volume.
    Claim(Option<Box<PersistentVolumeClaim>>, Option<Box<PersistentVolume>>),
    /// The VolumeSnapshot, and the VolumeSnapshotContent that it names.
    Snapshot(Option<Box<DynamicObject>>, Option<Box<DynamicObject>>),
}

/// Reads a claim's `dataSourceRef`, or the older `dataSource`.
pub fn wanted(claim: &PersistentVolumeClaim) -> Wanted {
    let Some(spec) = claim.spec.as_ref() else { return Wanted::Nothing };
    let (group, kind, name, namespace) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(s), _) => (s.api_group.as_deref(), &s.kind, &s.name, s.namespace.as_deref()),
        (None, Some(s)) => (s.api_group.as_deref(), &s.kind, &s.name, None),
        (None, None) => return Wanted::Nothing,
    };
    if namespace.is_some_and(|n| !n.is_empty() && Some(n) != claim.metadata.namespace.as_deref()) {
        return Wanted::Elsewhere(format!("{}/{name}", namespace.unwrap_or_default()));
    }
    match (group.unwrap_or_default(), kind.as_str()) {
        ("", "PersistentVolumeClaim") => Wanted::Claim(name.clone()),
        (SNAPSHOT_GROUP, "VolumeSnapshot") => Wanted::Snapshot(name.clone()),
        (group, kind) => Wanted::Foreign(format!("{kind}.{group}")),
    }
}

/// The source in the driver's terms. Errors: why it cannot be used yet.
pub fn source(driver: &str, name: &str, origin: &Origin) -> Result<ContentSource, String> {
    match origin {
        Origin::Unread => Err(format!("the source {name} has not been read")),
        Origin::Claim(claim, volume) => of_claim(driver, name, claim.as_deref(), volume.as_deref()),
        Origin::Snapshot(snapshot, content) => {
            of_snapshot(driver, name, snapshot.as_deref(), content.as_deref())
        }
    }
}

/// In the form of a request.
pub fn on_wire(source: ContentSource) -> VolumeContentSource {
    VolumeContentSource { source: Some(source) }
}

fn of_claim(
    driver: &str,
    name: &str,
    claim: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
) -> Result<ContentSource, String> {
    let claim = claim.ok_or_else(|| format!("the source PersistentVolumeClaim {name} does not exist"))?;
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("the source PersistentVolumeClaim {name} is being deleted"));
    }
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = volume.filter(|_| bound);
    let volume = volume.ok_or_else(|| format!("the source PersistentVolumeClaim {name} is not bound yet"))?;
    let spec = volume.spec.as_ref();
    let theirs = spec.and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_ref());
    if theirs != claim.metadata.uid.as_ref() {
        return Err(format!("PersistentVolume {} is not that of the source claim {name}", volume.name_any()));
    }
    let csi = spec.and_then(|s| s.csi.as_ref()).filter(|csi| csi.driver == driver);
    let csi = csi.ok_or_else(|| format!("the source claim {name} is on a volume of another driver"))?;
    Ok(ContentSource::Volume(VolumeSource { volume_id: csi.volume_handle.clone() }))
}

fn text<'a>(object: &'a DynamicObject, path: &str) -> Option<&'a str> {
    object.data.pointer(path).and_then(|value| value.as_str()).filter(|text| !text.is_empty())
}

fn of_snapshot(
    driver: &str,
    name: &str,
    snapshot: Option<&DynamicObject>,
    content: Option<&DynamicObject>,
) -> Result<ContentSource, String> {
    let snapshot = snapshot.ok_or_else(|| format!("VolumeSnapshot {name} does not exist"))?;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(format!("VolumeSnapshot {name} is being deleted"));
    }
    let ready = snapshot.data.pointer("/status/readyToUse").and_then(|value| value.as_bool());
    if ready != Some(true) {
        let why = text(snapshot, "/status/error/message").map(|words| format!(": {words}"));
        return Err(format!("VolumeSnapshot {name} is not ready to use yet{}", why.unwrap_or_default()));
    }
    let content = content.ok_or_else(|| format!("VolumeSnapshot {name} has no VolumeSnapshotContent yet"))?;
    // A name alone could be that of an older snapshot's content.
    if text(content, "/spec/volumeSnapshotRef/uid") != snapshot.metadata.uid.as_deref() {
        let other = content.name_any();
        return Err(format!("VolumeSnapshotContent {other} does not belong to VolumeSnapshot {name}"));
    }
    if text(content, "/spec/driver") != Some(driver) {
        return Err(format!("VolumeSnapshot {name} was made by another driver"));
    }
    let handle = text(content, "/status/snapshotHandle")
        .ok_or_else(|| format!("VolumeSnapshotContent of {name} has no snapshotHandle yet"))?;
    Ok(ContentSource::Snapshot(SnapshotSource { snapshot_id: handle.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DRIVER: &str = "disks.example.com";

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn claim(spec: Value) -> PersistentVolumeClaim {
        read(json!({"metadata": {"name": "copy", "namespace": "shop", "uid": "u1"}, "spec": spec}))
    }

    #[test]
    fn both_spellings_of_a_source_are_read_and_foreign_ones_told_apart() {
        assert_eq!(wanted(&claim(json!({}))), Wanted::Nothing);
        let old = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "first"}});
        assert_eq!(wanted(&claim(old)), Wanted::Claim("first".into()));
        let new = |namespace: Value| {
            json!({"dataSourceRef": {"apiGroup": SNAPSHOT_GROUP, "kind": "VolumeSnapshot", "name": "noon",
                "namespace": namespace}})
        };
        assert_eq!(wanted(&claim(new(Value::Null))), Wanted::Snapshot("noon".into()));
        assert_eq!(wanted(&claim(new(json!("shop")))), Wanted::Snapshot("noon".into()));
        assert_eq!(wanted(&claim(new(json!("other")))), Wanted::Elsewhere("other/noon".into()));
        let foreign =
            json!({"dataSourceRef": {"apiGroup": "hello.example.com", "kind": "Hello", "name": "x"}});
        assert_eq!(wanted(&claim(foreign)), Wanted::Foreign("Hello.hello.example.com".into()));
        let fake =
            json!({"dataSourceRef": {"apiGroup": "x.example.com", "kind": "VolumeSnapshot", "name": "x"}});
        assert!(matches!(wanted(&claim(fake)), Wanted::Foreign(_)));
    }

    fn bound() -> Value {
        json!({"metadata": {"name": "first", "uid": "u7"}, "spec": {"volumeName": "pvc-u7"},
            "status": {"phase": "Bound"}})
    }

    fn volume() -> Value {
        json!({"metadata": {"name": "pvc-u7"}, "spec": {"claimRef": {"uid": "u7"},
            "csi": {"driver": DRIVER, "volumeHandle": "vol-77"}}})
    }

    fn copy(claim: Value, volume: Value) -> Result<ContentSource, String> {
        source(DRIVER, "first", &Origin::Claim(read(claim), read(volume)))
    }

    #[test]
    fn a_clone_needs_a_bound_claim_on_a_volume_of_this_driver() {
        let volume_id = "vol-77".to_string();
        assert_eq!(copy(bound(), volume()), Ok(ContentSource::Volume(VolumeSource { volume_id })));
        assert!(copy(Value::Null, Value::Null).unwrap_err().contains("does not exist"));
        assert!(copy(bound(), Value::Null).unwrap_err().contains("not bound yet"));
        let mut pending = bound();
        pending["status"]["phase"] = json!("Pending");
        assert!(copy(pending, volume()).unwrap_err().contains("not bound yet"));
        let mut deleted = bound();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-11-21T10:00:00Z");
        assert!(copy(deleted, volume()).unwrap_err().contains("being deleted"));
        let mut stolen = volume();
        stolen["spec"]["claimRef"]["uid"] = json!("u8");
        assert!(copy(bound(), stolen).is_err());
        let mut other = volume();
        other["spec"]["csi"]["driver"] = json!("other.example.com");
        assert!(copy(bound(), other).unwrap_err().contains("another driver"));
    }

    fn snapshot() -> Value {
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "noon", "uid": "s1"},
            "status": {"readyToUse": true, "boundVolumeSnapshotContentName": "content-1"}})
    }

    fn content() -> Value {
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "content-1"},
            "spec": {"driver": DRIVER, "volumeSnapshotRef": {"uid": "s1"}},
            "status": {"snapshotHandle": "snap-5"}})
    }

    fn restore(snapshot: Value, content: Value) -> Result<ContentSource, String> {
        source(DRIVER, "noon", &Origin::Snapshot(read(snapshot), read(content)))
    }

    #[test]
    fn a_snapshot_must_be_ready_and_ours() {
        let snapshot_id = "snap-5".to_string();
        assert_eq!(
            restore(snapshot(), content()),
            Ok(ContentSource::Snapshot(SnapshotSource { snapshot_id }))
        );
        assert!(restore(Value::Null, Value::Null).unwrap_err().contains("does not exist"));
        let mut unready = snapshot();
        unready["status"] = json!({"readyToUse": false, "error": {"message": "pool is full"}});
        assert!(restore(unready, content()).unwrap_err().ends_with("not ready to use yet: pool is full"));
        assert!(restore(snapshot(), Value::Null).unwrap_err().contains("no VolumeSnapshotContent"));
        for (path, wrong) in [
            ("/spec/driver", "other.example.com"),
            ("/spec/volumeSnapshotRef/uid", "s0"),
            ("/status/snapshotHandle", ""),
        ] {
            let mut content = content();
            *content.pointer_mut(path).unwrap() = json!(wrong);
            assert!(restore(snapshot(), content).is_err(), "{path}");
        }
    }
}
