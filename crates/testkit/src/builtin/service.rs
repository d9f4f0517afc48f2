//! The addresses of Services, as a cluster with IPv4 alone treats them. Pure.

use super::names::NO_ADDRESS;
use crate::status::Fault;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

const SINGLE: &str = "SingleStack";
const DUAL: &str = "RequireDualStack";

type Spec = Map<String, Value>;

fn text<'a>(spec: &'a Spec, field: &str) -> &'a str {
    spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(spec: &'a Spec, field: &str) -> &'a [Value] {
    spec.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn spec_of(service: &Value) -> Option<&Spec> {
    service.get("spec").and_then(Value::as_object)
}

fn is_external(spec: &Spec) -> bool {
    text(spec, "type") == "ExternalName"
}

/// Whether every port has a port on every node.
pub(crate) fn has_node_ports(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// A port of the nodes that two ports of a Service have, with its protocol.
pub(crate) fn twice(spec: &Value) -> Option<String> {
    let mut seen = Vec::new();
    for port in spec["ports"].as_array().into_iter().flatten() {
        let Some(number) = port["nodePort"].as_i64() else { continue };
        let one = format!("{} {number}", port["protocol"].as_str().unwrap_or("TCP"));
        if seen.contains(&one) {
            return Some(one);
        }
        seen.push(one);
    }
    None
}

/// Who leaves out what was allotted keeps it; an address without its list is the list.
pub(crate) fn keep(old: Option<&Value>, new: &mut Value) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let alone = |spec: &Spec| json!([text(spec, "clusterIP")]);
    let Some(before) = old.and_then(spec_of) else {
        if !text(spec, "clusterIP").is_empty() && list(spec, "clusterIPs").is_empty() {
            spec.insert("clusterIPs".into(), alone(spec));
        }
        return;
    };
    let missing = |spec: &Spec, field: &str| !spec.contains_key(field) && before.contains_key(field);
    if !is_external(before) && !is_external(spec) {
        for field in ["clusterIP", "clusterIPs"] {
            if missing(spec, field) {
                spec.insert(field.into(), before[field].clone());
            }
        }
    }
    if text(before, "clusterIP") == text(spec, "clusterIP") {
        if missing(spec, "clusterIPs") {
            spec.insert("clusterIPs".into(), before["clusterIPs"].clone());
        }
    } else if list(before, "clusterIPs") == list(spec, "clusterIPs") {
        if spec.contains_key("clusterIP") {
            spec.insert("clusterIPs".into(), alone(spec));
        } else {
            spec.remove("clusterIPs");
        }
    }
    let ports = |spec: &Spec| -> Vec<i64> {
        list(spec, "ports").iter().filter_map(|port| port["nodePort"].as_i64()).collect()
    };
    let (had, has) = (ports(before), ports(spec));
    let of_nodes = |spec: &Spec| has_node_ports(&Value::Object(spec.clone()));
    if of_nodes(before) && of_nodes(spec) {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let alike = list(before, "ports").iter().rfind(|p| p.get("name") == port.get("name"));
            let number = alike.and_then(|p| p["nodePort"].as_i64());
            if let Some(number) = number.filter(|n| !(had.contains(n) && has.contains(n)))
                && port.get("nodePort").is_none()
            {
                port["nodePort"] = number.into();
            }
        }
    }
}

/// Fills in the families of addresses. Errors: what is asked for cannot be.
pub(crate) fn families(old: Option<&Value>, service: &mut Value) -> Result<(), Vec<Fault>> {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if is_external(spec) {
        return Ok(());
    }
    let before = old.and_then(spec_of);
    let free = text(spec, "clusterIP") == "None" && !spec.contains_key("selector");
    if !spec.contains_key("ipFamilyPolicy") {
        let kept = before.and_then(|b| b.get("ipFamilyPolicy")).cloned();
        let policy = kept.unwrap_or_else(|| if free { DUAL } else { SINGLE }.into());
        spec.insert("ipFamilyPolicy".into(), policy);
    }
    let found = related(spec);
    if !found.is_empty() {
        return Err(found);
    }
    let mut found = Vec::new();
    let policy = spec["ipFamilyPolicy"].clone();
    let mut fault = |why: &str| found.push(Fault::invalid("spec.ipFamilyPolicy", &policy, why));
    for (field, what) in [("clusterIPs", "secondary cluster IP"), ("ipFamilies", "secondary IP family")] {
        let had = before.map_or(&[][..], |b| list(b, field));
        let has = list(spec, field).len();
        if policy != SINGLE && has > 0 && has < had.len() {
            fault(&format!("must be 'SingleStack' to release the {what}"));
        } else if policy == SINGLE && has > 1 && had == list(spec, field) {
            let first = spec[field][0].take();
            spec.insert(field.into(), json!([first]));
        }
    }
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if policy == SINGLE && list(spec, field).len() == 2 {
            let why =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            fault(&why);
        }
    }
    for (index, address) in list(spec, "clusterIPs").iter().enumerate() {
        if list(spec, "ipFamilies").len() <= index && address.as_str().is_some_and(|a| a.contains(':')) {
            let why = "IPv6 is not configured on this cluster";
            let field = format!("spec.clusterIPs[{index}]");
            found.push(Fault::invalid(&field, &spec["clusterIPs"], why));
        }
    }
    if !found.is_empty() {
        return Err(found);
    }
    let mut families = list(spec, "ipFamilies").to_vec();
    if families.is_empty() {
        families.push("IPv4".into());
    }
    if free {
        // What has neither address nor selector may have both families where there is one.
        if families.len() < 2 && policy != SINGLE {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.into());
        }
    } else {
        if policy == DUAL {
            let why = "this cluster is not configured for dual-stack services";
            found.push(Fault::invalid("spec.ipFamilyPolicy", &policy, why));
        }
        for (index, family) in families.iter().enumerate().filter(|(_, family)| **family != "IPv4") {
            let field = format!("spec.ipFamilies[{index}]");
            found.push(Fault::invalid(&field, family, "not configured on this cluster"));
        }
    }
    spec.insert("ipFamilies".into(), Value::Array(families));
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// What is wrong with addresses, families and policy as they stand to each other.
fn related(spec: &Spec) -> Vec<Fault> {
    let mut found = Vec::new();
    let address = text(spec, "clusterIP");
    let all = list(spec, "clusterIPs");
    let mut fault = |field: &str, value: &Value, why: &str| found.push(Fault::invalid(field, value, why));
    if address.is_empty() && !all.is_empty() {
        let why = "must be empty when `clusterIP` is not specified";
        fault("spec.clusterIPs", &spec["clusterIPs"], why);
    } else if !address.is_empty() && all.first().is_some_and(|first| first != address) {
        fault("spec.clusterIPs", &spec["clusterIPs"], "first value must match `clusterIP`");
    }
    let mut wrong = false;
    for (index, address) in all.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        if text == "None" && index == 0 {
            if all.len() > 1 {
                wrong = true;
                fault("spec.clusterIPs", &spec["clusterIPs"], "'None' must be the first and only value");
            }
        } else if text.parse::<IpAddr>().is_err() {
            wrong = true;
            fault(&format!("spec.clusterIPs[{index}]"), address, NO_ADDRESS);
        }
    }
    if all.len() > 2 {
        fault("spec.clusterIPs", &spec["clusterIPs"], "may only hold up to 2 values");
    }
    let six = |address: &Value| address.as_str().is_some_and(|a| a.contains(':'));
    if !wrong && all.len() > 1 && all.iter().all(six) == all.iter().any(six) {
        let why = "may specify no more than one IP for each IP family";
        fault("spec.clusterIPs", &spec["clusterIPs"], why);
    }
    for (index, family) in list(spec, "ipFamilies").iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if *family != "IPv4" && *family != "IPv6" {
            found.push(Fault::not_supported(&field, family, &["IPv4".into(), "IPv6".into()]));
        }
    }
    let policies = ["PreferDualStack", DUAL, SINGLE];
    if let Some(policy) = spec.get("ipFamilyPolicy").filter(|p| !policies.iter().any(|known| *p == known)) {
        let known: Vec<Value> = policies.iter().map(|p| json!(p)).collect();
        found.push(Fault::not_supported("spec.ipFamilyPolicy", policy, &known));
    }
    found
}

/// Drops what was filled in for another type, unless somebody changed it.
pub(crate) fn drop_dependent(old: &Value, new: &mut Value) {
    let balanced = new["spec"]["type"] == "LoadBalancer";
    if !balanced && new.get("status").is_some() {
        new["status"]["loadBalancer"] = json!({});
    }
    let (Some(before), Some(spec)) = (spec_of(old), new.get_mut("spec").and_then(Value::as_object_mut))
    else {
        return;
    };
    if !is_external(before) && is_external(spec) {
        if before.get("clusterIPs") == spec.get("clusterIPs") {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if before.get(field) == spec.get(field) {
                spec.remove(field);
            }
        }
    }
    let numbers = |spec: &Spec| -> Vec<Value> {
        list(spec, "ports").iter().map(|port| port["nodePort"].clone()).collect()
    };
    if has_node_ports(&old["spec"])
        && !has_node_ports(&Value::Object(spec.clone()))
        && numbers(before) == numbers(spec)
    {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    let outside = |spec: &Spec| ["NodePort", "LoadBalancer"].contains(&text(spec, "type"));
    let was_balanced = text(before, "type") == "LoadBalancer";
    for (field, leaves) in [
        ("allocateLoadBalancerNodePorts", was_balanced && !balanced),
        ("loadBalancerClass", was_balanced && !balanced),
        ("externalTrafficPolicy", outside(before) && !outside(spec)),
    ] {
        if leaves && before.get(field) == spec.get(field) {
            spec.remove(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({ "spec": spec })
    }

    #[test]
    fn who_leaves_addresses_out_keeps_them() {
        let old = service(json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}));
        let mut new = service(json!({"type": "ClusterIP"}));
        keep(Some(&old), &mut new);
        assert!(families(Some(&old), &mut new).is_ok());
        assert_eq!(new, old);
    }

    #[test]
    fn only_a_headless_service_without_selector_has_both_families() {
        let mut free = service(json!({"clusterIP": "None"}));
        keep(None, &mut free);
        assert!(families(None, &mut free).is_ok());
        assert_eq!(free["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        let mut selecting = free.clone();
        selecting["spec"]["selector"] = json!({"app": "x"});
        let found = families(Some(&free), &mut selecting).unwrap_err();
        let fields: Vec<&str> = found.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["spec.ipFamilyPolicy", "spec.ipFamilies[1]"]);
    }

    #[test]
    fn another_type_drops_what_the_first_one_had() {
        let old = service(json!({"type": "NodePort", "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 1, "nodePort": 30001}]}));
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        drop_dependent(&old, &mut new);
        assert_eq!(new["spec"], json!({"type": "ClusterIP", "ports": [{"port": 1}]}));
    }
}
