//! Roles, bindings, disruption budgets.

use super::{items, nonnegative, one_of, text};
use crate::status::Fault;
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(object: &Value, found: &mut Vec<Fault>) {
    for (index, rule) in items(object, "rules").iter().enumerate() {
        let mut required = |field: &str, why: &str| {
            if items(rule, field).is_empty() {
                found.push(Fault::required(&format!("rules[{index}].{field}"), why));
            }
        };
        required("verbs", "verbs must contain at least one value");
        if items(rule, "nonResourceURLs").is_empty() {
            required("apiGroups", "resource rules must supply at least one api group");
            required("resources", "resource rules must supply at least one resource");
        }
    }
}

pub(super) fn binding(kind: &str, object: &Value, found: &mut Vec<Fault>) {
    let role = &object["roleRef"];
    one_of(text(role, "apiGroup"), "roleRef.apiGroup", &[GROUP], found);
    let kinds: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of(text(role, "kind"), "roleRef.kind", kinds, found);
    if text(role, "name").is_empty() {
        found.push(Fault::required("roleRef.name", ""));
    }
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        let path = |field: &str| format!("subjects[{index}].{field}");
        if text(subject, "name").is_empty() {
            found.push(Fault::required(&path("name"), ""));
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                one_of(text(subject, "apiGroup"), &path("apiGroup"), &[""], found);
                if kind == "ClusterRoleBinding" && text(subject, "namespace").is_empty() {
                    found.push(Fault::required(&path("namespace"), ""));
                }
            }
            "User" | "Group" => one_of(text(subject, "apiGroup"), &path("apiGroup"), &[GROUP], found),
            other => one_of(other, &path("kind"), &["ServiceAccount", "User", "Group"], found),
        }
    }
}

pub(super) fn budget(object: &Value, status: bool, found: &mut Vec<Fault>) {
    if status {
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            nonnegative(object, &format!("/status/{field}"), found);
        }
        return;
    }
    let spec = &object["spec"];
    if spec.get("minAvailable").is_some() && spec.get("maxUnavailable").is_some() {
        found.push(Fault::invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        nonnegative(object, &format!("/spec/{field}"), found);
        if let Some(share) = spec[field].as_str() {
            let number = share.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
            let path = format!("spec.{field}");
            match number {
                None => {
                    let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    found.push(Fault::invalid(&path, &json!(share), why));
                }
                Some(101..) => {
                    found.push(Fault::invalid(&path, &json!(share), "must not be greater than 100%"));
                }
                Some(_) => {}
            }
        }
    }
    if let Some(policy) = spec["unhealthyPodEvictionPolicy"].as_str() {
        one_of(policy, "spec.unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], found);
    }
}
