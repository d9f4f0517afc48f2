//! What is wrong with an object's metadata. Pure.

use crate::{kinds::Kind, status::Fault};
use serde_json::Value;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
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

/// What is wrong with a name that may have a domain before it.
fn qualified(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                found.push("prefix part must be non-empty".into());
            } else if !is_subdomain(prefix) {
                found.push(format!("prefix part {SUBDOMAIN}"));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED.trim_start_matches("name part ")
            )];
        }
    };
    if name.is_empty() {
        found.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        found.push("name part must be no more than 63 bytes".into());
    }
    if !is_name_part(&name.chars().take(63).collect::<String>()) {
        found.push(QUALIFIED.into());
    }
    found
}

/// What is wrong with metadata of any object.
pub(crate) fn faults(kind: &Kind, object: &Value) -> Vec<Fault> {
    let meta = &object["metadata"];
    let mut found = Vec::new();
    let text = meta["name"].as_str().unwrap_or_default();
    name_faults(kind, text, &mut found);
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        for why in qualified(key) {
            found.push(Fault::invalid("metadata.labels", &key.as_str().into(), &why));
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
        for why in qualified(&key.to_lowercase()) {
            found.push(Fault::invalid("metadata.annotations", &key.as_str().into(), &why));
        }
    }
    if size > ANNOTATIONS {
        let message = format!("Too long: may not be more than {ANNOTATIONS} bytes");
        found.push(Fault { reason: "FieldValueTooLong", field: "metadata.annotations".into(), message });
    }
    found.extend(owners(meta));
    // The older groups know which names without a domain there are.
    let newer = ["coordination.k8s.io", "policy"].contains(&kind.group.as_str());
    for (index, finalizer) in meta["finalizers"].as_array().into_iter().flatten().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&text);
        let wrong = qualified(text);
        if !wrong.is_empty() {
            found.extend(wrong.iter().map(|why| Fault::invalid("metadata.finalizers", finalizer, why)));
        } else if !standard && !text.contains('/') && !kind.is_custom() && !newer && kind.kind != "Event" {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            found.push(Fault::invalid(&format!("metadata.finalizers[{index}]"), finalizer, why));
        }
    }
    found
}

/// What is wrong with a name: each kind has its rule.
fn name_faults(kind: &Kind, name: &str, found: &mut Vec<Fault>) {
    let mut fault = |why: &str| found.push(Fault::invalid("metadata.name", &name.into(), why));
    let segment = kind.group == "rbac.authorization.k8s.io"
        || ["Event", "PodDisruptionBudget"].contains(&kind.kind.as_str());
    for bad in ["/", "%"] {
        // Names are parts of paths, whatever else they are.
        if segment && name.contains(bad) {
            fault(&format!("may not contain '{bad}'"));
        }
    }
    if segment {
        if name == "." || name == ".." {
            fault(&format!("may not be '{name}'"));
        }
        return;
    }
    let (most, rule, good): (usize, &str, fn(&str) -> bool) = match kind.kind.as_str() {
        "Service" => (63, DNS_1035, |n| is_label(n) && n.starts_with(|c: char| c.is_ascii_lowercase())),
        "StatefulSet" => (63, crate::builtin::LABEL, is_label),
        _ => (253, SUBDOMAIN, |n| n.split('.').all(is_label)),
    };
    if name.len() > most {
        fault(&format!("must be no more than {most} characters"));
    }
    if !good(name) {
        fault(rule);
    }
}

fn owners(meta: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut controllers: Vec<String> = Vec::new();
    for owner in meta["ownerReferences"].as_array().into_iter().flatten() {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(field).is_empty() {
                found.push(Fault::invalid(&format!("metadata.ownerReferences.{field}"), &"".into(), why));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            found.push(Fault::invalid("metadata.ownerReferences", owner, why));
        }
        if owner["controller"] == true {
            controllers.push(format!("{}/{}", text("kind"), text("name")));
        }
    }
    if let [first, others @ ..] = controllers.as_slice() {
        for other in others {
            let why = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {other}"
            );
            found.push(Fault::invalid("metadata.ownerReferences", &meta["ownerReferences"], &why));
        }
    }
    found
}

/// What is wrong with turning one object's metadata into another's.
pub(crate) fn update_faults(old: &Value, new: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    let (before, after) = (&old["metadata"], &new["metadata"]);
    for field in ["name", "namespace", "uid", "deletionTimestamp"] {
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
        assert_eq!(texts(json!({"name": "a", "finalizers": ["mine"]})), ["metadata.finalizers[0]"]);
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
        assert_eq!(texts(bare), ["metadata.ownerReferences.uid"]);
    }
}
