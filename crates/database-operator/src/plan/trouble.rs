//! What is in the way of pods, in Kubernetes' own words. Pure.
//!
//! Everything that the API server could not refuse shows here: an unknown StorageClass, an image that does not exist, a
//! missing Secret, a quota, no room on the nodes. It is found anew each time, so it goes away by itself.

use crate::{
    observe::{Counts, Instance, Observed, Question, Words, pod_condition},
    plan::{Facts, Problem, clones, growth, stateful_set, volumes},
};
use holdfast_core::{Database, pods};
use k8s_openapi::{api::core::v1::PersistentVolumeClaim, jiff::Timestamp};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// How long a pod may take before its events are asked: starts that go well are over by then, or soon after.
pub const PATIENCE_SECONDS: i64 = 5;
/// How long a provisioner may say nothing about a claim before that is told.
const SILENCE_SECONDS: i64 = 60;

/// Seconds for which the scheduler has found no node.
fn unscheduled(instance: &Instance, now: Timestamp) -> Option<i64> {
    let condition = pod_condition(&instance.pod, "PodScheduled").filter(|c| c.status == "False")?;
    let since = condition.last_transition_time.as_ref()?.0;
    Some(now.as_second() - since.as_second())
}

fn waiting(observed: &Observed) -> impl Iterator<Item = &Instance> {
    observed.instances.iter().filter(|i| !i.ready && !i.terminating)
}

/// Objects whose events may tell why pods do not come up, or volumes do not grow. None in a steady state.
pub fn questions(observed: &Observed, facts: &Facts, now: Timestamp) -> Vec<Question> {
    let mut questions = Vec::new();
    for instance in waiting(observed).filter(|i| !i.started() && i.age(now) >= PATIENCE_SECONDS) {
        match volumes::pending(observed, &instance.pod) {
            // A clone that does not come is given up in time: no case for a person.
            Some(claim) if awaited_clone(claim) => {}
            Some(claim) => questions.push(Question {
                uid: claim.uid().unwrap_or_default(),
                what: format!("volume claim {}", claim.name_any()),
                counts: Counts::Unbound { slow: instance.age(now) >= SILENCE_SECONDS },
            }),
            None if unscheduled(instance, now).is_none() => questions.push(Question {
                uid: instance.uid.clone(),
                what: format!("pod {}", instance.name),
                counts: Counts::Newest,
            }),
            None => {}
        }
    }
    let missing = i32::try_from(observed.instances.len()).unwrap_or(i32::MAX) < facts.replicas;
    if let (true, Some(set)) = (missing, &observed.stateful_set) {
        questions.push(Question {
            uid: set.uid().unwrap_or_default(),
            what: format!("StatefulSet {}", set.name_any()),
            counts: Counts::Newest,
        });
    }
    questions.extend(facts.growing.iter().map(|one| Question {
        uid: one.uid.clone(),
        what: format!("volume claim {}", one.claim),
        counts: Counts::Growth { since: one.since, on_node: one.on_node },
    }));
    questions
}

fn awaited_clone(claim: &PersistentVolumeClaim) -> bool {
    clones::source(claim).is_some() && clones::never_bound(claim)
}

/// The store that the spec wants archived to is not there. The database runs; what it was asked for is not carried out.
pub fn store_missing(database: &Database, found: bool) -> Option<Problem> {
    let store = &database.spec.archive.as_ref()?.store_ref.name;
    // On its way out it archives no more, and nobody looks for the store.
    let wanted = database.metadata.deletion_timestamp.is_none();
    (wanted && !found).then(|| {
        let message =
            format!("spec.archive.storeRef names BackupStore {store}, which does not exist; create it");
        Problem::new("StoreNotFound", message)
    })
}

/// The first thing that is in the way, if anything is.
///
/// What an agent reports counts while its instance is not where it should be: not ready, or not on the configuration with
/// this hash, and has been so for a while. An error that it gets over by itself is no case for a person.
pub fn diagnose(
    observed: &Observed,
    facts: &Facts,
    words: &BTreeMap<String, Words>,
    now: Timestamp,
) -> Option<Problem> {
    let sets = observed.stateful_set.iter().filter_map(|set| {
        let words = words.get(&set.uid()?)?;
        Some(Problem::new(&words.reason, format!("StatefulSet {}: {}", set.name_any(), words.message)))
    });
    // What an instance itself says comes after what keeps a pod from running at all.
    let pods = waiting(observed).filter_map(|instance| of_pod(observed, instance, words, now));
    let astray = |i: &&Instance| {
        let since = observed.errors_since.get(&i.uid);
        let lasts = since.is_some_and(|since| now.as_second() - since.as_second() >= PATIENCE_SECONDS);
        lasts && !i.terminating && (!i.ready || i.report.config_hash != facts.config_hash)
    };
    let agents = observed.instances.iter().filter(astray).filter_map(of_agent);
    // What a full volume needs is on its way.
    let agents = agents.filter(|problem| problem.reason != DISK_FULL || facts.growing.is_empty());
    pods.chain(sets).chain(growth::failed(&facts.growing, words)).chain(agents).next()
}

fn of_pod(
    observed: &Observed,
    instance: &Instance,
    words: &BTreeMap<String, Words>,
    now: Timestamp,
) -> Option<Problem> {
    let name = &instance.name;
    let claim = volumes::pending(observed, &instance.pod);
    if let Some(claim) = claim
        && let Some(words) = words.get(&claim.uid().unwrap_or_default())
    {
        let (what, hint) = (claim.name_any(), hint_for(claim, words));
        return Some(Problem::new(
            &words.reason,
            format!("volume claim {what} of pod {name}: {}{hint}", words.message),
        ));
    }
    if let Some(seconds) = unscheduled(instance, now) {
        let text = (seconds >= PATIENCE_SECONDS).then(|| pods::waits_for(&instance.pod)).flatten()?;
        let unbound = text.contains("unbound");
        if unbound && claim.is_some_and(awaited_clone) {
            return None;
        }
        let about = match claim {
            Some(claim) if unbound => format!(" (volume claim {}{})", claim.name_any(), of_class(claim)),
            Some(_) => String::new(),
            None => held_by_volume(observed, instance, &text),
        };
        return Some(problem(name, &format!("{text}{about}")));
    }
    if let Some(text) = pods::waits_for(&instance.pod) {
        return Some(problem(name, &text));
    }
    let words = words.get(&instance.uid)?;
    let secrets = observed
        .stateful_set
        .as_ref()
        .and_then(|s| s.spec.as_ref())
        .map(|s| stateful_set::secrets(&s.template));
    let hint = match (words.reason.as_str(), secrets) {
        ("FailedMount", Some(secrets)) if words.message.contains("secret") => {
            format!(" (the pod needs the Secrets {})", secrets.join(", "))
        }
        _ => String::new(),
    };
    Some(Problem::new(&words.reason, format!("pod {name}: {}{hint}", words.message)))
}

fn of_class(claim: &PersistentVolumeClaim) -> String {
    match claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default() {
        "" => " without a StorageClass".into(),
        class => format!(" of StorageClass {class}"),
    }
}

/// What to do about a claim that gets no volume, where Kubernetes' words do not say it.
fn hint_for(claim: &PersistentVolumeClaim, words: &Words) -> String {
    let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
    if class.is_empty() && words.reason == "FailedBinding" {
        "; the cluster has no default StorageClass: mark one as the default, or make the Database anew with \
         spec.storage.storageClassName"
            .into()
    } else if words.message.contains("storageclass") && words.message.contains("not found") {
        format!(
            "; create StorageClass {class}, or make the Database anew with another spec.storage.storageClassName"
        )
    } else {
        String::new()
    }
}

/// The scheduler does not say which volume keeps a pod from the nodes that have room: the claim is named here.
fn held_by_volume(observed: &Observed, instance: &Instance, text: &str) -> String {
    let held = [
        "volume node affinity conflict",
        "didn't match PersistentVolume's node affinity",
        "no available volume zone",
    ];
    let claims: Vec<String> =
        volumes::mounted(observed, &instance.pod).into_iter().map(|c| c.name_any()).collect();
    if claims.is_empty() || !held.iter().any(|words| text.contains(words)) {
        return String::new();
    }
    let claims = claims.join(", ");
    format!(
        "; the volume of claim {claims} can be used only from the zone or node it was made in, and no node there takes the \
         pod: bring one back; a replica can instead be copied anew elsewhere by deleting claim {claims} and then the pod"
    )
}

/// Reason of an instance whose volume is full.
pub const DISK_FULL: &str = "DiskFull";

fn of_agent(instance: &Instance) -> Option<Problem> {
    let error = instance.report.error.as_str();
    (!error.is_empty()).then(|| problem(&instance.name, error))
}

/// Splits "Reason: message"; without a reason in front it is the instance's own trouble.
fn problem(pod: &str, text: &str) -> Problem {
    let (reason, message) = match text.split_once(": ") {
        Some((reason, message)) if camel_case(reason) => (reason, message),
        _ => ("InstanceError", text),
    };
    Problem::new(reason, format!("pod {pod}: {message}"))
}

fn camel_case(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.len() <= 64
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
#[path = "trouble_tests.rs"]
mod tests;
