//! What the admission plugins of a plain cluster put into objects. Pure.

use serde_json::{Map, Value, json};

/// A new pod: its account, its priority, how long it stays on a node in trouble, its class of service.
///
/// Whether the account exists is not looked at, and its token is not mounted: nothing here runs containers.
pub(super) fn pod(pod: &mut Value) {
    let class = class(&pod["spec"]);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    let Some(spec) = pod["spec"].as_object_mut() else { return };
    let account = spec.entry("serviceAccountName").or_insert(json!("default")).clone();
    spec.insert("serviceAccount".into(), account);
    spec.entry("priority").or_insert(json!(0));
    spec.entry("preemptionPolicy").or_insert(json!("PreemptLowerPriority"));
    tolerate(spec);
}

/// A pod that is changed: tolerations that were taken away are put back.
pub(super) fn changed_pod(pod: &mut Value) {
    if let Some(spec) = pod["spec"].as_object_mut() {
        tolerate(spec);
    }
}

fn tolerate(spec: &mut Map<String, Value>) {
    let all = spec.entry("tolerations").or_insert(json!([]));
    let Some(all) = all.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let key = t.get("key").is_none_or(|k| k == key || k == "");
            let effect = t.get("effect").is_none_or(|e| e == "NoExecute" || e == "");
            key && effect
        };
        if !all.iter().any(covers) {
            all.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

/// Guaranteed: every container has limits of CPU and memory and requests as much. BestEffort: nobody asks for anything.
fn class(spec: &Value) -> &'static str {
    let mut containers = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| spec[list].as_array().into_iter().flatten())
        .map(|container| &container["resources"])
        .peekable();
    let has = |r: &Value, which: &str, what: &str| r[which].get(what).is_some_and(|v| v != "0");
    let mut all: bool = containers.peek().is_some();
    let mut any = false;
    for resources in containers {
        for what in ["cpu", "memory"] {
            any |= has(resources, "limits", what) || has(resources, "requests", what);
            all &= has(resources, "limits", what) && resources["limits"][what] == resources["requests"][what];
        }
    }
    match (all, any) {
        (true, _) => "Guaranteed",
        (_, true) => "Burstable",
        _ => "BestEffort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(resources: Value) -> Value {
        let mut made = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        pod(&mut made);
        made
    }

    #[test]
    fn a_changed_pod_keeps_what_every_pod_tolerates() {
        let mut changed = made(json!({}));
        changed["spec"]["tolerations"] = json!([{"key": "disk", "operator": "Exists"}]);
        changed_pod(&mut changed);
        assert_eq!(changed["spec"]["tolerations"].as_array().map(Vec::len), Some(3));
        let whole = changed.clone();
        changed_pod(&mut changed);
        assert_eq!(changed, whole);
    }

    #[test]
    fn a_pod_gets_an_account_tolerations_and_a_class() {
        let plain = made(json!({}));
        assert_eq!(plain["spec"]["serviceAccountName"], "default");
        assert_eq!(plain["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(plain["status"]["qosClass"], "BestEffort");
        assert_eq!(made(json!({"requests": {"cpu": "1"}}))["status"]["qosClass"], "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(made(json!({"requests": both, "limits": both}))["status"]["qosClass"], "Guaranteed");
    }
}
