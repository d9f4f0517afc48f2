//! The status of a Backup: derived from the step, and written when it says something new. Touches only that.

use crate::{
    backup::{
        is_final,
        observe::Observed,
        plan::{self, Outcome, Step},
    },
    context::Context,
    jobs,
};
use holdfast_core::{
    Backup, BackupStatus, BackupStoreSpec,
    conditions::{self, Truth, condition, types},
    crd::LocalRef,
    names::managers,
};
use holdfast_runtime::apply;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the Backup")]
pub struct Error(#[source] kube::Error);

/// Where a backup lies, for people and for a bucket's own tools.
pub fn location(store: Option<&BackupStoreSpec>, below: &str) -> String {
    if below.contains("://") {
        return below.into();
    }
    let below = below.trim_matches('/');
    let join = |parts: &[&str]| {
        parts.iter().map(|p| p.trim_matches('/')).filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/")
    };
    match store {
        Some(BackupStoreSpec { s3: Some(s3), .. }) => {
            format!("s3://{}", join(&[&s3.bucket, &s3.prefix, below]))
        }
        Some(BackupStoreSpec { volume: Some(v), .. }) => {
            format!("volume://{}", join(&[&v.claim_name, &v.path, below]))
        }
        _ => below.into(),
    }
}

struct Say<'a> {
    status: &'a mut BackupStatus,
    generation: Option<i64>,
    now: Timestamp,
}

impl Say<'_> {
    fn set(&mut self, type_: &str, truth: Truth, reason: &str, message: &str) {
        conditions::set(
            &mut self.status.conditions,
            condition(type_, truth, reason, message, self.generation, self.now),
        );
    }

    fn all(&mut self, phase: &str, succeeded: Truth, reason: &str, message: &str, stalled: bool) {
        self.status.phase = Some(phase.into());
        self.set(types::SUCCEEDED, succeeded, reason, message);
        self.set(types::READY, succeeded, reason, message);
        self.set(types::STALLED, stalled.into(), reason, if stalled { message } else { "" });
        if conditions::find(&self.status.conditions, types::VERIFIED).is_none() {
            self.set(types::VERIFIED, Truth::Unknown, "NotVerified", "no restore has tried this backup yet");
        }
    }
}

/// The status that goes with a step.
pub fn of(o: &Observed, step: &Step, now: Timestamp) -> BackupStatus {
    let mut status = o.backup.status.clone().unwrap_or_default();
    let generation = o.backup.metadata.generation;
    if matches!(step, Step::Restamp) {
        status.observed_generation = generation;
        status.conditions.iter_mut().for_each(|c| c.observed_generation = generation);
        return status;
    }
    // What is over stays as it is, and a Backup that goes has nothing more to say.
    if is_final(&o.backup) || o.backup.metadata.deletion_timestamp.is_some() {
        return status;
    }
    let attempts = plan::attempts(o);
    if attempts > 0 {
        status.attempts = i32::try_from(attempts).ok();
        status.store = status.store.or_else(|| o.store_name().map(|name| LocalRef { name }));
        let first = o.jobs.first().map(|j| Time(jobs::created(j)));
        status.start_time = status.start_time.or(first);
    }
    let mut say = Say { status: &mut status, generation, now };
    let attempt = format!("attempt {attempts} of {}", o.backup.spec.retries + 1);
    match step {
        Step::Wait(wait) => {
            let phase = if attempts > 0 { "Running" } else { "Pending" };
            say.all(phase, Truth::Unknown, &wait.reason, &wait.message, wait.stalled);
        }
        Step::Watch(None) => {
            say.all("Running", Truth::Unknown, "Running", &format!("{attempt} is under way"), false)
        }
        Step::Watch(Some((reason, message))) => {
            say.all(
                "Running",
                Truth::Unknown,
                reason,
                &format!("{attempt} has not started: {message}"),
                false,
            );
        }
        Step::Abandon(_, reason, message) => say.all("Running", Truth::Unknown, reason, message, false),
        Step::Finish(Outcome::Succeeded { location: below, size, stored_size, backup_time, postgresql }) => {
            let place = location(o.store.as_ref().map(|s| &s.spec), below);
            say.all("Succeeded", Truth::True, "BackedUp", "in the store, and read back", false);
            status.backup_location = Some(place);
            status.size = Some(*size);
            status.stored_size = Some(*stored_size);
            status.backup_time = backup_time.parse().ok().map(Time).or(Some(Time(now)));
            status.completion_time = Some(Time(ended(o, now)));
            status.postgresql = Some(postgresql.clone());
            status.type_ = Some("Full".into());
        }
        Step::Finish(Outcome::Failed { reason, message }) => {
            say.all("Failed", Truth::False, reason, message, true);
            status.completion_time = Some(Time(ended(o, now)));
        }
        // These write something else, or nothing; what status says stays true.
        Step::Rest
        | Step::Restamp
        | Step::SetFinalizer(_)
        | Step::TakeLease
        | Step::Start(_)
        | Step::ReleaseLease(_)
        | Step::RemoveJobs(_)
        | Step::StartRemoval(_)
        | Step::LetGo(_) => return o.backup.status.clone().unwrap_or_default(),
    }
    status.observed_generation = generation;
    status
}

fn ended(o: &Observed, now: Timestamp) -> Timestamp {
    o.jobs.last().and_then(|j| jobs::ended_at(j)).unwrap_or(now)
}

/// Whether the step's status says something that is not written yet.
pub fn differs(o: &Observed, step: &Step, now: Timestamp) -> bool {
    let new = of(o, step, now);
    o.backup.status.as_ref().map_or_else(|| new != BackupStatus::default(), |old| *old != new)
}

/// Writes the step's status, if it says something new, and tells how the Backup ended.
pub async fn write(ctx: &Context, o: &Observed, step: &Step, now: Timestamp) -> Result<(), Error> {
    let backup = o.backup.as_ref();
    if let (Some(_), Step::Wait(wait)) = (&backup.metadata.deletion_timestamp, step) {
        ctx.events.normal(backup, &wait.reason, "Delete", &wait.message).await;
    }
    if !differs(o, step, now) {
        return Ok(());
    }
    let new = of(o, step, now);
    let api = ctx.api::<Backup>(&backup.namespace().unwrap_or_default());
    apply::status(&api, managers::BACKUP, backup, &new).await.map_err(Error)?;
    match step {
        Step::Finish(Outcome::Succeeded { .. }) => {
            ctx.results.ended(true);
            let place = new.backup_location.unwrap_or_default();
            ctx.events
                .normal(backup, "BackedUp", "Backup", &format!("in the store and read back: {place}"))
                .await;
        }
        Step::Finish(Outcome::Failed { reason, message }) => {
            ctx.results.ended(false);
            ctx.events.warning(backup, reason, "Backup", message).await;
        }
        Step::Abandon(_, reason, message) => ctx.events.warning(backup, reason, "Backup", message).await,
        _ => {}
    }
    Ok(())
}
