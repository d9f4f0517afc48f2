//! The custom resources, one file a kind. Group `holdfast.dev`, version `v1alpha1`.
//!
//! The types ignore fields that they do not know: the API server refuses or prunes those already, and an operator older
//! than its CRDs must not stop watching everything because one object uses a newer field. Every list, map and string of
//! a spec has a bound, so that the API server can price the CEL rules that walk it.

pub mod backup;
pub mod database;
pub mod restore;
pub mod schedule;
pub mod store;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The API group of every kind.
pub const GROUP: &str = "holdfast.dev";
/// The API version of every kind.
pub const VERSION: &str = "v1alpha1";

/// How names of objects are spelled: a DNS-1123 subdomain. Whatever else stands where a name belongs could only be looked up
/// in vain, or would lead the request for it to another path of the API.
pub(crate) const OBJECT_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// The same for a name that may be left empty.
pub(crate) const OBJECT_NAME_OR_NONE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$";
/// How namespaces are spelled: a DNS-1123 label.
pub(crate) const NAMESPACE: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// Names an object in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
}

/// Extra labels and annotations.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExtraMetadata {
    /// Labels to add. Those of holdfast.dev and app.kubernetes.io are the operators' own.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(k, !k.matches('^([^/]*[.])?(holdfast[.]dev|app[.]kubernetes[.]io)/'))")
        .message("labels of holdfast.dev/ and app.kubernetes.io/ are set by the operators, which select pods by them: remove these"))]
    #[x_kube(validation = Rule::new(LABEL_VALUES).message(LABEL_VALUES_MESSAGE))]
    #[schemars(schema_with = "labels_schema")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Annotations to add. Those of holdfast.dev are the operators' own.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(ANNOTATIONS_OF_OTHERS).message(ANNOTATIONS_OF_OTHERS_MESSAGE))]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// CEL: what Kubernetes takes as the value of a label. Anything else would be refused only when pods are made.
pub(crate) const LABEL_VALUES: &str =
    "self.all(k, self[k].matches('^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$'))";
/// What a refusal by [`LABEL_VALUES`] says.
pub(crate) const LABEL_VALUES_MESSAGE: &str = "a label's value must be empty, or begin and end with a letter or digit, with letters, digits, - _ . between";
/// CEL: annotations by which operators and agents talk to each other are not for others to write: the two would write over each
/// other for ever, or the operator would take as its own what somebody else wrote.
pub(crate) const ANNOTATIONS_OF_OTHERS: &str = "self.all(k, !k.matches('^([^/]*[.])?holdfast[.]dev/'))";
/// What a refusal by [`ANNOTATIONS_OF_OTHERS`] says.
pub(crate) const ANNOTATIONS_OF_OTHERS_MESSAGE: &str =
    "annotations of holdfast.dev/ are set by the operators and agents: remove these";

/// Labels: as many and as long as is sensible on a pod.
pub(crate) fn labels_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 63}})
}

/// Annotations: as many and as long as is sensible on a pod.
pub(crate) fn annotations_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 4096}})
}

/// Resources of a container: Kubernetes' own type, with bounds and without `claims`, which need devices in the pod.
pub(crate) fn resources_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let amounts = |what: &str| {
        serde_json::json!({
            "type": "object", "maxProperties": 16,
            "description": what,
            "additionalProperties": {"x-kubernetes-int-or-string": true, "maxLength": 32}
        })
    };
    schemars::json_schema!({
        "type": "object",
        "properties": {
            "requests": amounts("What a node must have free for the pod."),
            "limits": amounts("What the container may use at most.")
        }
    })
}

/// Tolerations: Kubernetes' own type, with bounds.
pub(crate) fn tolerations_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "maxLength": 317, "description": "Key of the taint; none, with operator Exists: every taint."},
                "operator": {"type": "string", "maxLength": 16, "description": "Equal (default) or Exists."},
                "value": {"type": "string", "maxLength": 63, "description": "Value of the taint, with operator Equal."},
                "effect": {"type": "string", "maxLength": 32, "description": "NoSchedule, PreferNoSchedule or NoExecute; none: all."},
                "tolerationSeconds": {"type": "integer", "format": "int64", "description": "How long a NoExecute taint is tolerated; none: for ever."}
            }
        }
    })
}

/// What happens to data when the object that stands for it is deleted.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// The data stays.
    #[default]
    Retain,
    /// The data goes with the object.
    Delete,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::Value;

    fn texts<'a>(schema: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
        if schema["type"] == "string" {
            found.push((path.into(), schema));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            texts(field, &format!("{path}.{name}"), found);
        }
        texts_in(&schema["items"], path, found);
    }

    fn texts_in<'a>(items: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
        if items.is_object() {
            texts(items, &format!("{path}[]"), found);
        }
    }

    #[test]
    fn every_name_of_an_object_says_how_it_is_spelled() {
        let crds = [
            crate::Database::crd(),
            crate::Backup::crd(),
            crate::BackupSchedule::crd(),
            crate::BackupStore::crd(),
            crate::Restore::crd(),
        ];
        let mut names = Vec::new();
        for crd in crds {
            let crd = serde_json::to_value(crd).unwrap();
            let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            let mut found = Vec::new();
            texts(spec, "spec", &mut found);
            for (path, schema) in found {
                let of_object = [
                    "Ref.name",
                    "Secrets[].name",
                    "ClassName",
                    "claimName",
                    "source.database.name",
                    "namespace",
                ];
                if of_object.iter().any(|end| path.ends_with(end)) {
                    let pattern = schema["pattern"].as_str().unwrap_or_default();
                    assert!(
                        pattern.starts_with("^") && pattern.ends_with("$"),
                        "{path} has pattern {pattern:?}"
                    );
                    assert!(schema["maxLength"].is_u64(), "{path}");
                    names.push(path);
                }
            }
        }
        for known in [
            "spec.databaseRef.name",
            "spec.storeRef.name",
            "spec.archive.storeRef.name",
            "spec.template.storeRef.name",
            "spec.source.backupRef.name",
            "spec.source.database.name",
            "spec.source.database.namespace",
            "spec.s3.credentialsSecretRef.name",
            "spec.volume.claimName",
            "spec.imagePullSecrets[].name",
        ] {
            assert!(names.iter().any(|name| name == known), "{known} is not among {names:?}");
        }
    }
}
