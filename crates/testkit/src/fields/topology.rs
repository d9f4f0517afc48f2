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
}

#[derive(Clone, Debug)]
enum Place<'a> {
    /// The schema of a whole custom object.
    Root(&'a Value),
    Schema(&'a Value),
    /// A built-in kind, and the names of the fields down to here, items left out.
    BuiltIn(&'a str, Vec<String>),
}

impl<'a> Topology<'a> {
    pub fn built_in(kind: &'a str) -> Self {
        Self { place: Place::BuiltIn(kind, Vec::new()), entry: false }
    }

    pub fn custom(schema: &'a Value) -> Self {
        Self { place: Place::Root(schema), entry: false }
    }

    pub fn field(&self, name: &str) -> Self {
        match &self.place {
            Place::BuiltIn(kind, path) => {
                let path: Vec<String> = path.iter().cloned().chain([name.to_string()]).collect();
                Self { place: Place::BuiltIn(kind, path), entry: false }
            }
            // The metadata of custom objects is that of all others.
            Place::Root(_) if name == "metadata" => {
                Self { place: Place::BuiltIn("", vec![name.into()]), entry: false }
            }
            Place::Root(schema) | Place::Schema(schema) => match schema["properties"].get(name) {
                Some(property) => Self { place: Place::Schema(property), entry: false },
                None => Self { place: Place::Schema(&schema["additionalProperties"]), entry: true },
            },
        }
    }

    pub fn item(&self) -> Self {
        let place = match &self.place {
            Place::Root(schema) | Place::Schema(schema) => Place::Schema(&schema["items"]),
            built_in => built_in.clone(),
        };
        Self { place, entry: false }
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
            Place::BuiltIn(kind, path) => atomic(kind, path),
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
            Place::BuiltIn(kind, path) => list(kind, path),
        }
    }
}

fn ends(path: &[String]) -> (&str, &str) {
    let at = |back: usize| path.len().checked_sub(back).and_then(|i| path.get(i)).map_or("", String::as_str);
    (at(2), at(1))
}

fn atomic(kind: &str, path: &[String]) -> bool {
    let (parent, name) = ends(path);
    match name {
        // Selectors by label, of every kind; that of a Service is a plain map, and atomic as well.
        "selector" | "labelSelector" | "namespaceSelector" => true,
        "nodeSelector" => true,
        "secretKeyRef" | "configMapKeyRef" | "fieldRef" | "resourceFieldRef" => true,
        "dataSource" | "claimRef" | "roleRef" | "involvedObject" | "regarding" | "related" => true,
        "secretRef"
            if ["cephfs", "csi", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"].contains(&parent) =>
        {
            true
        }
        "nodePublishSecretRef" | "targetRef" => true,
        _ => kind == "PersistentVolume" && name == "required",
    }
}

fn list(kind: &str, path: &[String]) -> List {
    let by = |key: &str| List::Map(vec![(key.into(), None)]);
    let (parent, name) = ends(path);
    match (kind, parent, name) {
        (_, "metadata", "ownerReferences") => by("uid"),
        (_, "metadata", "finalizers") => List::Set,
        ("ServiceAccount", _, "secrets") => by("name"),
        ("ServiceAccount", ..) => List::Atomic,
        ("Job", "status", "conditions") => List::Atomic,
        (_, "status", "conditions") => by("type"),
        ("Service", "spec", "ports") => {
            List::Map(vec![("port".into(), None), ("protocol".into(), Some(json!("TCP")))])
        }
        (_, "containers" | "initContainers" | "ephemeralContainers", "ports") => {
            List::Map(vec![("containerPort".into(), None), ("protocol".into(), Some(json!("TCP")))])
        }
        (_, "containers" | "initContainers" | "ephemeralContainers", "env") => by("name"),
        (_, "containers" | "initContainers" | "ephemeralContainers", "volumeMounts") => by("mountPath"),
        (_, "containers" | "initContainers" | "ephemeralContainers", "volumeDevices") => by("devicePath"),
        (_, "resources", "claims") => by("name"),
        (
            "Pod" | "StatefulSet" | "Job",
            "spec",
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "schedulingGates"
            | "resourceClaims",
        ) => by("name"),
        ("Pod" | "StatefulSet" | "Job", "spec", "hostAliases") => by("ip"),
        ("Pod" | "StatefulSet" | "Job", "spec", "topologySpreadConstraints") => {
            List::Map(vec![("topologyKey".into(), None), ("whenUnsatisfiable".into(), None)])
        }
        ("Pod", "status", "podIPs") => by("ip"),
        ("PersistentVolume" | "Node", "spec", "podCIDRs") => List::Set,
        _ => List::Atomic,
    }
}
