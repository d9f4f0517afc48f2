//! The one next step of a Restore, worked out anew from what is observed each time. Pure: no client, `now` is an argument.
//!
//! A step is at most one write. Whatever step a crash follows, what is observed afterwards leads to the same end.

mod attempt;
mod back;
mod fill;
mod finish;
mod quiesce;
mod validated;

use attempt::{Attempt, attempt, running};
use back::{deleted, roll_back};
use fill::{database_spec, fill, previous_data_set, volume_size};
use finish::{finish, hand_over, let_go, release};
use quiesce::quiesce;
use validated::{plan, prepare, spec_for_new};

use crate::{
    desired::{self, Filling, Purpose},
    observe::{FollowUp, Observed, SeenWorker},
    status::{self, Say},
    validate::{self, Blocked, Settings},
};
use holdfast_core::{
    Backup, Database, DatabaseSpec, RestoreStatus,
    conditions::{self, Truth, types},
    crd::restore::{Reached, RestorePlan},
    ids, names,
    operation::{self, Mode},
    pods::WorkerState,
    quantity,
    wire::WorkerResult,
};
use k8s_openapi::{
    api::{batch::v1::Job, coordination::v1::Lease, core::v1::PersistentVolumeClaim},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use std::{collections::BTreeMap, time::Duration};

/// Attempts of each worker before the Restore has failed.
pub const ATTEMPTS: u32 = 3;
/// Wait after the first failed attempt; doubled after each further one.
const BACKOFF_SECONDS: i64 = 10;
/// A worker whose pod could not start for so long has failed: with the database down, waiting longer is an outage.
const START_SECONDS: i64 = 600;
/// Silence of the database operator after which a person should look.
const QUIESCE_SECONDS: i64 = 600;
/// How often a thing is looked at again that no watch tells of.
const POLL: Duration = Duration::from_secs(5);
/// The same where nothing but a person's doing is waited for.
const SLOW_POLL: Duration = Duration::from_secs(10);

/// Why no step could be worked out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object could not be put into JSON.
    #[error("an object could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Step {
    /// Whether it makes an object: what the API server may refuse for what is in it, or for want of quota.
    pub fn makes(&self) -> bool {
        matches!(
            self,
            Self::CreateJob(_)
                | Self::CreateLease(_)
                | Self::CreateClaim(_)
                | Self::CreateDatabase(_)
                | Self::CreateBackup(_)
        )
    }
}

/// What to do next: one write, or to wait.
#[derive(Clone, Debug)]
pub enum Step {
    /// Say it.
    Report(Box<RestoreStatus>),
    /// From here on the Restore's deletion has something to take back.
    AddFinalizer,
    /// There is nothing to take back any more.
    RemoveFinalizer,
    /// Start a worker.
    CreateJob(Box<Job>),
    /// Ask the database to stop.
    CreateLease(Box<Lease>),
    /// Make the volume to fill.
    CreateClaim(Box<PersistentVolumeClaim>),
    /// The hand-over: the volume's labels and annotations, on condition that nobody changed it meanwhile.
    HandOver {
        /// The volume.
        claim: Box<PersistentVolumeClaim>,
        /// Labels to set.
        labels: BTreeMap<String, String>,
        /// Annotations to set.
        annotations: BTreeMap<String, String>,
    },
    /// Label a volume of the data set before as retired.
    Retire(Box<PersistentVolumeClaim>),
    /// Let the database go on.
    Release {
        /// The Lease.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Remove a worker.
    DeleteJob {
        /// The Job.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Remove the volume that was filled in vain.
    DeleteClaim {
        /// The volume.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Make the new Database.
    CreateDatabase(Box<Database>),
    /// Ask for a full backup.
    CreateBackup(Box<Backup>),
    /// Look again after so long.
    Wait(Duration),
    /// There is nothing left to do, ever.
    Done,
}

/// What to say, and what to do once it is said.
struct Verdict {
    say: Option<Say>,
    act: Step,
}

fn verdict(say: Say, act: Step) -> Verdict {
    Verdict { say: Some(say), act }
}

fn silent(act: Step) -> Verdict {
    Verdict { say: None, act }
}

fn wait(say: Say) -> Verdict {
    verdict(say, Step::Wait(POLL))
}

fn blocked(phase: &'static str, condition: &'static str, why: Blocked) -> Verdict {
    verdict(Say::blocked(phase, condition, why.reason, why.message), Step::Wait(SLOW_POLL))
}

/// A final failure. Once it is recorded the rest is taken back.
fn failed(condition: &'static str, reason: &str, message: impl Into<String>) -> Verdict {
    verdict(Say::failed("Failed", condition, reason, message), Step::Wait(Duration::ZERO))
}

/// Works out the next step. Saying comes before doing, so that a decision outlives what it was made from.
pub fn next_step(settings: &Settings, o: &Observed, now: Timestamp) -> Result<Step, Error> {
    let Verdict { mut say, act } = decide(settings, o, now)?;
    if let Some(words) = o.refused.as_ref().filter(|_| act.makes()) {
        // Only a follow-up Backup is made without a word.
        say = Some(say.unwrap_or_else(|| Say::phase("Promoting")).refused(words));
    }
    let status = say.map(|s| s.status(&o.restore, now));
    Ok(match status {
        Some(status) if o.restore.status.as_ref() != Some(&status) => Step::Report(Box::new(status)),
        _ => act,
    })
}

fn decide(settings: &Settings, o: &Observed, now: Timestamp) -> Result<Verdict, Error> {
    let said = said(o);
    let finalizer = has_finalizer(o);
    if status::finished(&o.restore) {
        return Ok(silent(Step::Done));
    }
    if conditions::is_true(said, types::SUCCEEDED) {
        return Ok(silent(Step::RemoveFinalizer));
    }
    if o.restore.metadata.deletion_timestamp.is_some() {
        return Ok(silent(if finalizer { deleted(o) } else { Step::Done }));
    }
    if conditions::is_false(said, types::SUCCEEDED) {
        return Ok(roll_back(o));
    }
    if handed_over(o) {
        return finish(o);
    }
    let token = our_lease(o).and_then(operation::token);
    if validate::in_place(&o.restore.spec) && o.claim().is_some() && token.is_none() {
        return Ok(failed(
            types::RESTORED,
            "OperationLost",
            "the operation Lease was removed while the volume was filled: the database may have run since, and the copy lacks what it wrote",
        ));
    }
    if !is_planned(o) {
        return plan(settings, o, now);
    }
    // Our finalizer may be somebody else's doing: only what was begun is carried to its end without approval.
    if !o.restore.spec.approve && !begun(o) {
        let say = Say::phase("Validated")
            .idle()
            .and(
                types::READY,
                Truth::True,
                "DryRun",
                "the restore is possible; set spec.approve to carry it out",
            )
            .and(types::STALLED, Truth::False, "DryRun", "");
        let act = if finalizer { Step::RemoveFinalizer } else { Step::Wait(Duration::from_secs(3600)) };
        return Ok(verdict(say, act));
    }
    if !finalizer {
        return Ok(prepare(o).unwrap_or_else(|| silent(Step::AddFinalizer)));
    }
    if validate::in_place(&o.restore.spec) {
        if let Some(verdict) = quiesce(o, now) {
            return Ok(verdict);
        }
    } else if let Some(verdict) = prepare(o) {
        return Ok(verdict);
    }
    fill(settings, o, now)
}

fn said(o: &Observed) -> &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition] {
    o.restore.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default()
}

fn has_finalizer(o: &Observed) -> bool {
    o.restore.finalizers().iter().any(|f| f == names::FINALIZER)
}

/// Whether the database was asked to stop, or a volume made: there is something that must be ended, one way or the other.
fn begun(o: &Observed) -> bool {
    our_lease(o).is_some() || o.claim().is_some()
}

fn state_of(claim: &PersistentVolumeClaim) -> &str {
    claim.labels().get(names::LABEL_DATA_SET_STATE).map(String::as_str).unwrap_or_default()
}

fn data_set_of(claim: &PersistentVolumeClaim) -> &str {
    claim.labels().get(names::LABEL_DATA_SET).map(String::as_str).unwrap_or_default()
}

/// Whether the volume's labels say that it belongs to the Database now, or did until a later Restore replaced it.
fn handed_over(o: &Observed) -> bool {
    o.claim().is_some_and(|c| matches!(state_of(c), names::STATE_CURRENT | names::STATE_RETIRED))
}

fn our_lease(o: &Observed) -> Option<&Lease> {
    o.lease.as_ref().filter(|l| operation::held_by(l, o.uid()) && l.metadata.deletion_timestamp.is_none())
}

/// Validated, and for a new Database its spec is still known.
fn is_planned(o: &Observed) -> bool {
    let status = o.restore.status.clone().unwrap_or_default();
    let known =
        conditions::is_true(&status.conditions, types::VALIDATED) && desired::plan_of(&status).is_some();
    known && (validate::in_place(&o.restore.spec) || o.claim().is_some() || spec_for_new(o).is_some())
}
