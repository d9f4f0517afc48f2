//! The way back: what was begun is taken back, one write a step. Pure.

use super::*;

/// Takes back, one write a step and in this order, what was begun: workers, then the volume, then the Lease. None when nothing is left.
///
/// The Lease goes last: with it the database starts again, and nobody may still write under its token then.
fn take_back(o: &Observed) -> Option<Step> {
    if let Some(SeenWorker { name, uid, .. }) = o.workers.iter().find(|w| !w.deleting) {
        return Some(Step::DeleteJob { name: name.clone(), uid: uid.clone() });
    }
    if !o.workers.is_empty() || o.pods.iter().any(|p| own_pod(o, p)) {
        return Some(Step::Wait(Duration::from_secs(2)));
    }
    let claim = o.claim().filter(|c| c.metadata.deletion_timestamp.is_none());
    if let Some(claim) = claim.filter(|c| state_of(c) == names::STATE_SEED || never_used(o)) {
        return Some(Step::DeleteClaim { name: claim.name_any(), uid: claim.uid().unwrap_or_default() });
    }
    release(o)
}

fn own_pod(o: &Observed, pod: &crate::observe::LivePod) -> bool {
    let token = our_lease(o).and_then(operation::token);
    let under_ours = token.is_some() && pod.token.as_deref() == token;
    under_ours
        || (1..=ATTEMPTS).any(|n| {
            pod.job == Purpose::Restore.job_name(o.uid(), n) || pod.job == Purpose::Plan.job_name(o.uid(), n)
        })
}

/// With newDatabase: the volume is labelled current, but the Database that it was meant for was never made.
fn never_used(o: &Observed) -> bool {
    !validate::in_place(&o.restore.spec) && o.database.is_none() && has_finalizer(o)
}

/// The Restore is being deleted: before the hand-over all is taken back, after it the rest is done and nothing is taken back.
pub(super) fn deleted(o: &Observed) -> Step {
    let step = match o.claim().filter(|_| handed_over(o) && !never_used(o)) {
        Some(claim) => let_go(o, claim),
        None => take_back(o),
    };
    step.unwrap_or(Step::RemoveFinalizer)
}

/// The failure is recorded: take back, wait until the database is let go, say so.
pub(super) fn roll_back(o: &Observed) -> Verdict {
    const B: &str = types::ROLLED_BACK;
    if let Some(step) = take_back(o) {
        return verdict(
            Say::phase("RollingBack").and(B, Truth::False, "RollingBack", "taking back what was begun"),
            step,
        );
    }
    let name = validate::target(&o.restore.spec);
    let in_place = validate::in_place(&o.restore.spec);
    let said = o
        .database
        .as_ref()
        .and_then(|d| d.status.as_ref())
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let foreign = o.lease.is_some();
    if in_place && !foreign && conditions::is_true(said, types::QUIESCED) {
        let message = format!("Database {name} may run again; waiting for it to leave Quiesced");
        return wait(Say::phase("RollingBack").and(B, Truth::False, "RollingBack", message));
    }
    let message = if in_place {
        format!("Database {name} is back on the data that it had")
    } else {
        "the volume was removed; nothing was made".into()
    };
    verdict(Say::phase("RolledBack").and(B, Truth::True, "RolledBack", message), Step::RemoveFinalizer)
}
