//! What is in the way of pods, in Kubernetes' own words. Pure.
//!
//! Everything that the API server could not refuse shows here: an unknown StorageClass, an image that does not exist, a
//! missing Secret, a quota, no room on the nodes. It is found anew each time, so it goes away by itself.

use crate::{
    observe::{Instance, Observed, Question, Words, pod_condition},
    plan::{Problem, stateful_set, volumes},
};
use holdfast_core::{Database, pods};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::collections::BTreeMap;

/// How long a pod may take before its events are asked: starts that go well are over by then, or soon after.
pub const PATIENCE_SECONDS: i64 = 5;

/// Seconds for which the scheduler has found no node.
fn unscheduled(instance: &Instance, now: Timestamp) -> Option<i64> {
    let condition = pod_condition(&instance.pod, "PodScheduled").filter(|c| c.status == "False")?;
    let since = condition.last_transition_time.as_ref()?.0;
    Some(now.as_second() - since.as_second())
}

fn waiting(observed: &Observed) -> impl Iterator<Item = &Instance> {
    observed.instances.iter().filter(|i| !i.ready && !i.terminating)
}

/// Objects whose events may tell why pods do not come up. None in a steady state.
pub fn questions(observed: &Observed, replicas: i32, now: Timestamp) -> Vec<Question> {
    let mut questions = Vec::new();
    for instance in waiting(observed).filter(|i| !i.started() && i.age(now) >= PATIENCE_SECONDS) {
        match volumes::pending(observed, &instance.pod) {
            Some(claim) => questions.push(Question {
                uid: claim.uid,
                what: format!("volume {}", claim.name),
                newest_counts: false,
            }),
            None if unscheduled(instance, now).is_none() => questions.push(Question {
                uid: instance.uid.clone(),
                what: format!("pod {}", instance.name),
                newest_counts: true,
            }),
            None => {}
        }
    }
    let missing = i32::try_from(observed.instances.len()).unwrap_or(i32::MAX) < replicas;
    if let (true, Some(set)) = (missing, &observed.stateful_set) {
        questions.push(Question {
            uid: set.uid().unwrap_or_default(),
            what: format!("StatefulSet {}", set.name_any()),
            newest_counts: true,
        });
    }
    questions
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
    config_hash: &str,
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
        lasts && !i.terminating && (!i.ready || i.report.config_hash != config_hash)
    };
    let agents = observed.instances.iter().filter(astray).filter_map(of_agent);
    pods.chain(sets).chain(agents).next()
}

fn of_pod(
    observed: &Observed,
    instance: &Instance,
    words: &BTreeMap<String, Words>,
    now: Timestamp,
) -> Option<Problem> {
    let name = &instance.name;
    if let Some(claim) = volumes::pending(observed, &instance.pod)
        && let Some(words) = words.get(&claim.uid)
    {
        return Some(Problem::new(
            &words.reason,
            format!("volume {} of pod {name}: {}", claim.name, words.message),
        ));
    }
    if let Some(seconds) = unscheduled(instance, now) {
        return (seconds >= PATIENCE_SECONDS)
            .then(|| pods::waits_for(&instance.pod))
            .flatten()
            .map(|text| problem(name, &text));
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
mod tests {
    use super::*;
    use crate::plan::fixtures::{claim, instance_of, now, observed, running};
    use serde_json::json;

    fn stuck(status: serde_json::Value) -> Observed {
        let mut seen = observed("instances: 1");
        seen.stateful_set = Some(running(1, "d1"));
        seen.instances = vec![instance_of(json!({
            "metadata": {"name": "orders-0", "namespace": "shop", "uid": "pod-0", "creationTimestamp": "2026-11-21T08:59:00Z",
                "labels": {"holdfast.dev/database": "orders", "holdfast.dev/component": "instance"}},
            "spec": {"containers": [], "volumes": [{"name": "d1", "persistentVolumeClaim": {"claimName": "d1-orders-0"}}]},
            "status": status
        }))];
        seen
    }

    #[test]
    fn an_image_that_does_not_exist_is_told_at_once() {
        let seen = stuck(
            json!({"containerStatuses": [{"name": "postgres", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}),
        );
        let problem = diagnose(&seen, "c1", &BTreeMap::new(), now()).unwrap();
        assert_eq!(
            (problem.reason.as_str(), problem.message.as_str()),
            ("ErrImagePull", "pod orders-0: not found")
        );
    }

    #[test]
    fn a_volume_that_cannot_be_made_speaks_before_the_scheduler() {
        let status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "unbound claims", "lastTransitionTime": "2026-11-21T08:59:00Z"}]});
        let mut seen = stuck(status);
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()).unwrap().reason, "Unschedulable");
        let mut pending = (*claim("d1", 0, "current")).clone();
        pending.status.get_or_insert_default().phase = Some("Pending".into());
        seen.claims = vec![std::sync::Arc::new(pending)];
        let asked = questions(&seen, 1, now());
        assert_eq!(asked[0].what, "volume d1-orders-0");
        let words =
            Words { reason: "ProvisioningFailed".into(), message: "storageclass \"fast\" not found".into() };
        let problem = diagnose(&seen, "c1", &[(asked[0].uid.clone(), words)].into(), now()).unwrap();
        assert_eq!(problem.reason, "ProvisioningFailed");
        assert!(problem.message.contains("\"fast\" not found"));
    }

    #[test]
    fn a_missing_secret_names_those_that_are_needed() {
        let seen = stuck(
            json!({"containerStatuses": [{"name": "postgres", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
        );
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()), None);
        let asked = questions(&seen, 1, now());
        assert_eq!(asked[0].what, "pod orders-0");
        let words = Words { reason: "FailedMount".into(), message: "secret \"orders-app\" not found".into() };
        let problem = diagnose(&seen, "c1", &[("pod-0".to_string(), words)].into(), now()).unwrap();
        assert!(
            problem.message.contains("orders-app, orders-replication, orders-tls"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn the_agents_error_is_passed_on_with_its_reason() {
        let mut seen = stuck(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        seen.instances[0].report.error = "DiskFull: 12 MiB are left on the volume".into();
        seen.errors_since = [("pod-0".to_string(), now())].into();
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()), None, "it may get over it");
        seen.errors_since = [("pod-0".to_string(), now() - std::time::Duration::from_secs(6))].into();
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()).unwrap().reason, "DiskFull");
        seen.instances[0].report.error = "pg_rewind: could not read".into();
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()).unwrap().reason, "InstanceError");
        seen.instances[0].report.config_hash = "c1".into();
        assert_eq!(diagnose(&seen, "c1", &BTreeMap::new(), now()), None, "it serves as it should");
    }
}
