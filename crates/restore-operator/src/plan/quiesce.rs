//! Step 2: the database stops, when it was asked and answers with our token. Pure.

use super::*;

/// Takes the operation Lease and waits for the answer to it; None once the database is stopped for us.
pub(super) fn quiesce(o: &Observed, now: Timestamp) -> Option<Verdict> {
    const R: &str = types::RESTORED;
    let name = validate::target(&o.restore.spec);
    let Some(database) = &o.database else {
        return Some(failed(
            R,
            "DatabaseNotFound",
            format!("Database {name} (spec.databaseRef) was deleted meanwhile"),
        ));
    };
    let Some(lease) = our_lease(o) else {
        if let Some(other) = &o.lease {
            let holder = other.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
            let message = format!("{holder} works on Database {name}; this restore begins when it is done");
            return Some(wait(Say::working("Quiescing", R, "OperationInProgress", message)));
        }
        // A worker of an operation whose Lease is gone may still read or write.
        if let Some(pod) = o.pods.iter().find(|p| p.token.is_some()) {
            let message =
                format!("pod {} of an earlier operation on Database {name} has not ended", pod.name);
            return Some(wait(Say::working("Quiescing", R, "OperationInProgress", message)));
        }
        let holder = o.restore.controller_owner_ref(&()).unwrap_or_default();
        let lease =
            operation::lease(name, &o.restore.namespace().unwrap_or_default(), holder, Mode::Exclusive, now);
        let say = Say::working("Quiescing", R, "Quiescing", format!("stopping Database {name}"));
        return Some(verdict(say, Step::CreateLease(Box::new(lease))));
    };
    let token = operation::token(lease).unwrap_or_default();
    let said = database.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let stopped = conditions::find(said, types::QUIESCED);
    if stopped.is_some_and(|c| c.status == "True" && operation::message_has_token(&c.message, token)) {
        return None;
    }
    let asked = lease.spec.as_ref().and_then(|s| s.acquire_time.as_ref()).map_or(now, |t| t.0);
    let waited = now.as_second() - asked.as_second();
    if waited > QUIESCE_SECONDS {
        let message = format!(
            "Database {name} was asked to stop and its condition Quiesced did not turn True in {QUIESCE_SECONDS} s: does the database operator run? Deleting this Restore takes the request back"
        );
        return Some(blocked("Quiescing", R, Blocked { reason: "QuiesceSlow", message }));
    }
    Some(wait(Say::working("Quiescing", R, "Quiescing", format!("stopping Database {name}"))))
}
