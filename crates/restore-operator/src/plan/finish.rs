//! Steps 4 and 5: the volume is handed over with one write, and what follows from it. Pure.

use super::*;

pub(super) fn hand_over(o: &Observed, claim: &PersistentVolumeClaim, system_identifier: &str) -> Verdict {
    let in_place = validate::in_place(&o.restore.spec);
    let mut annotations = BTreeMap::new();
    if in_place {
        match previous_data_set(o) {
            Ok(Some(before)) => _ = annotations.insert(names::ANNOTATION_REPLACES.to_string(), before),
            Ok(None) => {}
            Err(several) => {
                let message = format!(
                    "several data sets are labelled current ({several}): label all but the right one's volumes retired"
                );
                return failed(types::RESTORED, "DataSetsAmbiguous", message);
            }
        }
    }
    let labels = BTreeMap::from([
        (names::LABEL_DATA_SET_STATE.to_string(), names::STATE_CURRENT.to_string()),
        (names::LABEL_SYSTEM_IDENTIFIER.to_string(), system_identifier.to_string()),
    ]);
    silent(Step::HandOver { claim: Box::new(claim.clone()), labels, annotations })
}

/// What is left once the volume was handed over. From here on nothing is taken back.
pub(super) fn finish(o: &Observed) -> Result<Verdict, Error> {
    const S: &str = types::SUCCEEDED;
    let Some(claim) = o.claim() else { return Ok(silent(Step::Wait(POLL))) };
    if let Some(step) = let_go(o, claim) {
        return Ok(verdict(Say::working("Promoting", S, "HandingOver", "handing the volume over"), step));
    }
    let name = validate::target(&o.restore.spec);
    let own = ids::data_set(o.uid());
    if state_of(claim) == names::STATE_RETIRED {
        return Ok(succeeded(o, "Superseded", "the data was in use until a later Restore replaced it"));
    }
    if has_finalizer(o) {
        if o.database.is_none() && !validate::in_place(&o.restore.spec) {
            return Ok(match database_spec(o) {
                Ok(spec) => {
                    let say = Say::working("Promoting", S, "HandingOver", format!("making Database {name}"));
                    verdict(say, Step::CreateDatabase(Box::new(desired::database(&o.restore, spec))))
                }
                Err(message) => blocked("Promoting", S, Blocked { reason: "SpecUnknown", message }),
            });
        }
        return Ok(silent(Step::RemoveFinalizer));
    }
    let Some(database) = &o.database else {
        let message = format!(
            "Database {name} is gone; its volume {} is kept and a new Database of that name takes it up",
            claim.name_any()
        );
        return Ok(blocked("Promoting", S, Blocked { reason: "DatabaseNotFound", message }));
    };
    let status = database.status.clone().unwrap_or_default();
    let ready = conditions::is_true_for(&status.conditions, types::READY, database.metadata.generation);
    if !ready || status.data_set.as_deref() != Some(&own) {
        let why =
            conditions::find(&status.conditions, types::READY).map(|c| c.message.clone()).unwrap_or_default();
        let message = format!("Database {name} starts on the restored data: {why}");
        return Ok(wait(Say::working("Promoting", S, "Starting", message)));
    }
    if database.spec.archive.is_some() && o.follow_up == FollowUp::Missing {
        return Ok(silent(Step::CreateBackup(Box::new(desired::follow_up(&o.restore)?))));
    }
    Ok(succeeded(o, "Succeeded", &format!("Database {name} serves the restored data")))
}

fn succeeded(o: &Observed, reason: &str, message: &str) -> Verdict {
    let act = if has_finalizer(o) { Step::RemoveFinalizer } else { Step::Done };
    let say = Say::phase("Succeeded")
        .ended()
        .and(types::SUCCEEDED, Truth::True, reason, message)
        .and(types::READY, Truth::True, reason, message)
        .and(types::ROLLED_BACK, Truth::False, reason, "")
        .and(types::STALLED, Truth::False, reason, "");
    verdict(say, act)
}

/// Retires what was there before, then lets the database go on; None when both are done.
pub(super) fn let_go(o: &Observed, claim: &PersistentVolumeClaim) -> Option<Step> {
    let before = claim.annotations().get(names::ANNOTATION_REPLACES);
    if let Some(before) = before.filter(|_| state_of(claim) == names::STATE_CURRENT) {
        let old = o.claims.iter().find(|c| {
            data_set_of(c) == before
                && state_of(c) == names::STATE_CURRENT
                && c.metadata.deletion_timestamp.is_none()
        });
        if let Some(old) = old {
            return Some(Step::Retire(Box::new(old.clone())));
        }
    }
    release(o)
}

pub(super) fn release(o: &Observed) -> Option<Step> {
    let lease = our_lease(o)?;
    Some(Step::Release { name: lease.name_any(), uid: lease.uid().unwrap_or_default() })
}
