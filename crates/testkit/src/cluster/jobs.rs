//! The controller of Jobs, as far as Jobs without indexes and pod failure policies go.

use super::desk::{Desk, JOBS, TTL, condition, controller_of, is_going, owned_by};
use crate::rest::{finalizers, meta, set_meta};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Held by a Job's pods until they are counted.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// After so long a create that was refused is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The pause after the first failed pod; it doubles up to the longest.
const BACKOFF: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

pub(super) fn sync(desk: &mut Desk<'_>) {
    for job in desk.all(desk.at.jobs) {
        one(desk, &job);
    }
    // What a Job left behind is not held any longer.
    for pod in desk.all(desk.at.pods) {
        let tracked = finalizers(&pod).iter().any(|f| f == TRACKING);
        if tracked && !desk.all(desk.at.jobs).iter().any(|job| owns(job, &pod)) {
            untrack(desk, &pod);
        }
    }
}

fn owns(job: &Value, pod: &Value) -> bool {
    controller_of(pod).is_some_and(|owner| owner["uid"] == job["metadata"]["uid"])
}

fn untrack(desk: &mut Desk<'_>, pod: &Value) {
    let Some(pod) = desk.get(desk.at.pods, meta(pod, "namespace"), meta(pod, "name")) else { return };
    let mut others = finalizers(&pod);
    let before = others.len();
    others.retain(|f| f != TRACKING);
    if others.len() < before {
        let mut new = Value::clone(&pod);
        set_meta(&mut new, "finalizers", json!(others));
        desk.update(JOBS, desk.at.pods, new, "");
    }
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn is_over(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&phase(pod))
}

fn number(object: &Value, field: &str) -> i64 {
    object.get(field).and_then(Value::as_i64).unwrap_or(0)
}

fn one(desk: &mut Desk<'_>, job: &Arc<Value>) {
    let pods: Vec<Arc<Value>> =
        desk.within(desk.at.pods, meta(job, "namespace")).into_iter().filter(|pod| owns(job, pod)).collect();
    if ["Complete", "Failed"].iter().any(|c| condition(job, c) == "True") {
        pods.iter().for_each(|pod| untrack(desk, pod));
        expire(desk, job);
        return;
    }
    let spec = &job["spec"];
    let only_failed = spec["podReplacementPolicy"] == "Failed";
    let failed =
        |pod: &Value| phase(pod) == "Failed" || (is_going(pod) && phase(pod) != "Succeeded" && !only_failed);
    let tracked = |pod: &&Arc<Value>| finalizers(pod).iter().any(|f| f == TRACKING);
    let uids = |which: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        pods.iter().filter(tracked).filter(|p| which(p)).map(|p| p["metadata"]["uid"].clone()).collect()
    };
    let (new_succeeded, new_failed) = (uids(&|p| phase(p) == "Succeeded"), uids(&failed));
    let active: Vec<&Arc<Value>> = pods.iter().filter(|p| !is_over(p) && !is_going(p)).collect();
    let terminating = pods.iter().filter(|p| !is_over(p) && is_going(p)).count();

    let mut status = job["status"].as_object().cloned().map_or_else(|| json!({}), Value::Object);
    let suspended = spec["suspend"] == true;
    if status.get("startTime").is_none() && !suspended {
        status["startTime"] = desk.stamp().into();
    }
    set(&mut status, "active", active.len());
    status["ready"] = active.iter().filter(|p| condition(p, "Ready") == "True").count().into();
    status["terminating"] = terminating.into();
    let count = |list: &[Value]| i64::try_from(list.len()).unwrap_or(i64::MAX);
    let succeeded = number(&status, "succeeded") + count(&new_succeeded);
    let failed = number(&status, "failed") + count(&new_failed);

    let decided = ["FailureTarget", "SuccessCriteriaMet"].iter().any(|c| condition(job, c) == "True");
    if !decided
        && let Some((kind, reason, message)) = verdict(desk, job, &status, succeeded, failed, active.len())
    {
        add_condition(desk, &mut status, kind, reason, message);
    }
    let has = |status: &Value, kind: &str| condition(&json!({ "status": status }), kind) == "True";
    let (failing, done) = (has(&status, "FailureTarget"), has(&status, "SuccessCriteriaMet"));

    let mut job = Arc::clone(job);
    if !new_succeeded.is_empty() || !new_failed.is_empty() {
        // Written down before the finalizers come off, so that no pod is lost and none counts twice.
        status["uncountedTerminatedPods"] = json!({"succeeded": new_succeeded, "failed": new_failed});
        job = desk.set_status(JOBS, desk.at.jobs, &job, status.clone()).0;
        for pod in pods.iter().filter(tracked) {
            let uid = &pod["metadata"]["uid"];
            if new_succeeded.contains(uid) || new_failed.contains(uid) {
                untrack(desk, pod);
            }
        }
        set(&mut status, "succeeded", succeeded);
        set(&mut status, "failed", failed);
    }
    status["uncountedTerminatedPods"] = json!({});

    if failing || done || suspended {
        active.iter().for_each(|pod| desk.delete(JOBS, desk.at.pods, pod, None, ""));
        if !suspended && active.is_empty() && terminating == 0 {
            conclude(desk, &mut status, done);
        }
    } else if !is_going(&job) {
        let in_the_way = if only_failed { terminating } else { 0 };
        let made = start(desk, &job, succeeded, failed, active.len() + in_the_way);
        set(&mut status, "active", active.len() + made);
    }
    desk.set_status(JOBS, desk.at.jobs, &job, status);
}

/// Sets a number that is left out when it is zero.
fn set<N: Into<Value>>(status: &mut Value, field: &str, value: N) {
    let value = value.into();
    if let Some(fields) = status.as_object_mut() {
        if value == 0 {
            fields.remove(field);
        } else {
            fields.insert(field.into(), value);
        }
    }
}

fn verdict(
    desk: &mut Desk<'_>,
    job: &Value,
    status: &Value,
    succeeded: i64,
    failed: i64,
    active: usize,
) -> Option<(&'static str, &'static str, &'static str)> {
    let spec = &job["spec"];
    if failed > spec["backoffLimit"].as_i64().unwrap_or(6) {
        let message = "Job has reached the specified backoff limit";
        return Some(("FailureTarget", "BackoffLimitExceeded", message));
    }
    if let (Some(seconds), false) = (spec["activeDeadlineSeconds"].as_i64(), spec["suspend"] == true) {
        let left = left(desk, &status["startTime"], seconds);
        if left.is_zero() {
            let message = "Job was active longer than specified deadline";
            return Some(("FailureTarget", "DeadlineExceeded", message));
        }
        desk.remind(desk.now + left);
    }
    let complete = match spec["completions"].as_i64() {
        Some(completions) => succeeded >= completions,
        None => succeeded > 0 && active == 0,
    };
    complete.then_some((
        "SuccessCriteriaMet",
        "CompletionsReached",
        "Reached expected number of succeeded pods",
    ))
}

/// The time until so many seconds after a moment have passed.
fn left(desk: &Desk<'_>, since: &Value, seconds: i64) -> Duration {
    let since = since.as_str().and_then(|t| t.parse::<Timestamp>().ok());
    let end = since.and_then(|t| t.checked_add(SignedDuration::from_secs(seconds)).ok());
    let left = end.map(|end| end.duration_since(desk.state.clock.now()));
    left.and_then(|left| Duration::try_from(left).ok()).unwrap_or(Duration::ZERO)
}

fn add_condition(desk: &Desk<'_>, status: &mut Value, kind: &str, reason: &str, message: &str) {
    let now = desk.stamp();
    let new = json!({"type": kind, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": now, "lastTransitionTime": now});
    match status["conditions"].as_array_mut() {
        Some(all) => all.push(new),
        None => status["conditions"] = json!([new]),
    }
}

/// The last word: Complete or Failed, for the reason that was found before.
fn conclude(desk: &Desk<'_>, status: &mut Value, done: bool) {
    let (because, kind) = if done { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let Some(why) = all.iter().find(|c| c["type"] == because) else { return };
    let text = |field: &str| why[field].as_str().unwrap_or_default().to_string();
    add_condition(desk, status, kind, &text("reason"), &text("message"));
    if done {
        status["completionTime"] = desk.stamp().into();
    }
}

/// Makes missing pods, not before a failure's pause is over. Returns how many.
fn start(desk: &mut Desk<'_>, job: &Value, succeeded: i64, failed: i64, active: usize) -> usize {
    let spec = &job["spec"];
    let parallel = spec["parallelism"].as_i64().unwrap_or(1);
    let open = spec["completions"].as_i64().map_or(parallel, |c| parallel.min(c - succeeded));
    let missing = usize::try_from(open).unwrap_or(0).saturating_sub(active);
    if missing == 0 {
        return 0;
    }
    if failed > 0 {
        let doublings = u32::try_from(failed - 1).unwrap_or(u32::MAX).min(10);
        let pause = BACKOFF.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST);
        if !desk.waited(format!("job {} after {failed} failures", meta(job, "uid")), pause) {
            return 0;
        }
    }
    (0..missing).take_while(|_| create(desk, job)).count()
}

fn create(desk: &mut Desk<'_>, job: &Value) -> bool {
    let (namespace, name) = (meta(job, "namespace"), meta(job, "name"));
    let template = &job["spec"]["template"];
    let mut metadata = json!({"generateName": format!("{name}-"), "ownerReferences": [owned_by(job)],
        "finalizers": [TRACKING]});
    for field in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let pod = json!({"metadata": metadata, "spec": template["spec"]});
    let made = match desk.without_account(namespace, &pod) {
        Some(words) => Err(format!("pods \"{name}-\" is forbidden: {words}")),
        None => desk.create(JOBS, desk.at.pods, namespace, pod).map_err(|refusal| refusal.message),
    };
    if let Err(words) = &made {
        desk.tell(JOBS, job, "Warning", "FailedCreate", &format!("Error creating: {words}"));
        desk.remind(desk.now + RETRY);
    }
    made.is_ok()
}

/// Deletes a Job whose time after its end is over.
fn expire(desk: &mut Desk<'_>, job: &Value) {
    let Some(seconds) = job["spec"]["ttlSecondsAfterFinished"].as_i64() else { return };
    let all = job["status"]["conditions"].as_array();
    let over = all.into_iter().flatten().find(|c| c["type"] == "Complete" || c["type"] == "Failed");
    let Some(over) = over.filter(|_| !is_going(job)) else { return };
    let left = left(desk, &over["lastTransitionTime"], seconds);
    if left.is_zero() {
        desk.delete(TTL, desk.at.jobs, job, None, "Foreground");
    } else {
        desk.remind(desk.now + left);
    }
}
