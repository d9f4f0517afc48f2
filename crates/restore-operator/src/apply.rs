//! Carries out one step: one write, each safe to repeat after a crash. Says what it did in an event.

use crate::{Context, desired, observe::Observed, plan::Step, status, validate};
use holdfast_core::{
    Backup, Database, Restore, RestoreStatus,
    conditions::{self, types},
    names::{self, managers},
};
use holdfast_runtime::apply as write;
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease, core::v1::PersistentVolumeClaim};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams, PropagationPolicy},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};

/// Deadline of one write.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a step was not carried out. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{what} failed: {source}")]
    Write {
        /// What was to be done.
        what: &'static str,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("{0} took longer than {DEADLINE:?}")]
    Late(&'static str),
}

impl Error {
    /// What a person has to know: the API server refuses this, and will again.
    pub fn refusal(&self) -> Option<String> {
        let Self::Write { what, source } = self else { return None };
        Some(format!("{what} is refused by the API server: {}", write::refusal(source)?))
    }
}

/// Carries out a step. A conflict is no failure: somebody was faster, the next look shows what is left.
pub async fn apply(context: &Context, o: &Observed, step: Step) -> Result<(), Error> {
    match carry_out(context, o, step).await {
        Err(Error::Write { what, source: kube::Error::Api(s) }) if s.is_conflict() => {
            tracing::info!(restore = %o.restore.name_any(), "{what} met a change by somebody else; looking again");
            Ok(())
        }
        other => other,
    }
}

async fn carry_out(context: &Context, o: &Observed, step: Step) -> Result<(), Error> {
    let namespace = o.restore.namespace().unwrap_or_default();
    let target = validate::target(&o.restore.spec);
    let tell = |reason: &'static str, note: String| async move {
        tracing::info!(restore = %o.restore.name_any(), reason, "{note}");
        context.process.events.normal(&o.restore, reason, "Restore", &note).await;
    };
    match step {
        Step::Wait(_) | Step::Done => {}
        Step::Report(status) => report(context, o, &status, &namespace).await?,
        Step::AddFinalizer => finalizers(context, o, true).await?,
        Step::RemoveFinalizer => finalizers(context, o, false).await?,
        Step::CreateJob(job) => {
            let made = write::create(&api::<Job>(context, &namespace), job.as_ref()).await;
            if wrote("starting a worker", made)?.is_some() {
                tell("WorkerStarted", format!("started Job {}", job.name_any())).await;
            }
        }
        Step::CreateLease(lease) => {
            let made = write::create(&api::<Lease>(context, &namespace), lease.as_ref()).await;
            if wrote("taking the operation Lease", made)?.is_some() {
                tell("Quiescing", format!("asked Database {target} to stop, Lease {}", lease.name_any()))
                    .await;
            }
        }
        Step::CreateClaim(claim) => {
            let made =
                write::create(&api::<PersistentVolumeClaim>(context, &namespace), claim.as_ref()).await;
            if wrote("making the volume", made)?.is_some() {
                tell("VolumeMade", format!("made volume {}", claim.name_any())).await;
            }
        }
        Step::HandOver { claim, labels, annotations } => {
            let change = serde_json::json!({"labels": labels, "annotations": annotations});
            change_claim(context, &namespace, &claim, change, "handing the volume over").await?;
            tell("HandedOver", format!("volume {} belongs to Database {target}", claim.name_any())).await;
        }
        Step::Retire(claim) => {
            let change = serde_json::json!({"labels": {names::LABEL_DATA_SET_STATE: names::STATE_RETIRED}});
            change_claim(context, &namespace, &claim, change, "retiring a volume").await?;
            tell("VolumeRetired", format!("volume {} is kept, labelled retired", claim.name_any())).await;
        }
        Step::Release { name, uid } => {
            let gone =
                write::delete(&api::<Lease>(context, &namespace), &name, &uid, PropagationPolicy::Background)
                    .await;
            if wrote("releasing the operation Lease", gone)? {
                tell("Released", format!("Database {target} may run again")).await;
            }
        }
        Step::DeleteJob { name, uid } => {
            let gone =
                write::delete(&api::<Job>(context, &namespace), &name, &uid, PropagationPolicy::Background)
                    .await;
            if wrote("removing a worker", gone)? {
                tell("WorkerRemoved", format!("removed Job {name}")).await;
            }
        }
        Step::DeleteClaim { name, uid } => {
            let claims = api::<PersistentVolumeClaim>(context, &namespace);
            let gone = write::delete(&claims, &name, &uid, PropagationPolicy::Background).await;
            if wrote("removing the volume", gone)? {
                tell("VolumeRemoved", format!("removed volume {name}, which was not put to use")).await;
            }
        }
        Step::CreateDatabase(database) => {
            let made = write::create(&api::<Database>(context, &namespace), database.as_ref()).await;
            if wrote("making the Database", made)?.is_some() {
                tell("DatabaseMade", format!("made Database {target}")).await;
            }
        }
        Step::CreateBackup(backup) => {
            let made = write::create(&api::<Backup>(context, &namespace), backup.as_ref()).await;
            if wrote("asking for a full backup", made)?.is_some() {
                tell("BackupRequested", format!("asked for Backup {}", desired::follow_up_name(&o.restore)))
                    .await;
            }
        }
    }
    Ok(())
}

fn api<K>(context: &Context, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(context.process.client.clone(), namespace)
}

fn wrote<T>(what: &'static str, answer: Result<T, kube::Error>) -> Result<T, Error> {
    answer.map_err(|source| Error::Write { what, source })
}

async fn merge<K>(
    api: &Api<K>,
    name: &str,
    what: &'static str,
    metadata: serde_json::Value,
) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let patch = Patch::Merge(serde_json::json!({"metadata": metadata}));
    let parameters = PatchParams { field_manager: Some(managers::RESTORE.into()), ..PatchParams::default() };
    let answer = tokio::time::timeout(DEADLINE, api.patch(name, &parameters, &patch)).await;
    wrote(what, answer.map_err(|_| Error::Late(what))?).map(|_| ())
}

/// Changes a volume's labels and annotations in one write, on condition that it is still the one that was observed.
async fn change_claim(
    context: &Context,
    namespace: &str,
    claim: &PersistentVolumeClaim,
    mut change: serde_json::Value,
    what: &'static str,
) -> Result<(), Error> {
    change["resourceVersion"] = serde_json::json!(claim.metadata.resource_version);
    change["uid"] = serde_json::json!(claim.metadata.uid);
    merge(&api::<PersistentVolumeClaim>(context, namespace), &claim.name_any(), what, change).await
}

async fn finalizers(context: &Context, o: &Observed, wanted: bool) -> Result<(), Error> {
    let mut all: Vec<&str> =
        o.restore.finalizers().iter().map(String::as_str).filter(|f| *f != names::FINALIZER).collect();
    if wanted {
        all.push(names::FINALIZER);
    }
    let metadata =
        serde_json::json!({"finalizers": all, "resourceVersion": o.restore.metadata.resource_version});
    let restores = api::<Restore>(context, &o.restore.namespace().unwrap_or_default());
    match merge(&restores, &o.restore.name_any(), "changing the finalizer", metadata).await {
        // Without it the Restore was free to go, and went.
        Err(Error::Write { source: kube::Error::Api(s), .. }) if !wanted && s.is_not_found() => Ok(()),
        other => other,
    }
}

async fn report(
    context: &Context,
    o: &Observed,
    status: &RestoreStatus,
    namespace: &str,
) -> Result<(), Error> {
    let name = o.restore.name_any();
    let restores = api::<Restore>(context, namespace);
    wrote("writing the status", write::status(&restores, managers::RESTORE, &o.restore, status).await)?;
    let before = o.restore.status.clone().unwrap_or_default();
    if let Some((reason, message, warning)) = status::event(&before, status) {
        let events = &context.process.events;
        if warning {
            tracing::warn!(restore = %name, reason, "{message}");
            events.warning(&o.restore, &reason, "Restore", &message).await;
        } else {
            tracing::info!(restore = %name, reason, "{message}");
            events.normal(&o.restore, &reason, "Restore", &message).await;
        }
    }
    let target = validate::target(&o.restore.spec);
    let turned = |truth: fn(&[_], &str) -> bool| {
        truth(&status.conditions, types::SUCCEEDED) && !truth(&before.conditions, types::SUCCEEDED)
    };
    if turned(conditions::is_true) {
        let seconds = status.recovery_seconds.unwrap_or_default();
        context.metrics.succeeded(namespace, target, seconds, context.process.now().as_second());
    } else if turned(conditions::is_false) {
        context.metrics.failed(namespace, target);
    }
    Ok(())
}
