//! The scheduler, and the nodes that pods are bound to.

use super::{
    Knobs,
    desk::{Desk, NODES, SCHEDULER, condition, controller_of, is_going, selects},
    volumes,
};
use crate::{
    log::Verb,
    rest::{meta, set_meta},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Nodes, each in a zone of its own.
const NODE_COUNT: usize = 3;
/// A node that says nothing for so long is declared to be lost, and its pods are evicted so much later.
const SILENCE: Duration = Duration::from_secs(40);
const EVICTION: Duration = Duration::from_secs(300);

/// The nodes as they are made.
pub(super) fn nodes() -> Vec<Value> {
    (1..=NODE_COUNT)
        .map(|n| {
            let name = format!("node-{n}");
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64", "topology.kubernetes.io/region": "here",
                "topology.kubernetes.io/zone": format!("zone-{n}")}}, "spec": {"providerID": format!("testkit:///{name}")}})
        })
        .collect()
}

fn node_status(desk: &Desk<'_>, ready: &str, reason: &str, message: &str) -> Value {
    json!({"capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
        "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": message,
            "lastHeartbeatTime": desk.stamp(), "lastTransitionTime": desk.stamp()}]})
}

/// The condition of nodes, and what follows from it for their pods.
pub(super) fn watch_nodes(desk: &mut Desk<'_>, knobs: &Knobs) {
    for node in desk.all(desk.at.nodes) {
        let name = meta(&node, "name");
        let (ready, lost) = (condition(&node, "Ready"), knobs.lost.contains(name));
        if !lost && ready != "True" {
            let status = node_status(desk, "True", "KubeletReady", "kubelet is posting ready status");
            desk.set_status(NODES, desk.at.nodes, &node, status);
        } else if lost && desk.lasts(format!("node {name} is silent"), SILENCE) {
            if ready != "Unknown" {
                let status =
                    node_status(desk, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.");
                desk.set_status(NODES, desk.at.nodes, &node, status);
            }
            let evict = desk.lasts(format!("node {name} is lost"), EVICTION);
            for pod in desk.all(desk.at.pods).into_iter().filter(|pod| pod["spec"]["nodeName"] == name) {
                abandon(desk, &pod, evict);
            }
        }
    }
}

fn abandon(desk: &mut Desk<'_>, pod: &Arc<Value>, evict: bool) {
    if condition(pod, "Ready") == "True" {
        let mut status = pod["status"].clone();
        let now = desk.stamp();
        for one in status["conditions"].as_array_mut().into_iter().flatten().filter(|c| c["type"] == "Ready")
        {
            one["status"] = "False".into();
            one["lastTransitionTime"] = now.as_str().into();
        }
        desk.set_status(NODES, desk.at.pods, pod, status);
    }
    if evict && !is_going(pod) {
        desk.delete(NODES, desk.at.pods, pod, None, "");
    }
}

/// What the scheduler makes of a pod.
enum Verdict {
    Bind(String),
    /// Its claims are being bound for a node.
    Wait,
    Refuse(String),
}

pub(super) fn sync(desk: &mut Desk<'_>, knobs: &Knobs) {
    for pod in desk.all(desk.at.pods) {
        let over = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        if pod["spec"].get("nodeName").is_some() || is_going(&pod) || over {
            continue;
        }
        match judge(desk, knobs, &pod) {
            Verdict::Bind(node) => bind(desk, &pod, &node),
            Verdict::Wait => {}
            Verdict::Refuse(words) => refuse(desk, &pod, &words),
        }
    }
}

fn judge(desk: &mut Desk<'_>, knobs: &Knobs, pod: &Value) -> Verdict {
    let all = desk.all(desk.at.nodes).len();
    let none = |count: usize, why: &str| {
        Verdict::Refuse(format!(
            "0/{all} nodes are available: {count} {why}. preemption: 0/{all} nodes are available: {all} Preemption is not helpful for scheduling."
        ))
    };
    if knobs.hold_pods {
        return none(all, "Insufficient cpu");
    }
    let namespace = meta(pod, "namespace");
    let mut unbound = Vec::new();
    for name in volumes::mounted(pod) {
        let Some(claim) = desk.get(desk.at.claims, namespace, name) else {
            return none(all, &format!("persistentvolumeclaim {name:?} not found"));
        };
        if is_going(&claim) {
            return none(all, &format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if !volumes::is_bound(&claim) {
            if !volumes::waits_for_pod(desk, &claim) {
                return none(all, "pod has unbound immediate PersistentVolumeClaims");
            }
            unbound.push(claim);
        }
    }
    // A node that was chosen for one claim stays the choice, so that the volume is where the pod will be.
    let chosen = unbound.iter().find_map(|c| c["metadata"]["annotations"][volumes::SELECTED].as_str());
    let node = match (chosen.filter(|node| !knobs.lost.contains(*node)), choose(desk, knobs, pod)) {
        (Some(node), _) => node.to_string(),
        (None, Ok(node)) => node,
        (None, Err(why)) => return none(all, why),
    };
    if unbound.is_empty() {
        return Verdict::Bind(node);
    }
    for claim in unbound {
        if claim["metadata"]["annotations"][volumes::SELECTED] != node.as_str() {
            let mut new = Value::clone(&claim);
            new["metadata"]["annotations"][volumes::SELECTED] = node.as_str().into();
            desk.update(SCHEDULER, desk.at.claims, new, "");
        }
    }
    Verdict::Wait
}

/// The node with the fewest pods of the same owner, then with the fewest at all.
fn choose(desk: &Desk<'_>, knobs: &Knobs, pod: &Value) -> Result<String, &'static str> {
    let pods = desk.all(desk.at.pods);
    let fits = |node: &&Arc<Value>| {
        let wanted = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
        wanted.into_iter().all(|(key, value)| node["metadata"]["labels"].get(key) == Some(value))
    };
    let nodes = desk.all(desk.at.nodes);
    let nodes: Vec<&Arc<Value>> =
        nodes.iter().filter(|n| !knobs.lost.contains(meta(n, "name"))).filter(fits).collect();
    if nodes.is_empty() {
        return Err("node(s) didn't match Pod's node affinity/selector");
    }
    let places: Vec<Option<String>> = pods.iter().map(|pod| place_of(desk, pod)).collect();
    let score = |node: &&&Arc<Value>| {
        let name = meta(node, "name");
        let here = pods.iter().zip(&places).filter(|(_, p)| p.as_deref() == Some(name)).map(|(pod, _)| pod);
        let owner = |p: &Value| controller_of(p).map(|o| o["uid"].clone());
        let kin = here.clone().filter(|p| owner(p).is_some() && owner(p) == owner(pod)).count();
        (kin, here.count(), meta(node, "name").to_string())
    };
    let free = nodes.iter().filter(|node| !repelled(desk, &pods, pod, node));
    let best = free.min_by_key(score).map(|node| meta(node, "name").to_string());
    best.ok_or("node(s) didn't match pod anti-affinity rules")
}

/// The node of a pod: where it is bound, or where its new volumes are being made for it.
fn place_of(desk: &Desk<'_>, pod: &Value) -> Option<String> {
    if let Some(node) = pod["spec"]["nodeName"].as_str() {
        return Some(node.into());
    }
    let claims =
        volumes::mounted(pod).filter_map(|name| desk.get(desk.at.claims, meta(pod, "namespace"), name));
    let mut chosen = claims
        .filter(|claim| !volumes::is_bound(claim))
        .filter_map(|claim| claim["metadata"]["annotations"][volumes::SELECTED].as_str().map(String::from));
    chosen.next()
}

/// Whether a required anti-affinity keeps a pod from a node.
fn repelled(desk: &Desk<'_>, pods: &[Arc<Value>], pod: &Value, node: &Value) -> bool {
    let terms = &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    terms.as_array().into_iter().flatten().any(|term| {
        let key = term["topologyKey"].as_str().unwrap_or_default();
        let near = |other: &Value| {
            let there = place_of(desk, other).and_then(|name| desk.get(desk.at.nodes, "", &name));
            there.is_some_and(|there| {
                there["metadata"]["labels"].get(key) == node["metadata"]["labels"].get(key)
            })
        };
        pods.iter().any(|other| {
            meta(other, "uid") != meta(pod, "uid")
                && meta(other, "namespace") == meta(pod, "namespace")
                && selects(&term["labelSelector"], &other["metadata"]["labels"])
                && near(other)
        })
    })
}

fn scheduled(desk: &Desk<'_>, pod: &Value, mut condition: Value) -> Value {
    condition["type"] = "PodScheduled".into();
    let mut status = pod["status"].clone();
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let before = all.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == condition["status"]);
    condition["lastTransitionTime"] =
        before.map_or_else(|| desk.stamp().into(), |before| before["lastTransitionTime"].clone());
    let others = all.iter().filter(|c| c["type"] != "PodScheduled").cloned();
    status["conditions"] = others.chain([condition]).collect();
    status
}

fn refuse(desk: &mut Desk<'_>, pod: &Arc<Value>, words: &str) {
    let status =
        scheduled(desk, pod, json!({"status": "False", "reason": "Unschedulable", "message": words}));
    desk.tell(SCHEDULER, pod, "Warning", "FailedScheduling", words);
    desk.set_status(SCHEDULER, desk.at.pods, pod, status);
}

/// As the subresource `binding` does it: the node and the condition in one write, which counts in no generation.
fn bind(desk: &mut Desk<'_>, pod: &Value, node: &str) {
    let mut new = pod.clone();
    new["status"] = scheduled(desk, pod, json!({"status": "True"}));
    new["spec"]["nodeName"] = node.into();
    set_meta(&mut new, "resourceVersion", Value::Null);
    desk.put(SCHEDULER, desk.at.pods, new, Verb::Create, "binding");
}
