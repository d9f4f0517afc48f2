//! The step for the StatefulSet: made, changed, stopped, or made anew. Pure.

use super::{
    Plan, SetStep,
    children::{Write, change, must_wait},
    growth,
    quiesce::{self, Operation},
    stateful_set::{self, Decided},
};
use crate::{observe::Observed, validate::ValidatedDatabase};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;

/// Decides, and notes in the plan what is waited for and whether caches are enough for it.
pub fn decide(
    observed: &Observed,
    db: &ValidatedDatabase,
    decided: Decided<'_>,
    operation: &Operation,
    plan: &mut Plan,
) {
    let live = observed.stateful_set.as_deref();
    if live.is_some_and(|set| must_wait(set, &db.uid)) {
        plan.stateful_set = SetStep::Wait;
        return;
    }
    let leftover = match operation {
        Operation::Leftover(pods) => {
            Some(format!("pods of an operation that still run beside the volumes: {}", pods.join(", ")))
        }
        _ => None,
    };
    let Some(live) = live else {
        plan.needs_live_view = true;
        match leftover {
            // Where pods run already (the StatefulSet was deleted without them) nothing is started.
            Some(why) if observed.instances.is_empty() => plan.facts.waiting = Some(why),
            _ => plan.stateful_set = create(observed, db, decided),
        }
        return;
    };
    let uid = live.uid().unwrap_or_default();
    if stateful_set::data_set(live) != Some(decided.data_set) {
        // Other volumes: nothing may run on the old ones any more when the new ones come into use.
        plan.needs_live_view = true;
        plan.stateful_set = match stop(observed) {
            SetStep::Leave if quiesce::all_down(observed) => SetStep::Delete { uid, orphan: false },
            step => step,
        };
        plan.facts.waiting = Some(format!("the change to data set {}", decided.data_set));
        return;
    }
    let wanted = stateful_set::stateful_set(db, decided, Some(live));
    let follow = growth::template_may_follow(&plan.facts.asks);
    if stateful_set::template_bytes(live) != Some(db.size.bytes) && follow && pods_as(observed, live, &wanted)
    {
        // Claim templates cannot change: the StatefulSet is made anew, and its pods run on.
        plan.stateful_set = SetStep::Delete { uid, orphan: true };
        return;
    }
    let starts = decided.replicas > 0 && replicas(live) == 0;
    if starts {
        plan.needs_live_view = true;
        if leftover.is_some() {
            plan.facts.waiting = leftover;
            return;
        }
    }
    plan.stateful_set = match change(wanted, Some(live), &db.uid) {
        Write::Nothing => SetStep::Leave,
        Write::Wait => SetStep::Wait,
        Write::Create(set) => SetStep::Create(Box::new(set)),
        Write::Update(set) => SetStep::Update(Box::new(set)),
    };
}

/// Makes it. Under pods that run already it first gets no more of them than there are: more replicas are a change of its own, for
/// which volumes may be cloned.
pub fn create(observed: &Observed, db: &ValidatedDatabase, mut decided: Decided<'_>) -> SetStep {
    if let Some(highest) = observed.instances.iter().map(|i| i.ordinal + 1).max() {
        decided.replicas = decided.replicas.min(highest);
    }
    match change(stateful_set::stateful_set(db, decided, None), None, &db.uid) {
        Write::Create(set) => SetStep::Create(Box::new(set)),
        _ => SetStep::Leave,
    }
}

/// Stops the pods, if they are not stopped.
pub fn stop(observed: &Observed) -> SetStep {
    match observed.stateful_set.as_deref() {
        Some(set) if replicas(set) != 0 => SetStep::Stop { uid: set.uid().unwrap_or_default() },
        _ => SetStep::Leave,
    }
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// Whether the pods that run are what the StatefulSet that is wanted would make. Only then they tell, once the old one is gone, what
/// the new one has to look like for nothing to restart.
fn pods_as(observed: &Observed, live: &StatefulSet, wanted: &StatefulSet) -> bool {
    let mark = |set: &StatefulSet| set.annotations().get(stateful_set::ANNOTATION_TEMPLATE).cloned();
    let status = live.status.as_ref();
    let seen = status.and_then(|s| s.observed_generation) >= live.metadata.generation;
    let revision = status.and_then(|s| s.update_revision.as_deref());
    mark(live) == mark(wanted)
        && stateful_set::images(live) == stateful_set::images(wanted)
        && seen
        && observed.instances.iter().all(|i| !i.terminating && Some(i.revision.as_str()) == revision)
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
