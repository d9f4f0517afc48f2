//! Workers' Jobs: how this operator labels them, and what one of them says. Reads pods and events, writes nothing.

use crate::context::Context;
use holdfast_core::{
    BackupStoreSpec,
    pods::{self, WorkerState},
    wire::WorkerResult,
};
use holdfast_runtime::apply::bounded;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Event, Pod},
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt, api::ListParams};
use std::collections::BTreeMap;

/// Label: what a worker's Job is for.
pub const LABEL_PURPOSE: &str = "holdfast.dev/purpose";
/// Label: the BackupStore that a worker's Job works with.
pub const LABEL_STORE: &str = "holdfast.dev/store";
/// Label: uid of the object that a worker's Job works for. Not always its owner.
pub const LABEL_FOR: &str = "holdfast.dev/for";
/// Annotation: the number of the attempt.
pub const ANNOTATION_NUMBER: &str = "holdfast.dev/attempt";

/// Probes of a store.
pub const PROBE: &str = "probe";
/// Backups.
pub const BACKUP: &str = "backup";
/// Retention.
pub const RETENTION: &str = "retention";
/// Removal of one backup's data.
pub const REMOVAL: &str = "removal";

/// A pod that is not started after so many seconds is asked why.
const SLOW: i64 = 15;

/// Marks a Job, so that it is found again and its place in the store is counted.
pub fn mark(job: &mut Job, purpose: &str, store: &str, for_uid: &str, number: i64) {
    let labels = job.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(LABEL_PURPOSE.into(), purpose.into());
    labels.insert(LABEL_STORE.into(), store.into());
    labels.insert(LABEL_FOR.into(), for_uid.into());
    job.metadata
        .annotations
        .get_or_insert_with(BTreeMap::new)
        .insert(ANNOTATION_NUMBER.into(), number.to_string());
}

/// Whether a Job works for this object with this purpose.
pub fn is_for(job: &Job, purpose: &str, uid: &str) -> bool {
    let labels = job.labels();
    labels.get(LABEL_PURPOSE).is_some_and(|p| p == purpose) && labels.get(LABEL_FOR).is_some_and(|u| u == uid)
}

/// The selector for what [`is_for`] finds.
pub fn selector(purpose: &str, uid: &str) -> String {
    format!("{LABEL_PURPOSE}={purpose},{LABEL_FOR}={uid}")
}

/// Number of the attempt; 0 for a Job of unknown origin.
pub fn number(job: &Job) -> i64 {
    job.annotations().get(ANNOTATION_NUMBER).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// When a Job was over.
pub fn ended_at(job: &Job) -> Option<Timestamp> {
    let status = job.status.as_ref()?;
    let over = status
        .conditions
        .iter()
        .flatten()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let time = status.completion_time.as_ref().or(over.last_transition_time.as_ref());
    Some(time.map_or_else(|| created(job), |t| t.0))
}

/// When a Job was made.
pub fn created(job: &Job) -> Timestamp {
    job.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
}

/// What is known of a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// It works, or is about to.
    Running,
    /// Its pod does not start.
    Waiting {
        /// Since so many seconds.
        seconds: i64,
        /// CamelCase.
        reason: String,
        /// In Kubernetes' words where there are any.
        message: String,
        /// Kubernetes itself says that something is wrong, so waiting longer is of little use.
        wrong: bool,
    },
    /// It is over.
    Ended(WorkerResult),
}

/// Whether pods must be read to judge a Job: when it is over, or its pod is slow to start.
pub fn worth_a_look(job: &Job, now: Timestamp) -> bool {
    let started = job.status.as_ref().and_then(|s| s.ready).unwrap_or(0) > 0;
    ended_at(job).is_some() || (!started && now.duration_since(created(job)).as_secs() >= SLOW)
}

/// Judges a Job by what was read of it. `words`: the newest warning that Kubernetes recorded about it.
pub fn judge(job: &Job, pods: &[Pod], words: Option<&str>, store: &BackupStoreSpec, now: Timestamp) -> Seen {
    let waits = match pods::worker_state(job, pods) {
        WorkerState::Ended(result) => return Seen::Ended(result),
        WorkerState::Running(waits) => waits,
    };
    if ended_at(job).is_some() {
        return Seen::Ended(WorkerResult::Failed {
            reason: "ResultLost".into(),
            message: format!(
                "Job {} ended, but its pod was removed before its result was read",
                job.name_any()
            ),
            permanent: false,
        });
    }
    let seconds = now.duration_since(created(job)).as_secs();
    if let Some(words) = waits {
        return Seen::Waiting { seconds, reason: reason(&words), message: words, wrong: true };
    }
    if seconds < SLOW || pods.iter().any(runs) {
        return Seen::Running;
    }
    match words {
        Some(words) => Seen::Waiting { seconds, reason: reason(words), message: words.into(), wrong: true },
        None => Seen::Waiting {
            seconds,
            reason: "PodNotStarted".into(),
            message: format!("the pod of Job {} is not started yet; {}", job.name_any(), needs(store)),
            wrong: false,
        },
    }
}

fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()))
}

/// What a pod needs before it can start, for when Kubernetes gives no reason.
fn needs(store: &BackupStoreSpec) -> String {
    let mut parts = Vec::new();
    if let Some(volume) = &store.volume {
        parts.push(format!("PersistentVolumeClaim {}", volume.claim_name));
    }
    if let Some(s3) = &store.s3 {
        parts.extend(
            s3.credentials_secret_ref.iter().chain(&s3.ca_secret_ref).map(|s| format!("Secret {}", s.name)),
        );
    }
    if parts.is_empty() {
        "it needs an image and a node".into()
    } else {
        format!("it needs {}", parts.join(" and "))
    }
}

/// A CamelCase reason for Kubernetes' words.
fn reason(words: &str) -> String {
    let lower = words.to_ascii_lowercase();
    if lower.contains("not found") {
        for (kind, reason) in [
            ("persistentvolumeclaim", "ClaimNotFound"),
            ("configmap", "ConfigMapNotFound"),
            ("secret", "SecretNotFound"),
        ] {
            if lower.contains(kind) {
                return reason.into();
            }
        }
    }
    let first = words.split(':').next().unwrap_or_default();
    let camel = first.starts_with(|c: char| c.is_ascii_uppercase())
        && first.chars().all(|c| c.is_ascii_alphanumeric());
    if camel { first.into() } else { "PodNotStarted".into() }
}

/// Looks at a worker: its pods if need be, and, when nothing else explains a pod that does not start, the events about it.
///
/// Errors: pods cannot be read. Events are a help only: an operator that may not read them says less.
pub async fn look(
    ctx: &Context,
    job: &Job,
    store: &BackupStoreSpec,
    now: Timestamp,
) -> Result<Seen, kube::Error> {
    if !worth_a_look(job, now) {
        return Ok(Seen::Running);
    }
    let namespace = job.namespace().unwrap_or_default();
    let pods = ctx.api::<Pod>(&namespace);
    let by_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", job.name_any()));
    let pods = bounded(pods.list(&by_job)).await?.items;
    let seen = judge(job, &pods, None, store, now);
    let Seen::Waiting { wrong: false, .. } = seen else { return Ok(seen) };
    // Without a pod the Job's own events say why there is none.
    let uid = pods.first().map_or_else(|| job.uid(), ResourceExt::uid).unwrap_or_default();
    let events = ctx.api::<Event>(&namespace);
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(50);
    let words = match bounded(events.list(&about)).await {
        Ok(list) => newest(list.items),
        Err(error) => {
            tracing::debug!(error = %error, "cannot read events, which would say why a pod does not start");
            None
        }
    };
    Ok(judge(job, &pods, words.as_deref(), store, now))
}

fn newest(events: Vec<Event>) -> Option<String> {
    let when = |e: &Event| {
        let series = e.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
        series.or(e.last_timestamp.as_ref().map(|t| t.0)).or(e.event_time.as_ref().map(|t| t.0)).or(e
            .meta()
            .creation_timestamp
            .as_ref()
            .map(|t| t.0))
    };
    events.into_iter().max_by_key(when).and_then(|e| e.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::{
        batch::v1::{JobCondition, JobStatus},
        core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, PodCondition, PodStatus},
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn job() -> Job {
        let mut job = Job::default();
        job.metadata.name = Some("hfp-d123".into());
        job.metadata.creation_timestamp = Some(Time(at(1_000)));
        job
    }

    fn over(kind: &str) -> Job {
        Job {
            status: Some(JobStatus {
                conditions: Some(vec![JobCondition {
                    type_: kind.into(),
                    status: "True".into(),
                    last_transition_time: Some(Time(at(1_100))),
                    ..JobCondition::default()
                }]),
                ..JobStatus::default()
            }),
            ..job()
        }
    }

    fn store() -> BackupStoreSpec {
        serde_json::from_value(
            serde_json::json!({"s3": {"bucket": "b", "credentialsSecretRef": {"name": "s3"}}}),
        )
        .unwrap()
    }

    #[test]
    fn a_worker_is_judged_by_what_there_is() {
        assert_eq!(judge(&job(), &[], None, &store(), at(1_005)), Seen::Running);
        let Seen::Waiting { message, reason, wrong: false, .. } =
            judge(&job(), &[], None, &store(), at(1_020))
        else {
            panic!("slow")
        };
        assert!(message.contains("Secret s3") && reason == "PodNotStarted", "{message}");
        let words = r#"MountVolume.SetUp failed for volume "store-credentials" : secret "s3" not found"#;
        assert_eq!(
            judge(&job(), &[], Some(words), &store(), at(1_020)),
            Seen::Waiting {
                seconds: 20,
                reason: "SecretNotFound".into(),
                message: words.into(),
                wrong: true
            }
        );
        let unscheduled = Pod {
            status: Some(PodStatus {
                conditions: Some(vec![PodCondition {
                    type_: "PodScheduled".into(),
                    status: "False".into(),
                    reason: Some("Unschedulable".into()),
                    message: Some(r#"persistentvolumeclaim "backups" not found"#.into()),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        let seen = judge(&job(), std::slice::from_ref(&unscheduled), None, &store(), at(1_020));
        assert!(matches!(seen, Seen::Waiting { reason, .. } if reason == "ClaimNotFound"));
    }

    #[test]
    fn a_worker_that_is_over_has_a_result_whatever_happened_to_its_pod() {
        let lost = judge(&over("Complete"), &[], None, &store(), at(1_200));
        assert!(
            matches!(lost, Seen::Ended(WorkerResult::Failed { reason, permanent: false, .. }) if reason == "ResultLost")
        );
        let failed = judge(&over("Failed"), &[], None, &store(), at(1_200));
        assert!(matches!(failed, Seen::Ended(WorkerResult::Failed { reason, .. }) if reason == "JobFailed"));
        let pod = Pod {
            status: Some(PodStatus {
                container_statuses: Some(vec![ContainerStatus {
                    state: Some(ContainerState {
                        terminated: Some(ContainerStateTerminated {
                            message: Some(r#"{"outcome":"probed"}"#.into()),
                            ..ContainerStateTerminated::default()
                        }),
                        ..ContainerState::default()
                    }),
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        let seen = judge(&over("Complete"), std::slice::from_ref(&pod), None, &store(), at(1_200));
        assert_eq!(seen, Seen::Ended(WorkerResult::Probed));
        assert_eq!(ended_at(&over("Failed")), Some(at(1_100)));
    }

    #[test]
    fn pods_are_read_only_when_there_is_something_to_learn() {
        assert!(!worth_a_look(&job(), at(1_005)));
        assert!(worth_a_look(&job(), at(1_020)));
        let running = Job { status: Some(JobStatus { ready: Some(1), ..JobStatus::default() }), ..job() };
        assert!(!worth_a_look(&running, at(90_000)));
        assert!(worth_a_look(&over("Complete"), at(1_001)));
    }

    #[test]
    fn reasons_are_camel_case() {
        for (words, expected) in [
            ("ImagePullBackOff: Back-off pulling image", "ImagePullBackOff"),
            ("Unschedulable: 0/3 nodes are available", "Unschedulable"),
            ("Error creating: pods \"x\" is forbidden", "PodNotStarted"),
            ("secret \"orders-tls\" not found", "SecretNotFound"),
        ] {
            assert_eq!(reason(words), expected);
        }
    }
}
