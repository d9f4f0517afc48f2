//! StatefulSets, Jobs, Pods.

use super::{claim, items, label, names, nonnegative, one_of, text};
use crate::status::Fault;
use serde_json::{Value, json};

pub(super) fn set(object: &Value, old: Option<&Value>, status: bool, found: &mut Vec<Fault>) {
    if status {
        set_status(object, found);
        return;
    }
    let spec = &object["spec"];
    let management = text(spec, "podManagementPolicy");
    if !["OrderedReady", "Parallel"].contains(&management) {
        let why = "must be 'OrderedReady' or 'Parallel'";
        found.push(Fault::invalid("spec.podManagementPolicy", &json!(management), why));
    }
    let strategy = &spec["updateStrategy"];
    match text(strategy, "type") {
        "OnDelete" => {
            if let Some(rolling) = strategy.get("rollingUpdate") {
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                found.push(Fault::invalid("spec.updateStrategy.rollingUpdate", rolling, why));
            }
        }
        "RollingUpdate" => nonnegative(object, "/spec/updateStrategy/rollingUpdate/partition", found),
        _ => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            found.push(Fault::invalid("spec.updateStrategy", strategy, why));
        }
    }
    for field in ["whenDeleted", "whenScaled"] {
        if let Some(policy) = spec["persistentVolumeClaimRetentionPolicy"][field].as_str() {
            let path = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
            one_of(policy, &path, &["Retain", "Delete"], found);
        }
    }
    nonnegative(object, "/spec/replicas", found);
    nonnegative(object, "/spec/minReadySeconds", found);
    // What cannot change any more is not held against a set.
    if old.is_none() {
        for (index, template) in items(spec, "volumeClaimTemplates").iter().enumerate() {
            claim::spec(&template["spec"], &format!("spec.volumeClaimTemplates[{index}].spec"), found);
        }
        let service = text(spec, "serviceName");
        if !service.is_empty() {
            label(service, "spec.serviceName", found);
        }
    }
    selects(spec, "statefulset", found);
    template(spec, found);
    let restart = text(&spec["template"]["spec"], "restartPolicy");
    one_of(restart, "spec.template.spec.restartPolicy", &["Always"], found);
}

fn set_status(object: &Value, found: &mut Vec<Fault>) {
    let counts = ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    for field in counts.iter().chain(&["observedGeneration", "collisionCount"]) {
        nonnegative(object, &format!("/status/{field}"), found);
    }
    let number = |field: &str| object["status"][field].as_i64().unwrap_or_default();
    for field in &counts[1..] {
        if number(field) > number("replicas") {
            let path = format!("status.{field}");
            found.push(Fault::invalid(
                &path,
                &json!(number(field)),
                "cannot be greater than status.replicas",
            ));
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        let value = json!(number("availableReplicas"));
        let why = "cannot be greater than status.readyReplicas";
        found.push(Fault::invalid("status.availableReplicas", &value, why));
    }
}

/// The selector must be there and select the pods of the template.
fn selects(spec: &Value, of: &str, found: &mut Vec<Fault>) {
    let Some(selector) = spec.get("selector").filter(|s| s.is_object()) else {
        found.push(Fault::required("spec.selector", ""));
        let why = "`selector` does not match template `labels`";
        let labels = &spec["template"]["metadata"]["labels"];
        found.push(Fault::invalid("spec.template.metadata.labels", labels, why));
        return;
    };
    let labels = &spec["template"]["metadata"]["labels"];
    let wanted = selector["matchLabels"].as_object();
    if wanted.is_none_or(|w| w.is_empty()) && items(selector, "matchExpressions").is_empty() {
        let why = format!("empty selector is invalid for {of}");
        found.push(Fault::invalid("spec.selector", selector, &why));
    }
    if wanted.into_iter().flatten().any(|(key, value)| labels[key] != *value) {
        let why = "`selector` does not match template `labels`";
        found.push(Fault::invalid("spec.template.metadata.labels", labels, why));
    }
}

/// A template of pods: what clients of this project could get wrong.
fn template(spec: &Value, found: &mut Vec<Fault>) {
    let meta = &spec["template"]["metadata"];
    names::labels(&meta["labels"], "spec.template.labels", found);
    names::annotations(&meta["annotations"], "spec.template.annotations", found);
    pod_spec(&spec["template"]["spec"], "spec.template.spec", items(spec, "volumeClaimTemplates"), found);
}

fn pod_spec(spec: &Value, path: &str, templates: &[Value], found: &mut Vec<Fault>) {
    if items(spec, "containers").is_empty() {
        found.push(Fault::required(&format!("{path}.containers"), ""));
    }
    // No name is taken twice, not even by containers of both lists.
    let mut taken: Vec<&str> = Vec::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            let at = format!("{path}.{list}[{index}]");
            let name = text(container, "name");
            if name.is_empty() {
                found.push(Fault::required(&format!("{at}.name"), ""));
            } else {
                label(name, &format!("{at}.name"), found);
                if taken.contains(&name) {
                    found.push(Fault::duplicate(&format!("{at}.name"), &json!(name)));
                }
                taken.push(name);
            }
            if text(container, "image").is_empty() {
                found.push(Fault::required(&format!("{at}.image"), ""));
            }
            mounts(container, &at, spec, templates, found);
        }
    }
}

/// What a container mounts must be a volume of the pod; a StatefulSet's pods have volumes from its claim templates, too.
fn mounts(container: &Value, at: &str, spec: &Value, templates: &[Value], found: &mut Vec<Fault>) {
    for (number, mount) in items(container, "volumeMounts").iter().enumerate() {
        let volume = text(mount, "name");
        if !items(spec, "volumes").iter().any(|v| text(v, "name") == volume)
            && !templates.iter().any(|claim| claim["metadata"]["name"] == volume)
        {
            let message = format!("Not found: {volume:?}");
            let field = format!("{at}.volumeMounts[{number}].name");
            found.push(Fault { reason: "FieldValueNotFound", field, message });
        }
    }
}

pub(super) fn pod(object: &Value, found: &mut Vec<Fault>) {
    let spec = &object["spec"];
    pod_spec(spec, "spec", &[], found);
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64().filter(|n| *n < 1) {
        let why = "must be between 1 and 2147483647, inclusive";
        found.push(Fault::invalid("spec.activeDeadlineSeconds", &json!(seconds), why));
    }
}

pub(super) fn job(object: &Value, old: Option<&Value>, status: bool, found: &mut Vec<Fault>) {
    if status {
        for field in ["active", "succeeded", "failed", "ready", "terminating"] {
            nonnegative(object, &format!("/status/{field}"), found);
        }
        let count = |job: &Value, field: &str| job["status"][field].as_i64().unwrap_or_default();
        for field in ["failed", "succeeded"] {
            let now = count(object, field);
            if old.is_some_and(|old| now < count(old, field)) {
                let why = format!("cannot decrease the {field} counter");
                found.push(Fault::invalid(&format!("status.{field}"), &json!(now), &why));
            }
        }
        return;
    }
    for field in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        nonnegative(object, &format!("/spec/{field}"), found);
    }
    let spec = &object["spec"];
    own_pods(object, found);
    template(spec, found);
    match text(&spec["template"]["spec"], "restartPolicy") {
        "OnFailure" | "Never" => {}
        "Always" | "" => {
            let why = "valid values: \"OnFailure\", \"Never\"";
            found.push(Fault::required("spec.template.spec.restartPolicy", why));
        }
        other => one_of(other, "spec.template.spec.restartPolicy", &["OnFailure", "Never"], found),
    }
}

/// The labels by which a Job knows its pods.
fn own_pods(job: &Value, found: &mut Vec<Fault>) {
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    let Some(selector) = job["spec"].get("selector").filter(|s| s.is_object()) else {
        found.push(Fault::required("spec.selector", ""));
        let why = "`selector` does not match template `labels`";
        found.push(Fault::invalid("spec.template.metadata.labels", labels, why));
        return;
    };
    if job["spec"]["manualSelector"] != true {
        let (uid, name) = (text(&job["metadata"], "uid"), text(&job["metadata"], "name"));
        let wanted = [
            ("controller-uid", uid),
            ("job-name", name),
            ("batch.kubernetes.io/controller-uid", uid),
            ("batch.kubernetes.io/job-name", name),
        ];
        for (key, value) in wanted {
            let field = format!("spec.template.metadata.labels[{key}]");
            let why = format!("must be '{value}'");
            match labels.get(key) {
                None => found.push(Fault::required(&field, &why)),
                Some(given) if given != value => found.push(Fault::invalid(&field, labels, &why)),
                Some(_) => {}
            }
        }
        let selected = |key: &String, value: &Value| wanted.iter().any(|(k, v)| k == key && value == v);
        if !selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| selected(k, v)) {
            found.push(Fault::invalid("spec.selector", selector, "`selector` not auto-generated"));
        }
    }
    let matches = selector["matchLabels"].as_object().into_iter().flatten();
    if matches.into_iter().any(|(key, value)| labels[key] != *value) {
        let why = "`selector` does not match template `labels`";
        found.push(Fault::invalid("spec.template.metadata.labels", labels, why));
    }
}
