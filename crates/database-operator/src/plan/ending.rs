//! The end of a Database: the finalizer, and what goes with it. Pure.

use crate::{
    observe::Observed,
    plan::{
        Finalizer, Plan, SetStep,
        volumes::{self, Named},
    },
};
use holdfast_core::{crd::DeletionPolicy, names};
use kube::ResourceExt;

fn has_finalizer(observed: &Observed) -> bool {
    observed.database.finalizers().iter().any(|f| f == names::FINALIZER)
}

/// Whether the finalizer is as the deletion policy wants it.
pub fn finalizer(observed: &Observed) -> Finalizer {
    let wanted = observed.database.spec.deletion_policy == DeletionPolicy::Delete;
    match (wanted, has_finalizer(observed)) {
        (true, false) => Finalizer::Add,
        (false, true) => Finalizer::Remove,
        _ => Finalizer::Leave,
    }
}

/// The end. With deletionPolicy Retain there is nothing to do: the garbage collector takes the children, and the volumes
/// stay. With Delete first the pods go, then the volumes of every data set, then the finalizer.
pub fn delete(observed: &Observed, plan: &mut Plan) {
    plan.facts.deleting = true;
    if !has_finalizer(observed) {
        return;
    }
    if observed.database.spec.deletion_policy == DeletionPolicy::Retain {
        plan.finalizer = Finalizer::Remove;
        return;
    }
    if let Some(set) = observed.stateful_set.as_deref() {
        plan.stateful_set = if set.metadata.deletion_timestamp.is_some() {
            SetStep::Wait
        } else {
            SetStep::Delete { uid: set.uid().unwrap_or_default(), orphan: false }
        };
        return;
    }
    if !observed.instances.is_empty() {
        plan.facts.waiting = Some("the end of the pods".into());
        return;
    }
    plan.remove_claims = volumes::all(observed);
    let lease = observed.primary_lease.as_deref().filter(|lease| lease.metadata.deletion_timestamp.is_none());
    plan.remove_lease = lease.map(|l| Named { name: l.name_any(), uid: l.uid().unwrap_or_default() });
    if plan.remove_claims.is_empty() && plan.remove_lease.is_none() {
        plan.finalizer = Finalizer::Remove;
    }
}
