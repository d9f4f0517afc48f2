//! The controller of EndpointSlices: one slice, of IPv4 addresses, for each Service that selects pods.

use super::desk::{Desk, SLICES, condition, is_going, owned_by};
use crate::{builtin, rest::meta};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const LABEL_SERVICE: &str = "kubernetes.io/service-name";
const LABEL_MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(super) fn sync(desk: &mut Desk<'_>) {
    for service in desk.all(desk.at.services) {
        let selector = service["spec"]["selector"].as_object().filter(|s| !s.is_empty());
        if let Some(selector) = selector
            && service["spec"]["type"] != "ExternalName"
            && !is_going(&service)
        {
            one(desk, &service, selector);
        }
    }
}

fn one(desk: &mut Desk<'_>, service: &Arc<Value>, selector: &Map<String, Value>) {
    let namespace = meta(service, "namespace");
    let chosen = |pod: &Arc<Value>| {
        let labels = &pod["metadata"]["labels"];
        let over = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        !over
            && pod["status"]["podIP"].is_string()
            && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let pods: Vec<Arc<Value>> = desk.within(desk.at.pods, namespace).into_iter().filter(chosen).collect();
    let endpoints: Vec<Value> = pods.iter().map(|pod| endpoint(desk, service, pod)).collect();

    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(LABEL_SERVICE.into(), meta(service, "name").into());
    labels.insert(LABEL_MANAGER.into(), MANAGER.into());
    if service["spec"]["clusterIP"] == "None" {
        labels.insert(LABEL_HEADLESS.into(), "".into());
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<Value> = ports.map(|port| target(port, pods.first())).collect();
    let mut wanted = json!({"endpoints": endpoints, "ports": ports});
    builtin::omit(&mut wanted);

    let here = |slice: &&Arc<Value>| {
        let labels = &slice["metadata"]["labels"];
        labels[LABEL_SERVICE] == service["metadata"]["name"]
            && labels[LABEL_MANAGER] == MANAGER
            && !is_going(slice)
    };
    match desk.within(desk.at.slices, namespace).iter().find(here) {
        Some(slice) => {
            let same = slice["metadata"]["labels"] == Value::Object(labels.clone())
                && ["endpoints", "ports"].iter().all(|field| filled(slice, field) == filled(&wanted, field));
            if !same {
                let mut new = Value::clone(slice);
                new["metadata"]["labels"] = labels.into();
                for field in ["endpoints", "ports"] {
                    new[field] = wanted[field].clone();
                }
                desk.update(SLICES, desk.at.slices, new, "");
            }
        }
        None => {
            wanted["metadata"] = json!({"generateName": format!("{}-", meta(service, "name")), "labels": labels,
                "ownerReferences": [owned_by(service)]});
            wanted["addressType"] = "IPv4".into();
            // A namespace on its way out takes none.
            let _ = desk.create(SLICES, desk.at.slices, namespace, wanted);
        }
    }
}

/// A list that is stored as null, empty, or not at all, is the same list.
fn filled<'a>(slice: &'a Value, field: &str) -> &'a [Value] {
    slice[field].as_array().map_or(&[], Vec::as_slice)
}

fn endpoint(desk: &Desk<'_>, service: &Value, pod: &Value) -> Value {
    let ready = condition(pod, "Ready") == "True";
    let always = service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({"addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": always || (ready && !is_going(pod)), "serving": ready, "terminating": is_going(pod)},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {"kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"]}});
    if pod["spec"]["subdomain"] == service["metadata"]["name"] {
        endpoint["hostname"] = pod["spec"]["hostname"].clone();
    }
    let node = pod["spec"]["nodeName"].as_str().and_then(|name| desk.get(desk.at.nodes, "", name));
    if let Some(zone) =
        node.and_then(|n| n["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().map(String::from))
    {
        endpoint["zone"] = zone.into();
    }
    endpoint
}

/// The port behind a Service's port; a name is looked up in the first pod.
fn target(port: &Value, pod: Option<&Arc<Value>>) -> Value {
    let named = |name: &str| {
        let containers = pod?["spec"]["containers"].as_array()?.iter();
        let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        ports.find(|p| p["name"] == name).map(|p| p["containerPort"].clone())
    };
    let number = match &port["targetPort"] {
        Value::String(name) => named(name).unwrap_or(Value::Null),
        Value::Null => port["port"].clone(),
        number => number.clone(),
    };
    let name = port.get("name").cloned().unwrap_or_else(|| "".into());
    json!({"name": name, "protocol": port["protocol"], "port": number})
}
