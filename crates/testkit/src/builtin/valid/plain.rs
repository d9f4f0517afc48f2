//! ConfigMaps, Secrets, Leases, Events.

use super::{keys, text};
use crate::status::Fault;
use serde_json::{Value, json};

/// All data of a ConfigMap or Secret together.
const MOST: usize = 1024 * 1024;

fn too_large(size: usize, field: &str, found: &mut Vec<Fault>) {
    if size > MOST {
        let message = format!("Too long: may not be more than {MOST} bytes");
        found.push(Fault { reason: "FieldValueTooLong", field: field.into(), message });
    }
}

/// Bytes of a map's values; `encoded`: in base64.
fn size(object: &Value, field: &str, encoded: bool) -> usize {
    let values = object[field].as_object().into_iter().flat_map(|f| f.values());
    let bytes = |v: &Value| {
        let text = v.as_str().unwrap_or_default();
        if encoded { text.trim_end_matches('=').len() * 3 / 4 } else { text.len() }
    };
    values.map(bytes).sum()
}

pub(super) fn config_map(object: &Value, found: &mut Vec<Fault>) {
    keys(object, "data", found);
    for key in object["data"].as_object().into_iter().flat_map(|f| f.keys()) {
        if object["binaryData"].get(key).is_some() {
            let why = "duplicate of key present in binaryData";
            found.push(Fault::invalid(&format!("data[{key}]"), &json!(key), why));
        }
    }
    keys(object, "binaryData", found);
    too_large(size(object, "data", false) + size(object, "binaryData", true), "<nil>", found);
}

pub(super) fn secret(object: &Value, found: &mut Vec<Fault>) {
    keys(object, "data", found);
    too_large(size(object, "data", true), "data", found);
    let wanted: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        _ => &[],
    };
    for key in wanted.iter().filter(|key| object["data"].get(**key).is_none()) {
        found.push(Fault::required(&format!("data[{key}]"), ""));
    }
}

pub(super) fn lease(object: &Value, found: &mut Vec<Fault>) {
    let spec = &object["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
        found.push(Fault::invalid("spec.leaseDurationSeconds", &json!(seconds), "must be greater than 0"));
    }
    if let Some(count) = spec["leaseTransitions"].as_i64().filter(|n| *n < 0) {
        let why = "must be greater than or equal to 0";
        found.push(Fault::invalid("spec.leaseTransitions", &json!(count), why));
    }
}

/// An Event, as core/v1 or events.k8s.io/v1 writes it.
pub(super) fn event(object: &Value, found: &mut Vec<Fault>) {
    let core = object["apiVersion"] == "v1";
    let (about, reporter) =
        if core { ("involvedObject", "reportingComponent") } else { ("regarding", "reportingController") };
    let (own, its) = (text(&object["metadata"], "namespace"), text(&object[about], "namespace"));
    let elsewhere =
        || Fault::invalid("involvedObject.namespace", &json!(its), "does not match event.namespace");
    if object["eventTime"].is_null() {
        if (its.is_empty() && own != "default") || (!its.is_empty() && its != own) {
            found.push(elsewhere());
        }
        return;
    }
    if its.is_empty() && !["default", "kube-system"].contains(&own) {
        found.push(elsewhere());
    }
    for field in [reporter, "reportingInstance", "action", "reason"] {
        if text(object, field).is_empty() {
            found.push(Fault::required(field, ""));
        }
    }
}
