//! Whether a child has to be written: what is wanted against what is there. Pure.
//!
//! A reconcile that changes nothing must write nothing, and an edit made by hand must be undone. So a child is written when
//! what was last applied differs from what is wanted (which sees a field that is wanted no more), or when the live object
//! does not contain what is wanted (which sees a foreign edit). Fields that the API server fills in are left out of it.

use crate::{quantity, validate::ValidatedDatabase};
use holdfast_core::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// Annotation of every child: a hash of what was applied last.
pub const ANNOTATION_APPLIED: &str = "holdfast.dev/applied";

/// What is to be done about one child.
#[derive(Clone, Debug, PartialEq)]
pub enum Write<K> {
    /// Nothing: it is as wanted, or not this plan's business.
    Nothing,
    /// It belongs to an earlier Database of this name, or is being deleted: it goes first.
    Wait,
    /// It is not there. One that the watch does not see (without our labels) is somebody else's and must not be taken.
    Create(K),
    /// It differs. With the uid of the one that was compared.
    Update(K),
}

impl<K> Write<K> {
    /// Whether something is left to do.
    pub fn pending(&self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

/// A short hash of anything that can be written as JSON.
pub fn hash(value: &Value) -> String {
    Sha256::digest(value.to_string().as_bytes()).iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Metadata of a child.
pub fn meta(db: &ValidatedDatabase, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(db.namespace.clone()),
        labels: Some(names::labels(db.name.as_str())),
        owner_references: Some(vec![db.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Whether an object is on its way out, or belongs to another owner than the Database with this uid.
pub fn must_wait<K: ResourceExt>(live: &K, owner: &str) -> bool {
    let foreign = live.owner_references().iter().any(|o| o.controller == Some(true) && o.uid != owner);
    live.meta().deletion_timestamp.is_some() || foreign
}

/// Compares and decides.
pub fn change<K>(mut wanted: K, live: Option<&K>, owner: &str) -> Write<K>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let mut json = serde_json::to_value(&wanted).unwrap_or_default();
    if let Some(meta) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        // Others may add themselves as owners: compared by uid below.
        meta.remove("ownerReferences");
    }
    if let Some(spec) = json.get_mut("spec").and_then(Value::as_object_mut) {
        // Cannot change in place: compared by the plan.
        spec.remove("volumeClaimTemplates");
    }
    let mark = hash(&json);
    wanted.annotations_mut().insert(ANNOTATION_APPLIED.into(), mark.clone());
    let Some(live) = live else { return Write::Create(wanted) };
    if must_wait(live, owner) {
        return Write::Wait;
    }
    let owned = live.owner_references().iter().any(|o| o.uid == owner);
    let same_mark = live.annotations().get(ANNOTATION_APPLIED) == Some(&mark);
    let there = serde_json::to_value(live).is_ok_and(|live| contains(&live, &json));
    // The one that was compared: another one of its name is compared anew.
    wanted.meta_mut().uid = live.uid();
    if owned && same_mark && there { Write::Nothing } else { Write::Update(wanted) }
}

/// Whether everything in `wanted` is in `live`. Quantities are compared by value, since the API server writes them anew.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| match live.get(key) {
                Some(live) => contains(live, wanted),
                None => empty(wanted),
            })
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (Value::String(live), Value::String(wanted)) => {
            live == wanted
                || matches!((quantity::thousandths(live), quantity::thousandths(wanted)), (Some(a), Some(b)) if a == b)
        }
        _ => live == wanted || (live.is_null() && empty(wanted)),
    }
}

/// The API server drops what is empty.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        let wanted = json!({"spec": {"cpu": "0.5", "list": [{"a": 1}], "none": {}}});
        assert!(contains(
            &json!({"spec": {"cpu": "500m", "list": [{"a": 1, "b": 2}], "more": true}}),
            &wanted
        ));
        assert!(!contains(&json!({"spec": {"cpu": "500m", "list": [{"a": 2}]}}), &wanted));
        assert!(!contains(&json!({"spec": {"cpu": "500m", "list": []}}), &wanted));
    }

    #[test]
    fn a_child_is_written_once_and_again_when_somebody_edits_it() {
        let wanted: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "orders-config", "ownerReferences": [{"apiVersion": "v", "kind": "k", "name": "orders", "uid": "u1", "controller": true}]},
            "data": {"a": "1"}
        }))
        .unwrap();
        let Write::Create(first) = change(wanted.clone(), None, "u1") else { panic!("not created") };
        assert_eq!(change(wanted.clone(), Some(&first), "u1"), Write::Nothing);
        let mut edited = first.clone();
        edited.data = Some([("a".to_string(), "x".to_string())].into());
        assert!(matches!(change(wanted.clone(), Some(&edited), "u1"), Write::Update(_)));
        // Wanted no more: only the mark tells.
        let mut less = wanted.clone();
        less.data = None;
        assert!(matches!(change(less, Some(&first), "u1"), Write::Update(_)));
        // A child of the Database that was deleted a moment ago goes first.
        assert_eq!(change(wanted, Some(&first), "u2"), Write::Wait);
    }
}
