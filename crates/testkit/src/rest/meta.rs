//! What is wrong with an object's metadata. Pure.

use crate::{kinds::Kind, status::Fault};
use serde_json::Value;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// All annotations together.
const ANNOTATIONS: usize = 256 * 1024;

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_name_part(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let end = |c: char| c.is_ascii_alphanumeric();
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && text.starts_with(end)
        && text.ends_with(end)
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

/// What is wrong with metadata of any object.
pub(crate) fn faults(kind: &Kind, object: &Value) -> Vec<Fault> {
    let meta = &object["metadata"];
    let mut found = Vec::new();
    let name = &meta["name"];
    let text = name.as_str().unwrap_or_default();
    if kind.group == "rbac.authorization.k8s.io" {
        if text == "." || text == ".." || text.contains(['/', '%']) {
            found.push(Fault::invalid("metadata.name", name, "may not contain '/' or '%'"));
        }
    } else if !is_subdomain(text) {
        found.push(Fault::invalid("metadata.name", name, SUBDOMAIN));
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) {
            found.push(Fault::invalid("metadata.labels", &key.as_str().into(), QUALIFIED));
        }
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            found.push(Fault::invalid("metadata.labels", value, "must be no more than 63 bytes"));
        } else if !text.is_empty() && !is_name_part(text) {
            found.push(Fault::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        if !is_qualified(&key.to_lowercase()) {
            found.push(Fault::invalid("metadata.annotations", &key.as_str().into(), QUALIFIED));
        }
    }
    if size > ANNOTATIONS {
        let message = format!("Too long: may not be more than {ANNOTATIONS} bytes");
        found.push(Fault { reason: "FieldValueTooLong", field: "metadata.annotations".into(), message });
    }
    found.extend(owners(meta));
    for finalizer in meta["finalizers"].as_array().into_iter().flatten() {
        let text = finalizer.as_str().unwrap_or_default();
        let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&text);
        if !is_qualified(text) {
            found.push(Fault::invalid("metadata.finalizers", finalizer, QUALIFIED));
        } else if !standard && !text.contains('/') && !kind.is_custom() {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            found.push(Fault::invalid("metadata.finalizers", finalizer, why));
        }
    }
    found
}

fn owners(meta: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut controllers = Vec::new();
    for (index, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                found.push(Fault::invalid(
                    &path,
                    &"".into(),
                    &format!("{} must not be empty", field_name(field)),
                ));
            }
        }
        if owner["controller"] == true {
            controllers.push(owner["name"].as_str().unwrap_or_default());
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        found.push(Fault::invalid("metadata.ownerReferences", &meta["ownerReferences"], &why));
    }
    found
}

fn field_name(field: &str) -> &str {
    if field == "apiVersion" { "version" } else { field }
}

/// What is wrong with turning one object's metadata into another's.
pub(crate) fn update_faults(old: &Value, new: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    let (before, after) = (&old["metadata"], &new["metadata"]);
    for field in ["name", "namespace", "uid"] {
        if before.get(field) != after.get(field) {
            found.push(Fault::invalid(&format!("metadata.{field}"), &after[field], "field is immutable"));
        }
    }
    if before.get("deletionTimestamp").is_some() {
        let (had, has) = (super::finalizers(old), super::finalizers(new));
        let extra: Vec<String> = has.iter().filter(|f| !had.contains(f)).map(|f| format!("{f:?}")).collect();
        if !extra.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                extra.join(", ")
            );
            found.push(Fault::forbidden("metadata.finalizers", &why));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(metadata: Value) -> Vec<String> {
        let kinds = crate::kinds::builtin();
        let maps = kinds.iter().find(|k| k.kind == "ConfigMap").unwrap();
        faults(maps, &json!({ "metadata": metadata })).into_iter().map(|f| f.field).collect()
    }

    #[test]
    fn names_and_labels_follow_their_rules() {
        assert!(texts(json!({"name": "a-1.b", "labels": {"x.test/y": "A_b.c", "e": ""}})).is_empty());
        assert_eq!(texts(json!({"name": "A"})), ["metadata.name"]);
        assert_eq!(texts(json!({"name": "a", "labels": {"l": "-x"}})), ["metadata.labels"]);
        assert_eq!(texts(json!({"name": "a", "labels": {"/l": "x"}})), ["metadata.labels"]);
        assert_eq!(texts(json!({"name": "a", "finalizers": ["mine"]})), ["metadata.finalizers"]);
    }

    #[test]
    fn there_is_one_controller_and_owners_are_complete() {
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "K", "name": name, "uid": "u", "controller": true});
        assert!(texts(json!({"name": "a", "ownerReferences": [owner("x")]})).is_empty());
        assert_eq!(
            texts(json!({"name": "a", "ownerReferences": [owner("x"), owner("y")]})),
            ["metadata.ownerReferences"]
        );
        let bare = json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "x"}]});
        assert_eq!(texts(bare), ["metadata.ownerReferences[0].uid"]);
    }
}
