//! Requests that change what is there.

use super::{
    super::{
        USERS,
        kinds::Kind,
        steps::{APPLY, Base, MERGE, PATCH},
    },
    Generator, HOLD, Step,
    odd::bad_metadata,
    put, without_nulls,
};
use serde_json::{Value, json};

impl Generator {
    /// Which part of the object a write goes to.
    pub(super) fn door(&mut self, kind: &Kind) -> &'static str {
        if kind.status && self.dice.chance(30) { "status" } else { "" }
    }

    /// Changes alone, as nested fields.
    pub(super) fn changes(&mut self, kind: &Kind, door: &str) -> Value {
        let mut body = json!({});
        for _ in 0..1 + self.dice.below(2) {
            let status = (door == "status") != self.dice.chance(8) && kind.status;
            let (path, value) = kind.edit(&mut self.dice, status);
            put(&mut body, &path, value);
        }
        body
    }

    pub(super) fn replace(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("PUT", index, name);
        step.subresource = self.door(kind);
        let place = format!("{}/{name}", kind.kind);
        step.base = self.dice.weighted(&[(45, Base::Fresh), (30, Base::Seen), (25, Base::Nothing)]);
        if step.base == Base::Nothing {
            let edits = self.few();
            step.body = self.body(kind, edits);
            if step.subresource == "status" {
                let status = self.changes(kind, "status");
                step.body["status"] = status["status"].clone();
            }
            let mut meta = self.some_metadata();
            meta.insert("name".into(), name.into());
            match self.dice.below(10) {
                0..=3 => meta.insert("resourceVersion".into(), format!("{{rv {place}}}").into()),
                4 => meta.insert("resourceVersion".into(), format!("{{first-rv {place}}}").into()),
                5 => meta.insert("resourceVersion".into(), "1".into()),
                _ => None,
            };
            match self.dice.below(12) {
                0 => meta.insert("uid".into(), format!("{{uid {place}}}").into()),
                1 => meta.insert("uid".into(), format!("{{first-uid {place}}}").into()),
                2 => meta.insert("uid".into(), "nobody-s".into()),
                _ => None,
            };
            step.body["metadata"] = Value::Object(meta);
        } else {
            step.body = if self.dice.chance(15) { json!({}) } else { self.changes(kind, step.subresource) };
            if self.dice.chance(15) {
                step.body["metadata"] = json!({"resourceVersion": null});
            }
            if self.dice.chance(10) {
                step.body["metadata"]["managedFields"] =
                    self.dice.pick(&[Value::Null, json!([]), json!([{}])]).clone();
            }
            if self.dice.chance(10) {
                step.body["metadata"]["labels"] =
                    self.dice.pick(&[Value::Null, json!({"tier": "b"})]).clone();
            }
        }
        step
    }

    pub(super) fn merge(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("PATCH", index, name);
        step.content = MERGE;
        step.subresource = self.door(kind);
        step.body = self.changes(kind, step.subresource);
        if self.dice.chance(25) {
            let place = format!("{}/{name}", kind.kind);
            let (field, value) = self
                .dice
                .pick(&[
                    ("resourceVersion", format!("{{rv {place}}}")),
                    ("resourceVersion", format!("{{first-rv {place}}}")),
                    ("resourceVersion", "x".into()),
                    ("uid", format!("{{uid {place}}}")),
                    ("uid", "nobody-s".into()),
                    ("name", "four".into()),
                    ("namespace", "elsewhere".into()),
                    ("generateName", "g-".into()),
                ])
                .clone();
            step.body["metadata"][field] = value.into();
        }
        if self.dice.chance(25) {
            let value = self.dice.pick(&[json!("a"), json!("b"), Value::Null]).clone();
            step.body["metadata"]["labels"] = json!({ "tier": value });
        }
        step
    }

    pub(super) fn json(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("PATCH", index, name);
        step.content = PATCH;
        step.subresource = self.door(kind);
        let mut operations = Vec::new();
        for _ in 0..1 + self.dice.below(2) {
            let (path, value) = kind.edit(&mut self.dice, step.subresource == "status");
            let pointer: String =
                path.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect();
            operations.push(match self.dice.below(8) {
                0 => json!({"op": "remove", "path": pointer}),
                1 | 2 => json!({"op": "replace", "path": pointer, "value": value}),
                3 => json!({"op": "test", "path": pointer, "value": value}),
                4 => json!({"op": "test", "path": "/metadata/uid", "value": format!("{{uid {}/{name}}}", kind.kind)}),
                5 => json!({"op": "add", "path": "/metadata/labels", "value": {"tier": "b"}}),
                _ => json!({"op": "add", "path": pointer, "value": value}),
            });
        }
        if self.dice.chance(10) {
            operations.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": format!("{{rv {}/{name}}}", kind.kind)}));
        }
        step.body = Value::Array(operations);
        step
    }

    pub(super) fn apply(&mut self) -> Step {
        let (index, kind, name) = if self.dice.chance(25) {
            let (index, kind) = self.kind();
            (index, kind, self.free(index))
        } else {
            self.target()
        };
        let mut step = self.begin("PATCH", index, name);
        step.content = APPLY;
        step.query.retain(|(name, _)| name != "fieldManager");
        if !self.dice.chance(2) {
            let manager = USERS[step.user];
            step.ask("fieldManager", manager);
        }
        if self.dice.chance(55) {
            step.ask("force", "true");
        }
        step.subresource = self.door(kind);
        let whole = self.dice.chance(if step.subresource.is_empty() { 60 } else { 10 });
        let mut body = if whole {
            let edits = self.few();
            self.body(kind, edits)
        } else {
            self.changes(kind, step.subresource)
        };
        // A null is nothing to apply; a few are left to see what becomes of them.
        if self.dice.chance(90) {
            without_nulls(&mut body);
        }
        if kind.kind == "Pod" && body["spec"].is_object() {
            body["spec"]["automountServiceAccountToken"] = json!(false);
        }
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.kind.into();
        let mut meta = self.some_metadata();
        if self.dice.chance(80) {
            meta.insert("name".into(), name.into());
        }
        if self.dice.chance(4) {
            let place = format!("{}/{name}", kind.kind);
            let value = self.dice.pick(&[format!("{{rv {place}}}"), format!("{{first-rv {place}}}")]).clone();
            meta.insert("resourceVersion".into(), value.into());
        }
        if self.dice.chance(6) {
            let place = format!("{}/{name}", kind.kind);
            let value = self.dice.pick(&[format!("{{uid {place}}}"), "nobody-s".into()]).clone();
            meta.insert("uid".into(), value.into());
        }
        body["metadata"] = Value::Object(meta);
        step.body = body;
        step
    }

    /// Labels, annotations, finalizers and owners, through one of the forms of patches.
    pub(super) fn metadata(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("PATCH", index, name);
        step.content = MERGE;
        if kind.status && self.dice.chance(8) {
            step.subresource = "status";
        }
        // A controller gives a claim its finalizer back whenever it likes.
        let first = if kind.kind == "PersistentVolumeClaim" { 5 } else { 0 };
        let mut meta = match first + self.dice.below(9 - first) {
            0 => json!({"finalizers": [HOLD]}),
            1 | 2 => json!({ "finalizers": null }),
            3 => json!({"finalizers": [HOLD, "example.com/other"]}),
            4 => {
                json!({"finalizers": ["example.com/other", self.dice.pick(&["orphan", "foregroundDeletion", "odd", HOLD])]})
            }
            5 => json!({"ownerReferences": [self.owner()]}),
            6 => json!({"ownerReferences": self.dice.pick(&[Value::Null, json!([])]).clone()}),
            7 => {
                json!({"labels": {"tier": self.dice.pick(&[json!("a"), json!("b"), Value::Null]).clone()}, "annotations": {"note": self.dice.pick(&[json!("1"), json!("2"), Value::Null]).clone()}})
            }
            _ => {
                let (field, value) = self.dice.pick(&bad_metadata()).clone();
                json!({ field: value })
            }
        };
        if self.dice.chance(30) {
            step.content = APPLY;
            step.query.retain(|(name, _)| name != "fieldManager");
            let manager = USERS[step.user];
            step.ask("fieldManager", manager);
            if self.dice.chance(60) {
                step.ask("force", "true");
            }
            without_nulls(&mut meta);
            step.body = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": meta});
        } else {
            if self.dice.chance(20) {
                meta["resourceVersion"] = format!("{{rv {}/{name}}}", kind.kind).into();
            }
            step.body = json!({ "metadata": meta });
        }
        step
    }
}
