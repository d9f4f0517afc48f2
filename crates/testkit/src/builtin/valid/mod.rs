//! What is wrong with a built-in object, in the words of the API server. Pure.
//!
//! Only the fields that clients of this project write are looked at; what is not looked at is taken.

mod claim;
pub(crate) mod names;
mod network;
mod plain;
mod rights;
mod workload;

use crate::status::Fault;
use serde_json::{Value, json};

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// What is wrong with an object. `old`: what it replaces. `status`: only its status is written.
pub(crate) fn faults(kind: &str, object: &Value, old: Option<&Value>, status: bool) -> Vec<Fault> {
    let mut found = Vec::new();
    match kind {
        "ConfigMap" => plain::config_map(object, &mut found),
        "Secret" => plain::secret(object, &mut found),
        "Lease" => plain::lease(object, &mut found),
        "Event" => plain::event(object, &mut found),
        "Role" | "ClusterRole" => rights::role(object, &mut found),
        "RoleBinding" | "ClusterRoleBinding" => rights::binding(kind, object, &mut found),
        "PodDisruptionBudget" => rights::budget(object, status, &mut found),
        "Service" => network::service(object, old, status, &mut found),
        "EndpointSlice" => network::slice(object, old, &mut found),
        "PersistentVolumeClaim" => claim::claim(object, status, &mut found),
        "StatefulSet" => workload::set(object, old, status, &mut found),
        "Job" => workload::job(object, old, status, &mut found),
        "Pod" if !status => workload::pod(object, &mut found),
        _ => {}
    }
    found
}

/// A number that must not be negative.
fn nonnegative(object: &Value, pointer: &str, found: &mut Vec<Fault>) {
    if let Some(number) = object.pointer(pointer).and_then(Value::as_i64).filter(|n| *n < 0) {
        let field = pointer.trim_start_matches('/').replace('/', ".");
        found.push(Fault::invalid(&field, &json!(number), "must be greater than or equal to 0"));
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

/// A name that must be a DNS label.
fn label(text: &str, field: &str, found: &mut Vec<Fault>) {
    if text.len() > 63 {
        found.push(Fault::invalid(field, &json!(text), "must be no more than 63 characters"));
    }
    if !names::is_label(&text.chars().take(63).collect::<String>()) {
        found.push(Fault::invalid(field, &json!(text), names::LABEL));
    }
}

/// One of several texts.
fn one_of(value: &str, field: &str, supported: &[&str], found: &mut Vec<Fault>) {
    if !supported.contains(&value) {
        let supported: Vec<Value> = supported.iter().map(|s| json!(s)).collect();
        found.push(Fault::not_supported(field, &json!(value), &supported));
    }
}

/// The keys of a map of data.
fn keys(object: &Value, field: &str, found: &mut Vec<Fault>) {
    for key in object[field].as_object().into_iter().flat_map(|f| f.keys()) {
        let good = key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let path = format!("{field}[{key}]");
        if !good || key.is_empty() {
            found.push(Fault::invalid(&path, &json!(key), KEY));
        } else if key == "." || key == ".." {
            found.push(Fault::invalid(&path, &json!(key), &format!("must not be '{key}'")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: &str, object: Value) -> Vec<String> {
        faults(kind, &object, None, false)
            .into_iter()
            .map(|f| format!("{}: {}", f.field, f.message))
            .collect()
    }

    #[test]
    fn good_objects_have_no_faults() {
        for (kind, object) in [
            ("ConfigMap", json!({"data": {"a.b": "1"}, "binaryData": {"c": "AA=="}})),
            ("Lease", json!({"spec": {"leaseDurationSeconds": 6, "leaseTransitions": 0}})),
            ("Role", json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})),
            (
                "Service",
                json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}]}}),
            ),
        ] {
            assert_eq!(texts(kind, object), Vec::<String>::new(), "{kind}");
        }
    }

    #[test]
    fn bad_objects_are_refused_by_field() {
        assert_eq!(
            texts("Lease", json!({"spec": {"leaseDurationSeconds": 0}})),
            ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
        );
        assert_eq!(
            texts("Role", json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]})),
            ["rules[0].verbs: Required value: verbs must contain at least one value"]
        );
        assert!(
            texts("ConfigMap", json!({"data": {"a b": ""}}))[0]
                .starts_with("data[a b]: Invalid value: \"a b\"")
        );
    }
}
