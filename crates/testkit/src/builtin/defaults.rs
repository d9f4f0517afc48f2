//! Defaults of built-in kinds: an operator that takes them for a deviation never comes to rest. Pure.

use serde_json::{Map, Value, json};

fn set(object: &mut Value, field: &str, default: Value) {
    if let Value::Object(fields) = object {
        fields.entry(field).or_insert(default);
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The fields of a structure, if it is there.
fn within(object: &mut Value, field: &str, fill: impl FnOnce(&mut Value)) {
    if let Some(inner) = object.get_mut(field)
        && inner.is_object()
    {
        fill(inner);
    }
}

/// Fills in the defaults that a kind gets whenever it is read or written.
pub(crate) fn fill(kind: &str, object: &mut Value) {
    // Structures of the Go types that are there even when they are empty.
    match kind {
        "Pod" | "StatefulSet" | "Job" | "PersistentVolumeClaim" | "Service" => {
            set(object, "spec", json!({}));
            set(object, "status", json!({}));
        }
        "Lease" | "PodDisruptionBudget" => set(object, "spec", json!({})),
        _ => {}
    }
    let times: &[&str] = match kind {
        "Pod" | "Job" | "PersistentVolumeClaim" => &["lastProbeTime", "lastTransitionTime"],
        "StatefulSet" => &["lastTransitionTime"],
        _ => &[],
    };
    if !times.is_empty() {
        within(object, "status", |status| {
            for condition in items(status, "conditions") {
                times.iter().for_each(|time| set(condition, time, Value::Null));
            }
        });
    }
    match kind {
        "Pod" => {
            within(object, "spec", |spec| {
                pod_spec(spec);
                set(spec, "enableServiceLinks", json!(true));
                for container in items(spec, "containers") {
                    requests_from_limits(container);
                }
                for container in items(spec, "initContainers") {
                    requests_from_limits(container);
                }
            });
            within(object, "status", |status| {
                // The first of the addresses is the one.
                if let Some(ip) = status.get("podIP").cloned() {
                    set(status, "podIPs", json!([{ "ip": ip }]));
                }
            });
        }
        "StatefulSet" => {
            within(object, "status", |status| {
                set(status, "replicas", json!(0));
                set(status, "availableReplicas", json!(0));
            });
            within(object, "spec", |spec| {
                set(spec, "podManagementPolicy", json!("OrderedReady"));
                set(spec, "replicas", json!(1));
                set(spec, "revisionHistoryLimit", json!(10));
                set(spec, "updateStrategy", json!({}));
                within(spec, "updateStrategy", |strategy| {
                    set(strategy, "type", json!("RollingUpdate"));
                    if strategy["type"] == "RollingUpdate" {
                        set(strategy, "rollingUpdate", json!({}));
                        within(strategy, "rollingUpdate", |rolling| set(rolling, "partition", json!(0)));
                    }
                });
                set(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
                within(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
                    set(policy, "whenDeleted", json!("Retain"));
                    set(policy, "whenScaled", json!("Retain"));
                });
                set(spec, "template", json!({}));
                within(spec, "template", |template| {
                    set(template, "spec", json!({}));
                    within(template, "spec", pod_spec);
                });
                for claim in items(spec, "volumeClaimTemplates") {
                    set(claim, "apiVersion", json!("v1"));
                    set(claim, "kind", json!("PersistentVolumeClaim"));
                    within(claim, "spec", |spec| set(spec, "volumeMode", json!("Filesystem")));
                    set(claim, "status", json!({}));
                    within(claim, "status", |status| set(status, "phase", json!("Pending")));
                }
            })
        }
        "Job" => job(object),
        "PersistentVolumeClaim" => {
            within(object, "spec", |spec| set(spec, "volumeMode", json!("Filesystem")));
            set(object, "status", json!({}));
            within(object, "status", |status| set(status, "phase", json!("Pending")));
        }
        "Service" => {
            within(object, "spec", service_spec);
            let balanced = object["spec"]["type"] == "LoadBalancer";
            within(object, "status", |status| {
                set(status, "loadBalancer", json!({}));
                within(status, "loadBalancer", |balancer| {
                    for ingress in items(balancer, "ingress").filter(|i| balanced && i.get("ip").is_some()) {
                        set(ingress, "ipMode", json!("VIP"));
                    }
                });
            });
        }
        "Secret" => set(object, "type", json!("Opaque")),
        "Role" | "ClusterRole" => set(object, "rules", Value::Null),
        "Event" => event(object),
        "PodDisruptionBudget" => {
            set(object, "status", json!({}));
            within(object, "status", |status| {
                for count in ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"] {
                    set(status, count, json!(0));
                }
            });
        }
        "EndpointSlice" => {
            set(object, "endpoints", Value::Null);
            set(object, "ports", Value::Null);
            for endpoint in items(object, "endpoints") {
                set(endpoint, "conditions", json!({}));
            }
            for port in items(object, "ports") {
                set(port, "name", json!(""));
                set(port, "protocol", json!("TCP"));
            }
        }
        "StorageClass" => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let group = "rbac.authorization.k8s.io";
            within(object, "roleRef", |role| {
                if role["apiGroup"].as_str().unwrap_or_default().is_empty() {
                    role["apiGroup"] = group.into();
                }
            });
            for subject in items(object, "subjects").filter(|s| s["kind"] != "ServiceAccount") {
                set(subject, "apiGroup", json!(group));
            }
        }
        _ => {}
    }
}

/// What Go writes even when it is empty.
fn event(object: &mut Value) {
    set(object, "eventTime", Value::Null);
    if object["apiVersion"] == "v1" {
        for (field, empty) in [
            ("source", json!({})),
            ("firstTimestamp", Value::Null),
            ("lastTimestamp", Value::Null),
            ("reportingComponent", json!("")),
            ("reportingInstance", json!("")),
        ] {
            set(object, field, empty);
        }
    } else {
        for (field, empty) in [
            ("regarding", json!({})),
            ("deprecatedSource", json!({})),
            ("deprecatedFirstTimestamp", Value::Null),
            ("deprecatedLastTimestamp", Value::Null),
        ] {
            set(object, field, empty);
        }
    }
}

fn job(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"].get("labels").cloned();
    if let (Some(labels), Some(meta)) = (labels, object["metadata"].as_object_mut()) {
        meta.entry("labels").or_insert(labels);
    }
    within(object, "spec", |spec| {
        if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
            set(spec, "completions", json!(1));
        }
        set(spec, "parallelism", json!(1));
        set(spec, "backoffLimit", json!(6));
        set(spec, "completionMode", json!("NonIndexed"));
        set(spec, "suspend", json!(false));
        if spec.get("podFailurePolicy").is_none() {
            set(spec, "podReplacementPolicy", json!("TerminatingOrFailed"));
        }
        set(spec, "manualSelector", json!(false));
        set(spec, "template", json!({}));
        within(spec, "template", |template| {
            set(template, "spec", json!({}));
            within(template, "spec", pod_spec);
        });
    });
}

fn service_spec(spec: &mut Value) {
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    let kind = spec["type"].as_str().unwrap_or_default().to_string();
    if ["ClusterIP", "NodePort", "LoadBalancer"].contains(&kind.as_str()) {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if ["NodePort", "LoadBalancer"].contains(&kind.as_str()) {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if spec["sessionAffinity"] == "None"
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("sessionAffinityConfig");
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({}));
        within(spec, "sessionAffinityConfig", |config| {
            set(config, "clientIP", json!({}));
            within(config, "clientIP", |ip| set(ip, "timeoutSeconds", json!(10800)));
        });
    }
    for port in items(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", json!("default-scheduler"));
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        set(spec, "serviceAccount", account);
    }
    for field in ["containers", "initContainers"] {
        items(spec, field).for_each(container);
    }
    for volume in items(spec, "volumes") {
        if volume.as_object().is_some_and(|fields| fields.keys().all(|field| field == "name")) {
            set(volume, "emptyDir", json!({}));
        }
        for kind in ["secret", "configMap", "projected", "downwardAPI"] {
            within(volume, kind, |source| set(source, "defaultMode", json!(420)));
        }
        within(volume, "downwardAPI", |source| items(source, "items").for_each(field_ref));
        within(volume, "projected", |projected| {
            for source in items(projected, "sources") {
                within(source, "serviceAccountToken", |token| {
                    set(token, "expirationSeconds", json!(3600));
                });
                within(source, "downwardAPI", |api| items(api, "items").for_each(field_ref));
            }
        });
    }
}

fn field_ref(item: &mut Value) {
    within(item, "fieldRef", |field| set(field, "apiVersion", json!("v1")));
}

fn container(container: &mut Value) {
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let floating = !name.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    set(container, "imagePullPolicy", json!(if floating { "Always" } else { "IfNotPresent" }));
    for port in items(container, "ports") {
        set(port, "protocol", json!("TCP"));
    }
    for variable in items(container, "env") {
        within(variable, "valueFrom", field_ref);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        within(container, name, |probe| {
            set(probe, "timeoutSeconds", json!(1));
            set(probe, "periodSeconds", json!(10));
            set(probe, "successThreshold", json!(1));
            set(probe, "failureThreshold", json!(3));
            within(probe, "httpGet", |get| {
                set(get, "path", json!("/"));
                set(get, "scheme", json!("HTTP"));
            });
            within(probe, "grpc", |grpc| set(grpc, "service", json!("")));
        });
    }
    within(container, "lifecycle", |lifecycle| {
        for name in ["postStart", "preStop"] {
            within(lifecycle, name, |hook| {
                within(hook, "httpGet", |get| {
                    set(get, "path", json!("/"));
                    set(get, "scheme", json!("HTTP"));
                });
            });
        }
    });
}

/// A limit without a request is requested, in pods, not in templates.
fn requests_from_limits(container: &mut Value) {
    let limits: Map<String, Value> =
        container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (name, amount) in limits {
        within(container, "resources", |resources| {
            set(resources, "requests", json!({}));
            within(resources, "requests", |requests| set(requests, &name, amount));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_filling_changes_nothing() {
        let mut set = json!({"metadata": {}, "spec": {"template": {"spec": {
            "containers": [{"name": "c", "image": "registry.test:5000/i", "readinessProbe": {"httpGet": {"port": 1}}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}});
        fill("StatefulSet", &mut set);
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/");
        let once = set.clone();
        fill("StatefulSet", &mut set);
        assert_eq!(set, once);
    }

    #[test]
    fn a_tag_or_a_digest_is_not_pulled_each_time() {
        for (image, want) in [
            ("i:1", "IfNotPresent"),
            ("i", "Always"),
            ("i:latest", "Always"),
            ("r.test:5000/i@sha256:00", "IfNotPresent"),
        ] {
            let mut pod = json!({"spec": {"containers": [{"image": image}]}});
            fill("Pod", &mut pod);
            assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], want, "{image}");
        }
    }
}
