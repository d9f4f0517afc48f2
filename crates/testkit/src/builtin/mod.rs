//! What the API server does to built-in objects before it stores them. Pure.
//!
//! Only the kinds and fields that clients of this project use; what is missing is missing, never different.

mod defaults;
mod immutable;
mod quantity;

pub(crate) use defaults::fill;
pub(crate) use immutable::faults;

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

/// Drops what the Go types omit when it is empty, folds write-only fields, and writes quantities canonically.
pub(crate) fn tidy(kind: &str, object: &mut Value) {
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
    quantity::canonical(object);
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
        tidy("Secret", &mut secret);
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
