//! Names that Kubernetes' volume machinery agrees on. Facts of its API (docs of labels, annotations and finalizers).

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

/// On a claim: the provisioner that is to serve it. Set by Kubernetes' volume controller.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Its older spelling, which Kubernetes sets as well.
pub const STORAGE_PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a claim: the node that the scheduler chose for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it and may delete it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Keeps a volume's object until what is behind it is deleted.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Attribute of a CSI volume: which provisioner made it.
pub const IDENTITY: &str = "storage.kubernetes.io/csiProvisionerIdentity";
/// Parameters of a class with this prefix are for Kubernetes' side, not for the driver.
pub const KUBERNETES_PARAMETERS: &str = "csi.storage.k8s.io/";
/// The class parameter that names the file system.
pub const FS_TYPE_PARAMETER: &str = "csi.storage.k8s.io/fstype";
/// The file system that this driver makes.
pub const FS_TYPE: &str = "xfs";

/// Name of the volume that is made for a claim; `None`: the object was never stored, or its uid cannot be part of a name.
pub fn volume_of(claim: &PersistentVolumeClaim) -> Option<String> {
    let uid = claim.metadata.uid.as_deref()?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!uid.is_empty() && uid.chars().all(plain)).then(|| format!("pvc-{uid}"))
}

/// Whether a claim is waiting for this driver, or may come to.
pub fn asks(claim: &PersistentVolumeClaim, driver: &str) -> bool {
    let told = |key| claim.annotations().get(key).is_some_and(|name| name == driver);
    let unbound =
        claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty());
    unbound
        && claim.metadata.deletion_timestamp.is_none()
        && (told(STORAGE_PROVISIONER) || told(STORAGE_PROVISIONER_BETA))
}
