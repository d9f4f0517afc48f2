//! What a StatefulSet's controller makes: pods, claims, revisions. Pure.

use super::desk::owned_by;
use crate::rest::meta;
use serde_json::{Value, json};

pub(super) const LABEL_POD: &str = "statefulset.kubernetes.io/pod-name";
pub(super) const LABEL_REVISION: &str = "controller-revision-hash";
const LABEL_INDEX: &str = "apps.kubernetes.io/pod-index";
const LABEL_HASH: &str = "controller.kubernetes.io/hash";

/// The ordinal of a pod of that set, by its name.
pub(super) fn ordinal(set: &Value, pod: &Value) -> Option<i64> {
    let number = meta(pod, "name").strip_prefix(meta(set, "name"))?.strip_prefix('-')?;
    number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok()).flatten()
}

/// The revision that a pod was made from.
pub(super) fn revision_of(pod: &Value) -> &str {
    pod["metadata"]["labels"][LABEL_REVISION].as_str().unwrap_or_default()
}

fn claim_templates(set: &Value) -> impl Iterator<Item = &Value> {
    set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten()
}

fn claim_name(set: &Value, template: &Value, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", meta(template, "name"), meta(set, "name"))
}

/// The claims of an ordinal.
pub(super) fn claims(set: &Value, ordinal: i64) -> Vec<Value> {
    claim_templates(set)
        .map(|template| {
            let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            let selected = set["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
            labels.extend(selected);
            let mut claim = json!({"metadata": {"name": claim_name(set, template, ordinal), "labels": labels},
                "spec": template["spec"]});
            if let Some(annotations) = template["metadata"].get("annotations") {
                claim["metadata"]["annotations"] = annotations.clone();
            }
            if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete" {
                claim["metadata"]["ownerReferences"] = json!([owned_by(set)]);
            }
            claim
        })
        .collect()
}

/// Whether a pod mounts the claims of its ordinal.
pub(super) fn mounts_its_claims(set: &Value, pod: &Value, ordinal: i64) -> bool {
    claim_templates(set).all(|template| {
        let wanted = claim_name(set, template, ordinal);
        let volumes = pod["spec"]["volumes"].as_array();
        volumes.into_iter().flatten().any(|v| {
            v["name"] == template["metadata"]["name"]
                && v["persistentVolumeClaim"]["claimName"] == wanted.as_str()
        })
    })
}

/// The pod of an ordinal.
pub(super) fn pod(set: &Value, template: &Value, revision: &str, ordinal: i64) -> Value {
    let name = format!("{}-{ordinal}", meta(set, "name"));
    let mut metadata = json!({"name": name, "ownerReferences": [owned_by(set)]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let labels = &mut metadata["labels"];
    labels[LABEL_POD] = name.as_str().into();
    labels[LABEL_INDEX] = ordinal.to_string().into();
    labels[LABEL_REVISION] = revision.into();
    let mut spec = template["spec"].clone();
    spec["hostname"] = name.into();
    if let Some(service) = set["spec"]["serviceName"].as_str() {
        spec["subdomain"] = service.into();
    }
    let mut volumes: Vec<Value> = claim_templates(set)
        .map(|t| {
            let claim = json!({"claimName": claim_name(set, t, ordinal)});
            json!({"name": t["metadata"]["name"], "persistentVolumeClaim": claim})
        })
        .collect();
    let others = spec["volumes"].as_array().cloned().unwrap_or_default();
    let of_claims: Vec<Value> = volumes.iter().map(|v| v["name"].clone()).collect();
    volumes.extend(others.into_iter().filter(|v| !of_claims.contains(&v["name"])));
    spec["volumes"] = volumes.into();
    json!({"metadata": metadata, "spec": spec})
}

/// The hash of a set's template: the same template, the same hash, whenever and wherever.
pub(super) fn hash(template: &Value) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    // FNV-1a, 64 bits.
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in template.to_string().bytes() {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let mut text = String::new();
    for _ in 0..10 {
        let index = usize::try_from(sum % 27).unwrap_or(0);
        text.push(char::from(SAFE[index]));
        sum /= 27;
    }
    text
}

/// The hash that a revision carries.
pub(super) fn hash_of(revision: &Value) -> &str {
    revision["metadata"]["labels"][LABEL_HASH].as_str().unwrap_or_default()
}

/// A revision of a set's template.
pub(super) fn revision(set: &Value, hash: &str, number: i64) -> Value {
    let mut template = set["spec"]["template"].clone();
    template["$patch"] = "replace".into();
    let mut labels = set["spec"]["template"]["metadata"]["labels"].clone();
    labels[LABEL_HASH] = hash.into();
    json!({"metadata": {"name": format!("{}-{hash}", meta(set, "name")), "labels": labels,
            "ownerReferences": [owned_by(set)]},
        "data": {"spec": {"template": template}}, "revision": number})
}

/// The template of a revision.
pub(super) fn template_of(revision: &Value) -> Value {
    let mut template = revision["data"]["spec"]["template"].clone();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    template
}
