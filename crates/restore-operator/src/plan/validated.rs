//! Step 1: the plan. Nothing is stopped before it is proven possible. Pure.

use super::*;

pub(super) fn plan(settings: &Settings, o: &Observed, now: Timestamp) -> Result<Verdict, Error> {
    const V: &str = types::VALIDATED;
    let spec = &o.restore.spec;
    if validate::in_place(spec) && o.database.is_none() {
        let message = validate::no_database(spec);
        return Ok(blocked("Pending", V, Blocked { reason: "DatabaseNotFound", message }));
    }
    // A worker with these could not be made, and the database would be down by then.
    if let Err(message) = validate::overrides(spec) {
        return Ok(failed(V, "QuantityInvalid", message));
    }
    let runs = o.database.as_ref().filter(|_| validate::in_place(spec));
    if let Some(Err(wrong)) = runs.map(|database| validate::resources(&database.spec)) {
        let message = format!("{wrong} in Database {}: put it right there", validate::target(spec));
        return Ok(blocked("Pending", V, Blocked { reason: "QuantityInvalid", message }));
    }
    if let Some(verdict) = prepare(o) {
        return Ok(verdict);
    }
    let target = match validate::moment(spec, now) {
        Ok(target) => target,
        Err((reason, message)) => return Ok(failed(V, reason, message)),
    };
    match attempt(o, Purpose::Plan, now) {
        Attempt::Start(number) => {
            if settings.agent_image.is_empty() {
                let message = "the operator does not know the agent's image: set HOLDFAST_AGENT_IMAGE of its Deployment".into();
                return Ok(blocked("Pending", V, Blocked { reason: "AgentImageUnknown", message }));
            }
            let source = match validate::source(o, true) {
                Ok(source) => source,
                Err(why) => return Ok(blocked("Pending", V, why)),
            };
            let job = desired::plan_job(settings, o, &source, target, number)?;
            let say =
                Say::working("Validating", V, "Planning", "looking for a backup and the WAL that lead there");
            Ok(verdict(say, Step::CreateJob(Box::new(job))))
        }
        Attempt::Running(why) => {
            Ok(wait(Say::working("Validating", V, "Planning", running("the plan", why))))
        }
        Attempt::Backoff(left, message) => {
            Ok(verdict(Say::working("Validating", V, "PlanRetried", message), Step::Wait(left)))
        }
        Attempt::Failed(reason, message) => Ok(failed(V, &reason, message)),
        Attempt::Ended(result) => Ok(validated(settings, o, result)),
    }
}

fn validated(settings: &Settings, o: &Observed, result: &WorkerResult) -> Verdict {
    const V: &str = types::VALIDATED;
    let WorkerResult::Planned {
        history, follows, backup_uid, bytes, wal_segments, timeline, version, ..
    } = result
    else {
        return failed(
            V,
            "UnexpectedAnswer",
            "the worker answered something else than a plan: do the images of operator and agent match?",
        );
    };
    let spec = match validate::in_place(&o.restore.spec) {
        true => o.database.as_ref().map(|d| d.spec.clone()),
        false => spec_for_new(o),
    };
    let Some(spec) = spec else {
        return failed(
            V,
            "SpecUnknown",
            "the backup does not say what its Database looked like, and that Database is not here: make it by hand and restore in place",
        );
    };
    if let Err(wrong) = validate::resources(&spec) {
        let message = format!("{wrong} in the source's Database: set spec.newDatabase.overrides.resources");
        return failed(V, "QuantityInvalid", message);
    }
    if spec.version != *version {
        return failed(
            V,
            "VersionMismatch",
            format!(
                "the backup is of PostgreSQL {version}, the Database has spec.version {}: a data directory belongs to one major version",
                spec.version
            ),
        );
    }
    let size = volume_size(o, &spec);
    if size < *bytes {
        return failed(
            V,
            "VolumeTooSmall",
            format!(
                "the backup needs {bytes} bytes, spec.storage.size of the Database is {}: raise it first",
                spec.storage.size.0
            ),
        );
    }
    if let Err(why) = desired::image(settings, o, &spec) {
        return blocked("Validating", V, why);
    }
    let plan = RestorePlan {
        backup: backup_uid.clone(),
        location: validate::location_of(history),
        follows: follows.as_deref().map(validate::location_of).unwrap_or_default(),
        bytes: *bytes,
        wal_segments: *wal_segments,
        timeline: i64::from(*timeline),
    };
    let message = format!(
        "backup {backup_uid} at {} ({bytes} bytes) and {wal_segments} WAL segments on timeline {timeline} lead there",
        plan.location
    );
    let say = Say::working("Validated", types::SUCCEEDED, "Validated", "the restore is possible")
        .and(V, Truth::True, "Planned", message)
        .plan(plan);
    wait(say)
}

/// The spec of the Database to be made: from the one that runs, else as the backup recorded it.
pub(super) fn spec_for_new(o: &Observed) -> Option<DatabaseSpec> {
    let planned = (1..=ATTEMPTS).rev().find_map(|n| {
        let name = Purpose::Plan.job_name(o.uid(), n);
        match &o.workers.iter().find(|w| w.name == name)?.state {
            WorkerState::Ended(WorkerResult::Planned { bytes, version, database_spec, .. }) => {
                Some((*bytes, version, database_spec))
            }
            _ => None,
        }
    });
    let recorded_bytes = o.restore.status.as_ref().and_then(|s| s.plan.as_ref()).map(|p| p.bytes);
    let bytes = planned.as_ref().map(|p| p.0).or(recorded_bytes)?;
    let recorded = planned
        .as_ref()
        .and_then(|(_, _, spec)| serde_json::from_value::<DatabaseSpec>((*spec).clone()).ok());
    let live = o.source_database.as_ref().map(|d| d.spec.clone());
    // A Database of another version may have taken the name since.
    let fits = |spec: &DatabaseSpec| planned.as_ref().is_none_or(|(_, version, _)| spec.version == **version);
    let from = live.filter(fits).or(recorded)?;
    Some(desired::new_spec(&o.restore, &from, bytes))
}

/// With newDatabase: nobody else may have the name, neither a Database nor data.
pub(super) fn prepare(o: &Observed) -> Option<Verdict> {
    if validate::in_place(&o.restore.spec) {
        return None;
    }
    let name = validate::target(&o.restore.spec);
    if o.database.as_ref().is_some_and(|d| !made_by_us(o, d)) {
        let message = format!(
            "Database {name} (spec.newDatabase.name) exists already: restore into it with spec.databaseRef, or choose another name"
        );
        return Some(blocked("Pending", types::VALIDATED, Blocked { reason: "DatabaseExists", message }));
    }
    let own = o.claim_name();
    let foreign = o.claims.iter().find(|c| c.name_any() != own && state_of(c) == names::STATE_CURRENT)?;
    let message = format!(
        "volume {} holds data of an earlier Database {name}, which a Database of that name would take up: choose another spec.newDatabase.name or remove its volumes",
        foreign.name_any()
    );
    Some(blocked("Pending", types::VALIDATED, Blocked { reason: "VolumesExist", message }))
}

fn made_by_us(o: &Observed, database: &Database) -> bool {
    database.annotations().get(desired::ANNOTATION_RESTORED_BY).is_some_and(|by| by == o.uid())
}
