//! What a Backup needs next: one step at a time, each derived again from what is observed. Pure.

use crate::{
    backup::{is_final, observe::Observed, ready, removal, succeeded},
    jobs::{self, Seen},
};
use holdfast_core::{
    crd::{DeletionPolicy, backup::PostgresqlBackup},
    names, operation,
    wire::WorkerResult,
};
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{ResourceExt, runtime::controller::Action};
use std::{sync::Arc, time::Duration};

/// A wait, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// CamelCase reason.
    pub reason: String,
    /// A sentence for people, naming fields as in the spec.
    pub message: String,
    /// Only a person can help.
    pub stalled: bool,
    /// When to look again, if no change is heard of before.
    pub again: Duration,
}

impl Wait {
    /// For something that is watched: the change itself wakes us.
    pub fn until(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
            stalled: false,
            again: Duration::from_secs(300),
        }
    }

    /// For a person to put something right that is watched.
    pub fn person(reason: &str, message: impl Into<String>) -> Self {
        Self { stalled: true, ..Self::until(reason, message) }
    }

    /// For something that is not watched.
    pub fn poll(reason: &str, message: impl Into<String>) -> Self {
        Self { again: Duration::from_secs(10), ..Self::until(reason, message) }
    }
}

/// How a Backup ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// In the store, and read back.
    Succeeded {
        /// Where, below the store.
        location: String,
        /// Bytes read.
        size: i64,
        /// Bytes stored.
        stored_size: i64,
        /// When it is consistent, RFC 3339.
        backup_time: String,
        /// Facts.
        postgresql: PostgresqlBackup,
    },
    /// Not in the store, and no further attempt.
    Failed {
        /// CamelCase reason.
        reason: String,
        /// A sentence.
        message: String,
    },
}

/// The next step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Over, and nothing left behind. Never touched again.
    Rest,
    /// Over; only `spec.deletionPolicy` was changed since: say that this is seen.
    Restamp,
    /// Put the finalizer on or take it off, as `spec.deletionPolicy` says.
    SetFinalizer(bool),
    /// Nothing can be done now.
    Wait(Wait),
    /// Take the operation Lease.
    TakeLease,
    /// Make the Job of this attempt.
    Start(i64),
    /// An attempt is under way; the text, if any, says what its pod waits for.
    Watch(Option<(String, String)>),
    /// An attempt's pod did not start in time: remove its Job. Another attempt follows.
    Abandon(Arc<Job>, String, String),
    /// Record how it ended.
    Finish(Outcome),
    /// Let go of the operation Lease with this uid.
    ReleaseLease(String),
    /// Remove Jobs that are of no more use.
    RemoveJobs(Vec<Arc<Job>>),
    /// Deletion: remove the data, attempt number so-and-so.
    StartRemoval(i64),
    /// Deletion: let the object go. The text, if any, says what stays behind: (reason, message).
    LetGo(Option<(String, String)>),
}

impl Step {
    /// What to do until something changes, if the step writes nothing but status.
    pub fn is_rest(&self) -> Option<Action> {
        match self {
            Self::Rest | Self::Restamp => Some(Action::await_change()),
            Self::Wait(wait) => Some(Action::requeue(wait.again)),
            Self::Watch(Some(_)) => Some(Action::requeue(Duration::from_secs(10))),
            Self::Watch(None) => Some(Action::requeue(Duration::from_secs(20))),
            _ => None,
        }
    }
}

/// Seconds to wait after the failure of an attempt: 10, doubling.
pub fn backoff(attempt: i64) -> i64 {
    10i64 << (attempt - 1).clamp(0, 9)
}

/// The uid of the operation Lease, if this Backup holds it.
pub fn held(observed: &Observed) -> Option<&str> {
    let lease = observed.lease.as_deref()?;
    let uid = observed.backup.metadata.uid.as_deref()?;
    operation::held_by(lease, uid).then(|| operation::token(lease)).flatten()
}

/// Attempts begun so far. A Job that exists counts, even if a crash came before its number was written down.
pub fn attempts(observed: &Observed) -> i64 {
    let written = observed.backup.status.as_ref().and_then(|s| s.attempts).map_or(0, i64::from);
    observed.jobs.iter().map(|j| jobs::number(j)).max().unwrap_or(0).max(written)
}

/// Decides.
pub fn next_step(observed: &Observed, now: Timestamp) -> Step {
    let backup = &observed.backup;
    if backup.metadata.deletion_timestamp.is_some() {
        return removal::next_step(observed, now);
    }
    let wanted = backup.spec.deletion_policy == DeletionPolicy::Delete;
    if wanted != backup.finalizers().iter().any(|f| f == names::FINALIZER) {
        return Step::SetFinalizer(wanted);
    }
    if is_final(backup) { after_the_end(observed) } else { run(observed, now) }
}

/// What is left to do once the result is safe in status: only then may its source go.
fn after_the_end(observed: &Observed) -> Step {
    if let Some(uid) = held(observed) {
        return Step::ReleaseLease(uid.into());
    }
    // The Jobs of a failure stay for their logs, unless one still waits to start.
    let good = succeeded(&observed.backup);
    let useless: Vec<_> = observed
        .jobs
        .iter()
        .filter(|j| j.metadata.deletion_timestamp.is_none() && (good || jobs::ended_at(j).is_none()))
        .cloned()
        .collect();
    if !useless.is_empty() {
        return Step::RemoveJobs(useless);
    }
    let seen = observed.backup.status.as_ref().and_then(|s| s.observed_generation);
    if seen == observed.backup.metadata.generation { Step::Rest } else { Step::Restamp }
}

fn run(observed: &Observed, now: Timestamp) -> Step {
    let spec = &observed.backup.spec;
    let attempts = attempts(observed);
    let may_retry = attempts <= i64::from(spec.retries);
    let total = i64::from(spec.retries) + 1;
    if attempts == 0 {
        return start(observed, 1);
    }
    let Some(job) = observed.jobs.iter().find(|j| jobs::number(j) == attempts) else {
        return if may_retry {
            start(observed, attempts + 1)
        } else {
            Step::Finish(Outcome::Failed {
                reason: "WorkerVanished".into(),
                message: format!("the Job of attempt {attempts} of {total} was removed before it ended"),
            })
        };
    };
    match &observed.seen {
        Some(Seen::Ended(WorkerResult::BackedUp {
            location,
            size,
            stored_size,
            backup_time,
            postgresql,
        })) => Step::Finish(Outcome::Succeeded {
            location: location.clone(),
            size: *size,
            stored_size: *stored_size,
            backup_time: backup_time.clone(),
            postgresql: postgresql.clone(),
        }),
        Some(Seen::Ended(result)) => {
            let (reason, message, permanent) = match result {
                WorkerResult::Failed { reason, message, permanent } => {
                    (reason.clone(), message.clone(), *permanent)
                }
                other => ("UnexpectedResult".into(), format!("the worker answered {other:?}"), false),
            };
            let message = format!("attempt {attempts} of {total} failed: {message}");
            if permanent || !may_retry {
                return Step::Finish(Outcome::Failed { reason, message });
            }
            let ended = jobs::ended_at(job).unwrap_or(now);
            let left = ended.as_second() + backoff(attempts) - now.as_second();
            if left > 0 {
                // The Lease is kept: a pause of seconds is not worth losing one's turn.
                let again = Duration::from_secs(left.unsigned_abs());
                return Step::Wait(Wait {
                    reason,
                    message: format!("{message}; it is tried again"),
                    stalled: false,
                    again,
                });
            }
            start(observed, attempts + 1)
        }
        Some(Seen::Waiting { seconds, reason, message, .. })
            if *seconds > i64::from(spec.progress_deadline_seconds)
                && job.metadata.deletion_timestamp.is_none() =>
        {
            let message = format!(
                "attempt {attempts} of {total} did not start within spec.progressDeadlineSeconds ({} s): {message}",
                spec.progress_deadline_seconds
            );
            if may_retry {
                Step::Abandon(Arc::clone(job), reason.clone(), message)
            } else {
                Step::Finish(Outcome::Failed { reason: reason.clone(), message })
            }
        }
        Some(Seen::Waiting { reason, message, .. }) => Step::Watch(Some((reason.clone(), message.clone()))),
        Some(Seen::Running) | None => Step::Watch(None),
    }
}

/// Begins an attempt, or says what it waits for. A Backup that waits for others does not keep them waiting for itself:
/// it lets go of the Lease first.
fn start(observed: &Observed, number: i64) -> Step {
    match ready::check(observed) {
        Ok(()) => match held(observed) {
            Some(_) => Step::Start(number),
            None => Step::TakeLease,
        },
        Err(wait) => match held(observed) {
            Some(uid) => Step::ReleaseLease(uid.into()),
            None => Step::Wait(wait),
        },
    }
}
