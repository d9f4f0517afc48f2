//! Step 3: a volume is filled. Pure.

use super::*;

pub(super) fn fill(settings: &Settings, o: &Observed, now: Timestamp) -> Result<Verdict, Error> {
    const R: &str = types::RESTORED;
    let status = o.restore.status.clone().unwrap_or_default();
    let Some((_, history)) = desired::plan_of(&status) else { return plan(settings, o, now) };
    let spec = match database_spec(o) {
        Ok(spec) => spec,
        Err(why) => return Ok(failed(R, "SpecUnknown", why)),
    };
    let Some(claim) = o.claim() else {
        if let Some(over) = refused_for_long(o, now) {
            return Ok(over);
        }
        let new = !validate::in_place(&o.restore.spec);
        let claim = desired::claim(o, &spec, volume_size(o, &spec), new)?;
        let say = Say::working("Restoring", R, "Restoring", "making the volume");
        return Ok(verdict(say, Step::CreateClaim(Box::new(claim))));
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(failed(
            R,
            "VolumeDeleted",
            format!("volume {} was deleted while it was filled", claim.name_any()),
        ));
    }
    if conditions::is_true(said(o), R) {
        return Ok(hand_over(o, claim, &history.system_identifier));
    }
    if let Some(over) = refused_for_long(o, now) {
        return Ok(over);
    }
    match attempt(o, Purpose::Restore, now) {
        Attempt::Start(number) => {
            // The database is down by now: what is missing here ends the restore instead of prolonging the outage.
            let image = match desired::image(settings, o, &spec) {
                Ok(image) => image,
                Err(why) => return Ok(failed(R, why.reason, why.message)),
            };
            let source = match validate::source(o, false) {
                Ok(source) => source,
                Err(why) => return Ok(failed(R, why.reason, why.message)),
            };
            // Now is late enough: the target was in the past when the plan was made.
            let target = match validate::moment(&o.restore.spec, Timestamp::MAX) {
                Ok(target) => target,
                Err((reason, message)) => return Ok(failed(R, reason, message)),
            };
            let token = our_lease(o).and_then(operation::token);
            let filling = Filling { history, image: &image, database: &spec, target, token };
            let job = desired::restore_job(settings, o, &source, &filling, number)?;
            let say =
                Say::working("Restoring", R, "Restoring", format!("filling volume {}", claim.name_any()));
            Ok(verdict(say, Step::CreateJob(Box::new(job))))
        }
        Attempt::Running(why) => {
            Ok(wait(Say::working("Restoring", R, "Restoring", running("the restore", why))))
        }
        Attempt::Backoff(left, message) => {
            Ok(verdict(Say::working("Restoring", R, "RestoreRetried", message), Step::Wait(left)))
        }
        Attempt::Failed(reason, message) => Ok(failed(R, &reason, message)),
        Attempt::Ended(WorkerResult::Restored { time, lsn, timeline, system_identifier }) => {
            if *system_identifier != history.system_identifier {
                let message = format!(
                    "the data has system identifier {system_identifier}, the backup said {}",
                    history.system_identifier
                );
                return Ok(failed(R, "SystemIdentifierMismatch", message));
            }
            let until = if time.is_empty() {
                "no commit after the backup".into()
            } else {
                format!("the last commit is of {time}")
            };
            let reached = Reached {
                time: (!time.is_empty()).then(|| time.clone()),
                lsn: Some(lsn.clone()),
                timeline: Some(i64::from(*timeline)),
            };
            let say = Say::working("Promoting", types::SUCCEEDED, "HandingOver", "handing the volume over")
                .and(
                    R,
                    Truth::True,
                    "Restored",
                    format!("replayed to {lsn} on timeline {timeline}; {until}; checks passed"),
                )
                .reached(reached)
                .previous(previous_data_set(o).ok().flatten());
            Ok(wait(say))
        }
        Attempt::Ended(_) => Ok(failed(
            R,
            "UnexpectedAnswer",
            "the worker answered something else than a restore: do the images of operator and agent match?",
        )),
    }
}

/// In place the database is down by now: what the API server refuses for a minute (a quota, a webhook) ends the restore, and
/// everything goes back, instead of prolonging the outage. For a new one nobody is down, and it is tried on.
fn refused_for_long(o: &Observed, now: Timestamp) -> Option<Verdict> {
    const PATIENCE: i64 = 60;
    let words = o.refused.as_ref().filter(|_| validate::in_place(&o.restore.spec))?;
    let stalled = conditions::find(said(o), types::STALLED)?;
    let refused = stalled.status == "True" && stalled.reason == "Refused";
    let since = stalled.last_transition_time.0;
    (refused && now.as_second() - since.as_second() >= PATIENCE)
        .then(|| failed(types::RESTORED, "Refused", words.clone()))
}

/// Spec of the Database that will run on the volume. For a new one what the volume remembers counts: it was decided once.
pub(super) fn database_spec(o: &Observed) -> Result<DatabaseSpec, String> {
    if validate::in_place(&o.restore.spec) {
        return o
            .database
            .as_ref()
            .map(|d| d.spec.clone())
            .ok_or_else(|| validate::no_database(&o.restore.spec));
    }
    match o.claim() {
        Some(claim) => {
            let kept = claim
                .annotations()
                .get(desired::ANNOTATION_DATABASE_SPEC)
                .map(String::as_str)
                .unwrap_or_default();
            serde_json::from_str(kept).map_err(|e| {
                format!(
                    "annotation {} of volume {} cannot be read: {e}",
                    desired::ANNOTATION_DATABASE_SPEC,
                    claim.name_any()
                )
            })
        }
        None => spec_for_new(o).ok_or_else(|| "the spec of the new Database is not known".into()),
    }
}

/// Bytes of the volume: what the spec says, at least what the volumes before had.
pub(super) fn volume_size(o: &Observed, spec: &DatabaseSpec) -> i64 {
    let wanted = quantity::units(&spec.storage.size.0).unwrap_or_default();
    let had = o.claims.iter().filter(|c| state_of(c) == names::STATE_CURRENT).filter_map(|c| {
        let requests = c.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
        quantity::units(&requests.get("storage")?.0)
    });
    had.chain([wanted]).max().unwrap_or(wanted)
}

/// The data set in use before: the current one that no other current one replaces.
pub(super) fn previous_data_set(o: &Observed) -> Result<Option<String>, String> {
    let own = ids::data_set(o.uid());
    let current = || o.claims.iter().filter(|c| state_of(c) == names::STATE_CURRENT && data_set_of(c) != own);
    let replaced: Vec<&str> = current()
        .filter_map(|c| c.annotations().get(names::ANNOTATION_REPLACES).map(String::as_str))
        .collect();
    let mut left: Vec<&str> = current().map(data_set_of).filter(|d| !replaced.contains(d)).collect();
    left.sort_unstable();
    left.dedup();
    match left.as_slice() {
        [] => Ok(o.database.as_ref().and_then(|d| d.status.as_ref()?.data_set.clone()).filter(|d| *d != own)),
        [one] => Ok(Some((*one).to_string())),
        several => Err(several.join(", ")),
    }
}
