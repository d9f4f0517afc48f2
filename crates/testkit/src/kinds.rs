//! What the server knows of each kind. Pure.

use crate::schema::Custom;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
        ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    events::v1::Event as EventsEvent,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    storage::v1::StorageClass,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::sync::Arc;

/// A kind that the server serves, with those of its habits that clients can see.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural name, as in paths.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether there is a status subresource: then `status` is written there and nowhere else.
    pub status: bool,
    /// Whether `metadata.generation` counts changes.
    pub generation: bool,
    /// Whether a PUT may leave out the resourceVersion.
    pub unconditional_update: bool,
    /// Whether a PUT may create.
    pub create_on_update: bool,
    /// Whether a DELETE that removes the object at once answers with the object, not with a Status.
    pub returns_deleted: bool,
    /// Whether a DELETE without a propagation policy orphans.
    pub orphans_by_default: bool,
    /// Whether the finalizers `orphan` and `foregroundDeletion` are put on.
    pub collected: bool,
    /// Fields beside metadata.name and metadata.namespace that field selectors may name.
    pub selectable: &'static [&'static str],
    /// The place of the kind whose objects these are too, in another version of the same data.
    pub(crate) alias_of: Option<usize>,
    pub(crate) body: Body,
}

/// How bodies of a kind are read.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Through the Go-like type: what it does not know is dropped.
    Typed(fn(Value) -> Result<Value, String>),
    /// By a CustomResourceDefinition.
    Custom(Arc<Custom>),
}

fn typed<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, String> {
    let object: T = serde_json::from_value(value).map_err(|e| e.to_string())?;
    serde_json::to_value(object).map_err(|e| e.to_string())
}

impl Kind {
    /// `plural.group`, or the plural alone in the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `group/version`, with the slash also in the core group: as Go writes it.
    pub(crate) fn gvk_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// Whether it comes from a CustomResourceDefinition.
    pub fn is_custom(&self) -> bool {
        matches!(self.body, Body::Custom(_))
    }

    fn of<T: Serialize + DeserializeOwned>(group: &str, version: &str, plural: &str, kind: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            plural: plural.into(),
            kind: kind.into(),
            namespaced: true,
            status: false,
            generation: false,
            unconditional_update: true,
            create_on_update: false,
            returns_deleted: false,
            orphans_by_default: false,
            collected: true,
            selectable: &[],
            alias_of: None,
            body: Body::Typed(typed::<T>),
        }
    }

    pub(crate) fn custom(custom: Custom) -> Self {
        Self {
            group: custom.group.clone(),
            version: custom.version.clone(),
            plural: custom.plural.clone(),
            kind: custom.kind.clone(),
            namespaced: custom.namespaced,
            status: custom.status,
            generation: true,
            unconditional_update: false,
            create_on_update: false,
            returns_deleted: false,
            orphans_by_default: false,
            collected: true,
            selectable: &[],
            alias_of: None,
            body: Body::Custom(Arc::new(custom)),
        }
    }
}

/// The built-in kinds. Namespaces come first: every create looks there.
pub(crate) fn builtin() -> Vec<Kind> {
    let events = Kind {
        collected: false,
        create_on_update: true,
        selectable: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ..Kind::of::<Event>("", "v1", "events", "Event")
    };
    let cluster = |kind: Kind| Kind { namespaced: false, ..kind };
    let with_status = |kind: Kind| Kind { status: true, ..kind };
    let counted = |kind: Kind| Kind { generation: true, ..kind };
    let returned = |kind: Kind| Kind { returns_deleted: true, ..kind };
    let rbac = |kind: Kind| Kind { create_on_update: true, ..kind };
    const RBAC: &str = "rbac.authorization.k8s.io";
    vec![
        Kind {
            selectable: &["status.phase"],
            ..cluster(with_status(Kind::of::<Namespace>("", "v1", "namespaces", "Namespace")))
        },
        events,
        Kind {
            alias_of: Some(1),
            collected: false,
            create_on_update: true,
            selectable: &["regarding.kind", "regarding.name", "regarding.uid", "reason", "type"],
            ..Kind::of::<EventsEvent>("events.k8s.io", "v1", "events", "Event")
        },
        Kind {
            selectable: &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "status.phase",
                "status.podIP",
            ],
            ..returned(counted(with_status(Kind::of::<Pod>("", "v1", "pods", "Pod"))))
        },
        returned(with_status(Kind::of::<PersistentVolumeClaim>(
            "",
            "v1",
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
        ))),
        cluster(returned(with_status(Kind::of::<PersistentVolume>(
            "",
            "v1",
            "persistentvolumes",
            "PersistentVolume",
        )))),
        Kind {
            create_on_update: true,
            selectable: &["spec.clusterIP", "spec.type"],
            ..returned(with_status(Kind::of::<Service>("", "v1", "services", "Service")))
        },
        Kind::of::<ConfigMap>("", "v1", "configmaps", "ConfigMap"),
        Kind { selectable: &["type"], ..Kind::of::<Secret>("", "v1", "secrets", "Secret") },
        returned(Kind::of::<ServiceAccount>("", "v1", "serviceaccounts", "ServiceAccount")),
        Kind {
            selectable: &["spec.unschedulable"],
            ..cluster(with_status(Kind::of::<Node>("", "v1", "nodes", "Node")))
        },
        counted(with_status(Kind::of::<StatefulSet>("apps", "v1", "statefulsets", "StatefulSet"))),
        Kind {
            orphans_by_default: true,
            selectable: &["status.successful"],
            ..counted(with_status(Kind::of::<Job>("batch", "v1", "jobs", "Job")))
        },
        Kind {
            unconditional_update: false,
            create_on_update: true,
            ..Kind::of::<Lease>("coordination.k8s.io", "v1", "leases", "Lease")
        },
        counted(Kind::of::<EndpointSlice>("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")),
        Kind {
            unconditional_update: false,
            ..counted(with_status(Kind::of::<PodDisruptionBudget>(
                "policy",
                "v1",
                "poddisruptionbudgets",
                "PodDisruptionBudget",
            )))
        },
        rbac(Kind::of::<Role>(RBAC, "v1", "roles", "Role")),
        rbac(Kind::of::<RoleBinding>(RBAC, "v1", "rolebindings", "RoleBinding")),
        rbac(cluster(Kind::of::<ClusterRole>(RBAC, "v1", "clusterroles", "ClusterRole"))),
        rbac(cluster(Kind::of::<ClusterRoleBinding>(
            RBAC,
            "v1",
            "clusterrolebindings",
            "ClusterRoleBinding",
        ))),
        cluster(returned(Kind::of::<StorageClass>("storage.k8s.io", "v1", "storageclasses", "StorageClass"))),
        Kind::of::<ControllerRevision>("apps", "v1", "controllerrevisions", "ControllerRevision"),
    ]
}
