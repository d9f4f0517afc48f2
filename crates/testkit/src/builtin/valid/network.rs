//! Services and endpoint slices.

use super::{items, label, names, one_of, text};
use crate::status::Fault;
use serde_json::{Value, json};
use std::net::IpAddr;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn service(object: &Value, old: Option<&Value>, status: bool, found: &mut Vec<Fault>) {
    let spec = &object["spec"];
    if status {
        let balancer = !items(&object["status"]["loadBalancer"], "ingress").is_empty();
        let had = |o: &Value| !items(&o["status"]["loadBalancer"], "ingress").is_empty();
        if balancer && spec["type"] != "LoadBalancer" && !old.is_some_and(had) {
            let why = "may only be used when `spec.type` is 'LoadBalancer'";
            found.push(Fault::forbidden("status.loadBalancer.ingress", why));
        }
        return;
    }
    let headless = spec["clusterIP"] == "None";
    if spec.get("clusterIP").is_some() && spec.get("clusterIPs").is_none() {
        found.push(Fault::required("spec.clusterIPs", ""));
    }
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && spec["type"] != "ExternalName" {
        found.push(Fault::required("spec.ports", ""));
    }
    if spec["type"] == "ExternalName" && text(spec, "externalName").is_empty() {
        found.push(Fault::required("spec.externalName", ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = |field: &str| format!("spec.ports[{index}].{field}");
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                found.push(Fault::required(&path("name"), ""));
            }
        } else {
            label(name, &path("name"), found);
            if names.contains(&name) {
                found.push(Fault::duplicate(&path("name"), &json!(name)));
            }
            names.push(name);
        }
        for field in ["port", "targetPort"] {
            if let Some(number) = port[field].as_i64().filter(|n| !(1..=65535).contains(n)) {
                let why = "must be between 1 and 65535, inclusive";
                found.push(Fault::invalid(&path(field), &json!(number), why));
            }
        }
        one_of(text(port, "protocol"), &path("protocol"), &PROTOCOLS, found);
    }
    one_of(text(spec, "sessionAffinity"), "spec.sessionAffinity", &["ClientIP", "None"], found);
    let kind = text(spec, "type");
    if headless && ["LoadBalancer", "NodePort"].contains(&kind) {
        let why = format!("may not be set to 'None' for {kind} services");
        found.push(Fault::invalid("spec.clusterIPs[0]", &json!("None"), &why));
    }
    for (index, _) in
        ports.iter().enumerate().filter(|(_, p)| kind == "ClusterIP" && p.get("nodePort").is_some())
    {
        let why = "may not be used when `type` is 'ClusterIP'";
        found.push(Fault::forbidden(&format!("spec.ports[{index}].nodePort"), why));
    }
    if kind != "LoadBalancer" && spec.get("allocateLoadBalancerNodePorts").is_some() {
        let why = "may only be used when `type` is 'LoadBalancer'";
        found.push(Fault::forbidden("spec.allocateLoadBalancerNodePorts", why));
    }
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(text(spec, "type"), "spec.type", &types, found);
    if let Some(policy) = spec["internalTrafficPolicy"].as_str() {
        one_of(policy, "spec.internalTrafficPolicy", &["Cluster", "Local"], found);
    }
    let mut seen = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let key = (&port["port"], &port["protocol"]);
        if seen.contains(&key) {
            let value = json!({"protocol": port["protocol"], "port": port["port"]});
            found.push(Fault::duplicate(&format!("spec.ports[{index}]"), &value));
        }
        seen.push(key);
    }
}

pub(super) fn slice(object: &Value, old: Option<&Value>, found: &mut Vec<Fault>) {
    let kind = text(object, "addressType");
    if kind.is_empty() {
        found.push(Fault::required("addressType", ""));
    } else {
        one_of(kind, "addressType", &["FQDN", "IPv4", "IPv6"], found);
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, port) in items(object, "ports").iter().enumerate() {
        let path = |field: &str| format!("ports[{index}].{field}");
        let name = text(port, "name");
        if !name.is_empty() {
            label(name, &path("name"), found);
        }
        if names.contains(&name) {
            found.push(Fault::duplicate(&path("name"), &json!(name)));
        }
        names.push(name);
        one_of(text(port, "protocol"), &path("protocol"), &PROTOCOLS, found);
    }
    // Endpoints that did not change were good once.
    if old.is_some_and(|old| old["endpoints"] == object["endpoints"]) {
        return;
    }
    for (index, endpoint) in items(object, "endpoints").iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            found.push(Fault::required(&path, "must contain at least 1 address"));
        }
        for (index, address) in addresses.iter().enumerate().filter(|_| kind.starts_with("IP")) {
            let parsed = address.as_str().unwrap_or_default().parse::<IpAddr>();
            match (parsed, kind) {
                (Err(_), _) => {
                    found.push(Fault::invalid(&format!("{path}[{index}]"), address, names::NO_ADDRESS))
                }
                (Ok(IpAddr::V6(_)), "IPv4") => {
                    found.push(Fault::invalid(&path, address, "must be an IPv4 address"));
                }
                (Ok(IpAddr::V4(_)), "IPv6") => {
                    found.push(Fault::invalid(&path, address, "must be an IPv6 address"));
                }
                _ => {}
            }
        }
    }
}
