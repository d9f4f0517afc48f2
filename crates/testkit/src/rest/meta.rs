//! What is wrong with an object's metadata. Pure.

use crate::{
    builtin::names::{self, DNS_1035, SUBDOMAIN, is_label, qualified},
    kinds::Kind,
    status::Fault,
};
use serde_json::Value;

/// What is wrong with metadata of any object.
pub(crate) fn faults(kind: &Kind, object: &Value) -> Vec<Fault> {
    let meta = &object["metadata"];
    let mut found = Vec::new();
    let text = meta["name"].as_str().unwrap_or_default();
    name_faults(kind, text, &mut found);
    names::labels(&meta["labels"], "metadata.labels", &mut found);
    names::annotations(&meta["annotations"], "metadata.annotations", &mut found);
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
    let has = |which: &str| super::finalizers(object).iter().any(|f| f == which);
    if has(super::ORPHAN) && has(super::FOREGROUND) {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        found.push(Fault::invalid("metadata.finalizers", &meta["finalizers"], why));
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
        "StatefulSet" => (63, names::LABEL, is_label),
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
        let both = json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]});
        assert_eq!(texts(both), ["metadata.finalizers"]);
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
