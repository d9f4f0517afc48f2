//! Which lists are maps or sets, and what is atomic. Pure.
//!
//! Custom kinds say it in their schema. For built-in kinds it is the table below, from the list-type markers of the
//! published OpenAPI document of Kubernetes.

use serde_json::{Value, json};

/// What kind of list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum List {
    Atomic,
    Set,
    /// By these keys, with their defaults.
    Map(Vec<(String, Option<Value>)>),
}

/// A place in the schema of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Topology<'a> {
    place: Place<'a>,
    /// Whether this is the value of a map's entry, not of a named field.
    entry: bool,
    /// Whether this is an item of the list at this place.
    item: bool,
}

#[derive(Clone, Debug)]
enum Place<'a> {
    /// The schema of a whole custom object.
    Root(&'a Value),
    Schema(&'a Value),
    /// A built-in kind, and the names of the last two fields down to here, items left out.
    BuiltIn(&'a str, &'static str, &'static str),
}

/// The names of fields that the tables below know; all others are alike to them.
const NAMES: [&str; 62] = [
    "addresses",
    "cephfs",
    "cinder",
    "claims",
    "conditions",
    "configMapKeyRef",
    "containers",
    "controllerExpandSecretRef",
    "controllerPublishSecretRef",
    "csi",
    "dataSource",
    "env",
    "ephemeralContainers",
    "failed",
    "fieldRef",
    "fileKeyRef",
    "finalizers",
    "flexVolume",
    "hostAliases",
    "imagePullSecrets",
    "initContainers",
    "involvedObject",
    "iscsi",
    "labelSelector",
    "metadata",
    "namespaceSelector",
    "nodeAffinity",
    "nodeExpandSecretRef",
    "nodePublishSecretRef",
    "nodeSelector",
    "nodeStageSecretRef",
    "ownerReferences",
    "podCIDRs",
    "podIPs",
    "ports",
    "preference",
    "rbd",
    "regarding",
    "related",
    "required",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "resourceClaimStatuses",
    "resourceClaims",
    "resourceFieldRef",
    "resources",
    "roleRef",
    "scaleIO",
    "schedulingGates",
    "secretKeyRef",
    "secretRef",
    "secrets",
    "selector",
    "spec",
    "status",
    "storageos",
    "succeeded",
    "targetRef",
    "topologySpreadConstraints",
    "uncountedTerminatedPods",
    "volumeDevices",
    "volumeMounts",
    "volumes",
];

fn known(name: &str) -> &'static str {
    NAMES.binary_search(&name).map_or("", |at| NAMES[at])
}

impl<'a> Topology<'a> {
    pub fn built_in(kind: &'a str) -> Self {
        Self { place: Place::BuiltIn(kind, "", ""), entry: false, item: false }
    }

    pub fn custom(schema: &'a Value) -> Self {
        Self { place: Place::Root(schema), entry: false, item: false }
    }

    pub fn field(&self, name: &str) -> Self {
        match &self.place {
            Place::BuiltIn(kind, _, parent) => {
                Self { place: Place::BuiltIn(kind, parent, known(name)), entry: false, item: false }
            }
            // The metadata of custom objects is that of all others.
            Place::Root(_) if name == "metadata" => {
                Self { place: Place::BuiltIn("", "", "metadata"), entry: false, item: false }
            }
            Place::Root(schema) | Place::Schema(schema) => match schema["properties"].get(name) {
                Some(property) => Self { place: Place::Schema(property), entry: false, item: false },
                None => {
                    Self { place: Place::Schema(&schema["additionalProperties"]), entry: true, item: false }
                }
            },
        }
    }

    pub fn item(&self) -> Self {
        let place = match &self.place {
            Place::Root(schema) | Place::Schema(schema) => Place::Schema(&schema["items"]),
            built_in => built_in.clone(),
        };
        Self { place, entry: false, item: true }
    }

    pub fn is_map_entry(&self) -> bool {
        self.entry
    }

    /// Whether the value has no paths within.
    pub fn is_leaf(&self, value: &Value) -> bool {
        match value {
            Value::Object(_) => self.is_atomic(),
            Value::Array(_) => self.list() == List::Atomic,
            _ => true,
        }
    }

    pub fn is_atomic(&self) -> bool {
        match &self.place {
            Place::Root(schema) | Place::Schema(schema) => schema["x-kubernetes-map-type"] == "atomic",
            Place::BuiltIn(_, _, name) if self.item => atomic_items(name),
            Place::BuiltIn(kind, parent, name) => atomic(kind, parent, name),
        }
    }

    pub fn list(&self) -> List {
        match &self.place {
            Place::Root(schema) | Place::Schema(schema) => match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => List::Set,
                Some("map") => List::Map(
                    schema["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .map(|key| {
                            let default = schema["items"]["properties"][key].get("default");
                            (key.to_string(), default.cloned())
                        })
                        .collect(),
                ),
                _ => List::Atomic,
            },
            Place::BuiltIn(kind, parent, name) => list(kind, parent, name),
        }
    }
}

fn atomic(kind: &str, parent: &str, name: &str) -> bool {
    match name {
        // Selectors by label, of every kind; that of a Service is a plain map, and atomic as well.
        "selector" | "labelSelector" | "namespaceSelector" => true,
        "nodeSelector" => true,
        "secretKeyRef" | "configMapKeyRef" | "fileKeyRef" | "fieldRef" | "resourceFieldRef" => true,
        "dataSource" | "roleRef" | "involvedObject" | "regarding" | "related" => true,
        "secretRef"
            if ["cephfs", "cinder", "csi", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"]
                .contains(&parent) =>
        {
            true
        }
        "nodePublishSecretRef" | "nodeStageSecretRef" | "nodeExpandSecretRef" => true,
        "controllerPublishSecretRef" | "controllerExpandSecretRef" => true,
        "targetRef" | "preference" => true,
        "requiredDuringSchedulingIgnoredDuringExecution" => parent == "nodeAffinity",
        _ => kind == "PersistentVolume" && name == "required",
    }
}

/// Items of lists that are maps, which have no paths within.
fn atomic_items(name: &str) -> bool {
    ["ownerReferences", "imagePullSecrets", "secrets"].contains(&name)
}

fn list(kind: &str, parent: &str, name: &str) -> List {
    let by = |key: &str| List::Map(vec![(key.into(), None)]);
    let pods = ["Pod", "StatefulSet", "Job"].contains(&kind);
    let container = || ["containers", "initContainers", "ephemeralContainers"].contains(&parent);
    match (parent, name) {
        ("metadata", "ownerReferences") => List::Map(vec![("uid".into(), Some(json!("")))]),
        ("metadata", "finalizers") => List::Set,
        (_, "secrets") if kind == "ServiceAccount" => by("name"),
        ("status", "conditions") if kind != "Job" => by("type"),
        ("status", "addresses") if kind == "Node" => by("type"),
        ("spec", "podCIDRs") if kind == "Node" => List::Set,
        ("spec", "ports") if kind == "Service" => {
            List::Map(vec![("port".into(), None), ("protocol".into(), Some(json!("TCP")))])
        }
        (_, "addresses") if kind == "EndpointSlice" => List::Set,
        (_, "ports") if container() => {
            List::Map(vec![("containerPort".into(), None), ("protocol".into(), Some(json!("TCP")))])
        }
        (_, "env") if container() => by("name"),
        (_, "volumeMounts") if container() => by("mountPath"),
        (_, "volumeDevices") if container() => by("devicePath"),
        ("resources", "claims") => by("name"),
        (
            "spec",
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "schedulingGates"
            | "resourceClaims",
        ) if pods => by("name"),
        ("spec", "hostAliases") if pods => by("ip"),
        ("spec", "topologySpreadConstraints") if pods => {
            List::Map(vec![("topologyKey".into(), None), ("whenUnsatisfiable".into(), None)])
        }
        ("status", "podIPs") => by("ip"),
        ("status", "resourceClaimStatuses") => by("name"),
        ("uncountedTerminatedPods", "succeeded" | "failed") => List::Set,
        _ => List::Atomic,
    }
}
