//! What the API server does to built-in objects before it stores them. Pure.
//!
//! Only the kinds and fields that clients of this project use; what is missing is missing, never different.

mod bare;
mod defaults;
mod immutable;
pub(crate) mod quantity;
pub(crate) mod service;
mod valid;

pub(crate) use bare::{bare, reset};
pub(crate) use defaults::fill;
pub(crate) use immutable::bytes;
pub(crate) use valid::names;

use crate::status::Fault;
use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

/// What is wrong with a built-in object. `old`: what it replaces. `status`: only its status is written.
pub(crate) fn faults(kind: &str, object: &Value, old: Option<&Value>, status: bool) -> Vec<Fault> {
    let mut found = valid::faults(kind, object, old, status);
    if let Some(old) = old {
        found.extend(immutable::faults(kind, old, object));
    }
    found
}

/// Reads a body as Go would read it before its types are looked at: null is the empty value in a map of texts; amounts are
/// written canonically. Errors: one that is no amount.
pub(crate) fn read(kind: &str, object: &mut Value) -> Result<(), String> {
    texts(object);
    if kind == "Service"
        && let Some(selector) = object.pointer_mut("/spec/selector")
    {
        nulls(selector);
    }
    micro_times(object)?;
    if kind == "Secret"
        && let Some(texts) = object.get_mut("stringData")
    {
        nulls(texts);
    }
    quantity::canonical(object)
}

/// Times of leases and events have six digits after the point, no more and no fewer.
fn micro_times(value: &Value) -> Result<(), String> {
    const FIELDS: [&str; 4] = ["renewTime", "acquireTime", "eventTime", "lastObservedTime"];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(text) = field.as_str().filter(|_| FIELDS.contains(&name.as_str())) {
                    let fraction = text
                        .split_once('.')
                        .map(|(_, rest)| rest.trim_start_matches(|c: char| c.is_ascii_digit()).len());
                    let digits =
                        fraction.map(|rest| text.len() - rest - text.find('.').unwrap_or_default() - 1);
                    if digits != Some(6) {
                        return Err(format!(
                            "parsing time {text:?} as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse it"
                        ));
                    }
                }
                micro_times(field)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(micro_times),
        _ => Ok(()),
    }
}

/// Puts a time in the place of every text that should be one and is none.
pub(crate) fn readable(value: &mut Value) {
    const TIMES: [&str; 12] = [
        "renewTime",
        "acquireTime",
        "eventTime",
        "lastObservedTime",
        "lastTransitionTime",
        "lastProbeTime",
        "firstTimestamp",
        "lastTimestamp",
        "startTime",
        "completionTime",
        "creationTimestamp",
        "deletionTimestamp",
    ];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if field.is_string() && TIMES.contains(&name.as_str()) {
                    *field = "2020-01-01T00:00:00.000000Z".into();
                }
                readable(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(readable),
        _ => {}
    }
}

fn nulls(map: &mut Value) {
    for value in map.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        if value.is_null() {
            *value = "".into();
        }
    }
}

fn texts(value: &mut Value) {
    const OF_TEXTS: [&str; 6] =
        ["labels", "annotations", "data", "nodeSelector", "matchLabels", "parameters"];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if OF_TEXTS.contains(&name.as_str()) {
                    nulls(field);
                }
                texts(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(texts),
        _ => {}
    }
}

/// Folds write-only fields, and drops what the Go types omit when it is empty.
pub(crate) fn tidy(kind: &str, object: &mut Value, lists: Vec<&'static str>) {
    if kind == "Secret"
        && let Some(Value::Object(texts)) = object.as_object_mut().and_then(|o| o.remove("stringData"))
    {
        let data = object["data"].take();
        let mut data = if let Value::Object(data) = data { data } else { Map::new() };
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or_default().as_bytes().to_vec();
            data.insert(key, json!(ByteString(bytes)));
        }
        object["data"] = Value::Object(data);
    }
    omit(object);
    zeros(kind, object);
    for list in lists {
        if object.get(list).is_none() {
            object[list] = json!([]);
        }
    }
    // The selector of a Service is a plain map, that of all others a structure.
    if kind == "Service"
        && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("selector").and_then(Value::as_object).is_some_and(Map::is_empty)
    {
        spec.remove("selector");
    }
}

/// Lists that are written even when they are empty, as null.
fn written(kind: &str) -> &'static [&'static str] {
    match kind {
        "Role" | "ClusterRole" => &["rules"],
        "EndpointSlice" => &["endpoints", "ports"],
        _ => &[],
    }
}

/// Those of the lists that are written even when they are empty which a body gives, empty: not to give them is not the same
/// to those who keep account of who owns what.
pub(crate) fn given_lists(kind: &str, object: &Value) -> Vec<&'static str> {
    let empty = |list: &&&str| object[**list].as_array().is_some_and(Vec::is_empty);
    written(kind).iter().filter(empty).copied().collect()
}

/// What storing makes of an object: lists that are written even when they are empty become null, amounts canonical.
pub(crate) fn settle(kind: &str, object: &mut Value) {
    if let Some(templates) = object.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut) {
        quantity::settle(templates);
    }
    for list in written(kind) {
        if object[*list].as_array().is_some_and(Vec::is_empty) {
            object[*list] = Value::Null;
        }
    }
}

/// Fields of a body that its type does not have.
pub(crate) fn unknown(given: &Value, typed: &Value, path: &str, found: &mut Vec<String>) {
    match (given, typed) {
        (Value::Object(given), Value::Object(typed)) => {
            for (name, value) in given.iter().filter(|(_, v)| !v.is_null()) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match typed.get(name) {
                    Some(typed) => unknown(value, typed, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(typed)) => {
            for (index, (given, typed)) in given.iter().zip(typed).enumerate() {
                unknown(given, typed, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Plain values that the Go types omit when they are zero: where a pointer could tell zero from nothing, both stay apart.
fn zeros(kind: &str, object: &mut Value) {
    let at: &[(&str, &[&str])] = match kind {
        "StatefulSet" => &[
            ("/spec", &["minReadySeconds"]),
            (
                "/status",
                &[
                    "readyReplicas",
                    "currentReplicas",
                    "updatedReplicas",
                    "observedGeneration",
                    "currentRevision",
                    "updateRevision",
                ],
            ),
        ],
        "Service" => {
            &[("/spec", &["publishNotReadyAddresses", "healthCheckNodePort", "externalName", "clusterIP"])]
        }
        "Job" => &[("/status", &["active", "succeeded", "failed"])],
        "Pod" => &[
            ("/spec", &["nodeName", "hostname", "subdomain", "hostNetwork", "hostPID", "hostIPC"]),
            ("/status", &["message", "reason", "podIP", "hostIP", "nominatedNodeName"]),
        ],
        "PodDisruptionBudget" => &[("/status", &["observedGeneration"])],
        "Event" => &[("", &["reason", "message", "note", "count", "deprecatedCount", "type", "action"])],
        _ => &[],
    };
    let zero = |v: &Value| matches!(v, Value::Bool(false)) || *v == 0 || *v == "";
    for (place, names) in at {
        if let Some(fields) = object.pointer_mut(place).and_then(Value::as_object_mut) {
            fields.retain(|name, value| !(names.contains(&name.as_str()) && zero(value)));
        }
    }
}

/// Nulls, empty lists and empty maps. An empty structure is not the same as none: `emptyDir: {}` stays.
pub(crate) fn omit(value: &mut Value) {
    const MAPS: [&str; 12] = [
        "labels",
        "annotations",
        "data",
        "binaryData",
        "nodeSelector",
        "matchLabels",
        "requests",
        "limits",
        "capacity",
        "parameters",
        "overhead",
        "allocatedResources",
    ];
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(omit);
            fields.retain(|name, value| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(inner) => !inner.is_empty() || !MAPS.contains(&name.as_str()),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(omit),
        _ => {}
    }
}

/// The names that differ between the two versions of events: core/v1, events.k8s.io/v1.
const EVENT: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("reportingComponent", "reportingController"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// An event as core/v1 stores it, in the words of events.k8s.io/v1, or the reverse.
pub(crate) fn convert_event(event: &mut Value, to_core: bool) {
    let Some(fields) = event.as_object_mut() else { return };
    for (core, new) in EVENT {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(value) = fields.remove(from) {
            fields.insert(to.into(), value);
        }
    }
    let version = if to_core { "v1" } else { "events.k8s.io/v1" };
    fields.insert("apiVersion".into(), version.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_maps_and_lists_are_absent_and_empty_structures_are_not() {
        let mut pod = json!({"metadata": {"labels": {}, "finalizers": []},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "nodeName": null}});
        omit(&mut pod);
        assert_eq!(pod, json!({"metadata": {}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}));
    }

    #[test]
    fn secrets_take_plain_text_and_store_bytes() {
        let mut secret = json!({"stringData": {"key": "text"}, "data": {"other": "eA=="}});
        tidy("Secret", &mut secret, Vec::new());
        assert_eq!(secret, json!({"data": {"key": "dGV4dA==", "other": "eA=="}}));
    }

    #[test]
    fn an_event_reads_the_same_after_both_conversions() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "regarding": {"uid": "u"}, "note": "n",
            "reportingController": "c", "type": "Normal"});
        let mut event = new.clone();
        convert_event(&mut event, true);
        assert_eq!(event["involvedObject"]["uid"], "u");
        assert_eq!(event["message"], "n");
        convert_event(&mut event, false);
        assert_eq!(event, new);
    }
}
