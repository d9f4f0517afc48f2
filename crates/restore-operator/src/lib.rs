//! The restore operator: reconciles `Restore`, one run each, into the same Database or into a new one.
//!
//! It meets the other operators only in objects: it asks a Database to stop with the operation Lease and reads the answer from
//! condition Quiesced; it hands restored data over with one write to a volume's labels.

pub mod apply;
pub mod desired;
pub mod metrics;
pub mod observe;
pub mod plan;
pub mod status;
pub mod validate;

#[cfg(test)]
mod tests;

pub use validate::Settings;

use crate::{metrics::RestoreMetrics, observe::Observed, plan::Step};
use holdfast_core::{Database, Restore, names, operation};
use holdfast_runtime::operator::{self, Process};
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease, core::v1::PersistentVolumeClaim};
use kube::{
    Api, Resource, ResourceExt,
    api::PropagationPolicy,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Steps carried out in one reconcile before others get their turn.
const STEPS: usize = 24;

/// What a reconcile works with.
pub struct Context {
    /// The process: client, events.
    pub process: Process,
    /// Images.
    pub settings: Settings,
    /// Series of this operator.
    pub metrics: RestoreMetrics,
    /// What the API server said of objects that it refuses, by uid of the Restore. Only this process's memory: it is found out
    /// again by the next try.
    refused: Mutex<HashMap<String, String>>,
}

impl Context {
    fn refused(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a reconcile did not come to its end. All of these are tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the world failed.
    #[error(transparent)]
    Observe(#[from] observe::Error),
    /// The next step could not be worked out.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// Carrying out a step failed.
    #[error(transparent)]
    Apply(#[from] apply::Error),
}

/// Runs the controller until the process ends.
pub async fn run(process: Process, settings: Settings) {
    let metrics = match RestoreMetrics::register(&process.metrics.registry) {
        Ok(metrics) => metrics,
        Err(error) => {
            tracing::error!(%error, "the metrics could not be registered");
            return;
        }
    };
    let context =
        Arc::new(Context { process: process.clone(), settings, metrics, refused: Mutex::default() });
    let ours = operator::watching().labels("app.kubernetes.io/managed-by=holdfast");
    let labelled = operator::watching().labels(names::LABEL_DATABASE);
    let controller = Controller::new(process.api::<Restore>(), operator::watching());
    let store = controller.store();
    let controller = controller
        .owns(process.api::<Job>(), ours)
        .watches(process.api::<Database>(), operator::watching(), {
            let store = store.clone();
            move |database| of_database(&store, database.namespace(), Some(&database.name_any()))
        })
        .watches(process.api::<Lease>(), labelled.clone(), {
            let store = store.clone();
            move |lease| {
                let mut concerned = of_label(&store, &lease);
                concerned.extend(holder(&lease));
                concerned
            }
        })
        .watches(process.api::<PersistentVolumeClaim>(), labelled, move |claim| of_label(&store, &claim));
    operator::drive(controller, "restore", &process, context, reconcile).await;
}

/// The Restores that work on the Database which an object's label names.
fn of_label<K: Resource>(store: &Store<Restore>, object: &K) -> Vec<ObjectRef<Restore>> {
    let database = object.meta().labels.as_ref().and_then(|l| l.get(names::LABEL_DATABASE));
    of_database(store, object.meta().namespace.clone(), database.map(String::as_str))
}

/// The Restore that holds an operation Lease, finished or not.
fn holder(lease: &Lease) -> Option<ObjectRef<Restore>> {
    let owners = lease.metadata.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|o| o.kind == Restore::kind(&()))?;
    Some(ObjectRef::new(&owner.name).within(lease.metadata.namespace.as_deref()?))
}

/// Lets go of an operation Lease that a finished Restore holds: the request of a process that died can make it long after the end, and
/// the Database would stand still for a Restore that has nothing more to do.
async fn release_late(context: &Context, restore: &Restore) -> Result<(), apply::Error> {
    if !validate::in_place(&restore.spec) {
        return Ok(());
    }
    let failed = |source| apply::Error::Write { what: "releasing a late operation Lease", source };
    let (namespace, uid) = (restore.namespace().unwrap_or_default(), restore.uid().unwrap_or_default());
    let leases: Api<Lease> = Api::namespaced(context.process.client.clone(), &namespace);
    let name = names::lease_operation(validate::target(&restore.spec));
    let lease = holdfast_runtime::apply::bounded(leases.get_opt(&name)).await.map_err(failed)?;
    let held = lease.filter(|l| operation::held_by(l, &uid) && l.metadata.deletion_timestamp.is_none());
    let Some(lease) = held else { return Ok(()) };
    let background = PropagationPolicy::Background;
    let uid = lease.uid().unwrap_or_default();
    holdfast_runtime::apply::delete(&leases, &name, &uid, background).await.map_err(failed)?;
    tracing::info!(restore = %restore.name_any(), lease = name, "released: the Restore was finished when it was made");
    Ok(())
}

/// The unfinished Restores that work on a Database or take their data from it.
fn of_database(
    store: &Store<Restore>,
    namespace: Option<String>,
    database: Option<&str>,
) -> Vec<ObjectRef<Restore>> {
    let Some(database) = database else { return Vec::new() };
    store
        .state()
        .iter()
        .filter(|restore| {
            restore.namespace() == namespace
                && !status::finished(restore)
                && (validate::target(&restore.spec) == database
                    || validate::source_database(&restore.spec) == Some(database))
        })
        .map(|restore| ObjectRef::from_obj(restore.as_ref()))
        .collect()
}

/// One Restore: observe, work out the one next step, carry it out, and again until there is something to wait for.
async fn reconcile(restore: Arc<Restore>, context: Arc<Context>) -> Result<Action, Error> {
    // Final, so even an old copy suffices to know it: finished runs cost at most one request, at the start.
    if status::finished(&restore) {
        release_late(&context, &restore).await?;
        return Ok(Action::await_change());
    }
    let uid = restore.uid().unwrap_or_default();
    for _ in 0..STEPS {
        let Some(observed) = Observed::read(&context, &restore).await? else {
            context.refused().remove(&uid);
            return Ok(Action::await_change());
        };
        match plan::next_step(&context.settings, &observed, context.process.now())? {
            Step::Done => {
                context.refused().remove(&uid);
                return Ok(Action::await_change());
            }
            Step::Wait(after) => return Ok(Action::requeue(after)),
            step => {
                let makes = step.makes();
                let Err(error) = apply::apply(&context, &observed, step).await else {
                    if makes {
                        context.refused().remove(&uid);
                    }
                    continue;
                };
                let Some(words) = error.refusal().filter(|_| makes) else { return Err(error.into()) };
                // Said first; then it is tried again at the pace of what fails.
                if context.refused().insert(uid.clone(), words).is_some() {
                    return Err(error.into());
                }
            }
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}
