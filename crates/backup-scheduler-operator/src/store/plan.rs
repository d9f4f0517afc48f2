//! What a BackupStore needs next. Pure.

use crate::{jobs::Seen, store::observe::Observed};
use holdfast_core::{
    BackupStore, BackupStoreStatus,
    conditions::{self, Truth, condition, types},
    crd::store::ProbeStatus,
    ids,
    wire::WorkerResult,
};
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;
use std::{sync::Arc, time::Duration};

/// A store that answered is asked again after so many seconds.
const INTERVAL: i64 = 3600;
/// A probe is given up when Kubernetes has said for so many seconds that its pod cannot start.
const WRONG: i64 = 60;
/// A probe is given up when its pod has not started for so many seconds without a word: an image may be on its way.
const SILENT: i64 = 600;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of the probe to make.
    pub create: Option<i64>,
    /// Jobs of earlier probes, which have said what they had to say.
    pub delete: Vec<Arc<Job>>,
    /// What is known of the store.
    pub status: BackupStoreStatus,
    /// When to look again.
    pub again: Duration,
}

impl Plan {
    /// Whether nothing is to be written.
    pub fn is_nothing(&self, observed: &Observed) -> bool {
        self.create.is_none()
            && self.delete.is_empty()
            && observed.store.status.as_ref() == Some(&self.status)
    }
}

/// The status of a store whose probe is refused by the API server, until a probe has an answer. A store that answered before
/// is not doubted for that.
pub fn refused(
    status: &BackupStoreStatus,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> BackupStoreStatus {
    let mut status = status.clone();
    let answered = conditions::is_true_for(&status.conditions, types::READY, generation);
    let said = [(types::READY, Truth::False), (types::STALLED, Truth::True)];
    for (type_, truth) in said.into_iter().skip(usize::from(answered)) {
        let new = condition(type_, truth, "ProbeRefused", message, generation, now);
        conditions::set(&mut status.conditions, new);
    }
    status
}

/// Name of a probe's Job.
pub fn job_name(uid: &str, generation: i64, number: i64) -> String {
    format!("hfp-{}", ids::short(&format!("probe-{generation}-{number}"), uid))
}

fn last_probe(store: &BackupStore) -> ProbeStatus {
    store.status.as_ref().and_then(|s| s.probe.clone()).unwrap_or_default()
}

/// The probe that is under way: the one after the last that status speaks of, for this generation.
pub fn current<'a>(store: &BackupStore, jobs: &'a [Arc<Job>]) -> Option<&'a Arc<Job>> {
    let name = job_name(
        store.metadata.uid.as_deref().unwrap_or_default(),
        store.metadata.generation.unwrap_or_default(),
        last_probe(store).number + 1,
    );
    jobs.iter().find(|j| j.metadata.name.as_deref() == Some(&name))
}

/// Seconds from a probe to the next one: short at first, because stores are put right soon after they were made.
fn pause(failures: i32) -> i64 {
    match u32::try_from(failures) {
        Ok(0) | Err(_) => INTERVAL,
        Ok(n) => (10i64 << (n - 1).min(5)).min(300),
    }
}

/// Decides.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let store = &observed.store;
    let generation = store.metadata.generation;
    let last = last_probe(store);
    let job = current(store, &observed.jobs);
    let delete =
        observed.jobs.iter().filter(|j| job.is_none_or(|c| c.name_any() != j.name_any())).cloned().collect();
    let mut status = store.status.clone().unwrap_or_default();
    let decided = conditions::find(&status.conditions, types::READY)
        .is_some_and(|c| c.observed_generation == generation && c.status != "Unknown");
    status.observed_generation = generation;
    let mut say = |ready: Truth, reason: &str, message: String| {
        let stalled = ready == Truth::False;
        conditions::set(
            &mut status.conditions,
            condition(types::READY, ready, reason, message.clone(), generation, now),
        );
        conditions::set(
            &mut status.conditions,
            condition(
                types::STALLED,
                stalled.into(),
                reason,
                if stalled { message } else { String::new() },
                generation,
                now,
            ),
        );
    };
    let mut probe = None;
    let mut over = |failures: i32| {
        probe = Some(ProbeStatus {
            number: last.number + 1,
            generation: generation.unwrap_or_default(),
            failures,
            time: Some(Time(now)),
        });
        pause(failures)
    };
    let failed = last.failures.saturating_add(1);
    let mut create = None;
    let again = match (job, &observed.seen) {
        (Some(_), Some(Seen::Ended(WorkerResult::Probed))) => {
            say(Truth::True, "Probed", "an object was written, read back and deleted".into());
            over(0)
        }
        (Some(_), Some(Seen::Ended(WorkerResult::Failed { reason, message, .. }))) => {
            say(Truth::False, reason, message.clone());
            over(failed)
        }
        (Some(_), Some(Seen::Ended(other))) => {
            say(Truth::False, "UnexpectedResult", format!("the probe answered something else: {other:?}"));
            over(failed)
        }
        (Some(_), Some(Seen::Waiting { seconds, reason, message, wrong }))
            if *seconds >= if *wrong { WRONG } else { SILENT } =>
        {
            say(Truth::False, reason, message.clone());
            over(failed)
        }
        // A store that answered an hour ago is not doubted because a pod takes its time.
        (Some(_), Some(Seen::Waiting { reason, message, .. })) if !decided => {
            say(Truth::False, reason, message.clone());
            10
        }
        (Some(_), _) => {
            if !decided {
                say(
                    Truth::Unknown,
                    "Probing",
                    "a worker writes an object, reads it back and deletes it".into(),
                );
            }
            15
        }
        (None, _) => {
            let due = last
                .time
                .as_ref()
                .filter(|_| Some(last.generation) == generation)
                .map_or(0, |t| t.0.as_second() + pause(last.failures) - now.as_second());
            if due <= 0 {
                create = Some(last.number + 1);
                if !decided {
                    say(
                        Truth::Unknown,
                        "Probing",
                        "a worker writes an object, reads it back and deletes it".into(),
                    );
                }
                15
            } else {
                due
            }
        }
    };
    if probe.is_some() {
        status.probe = probe;
    }
    Plan { create, delete, status, again: Duration::from_secs(again.max(1).unsigned_abs()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn store(status: serde_json::Value) -> BackupStore {
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore",
            "metadata": {"name": "main", "namespace": "shop", "uid": "u-1", "generation": 2},
            "spec": {"s3": {"bucket": "b"}}, "status": status
        }))
        .unwrap()
    }

    fn job(number: i64) -> Arc<Job> {
        let mut job = Job::default();
        job.metadata.name = Some(job_name("u-1", 2, number));
        Arc::new(job)
    }

    fn ready(plan: &Plan) -> (String, String, bool) {
        let c = conditions::find(&plan.status.conditions, types::READY).unwrap();
        (c.status.clone(), c.reason.clone(), conditions::is_true(&plan.status.conditions, types::STALLED))
    }

    fn observed(status: serde_json::Value, jobs: Vec<Arc<Job>>, seen: Option<Seen>) -> Observed {
        Observed { store: Arc::new(store(status)), jobs, seen }
    }

    #[test]
    fn a_new_store_is_probed_at_once() {
        let plan = plan(&observed(json!({}), vec![], None), at(5_000));
        assert_eq!(plan.create, Some(1));
        assert_eq!(ready(&plan), ("Unknown".into(), "Probing".into(), false));
    }

    #[test]
    fn a_probe_that_is_refused_is_said_until_one_has_an_answer() {
        let first = plan(&observed(json!({}), vec![], None), at(5_000));
        let status = refused(&first.status, "exceeded quota", Some(2), at(5_000));
        let status = serde_json::to_value(status).unwrap();
        let again = plan(&observed(status.clone(), vec![], None), at(5_010));
        assert_eq!(again.create, Some(1), "it is tried again");
        assert_eq!(ready(&again), ("False".into(), "ProbeRefused".into(), true));
        assert_eq!(serde_json::to_value(&again.status).unwrap(), status, "and nothing is said twice");
        let probed =
            plan(&observed(status, vec![job(1)], Some(Seen::Ended(WorkerResult::Probed))), at(5_020));
        assert_eq!(ready(&probed), ("True".into(), "Probed".into(), false));
        // It answered an hour ago: backups go on.
        let later = refused(&probed.status, "exceeded quota", Some(2), at(9_000));
        assert!(conditions::is_true(&later.conditions, types::READY));
        assert!(conditions::is_true(&later.conditions, types::STALLED));
    }

    #[test]
    fn a_success_is_recorded_and_its_job_removed_afterwards() {
        let first =
            plan(&observed(json!({}), vec![job(1)], Some(Seen::Ended(WorkerResult::Probed))), at(5_000));
        assert_eq!(ready(&first), ("True".into(), "Probed".into(), false));
        assert_eq!(first.again.as_secs(), 3600);
        assert!(first.delete.is_empty(), "the result must be in status before its source goes");
        let status = serde_json::to_value(&first.status).unwrap();
        let second = plan(&observed(status.clone(), vec![job(1)], None), at(5_001));
        assert_eq!(second.delete.len(), 1);
        let third = observed(status.clone(), vec![], None);
        assert!(plan(&third, at(5_002)).is_nothing(&third));
        assert_eq!(plan(&third, at(8_600)).create, Some(2));
    }

    #[test]
    fn a_failure_says_the_stores_words_and_is_tried_again_ever_more_slowly() {
        let failed = Seen::Ended(WorkerResult::Failed {
            reason: "BucketNotFound".into(),
            message: "no such bucket: b".into(),
            permanent: true,
        });
        let mut status = json!({});
        let mut pauses = vec![];
        for n in 1..=7 {
            let plan = plan(&observed(status, vec![job(n)], Some(failed.clone())), at(5_000));
            assert_eq!(ready(&plan), ("False".into(), "BucketNotFound".into(), true));
            pauses.push(plan.again.as_secs());
            status = serde_json::to_value(&plan.status).unwrap();
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_changed_store_is_probed_at_once() {
        let old =
            json!({"probe": {"number": 4, "generation": 1, "failures": 0, "time": "1970-01-01T01:23:20Z"}});
        assert_eq!(plan(&observed(old, vec![], None), at(5_001)).create, Some(5));
    }

    #[test]
    fn a_pod_that_cannot_start_is_told_of_and_given_up() {
        let waiting = |seconds, wrong| {
            Some(Seen::Waiting {
                seconds,
                reason: "SecretNotFound".into(),
                message: "secret \"s3\" not found".into(),
                wrong,
            })
        };
        let early = plan(&observed(json!({}), vec![job(1)], waiting(20, true)), at(5_000));
        assert_eq!(ready(&early), ("False".into(), "SecretNotFound".into(), true));
        assert!(early.status.probe.is_none());
        let late = plan(&observed(json!({}), vec![job(1)], waiting(61, true)), at(5_000));
        assert_eq!(late.status.probe.unwrap().failures, 1);
        let silent = plan(&observed(json!({}), vec![job(1)], waiting(61, false)), at(5_000));
        assert!(silent.status.probe.is_none(), "an image may be on its way");
    }

    #[test]
    fn a_store_that_answered_is_not_doubted_while_the_next_probe_starts() {
        let good = json!({"observedGeneration": 2,
            "probe": {"number": 1, "generation": 2, "failures": 0, "time": "1970-01-01T00:00:00Z"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Probed", "message": "", "observedGeneration": 2,
                "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
        let seen = Some(Seen::Waiting {
            seconds: 20,
            reason: "Unschedulable".into(),
            message: "full".into(),
            wrong: true,
        });
        let plan = plan(&observed(good, vec![job(2)], seen), at(5_000));
        assert!(conditions::is_true(&plan.status.conditions, types::READY));
    }
}
