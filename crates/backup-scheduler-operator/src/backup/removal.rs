//! The deletion of a Backup whose `spec.deletionPolicy` is Delete: the data goes first, the object then. Pure.

use crate::{
    backup::{
        observe::{Observed, Removal},
        plan::{Step, Wait, backoff},
        succeeded,
    },
    jobs::{self, Seen},
};
use holdfast_core::{
    crd::DeletionPolicy,
    names,
    wire::{HistoryPath, WorkerResult},
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::time::Duration;

/// A deletion waits so many seconds at most for the data to go.
const BOUND: i64 = 600;

/// Where a backup lies, from its location: `…/<namespace>/<database>/<system identifier>/<history>/base/<uid>`.
pub fn history_of(location: &str) -> Option<HistoryPath> {
    let parts: Vec<&str> = location.trim_end_matches('/').split('/').collect();
    let [.., namespace, database, system_identifier, history, base, _uid] = parts[..] else { return None };
    let filled = [namespace, database, system_identifier, history].iter().all(|p| !p.is_empty());
    (base == "base" && filled).then(|| HistoryPath {
        namespace: namespace.into(),
        database: database.into(),
        system_identifier: system_identifier.into(),
        history: history.into(),
    })
}

/// Decides what a Backup that is being deleted needs next.
pub fn next_step(o: &Observed, now: Timestamp) -> Step {
    let backup = &o.backup;
    if !backup.finalizers().iter().any(|f| f == names::FINALIZER) {
        return Step::Rest;
    }
    let go = |reason: &str, message: String| Step::LetGo(Some((reason.into(), message)));
    if backup.spec.deletion_policy == DeletionPolicy::Retain {
        return Step::LetGo(None);
    }
    // Not looked up yet: the step that is taken for sure, so that it will be.
    let Some(removal) = &o.removal else { return Step::LetGo(None) };
    if let Some(schedule) = &removal.kept_by {
        return go(
            "DataKept",
            format!(
                "the data stays: BackupSchedule {schedule} is deleted too, and its deletionPolicy is Retain"
            ),
        );
    }
    if removal.namespace_ends {
        return go(
            "DataKept",
            "the data stays: the namespace is being deleted, no Job can run in it any more".into(),
        );
    }
    let running: Vec<_> = o.jobs.iter().filter(|j| jobs::ended_at(j).is_none()).cloned().collect();
    let gone: Vec<_> = running.iter().filter(|j| j.metadata.deletion_timestamp.is_none()).cloned().collect();
    let began = backup.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    let late = now.duration_since(began).as_secs() > BOUND;
    if !gone.is_empty() {
        return Step::RemoveJobs(gone);
    }
    if matches!(removal.seen, Some(Seen::Ended(WorkerResult::Deleted))) {
        return Step::LetGo(None);
    }
    let location = backup.status.as_ref().and_then(|s| s.backup_location.as_deref()).and_then(history_of);
    if !succeeded(backup) || location.is_none() {
        // What has no manifest is no backup; retention removes such parts.
        return Step::LetGo(None);
    }
    let wait = |reason: &str, message: String| {
        if late {
            go(
                "DataLeft",
                format!(
                    "the data stays in the store, because within {BOUND} s it could not be removed: {message}"
                ),
            )
        } else {
            Step::Wait(Wait { again: Duration::from_secs(15), ..Wait::until(reason, message) })
        }
    };
    if o.store.is_none() {
        let store = o.store_name().unwrap_or_default();
        return wait("StoreNotFound", format!("there is no BackupStore {store} in this namespace"));
    }
    if let Some(restore) = &removal.pinned_by {
        return wait("InUse", format!("Restore {restore} may still read it"));
    }
    attempt(removal, &wait, now)
}

fn attempt(removal: &Removal, wait: &dyn Fn(&str, String) -> Step, now: Timestamp) -> Step {
    let Some(job) = removal.jobs.last() else {
        // Even past the bound one try is made: the operator itself may have been away.
        return Step::StartRemoval(1);
    };
    let number = jobs::number(job);
    match &removal.seen {
        Some(Seen::Ended(result)) => {
            let (reason, message) = match result {
                WorkerResult::Failed { reason, message, .. } => (reason.clone(), message.clone()),
                other => ("UnexpectedResult".into(), format!("the worker answered {other:?}")),
            };
            let due = jobs::ended_at(job).unwrap_or(now).as_second() + backoff(number);
            match wait(&reason, message) {
                Step::Wait(_) if now.as_second() >= due => Step::StartRemoval(number + 1),
                other => other,
            }
        }
        Some(Seen::Waiting { reason, message, .. }) => wait(reason, message.clone()),
        Some(Seen::Running) | None => wait("RemovingData", "a worker removes the data from the store".into()),
    }
}
