//! What people and other programs do to metadata: of our objects, and of those that our operators made. Pure.

use super::change::{Back, Change, Target, shown};
use holdfast_core::names;
use serde_json::{Value, json};

/// uid of nothing.
const NOBODY: &str = "11111111-2222-4333-8444-555555555555";

/// An owner of a kind that nobody knows: the garbage collector cannot look it up, and leaves the object alone.
fn foreign_owner(controller: bool) -> Value {
    json!([{"apiVersion": "example.com/v1", "kind": "Garbage", "name": "nobody", "uid": NOBODY, "controller": controller}])
}

/// Metadata of one of our objects.
pub fn of_base(kind: &'static str, name: &str) -> Vec<Change> {
    let change = |field: &str, label: String, value: Value, back: Value| Change {
        kind,
        path: format!("metadata.{field}"),
        label,
        target: Target::ours(kind, name),
        change: json!({"metadata": {field: value}}),
        back: Back::Patch(json!({"metadata": {field: back}})),
    };
    let mut all = Vec::new();
    let labels = [
        ("ours", names::LABEL_DATABASE, "ledger"),
        ("ours", names::LABEL_DATA_SET_STATE, "retired"),
        ("ours", names::LABEL_OPERATION_TOKEN, "token"),
        ("kubernetes", "app.kubernetes.io/managed-by", "helm"),
        ("foreign", "team", "a"),
        ("invalid", "team", "a b"),
        ("invalid", "a b", "c"),
    ];
    for (word, key, value) in labels {
        let label = format!("{word} {}={}", shown(&json!(key)), shown(&json!(value)));
        all.push(change("labels", label, json!({key: value}), json!({key: null})));
    }
    let mut annotations = vec![
        ("foreign", "example.com/note", "größe\n$(id)".to_string()),
        ("ours", names::ANNOTATION_RECORD, "garbage".into()),
        ("ours", names::ANNOTATION_REPORT, "{\"role\": 7".into()),
        ("ours", names::ANNOTATION_REPLACES, "../..".into()),
        ("ours", "holdfast.dev/unknown", "x".into()),
        ("invalid", "a b", "c".into()),
        ("large", "example.com/note", "a".repeat(262_145)),
    ];
    if kind == "Database" {
        let restarts =
            [String::new(), "once".into(), "größe\n\"$(id)\"".into(), "a".repeat(1000), "a".repeat(5000)];
        annotations.extend(restarts.into_iter().map(|text| ("restart", names::ANNOTATION_RESTART, text)));
    }
    for (word, key, value) in annotations {
        let label = format!("{word} {}={}", shown(&json!(key)), shown(&json!(value)));
        all.push(change("annotations", label, json!({key: value}), json!({key: null})));
    }
    all.extend([
        change("finalizers", "removed []".into(), json!([]), json!([])),
        change("finalizers", "foreign example.com/hold".into(), json!(["example.com/hold"]), json!([])),
        change("finalizers", "ours unasked".into(), json!([names::FINALIZER]), json!([])),
        change("finalizers", "invalid \"a b\"".into(), json!(["a b"]), json!([])),
        change("finalizers", "wrong-type a".into(), json!("a"), json!([])),
        change("ownerReferences", "foreign Garbage".into(), foreign_owner(false), json!([])),
        change("ownerReferences", "foreign-controller Garbage".into(), foreign_owner(true), json!([])),
        change("ownerReferences", "invalid {}".into(), json!([{}]), json!([])),
        change("ownerReferences", "wrong-type a".into(), json!("a"), json!([])),
        change("labels", "wrong-type a".into(), json!("a"), Value::Null),
        change("annotations", "wrong-type 7".into(), json!({"a": 7}), Value::Null),
        change("name", "other other".into(), json!("other"), json!(name)),
        change("generation", "other 77".into(), json!(77), json!(1)),
        change("uid", "other".into(), json!(NOBODY), Value::Null),
    ]);
    all
}

/// Names of objects to make that are no good names.
pub fn names(kind: &'static str, made: &Value) -> Vec<Change> {
    let longest = match kind {
        "Database" => 40,
        "BackupSchedule" => 45,
        "BackupStore" => 63,
        _ => 60,
    };
    let texts = [
        ("longest", "a".repeat(longest)),
        ("above-longest", "a".repeat(longest + 1)),
        ("long", "a".repeat(253)),
        ("digit", "9lives".into()),
        ("dots", "a.b".into()),
        ("uppercase", "Orders".into()),
        ("dash", "a-".into()),
        ("like-a-pod", "orders-0".into()),
        ("like-a-service", "orders-rw".into()),
    ];
    let make = |(word, name): (&str, String)| {
        let mut object = made.clone();
        object["metadata"]["name"] = json!(name);
        Change {
            kind,
            path: "metadata.name".into(),
            label: format!("{word} {}", shown(&json!(name))),
            target: Target::ours(kind, &name),
            change: object,
            back: Back::Delete,
        }
    };
    texts.into_iter().map(make).collect()
}

/// Metadata of what the database operator and the agents made for Database `database`. All of it is theirs to put right.
pub fn of_children(database: &str) -> Vec<Change> {
    let applied = [
        ("apps/v1", "StatefulSet", database.to_string()),
        ("v1", "Service", names::service_rw(database)),
        ("v1", "Service", names::service_pods(database)),
        ("v1", "Secret", names::secret_app(database)),
        ("v1", "Secret", names::secret_ca(database)),
        ("v1", "ConfigMap", names::config_map(database)),
        ("v1", "Pod", names::pod(database, 1)),
        ("coordination.k8s.io/v1", "Lease", names::lease_primary(database)),
    ];
    let mut all = Vec::new();
    for (api_version, kind, name) in applied {
        let mut push = |label: &str, metadata: Value| {
            let field = metadata.as_object().and_then(|m| m.keys().next()).cloned().unwrap_or_default();
            all.push(Change {
                kind: "Database",
                path: format!("{kind}/{name} metadata.{field}"),
                label: label.into(),
                target: Target::of(api_version, kind, &name),
                change: json!({"metadata": metadata}),
                back: Back::Itself,
            });
        };
        push("removed all", json!({"labels": null}));
        push("ours other", json!({"labels": {names::LABEL_DATABASE: "ledger"}}));
        push("removed all", json!({"ownerReferences": null}));
        if kind == "Pod" {
            push("ours garbage", json!({"annotations": {names::ANNOTATION_REPORT: "{\"role\": 7"}}));
            push("ours removed", json!({"annotations": {names::ANNOTATION_REPORT: null}}));
            push("ours other-role", json!({"labels": {names::LABEL_ROLE: "primary"}}));
        }
        if kind == "Lease" {
            push("ours garbage", json!({"annotations": {names::ANNOTATION_RECORD: "garbage"}}));
        }
        if kind == "StatefulSet" {
            push("removed all", json!({"annotations": null}));
        }
    }
    all
}
