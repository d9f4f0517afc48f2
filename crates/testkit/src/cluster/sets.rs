//! The controller of StatefulSets.

use super::{
    desk::{Desk, SETS, condition, controller_of, is_going, owned_by, selects},
    replica,
};
use crate::{rest::meta, status::Refusal};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// After so long a create that was refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

pub(super) fn sync(desk: &mut Desk<'_>) {
    for set in desk.all(desk.at.sets) {
        one(desk, &set);
    }
}

/// The template to make pods from.
struct Version {
    name: String,
    template: Value,
}

fn one(desk: &mut Desk<'_>, set: &Arc<Value>) {
    let pods = members(desk, set);
    let (current, update) = versions(desk, set);
    let status = status(set, &pods, &current.name, &update.name);
    if !is_going(set) {
        move_on(desk, set, &pods, &status, &current, &update);
    }
    desk.set_status(SETS, desk.at.sets, set, finished(set, status));
}

/// The pods of a set by ordinal. Orphans that fit are adopted, pods that no longer fit are released.
fn members(desk: &mut Desk<'_>, set: &Value) -> BTreeMap<i64, Arc<Value>> {
    let mut found = BTreeMap::new();
    for pod in desk.within(desk.at.pods, meta(set, "namespace")) {
        let Some(ordinal) = replica::ordinal(set, &pod) else { continue };
        let fits = selects(&set["spec"]["selector"], &pod["metadata"]["labels"]);
        match controller_of(&pod) {
            Some(owner) if owner["uid"] != set["metadata"]["uid"] => {}
            Some(_) if fits => {
                found.insert(ordinal, pod);
            }
            Some(_) if !is_going(set) => {
                let mut new = Value::clone(&pod);
                let owners = new["metadata"]["ownerReferences"].as_array_mut();
                owners.into_iter().for_each(|o| o.retain(|o| o["uid"] != set["metadata"]["uid"]));
                desk.update(SETS, desk.at.pods, new, "");
            }
            None if fits && !is_going(set) && !is_going(&pod) => {
                if let Some(pod) = adopt(desk, desk.at.pods, set, &pod) {
                    found.insert(ordinal, pod);
                }
            }
            _ => {}
        }
    }
    found
}

fn adopt(desk: &mut Desk<'_>, kind: usize, set: &Value, object: &Value) -> Option<Arc<Value>> {
    let mut new = object.clone();
    let mut owners = new["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    owners.push(owned_by(set));
    new["metadata"]["ownerReferences"] = owners.into();
    desk.update(SETS, kind, new, "");
    desk.get(kind, meta(object, "namespace"), meta(object, "name"))
}

/// The revision that pods have been made from, and the one of the template as it is.
fn versions(desk: &mut Desk<'_>, set: &Value) -> (Version, Version) {
    let kind = desk.at.revisions;
    let namespace = meta(set, "namespace");
    let hash = replica::hash(&set["spec"]["template"]);
    let mut own = Vec::new();
    for revision in desk.within(kind, namespace) {
        if !selects(&set["spec"]["selector"], &revision["metadata"]["labels"]) {
            continue;
        }
        match controller_of(&revision) {
            Some(owner) if owner["uid"] == set["metadata"]["uid"] => own.push(revision),
            // Those of a set that was deleted without its dependents.
            None if !is_going(set) && !is_going(&revision) => {
                own.extend(adopt(desk, kind, set, &revision));
            }
            _ => {}
        }
    }
    let number = |r: &Value| r["revision"].as_i64().unwrap_or_default();
    own.sort_by_key(|r| (number(r), meta(r, "name").to_string()));
    let next = own.last().map_or(1, |r| number(r) + 1);
    let update =
        Version { name: format!("{}-{hash}", meta(set, "name")), template: set["spec"]["template"].clone() };
    match own.iter().position(|r| replica::hash_of(r) == hash) {
        Some(place) if place + 1 < own.len() => {
            // Back to a template of before.
            let mut new = Value::clone(&own[place]);
            new["revision"] = next.into();
            desk.update(SETS, kind, new, "");
        }
        Some(_) => {}
        None if !is_going(set) => {
            let made = desk.create(SETS, kind, namespace, replica::revision(set, &hash, next));
            own.extend(made.ok());
        }
        None => {}
    }
    let before = set["status"]["currentRevision"].as_str().unwrap_or_default();
    let current = own.iter().find(|r| meta(r, "name") == before);
    let current = current.map(|r| Version { name: before.into(), template: replica::template_of(r) });
    let same = || Version { name: update.name.clone(), template: update.template.clone() };
    (current.unwrap_or_else(same), update)
}

fn is_over(pod: &Value) -> bool {
    ["Failed", "Succeeded"].iter().any(|phase| pod["status"]["phase"] == *phase)
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && condition(pod, "Ready") == "True"
}

fn status(set: &Value, pods: &BTreeMap<i64, Arc<Value>>, current: &str, update: &str) -> Value {
    let count = |which: &dyn Fn(&Value) -> bool| pods.values().filter(|pod| which(pod)).count();
    let ready = count(&is_ready);
    let of = |revision: &str| count(&|pod| !is_going(pod) && replica::revision_of(pod) == revision);
    let mut status = json!({"observedGeneration": set["metadata"]["generation"], "replicas": pods.len(),
        "availableReplicas": ready, "currentRevision": current, "updateRevision": update, "collisionCount": 0});
    for (field, number) in
        [("readyReplicas", ready), ("currentReplicas", of(current)), ("updatedReplicas", of(update))]
    {
        if number > 0 {
            status[field] = number.into();
        }
    }
    status
}

/// A rolling update that has come to its end makes its revision the current one.
fn finished(set: &Value, mut status: Value) -> Value {
    let wanted = &set["spec"]["replicas"];
    let all =
        |field: &str| status.get(field).and_then(Value::as_i64).unwrap_or(0) == wanted.as_i64().unwrap_or(0);
    let rolling = set["spec"]["updateStrategy"]["type"] == "RollingUpdate";
    if rolling && all("updatedReplicas") && all("readyReplicas") && all("replicas") {
        status["currentRevision"] = status["updateRevision"].clone();
        if let Some(number) = status.get("updatedReplicas").cloned() {
            status["currentReplicas"] = number;
        }
    }
    status
}

/// The next steps: missing pods made, those too many deleted, outdated ones replaced.
fn move_on(
    desk: &mut Desk<'_>,
    set: &Value,
    pods: &BTreeMap<i64, Arc<Value>>,
    status: &Value,
    current: &Version,
    update: &Version,
) {
    let first = set["spec"]["ordinals"]["start"].as_i64().unwrap_or(0);
    let end = first + set["spec"]["replicas"].as_i64().unwrap_or(1);
    let in_order = set["spec"]["podManagementPolicy"] != "Parallel";
    let strategy = &set["spec"]["updateStrategy"];
    let partition = strategy["rollingUpdate"].get("partition").and_then(Value::as_i64);
    let kept = match (strategy["type"] == "RollingUpdate", partition) {
        (false, _) => 0,
        (true, Some(partition)) => partition,
        (true, None) => status.get("currentReplicas").and_then(Value::as_i64).unwrap_or(0),
    };

    for ordinal in first..end {
        let Some(pod) = pods.get(&ordinal) else {
            let version = if ordinal < first + kept { current } else { update };
            if !create(desk, set, version, ordinal) || in_order {
                return;
            }
            continue;
        };
        if is_over(pod) {
            if !is_going(pod) {
                desk.delete(SETS, desk.at.pods, pod, None, "");
            }
            if in_order {
                return;
            }
            continue;
        }
        if pod["status"]["phase"] == "Pending" && !is_going(pod) && make_claims(desk, set, ordinal).is_err() {
            desk.remind(desk.now + RETRY);
            return;
        }
        if in_order && (is_going(pod) || !is_ready(pod)) {
            return;
        }
        repair(desk, set, pod, ordinal);
    }

    for (ordinal, pod) in pods.iter().rev().filter(|(o, _)| !(first..end).contains(o)) {
        if !is_going(pod) {
            let unhealthy = pods.iter().find(|(_, p)| is_going(p) || !is_ready(p)).map(|(o, _)| o);
            if in_order && !is_ready(pod) && unhealthy != Some(ordinal) {
                return;
            }
            desk.delete(SETS, desk.at.pods, pod, None, "");
        }
        if in_order {
            return;
        }
    }

    if strategy["type"] != "RollingUpdate" {
        return;
    }
    for (_, pod) in pods.range(first + partition.unwrap_or(0)..end).rev() {
        if replica::revision_of(pod) != update.name && !is_going(pod) {
            desk.delete(SETS, desk.at.pods, pod, None, "");
            return;
        }
        if is_going(pod) || !is_ready(pod) {
            return;
        }
    }
}

/// Labels and claims that a pod made elsewhere lacks. Its volumes cannot be changed.
fn repair(desk: &mut Desk<'_>, set: &Value, pod: &Value, ordinal: i64) {
    if !replica::mounts_its_claims(set, pod, ordinal) && make_claims(desk, set, ordinal).is_err() {
        desk.remind(desk.now + RETRY);
    }
    if pod["metadata"]["labels"][replica::LABEL_POD] != pod["metadata"]["name"] {
        let mut new = pod.clone();
        new["metadata"]["labels"][replica::LABEL_POD] = pod["metadata"]["name"].clone();
        desk.update(SETS, desk.at.pods, new, "");
    }
}

/// Makes a pod. Not without its claims, and not while one of them is on its way out.
fn create(desk: &mut Desk<'_>, set: &Value, version: &Version, ordinal: i64) -> bool {
    let (namespace, name) = (meta(set, "namespace"), meta(set, "name"));
    let pod = replica::pod(set, &version.template, &version.name, ordinal);
    let made = make_claims(desk, set, ordinal).and_then(|()| {
        let words = desk.without_account(namespace, &pod);
        if let Some(words) = words {
            return Err(format!("pods \"{name}-{ordinal}\" is forbidden: {words}"));
        }
        desk.create(SETS, desk.at.pods, namespace, pod).map_err(said)
    });
    if let Err(words) = &made {
        let words = format!("create Pod {name}-{ordinal} in StatefulSet {name} failed error: {words}");
        desk.tell(SETS, set, "Warning", "FailedCreate", &words);
        desk.remind(desk.now + RETRY);
    }
    made.is_ok()
}

fn said(refusal: Refusal) -> String {
    refusal.message
}

fn make_claims(desk: &mut Desk<'_>, set: &Value, ordinal: i64) -> Result<(), String> {
    let namespace = meta(set, "namespace");
    for claim in replica::claims(set, ordinal) {
        let name = meta(&claim, "name").to_string();
        match desk.get(desk.at.claims, namespace, &name) {
            Some(there) if is_going(&there) => return Err(format!("pvc {name} is being deleted")),
            Some(_) => {}
            None => {
                desk.create(SETS, desk.at.claims, namespace, claim).map_err(said)?;
            }
        }
    }
    Ok(())
}
