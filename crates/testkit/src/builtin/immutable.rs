//! Which fields of built-in objects cannot be changed: writing them again must be refused here too. Pure.

use super::quantity;
use crate::status::Fault;
use serde_json::{Value, json};

/// What is wrong with turning one built-in object into another.
pub(crate) fn faults(kind: &str, old: &Value, new: &Value) -> Vec<Fault> {
    let same = |path: &str| new.pointer(path) == old.pointer(path);
    let immutable = |path: &str| -> Option<Fault> {
        let field = path.trim_start_matches('/').replace('/', ".");
        let value = new.pointer(path).unwrap_or(&Value::Null);
        (!same(path)).then(|| Fault::invalid(&field, value, "field is immutable"))
    };
    match kind {
        "StatefulSet" => {
            const MAY: [&str; 7] = [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
            ];
            if only_differ_in(&old["spec"], &new["spec"], &MAY) {
                return Vec::new();
            }
            vec![Fault::forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            )]
        }
        "PersistentVolumeClaim" => claim(old, new),
        "Job" => job(old, new, &immutable),
        "Secret" => {
            let mut found: Vec<Fault> = immutable("/type").into_iter().collect();
            found.extend(frozen(old, new, &["data"]));
            found
        }
        "ConfigMap" => frozen(old, new, &["data", "binaryData"]),
        "Service" => {
            let had = old["spec"]["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty());
            let external = new["spec"]["type"] == "ExternalName" || old["spec"]["type"] == "ExternalName";
            if had && !external && !same("/spec/clusterIP") {
                let why = "may not change once set";
                let value = json!([new["spec"]["clusterIP"]]);
                return vec![Fault::invalid("spec.clusterIPs[0]", &value, why)];
            }
            Vec::new()
        }
        "RoleBinding" | "ClusterRoleBinding" if !same("/roleRef") => {
            vec![Fault::invalid("roleRef", &new["roleRef"], "cannot change roleRef")]
        }
        "EndpointSlice" => immutable("/addressType").into_iter().collect(),
        "StorageClass" => ["/parameters", "/provisioner", "/reclaimPolicy", "/volumeBindingMode"]
            .into_iter()
            .filter(|path| !same(path))
            .map(|path| {
                let field = path.trim_start_matches('/');
                Fault::forbidden(field, &format!("updates to {field} are forbidden."))
            })
            .collect(),
        "Pod" => pod(old, new),
        _ => Vec::new(),
    }
}

fn only_differ_in(old: &Value, new: &Value, may: &[&str]) -> bool {
    let rest = |spec: &Value| {
        let mut spec = spec.as_object().cloned().unwrap_or_default();
        spec.retain(|name, _| !may.contains(&name.as_str()));
        spec
    };
    rest(old) == rest(new)
}

/// A Job that is suspended and never ran may be told anew where its pods may run, and what they are called.
fn job(old: &Value, new: &Value, immutable: &dyn Fn(&str) -> Option<Fault>) -> Vec<Fault> {
    let mut found: Vec<Fault> =
        ["/spec/completions", "/spec/selector"].into_iter().filter_map(immutable).collect();
    let free = old["spec"]["suspend"] == true && old["status"].get("startTime").is_none();
    let strip = |job: &Value| {
        let mut template = job["spec"]["template"].clone();
        if let Some(spec) = template["spec"].as_object_mut().filter(|_| free) {
            for field in ["nodeSelector", "tolerations", "schedulingGates"] {
                spec.remove(field);
            }
            if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
                affinity.remove("nodeAffinity");
            }
        }
        if let Some(template) = template.as_object_mut().filter(|_| free) {
            template.remove("metadata");
        }
        template
    };
    if strip(old) != strip(new) {
        found.push(Fault::invalid("spec.template", &new["spec"]["template"], "field is immutable"));
    }
    let rest = [
        "/spec/completionMode",
        "/spec/podFailurePolicy",
        "/spec/backoffLimitPerIndex",
        "/spec/managedBy",
        "/spec/successPolicy",
    ];
    found.extend(rest.into_iter().filter_map(immutable));
    found
}

/// A claim may grow, once it is bound; it may be bound, once.
fn claim(old: &Value, new: &Value) -> Vec<Fault> {
    let strip = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            if old["spec"].get("volumeName").is_none() {
                spec.remove("volumeName");
            }
            spec.remove("volumeAttributesClassName");
        }
        for list in ["requests", "limits"] {
            let amounts = spec["resources"].get_mut(list).and_then(Value::as_object_mut);
            for amount in amounts.into_iter().flat_map(|a| a.values_mut()) {
                // Compared by what they are worth.
                *amount = quantity::billionths(amount).map_or(amount.take(), |n| n.to_string().into());
            }
        }
        if let Some(requests) = spec.pointer_mut("/resources/requests").and_then(Value::as_object_mut) {
            requests.remove("storage");
        }
        spec
    };
    let size = |claim: &Value| quantity::billionths(&claim["spec"]["resources"]["requests"]["storage"]);
    let bound = old["status"]["phase"] == "Bound";
    let resized = size(old) != size(new);
    let mut found = Vec::new();
    if strip(old) != strip(new) || (resized && !bound) {
        found.push(Fault::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    // A growth that was not carried out may be taken back, to something more than the volume has.
    let has = quantity::billionths(&old["status"]["capacity"]["storage"]).unwrap_or_default();
    if size(new) < size(old) && size(new).unwrap_or_default() <= has {
        let why = "field can not be less than status.capacity";
        found.push(Fault::forbidden("spec.resources.requests.storage", why));
    }
    let mode = &new["spec"]["volumeMode"];
    if old["spec"]["volumeMode"] != *mode {
        found.push(Fault::invalid("volumeMode", mode, "field is immutable"));
    }
    found
}

pub(crate) fn bytes(text: &str) -> Option<u128> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u128 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<u128>().ok()?.checked_mul(unit)
}

fn frozen(old: &Value, new: &Value, fields: &[&str]) -> Vec<Fault> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let why = "field is immutable when `immutable` is set";
    let changed = fields.iter().chain(&["immutable"]).filter(|f| old.get(**f) != new.get(**f));
    changed.map(|field| Fault::forbidden(field, why)).collect()
}

fn pod(old: &Value, new: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| pod["spec"][list].as_array().map_or(0, Vec::len);
        if count(old) != count(new) {
            let why = "pod updates may not add or remove containers";
            found.push(Fault::forbidden(&format!("spec.{list}"), why));
            return found;
        }
    }
    let deadline = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].as_i64();
    match (deadline(old), deadline(new)) {
        (Some(before), Some(after)) if after > before => {
            let why = "must be less than or equal to previous value";
            found.push(Fault::invalid("spec.activeDeadlineSeconds", &json!(after), why));
            return found;
        }
        (Some(_), None) => {
            let why = "must not update from a positive integer to nil value";
            found.push(Fault::invalid("spec.activeDeadlineSeconds", &Value::Null, why));
        }
        _ => {}
    }
    let strip = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
                fields.remove(field);
            }
            // Binding goes through a subresource that this server has not: whoever schedules here writes the field, once.
            if old["spec"].get("nodeName").is_none() {
                fields.remove("nodeName");
            }
        }
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        spec
    };
    if strip(old) != strip(new) {
        found.push(Fault::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: &str, old: &Value, new: &Value) -> Vec<String> {
        faults(kind, old, new).into_iter().map(|f| format!("{}: {}", f.field, f.message)).collect()
    }

    #[test]
    fn a_stateful_set_takes_a_new_template_and_no_new_claims() {
        let set = |image: &str, class: &str| json!({"spec": {"template": {"image": image}, "volumeClaimTemplates": [class]}});
        assert!(texts("StatefulSet", &set("a", "x"), &set("b", "x")).is_empty());
        assert!(texts("StatefulSet", &set("a", "x"), &set("a", "y"))[0].contains("are forbidden"));
    }

    #[test]
    fn a_claim_grows_when_bound_and_never_below_its_volume() {
        let claim = |size: &str, phase: &str| {
            json!({"spec": {"resources": {"requests": {"storage": size}}},
                "status": {"phase": phase, "capacity": {"storage": "10Gi"}}})
        };
        assert!(texts("PersistentVolumeClaim", &claim("10Gi", "Bound"), &claim("20Gi", "Bound")).is_empty());
        assert!(
            !texts("PersistentVolumeClaim", &claim("10Gi", "Pending"), &claim("20Gi", "Pending")).is_empty()
        );
        assert!(texts("PersistentVolumeClaim", &claim("20Gi", "Bound"), &claim("11Gi", "Bound")).is_empty());
        // Not even to what the volume has: that is how Kubernetes compares.
        assert!(!texts("PersistentVolumeClaim", &claim("20Gi", "Bound"), &claim("10Gi", "Bound")).is_empty());
        let below = texts("PersistentVolumeClaim", &claim("10Gi", "Bound"), &claim("9Gi", "Bound"));
        assert_eq!(
            below,
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
    }

    #[test]
    fn a_bindings_role_and_a_secrets_type_stay() {
        let binding = |role: &str| json!({"roleRef": {"name": role}});
        assert!(texts("RoleBinding", &binding("a"), &binding("b"))[0].ends_with("cannot change roleRef"));
        let secret = |of: &str| json!({"type": of});
        assert_eq!(
            texts("Secret", &secret("Opaque"), &secret("kubernetes.io/tls")),
            ["type: Invalid value: \"kubernetes.io/tls\": field is immutable"]
        );
    }
}
