//! Requests that nobody should make.

use super::{
    super::steps::{JSON, MERGE},
    Generator, Step,
};
use serde_json::{Value, json};

impl Generator {
    /// What nobody should ask for.
    pub(super) fn odd(&mut self) -> Step {
        let (index, kind, name) = self.target();
        match self.dice.below(9) {
            0 => {
                let mut step = self.begin("GET", index, name);
                step.subresource = "surprise";
                step
            }
            1 => {
                let mut step = self.begin("PUT", index, name);
                step.body = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "four"}});
                step
            }
            2 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["kind"] = "Other".into();
                step.body["apiVersion"] = kind.api_version().into();
                step.body["metadata"] = json!({ "name": name });
                step
            }
            3 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["metadata"] = json!({"name": name, "namespace": "elsewhere"});
                step
            }
            4 => {
                let mut step = self.begin("PATCH", index, name);
                step.content = JSON;
                step.body = json!({});
                step
            }
            5 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["metadata"] = self
                    .dice
                    .pick(&[
                        json!({}),
                        json!({"name": "Bad_Name"}),
                        json!({"name": "a/b"}),
                        json!({"name": "-a"}),
                        json!({"name": "x".repeat(260)}),
                        json!({"generateName": "zz0_-"}),
                    ])
                    .clone();
                if kind.kind == "Service" && step.body["metadata"] == json!({}) {
                    // What is said first, that the name is missing or that nobody is there to have an address, is not compared.
                    step.body["metadata"] = json!({"name": "-a"});
                }
                step
            }
            6 => {
                let mut step = self.begin("POST", index, name);
                step.body = json!({});
                step
            }
            7 => {
                let mut step = self.begin("PATCH", index, name);
                step.content = MERGE;
                step.body = self
                    .dice
                    .pick(&[
                        json!({"metadata": null}),
                        json!({"kind": "Other"}),
                        json!({"apiVersion": "v9"}),
                        json!([]),
                        json!("text"),
                    ])
                    .clone();
                if !step.body.is_object() {
                    // How strictly it is to be read decides here in which words it is refused.
                    step.query.retain(|(name, _)| name != "fieldValidation");
                }
                step
            }
            _ => {
                let mut step = self.begin("PUT", index, name);
                step.body = self
                    .dice
                    .pick(&[json!([]), json!("text"), json!({"metadata": "text"}), json!({})])
                    .clone();
                step
            }
        }
    }
}

/// Metadata that are refused, or ignored.
pub(super) fn bad_metadata() -> Vec<(&'static str, Value)> {
    vec![
        ("labels", json!({"tier": "-x"})),
        ("labels", json!({"/tier": "x"})),
        ("labels", json!({"tier": "x".repeat(64)})),
        ("labels", json!({"tier": 5})),
        ("labels", json!([])),
        ("labels", json!({})),
        ("annotations", json!({"a b": "x"})),
        ("finalizers", json!(["odd"])),
        ("finalizers", json!(["example.com/a b"])),
        ("ownerReferences", json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "anchor"}])),
        ("ownerReferences", json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "", "uid": "u"}])),
        ("surprise", json!(1)),
        ("managedFields", json!([{"manager": "x", "operation": "Update"}])),
        ("generateName", json!("g-")),
        ("creationTimestamp", json!("2020-01-01T00:00:00Z")),
        ("deletionTimestamp", json!("2020-01-01T00:00:00Z")),
        ("generation", json!(9)),
    ]
}
