//! Objects without content, as the Go types write them: who creates an object owns what is beyond this. Pure.

use serde_json::{Value, json};

/// A kind's object without content.
pub(crate) fn bare(kind: &str) -> Value {
    match kind {
        "Namespace" | "PersistentVolume" | "Node" => json!({"metadata": {}, "spec": {}, "status": {}}),
        "Event" => json!({"metadata": {}, "involvedObject": {}, "source": {}, "firstTimestamp": null,
            "lastTimestamp": null, "eventTime": null, "reportingComponent": "", "reportingInstance": "",
            "regarding": {}, "deprecatedSource": {}, "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null}),
        "Pod" => json!({"metadata": {}, "spec": {"containers": null}, "status": {}}),
        "PersistentVolumeClaim" => json!({"metadata": {}, "spec": {"resources": {}}, "status": {}}),
        "Service" => json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}}),
        "StatefulSet" => {
            json!({"metadata": {}, "spec": {"selector": null, "serviceName": "", "updateStrategy": {},
            "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {"replicas": 0, "availableReplicas": 0}})
        }
        "ControllerRevision" => json!({"metadata": {}, "data": null, "revision": 0}),
        "Job" => {
            json!({"metadata": {}, "spec": {"template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}})
        }
        "Lease" => json!({"metadata": {}, "spec": {}}),
        "EndpointSlice" => json!({"metadata": {}, "addressType": "", "endpoints": null, "ports": null}),
        "PodDisruptionBudget" => json!({"metadata": {}, "spec": {}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}}),
        "Role" | "ClusterRole" => json!({"metadata": {}, "rules": null}),
        "RoleBinding" | "ClusterRoleBinding" => {
            json!({"metadata": {}, "roleRef": {"apiGroup": "", "kind": "", "name": ""}})
        }
        "StorageClass" => json!({"metadata": {}, "provisioner": ""}),
        _ => json!({"metadata": {}}),
    }
}

/// What is not written through a door of a kind, and so not owned by who tries. `status`: through the status subresource.
pub(crate) fn reset(kind: &str, custom: bool, status: bool) -> &'static [&'static [&'static str]] {
    const HAVE_STATUS: [&str; 9] = [
        "Namespace",
        "Pod",
        "PersistentVolumeClaim",
        "PersistentVolume",
        "Service",
        "Node",
        "StatefulSet",
        "Job",
        "PodDisruptionBudget",
    ];
    match kind {
        _ if custom && status => &[&["spec"]],
        "Pod" if status && !custom => {
            &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
        }
        _ if status => &[&["spec"]],
        _ if custom || HAVE_STATUS.contains(&kind) => &[&["status"]],
        _ => &[],
    }
}
