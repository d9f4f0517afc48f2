//! What is so: conditions and the rest of the status, and what is worth an event. Pure: observed and planned in, status out.

pub mod commits;
pub mod consistent;
pub mod news;
pub mod space;

use commits::COMMITS_WAIT;
pub use news::{failed_over, news};

use crate::{
    observe::{Instance, Observed},
    plan::{
        Facts, Problem,
        quiesce::Operation,
        stateful_set::{self, template_annotation},
        trouble::DISK_FULL,
        volumes,
    },
};
use holdfast_core::{
    DatabaseStatus,
    conditions::{self, Truth, types},
    crd::{
        LocalRef,
        database::{ArchiveStatus, DurabilityMode, Handled, InstanceCounts, Member, StorageStatus},
    },
    names, operation,
    report::Role,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;

/// Condition, its truth, reason and message.
type Verdict = (Truth, String, String);

fn verdict(truth: impl Into<Truth>, reason: &str, message: impl Into<String>) -> Verdict {
    (truth.into(), reason.into(), message.into())
}

/// Everything that the conditions are made from.
struct View<'a> {
    observed: &'a Observed,
    facts: &'a Facts,
    problem: Option<Problem>,
    primary: Option<&'a Instance>,
    /// Why no commit ends.
    commits_wait: Option<String>,
    ready: i32,
}

/// The instance that accepts writes. Of two that say so, the one that the Lease names: the other one's report is old.
pub fn primary(observed: &Observed) -> Option<&Instance> {
    let holder =
        observed.primary_lease.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
    let says_so = observed.instances.iter().filter(|i| i.report.role == Role::Primary && !i.terminating);
    says_so.max_by_key(|i| (holder == Some(i.name.as_str()), i.report.timeline, i.ready))
}

/// The status of a Database. `problem`: what stands in the way beside what the plan found (a refused write, what
/// Kubernetes says about a pod). `secrets`: the Secrets are known to be there.
pub fn status(
    observed: &Observed,
    facts: &Facts,
    problem: Option<&Problem>,
    secrets: bool,
    now: Timestamp,
) -> DatabaseStatus {
    let old = observed.database.status.clone().unwrap_or_default();
    let generation = observed.database.metadata.generation;
    let name = observed.database.name_any();
    let counted = observed.instances.iter().filter(|i| i.ready && i.ordinal < facts.instances);
    let primary = primary(observed);
    // A size that grows is all that a full volume needs.
    let helped = facts.deleting || facts.pending || !facts.growing.is_empty();
    let full = primary.filter(|_| !helped).and_then(space::full);
    let view = View {
        observed,
        facts,
        problem: facts.problem.clone().or_else(|| problem.cloned()).or(full),
        primary,
        commits_wait: commits::lasting(observed, now),
        ready: i32::try_from(counted.count()).unwrap_or(i32::MAX),
    };
    let mut status = old.clone();
    // Somebody else's field.
    status.recoverable = None;
    status.observed_generation = generation;
    for (type_, (truth, reason, message)) in view.conditions() {
        let new = conditions::condition(type_, truth, &reason, message, generation, now);
        conditions::set(&mut status.conditions, new);
    }
    status.phase = Some(view.phase(&status).into());
    let synchronous = view.primary.map_or(0, |p| p.report.synchronous.len());
    status.instances = Some(InstanceCounts {
        desired: facts.replicas,
        ready: view.ready,
        synchronous: i32::try_from(synchronous).unwrap_or(i32::MAX),
    });
    status.selector = Some(format!("{}={name},{}=instance", names::LABEL_DATABASE, names::LABEL_COMPONENT));
    status.durability = facts.durability.clone().or(old.durability);
    status.members = observed.instances.iter().filter(|i| !i.terminating).map(member).collect();
    if let Some(data_set) = &facts.data_set {
        status.data_set = Some(data_set.id.clone());
        status.history = Some(data_set.history.clone());
        status.system_identifier.clone_from(&data_set.system_identifier);
        let capacity = volumes::capacity(observed, &data_set.id, facts.instances);
        status.storage = capacity.map(|c| StorageStatus { capacity: Some(c) }).or(old.storage);
    }
    if let Some(primary) = view.primary {
        // Kept while there is none, so that the next one is known to be another one.
        status.primary = Some(primary.name.clone());
        status.timeline = Some(i64::from(primary.report.timeline));
        if !primary.report.server_version.is_empty() {
            status.server_version = Some(primary.report.server_version.clone());
        }
    } else if facts.replicas == 0 {
        status.primary = None;
    }
    status.archive = view.archive().or(old.archive.filter(|_| observed.database.spec.archive.is_some()));
    if secrets && facts.data_set.is_some() {
        status.binding = Some(LocalRef { name: names::secret_app(&name) });
    }
    let mut handled = status.handled.clone().unwrap_or_default();
    handled.restart = view.restarted().or(handled.restart);
    if let Some(commits::Switchover { asked, refused }) = commits::switchover(observed) {
        handled.switchover = Some(asked);
        handled.switchover_refused = Some(refused).filter(|why| !why.is_empty());
    }
    status.handled = Some(handled).filter(|handled| *handled != Handled::default());
    status
}

fn member(instance: &Instance) -> Member {
    let report = &instance.report;
    Member {
        name: instance.name.clone(),
        role: report.role.as_str().into(),
        timeline: (report.timeline > 0).then(|| i64::from(report.timeline)),
        lsn: (!report.lsn.is_empty()).then(|| report.lsn.clone()),
        lag_bytes: (report.role == Role::Replica).then_some(report.lag_bytes),
        ready: instance.ready,
        volume: space::member(instance),
    }
}

impl View<'_> {
    fn conditions(&self) -> [(&'static str, Verdict); 7] {
        let ready = self.ready();
        let stalled = match &self.problem {
            Some(problem) => verdict(true, &problem.reason, problem.message.clone()),
            None => verdict(false, "NothingInTheWay", ""),
        };
        let working = ready.0 != Truth::True && self.problem.is_none();
        let reconciling = if working {
            verdict(true, &ready.1, ready.2.clone())
        } else {
            verdict(false, if self.problem.is_some() { "Stalled" } else { "Done" }, "")
        };
        [
            (types::READY, ready),
            (types::AVAILABLE, self.available()),
            (types::RECONCILING, reconciling),
            (types::STALLED, stalled),
            (types::CONSISTENT, self.consistent()),
            (types::ARCHIVING, self.archiving()),
            (types::QUIESCED, self.quiesced()),
        ]
    }

    fn stopped(&self) -> bool {
        self.observed.database.spec.stopped
    }

    /// This generation is carried out, and every instance that is wanted is ready.
    fn ready(&self) -> Verdict {
        let facts = self.facts;
        if facts.deleting {
            return verdict(false, "Deleting", "the Database is being deleted");
        }
        match &facts.operation {
            Some(Operation::Quiesced { .. }) => {
                return verdict(
                    false,
                    "Quiesced",
                    "stopped for an operation; it starts again when that ends",
                );
            }
            Some(Operation::Stopping { left, .. }) => {
                return verdict(
                    false,
                    "Quiescing",
                    format!("stopping for an operation; left: {}", left.join(", ")),
                );
            }
            _ => {}
        }
        if let Some(problem) = &self.problem {
            return verdict(false, &problem.reason, problem.message.clone());
        }
        if let Some(waiting) = &facts.waiting {
            return verdict(false, "Waiting", format!("waiting for {waiting}"));
        }
        if facts.pending || !facts.settled {
            return verdict(false, "Applying", "changes are being carried out");
        }
        if self.stopped() {
            return if self.observed.instances.is_empty() {
                verdict(true, "Stopped", "spec.stopped is true: no pods, the volumes are kept")
            } else {
                verdict(
                    false,
                    "Stopping",
                    format!("spec.stopped is true; {} pod(s) left", self.observed.instances.len()),
                )
            };
        }
        if !facts.rollout.outdated.is_empty() {
            let list = facts.rollout.outdated.join(", ");
            return verdict(
                false,
                "Updating",
                format!("instances to be restarted, the primary last: {list}"),
            );
        }
        let extra = self.observed.instances.iter().filter(|i| i.ordinal >= facts.instances).count();
        if self.ready < facts.replicas || extra > 0 {
            return verdict(false, "InstancesNotReady", self.progress());
        }
        if self.primary.is_none() {
            return verdict(false, "NoPrimary", "no instance is primary");
        }
        if let Some(why) = &self.commits_wait {
            return verdict(false, COMMITS_WAIT, why);
        }
        let behind: Vec<&str> = self
            .observed
            .instances
            .iter()
            .filter(|i| i.report.config_hash != facts.config_hash)
            .map(|i| i.name.as_str())
            .collect();
        if !behind.is_empty() {
            let list = behind.join(", ");
            return verdict(
                false,
                "ConfigurationPending",
                format!("not yet on the newest configuration: {list}"),
            );
        }
        if !facts.growing.is_empty() {
            let list = facts.growing.iter().map(|one| format!("{} ({})", one.claim, one.progress));
            let list = list.collect::<Vec<_>>().join(", ");
            return verdict(false, "VolumesGrowing", format!("volume claims that are growing: {list}"));
        }
        if let Some(problem) = self.primary.and_then(space::full) {
            return verdict(false, &problem.reason, problem.message);
        }
        let remarks = space::remarks(&self.observed.instances);
        verdict(
            true,
            "AllInstancesReady",
            format!("{} of {} instances are ready{remarks}", self.ready, facts.replicas),
        )
    }

    /// "1 of 3 instances are ready; orders-1: cloning from orders-0"
    fn progress(&self) -> String {
        let mut text = format!("{} of {} instances are ready", self.ready, self.facts.replicas);
        for instance in self.observed.instances.iter().filter(|i| !i.ready) {
            let doing = match instance.report.doing.as_str() {
                _ if instance.terminating => "stopping",
                "" if !instance.started() => "starting",
                "" => "not ready",
                doing => doing,
            };
            text.push_str(&format!("; {}: {doing}", instance.name));
        }
        text
    }

    fn down(&self) -> Option<Verdict> {
        if self.facts.operation.as_ref().is_some_and(Operation::stops) {
            return Some(verdict(false, "Quiesced", "stopped for an operation"));
        }
        self.stopped().then(|| verdict(false, "Stopped", "spec.stopped is true"))
    }

    fn available(&self) -> Verdict {
        let serving = self.primary.filter(|p| p.ready);
        let full = self.primary.and_then(space::full);
        match (self.down(), serving) {
            (Some(down), _) => down,
            _ if let Some(full) = full => verdict(false, &full.reason, full.message),
            (None, Some(_)) if let Some(why) = &self.commits_wait => verdict(false, COMMITS_WAIT, why),
            (None, Some(primary)) => {
                verdict(true, "PrimaryReady", format!("{} accepts writes", primary.name))
            }
            (None, None) => match self.primary {
                Some(primary) => {
                    verdict(false, "PrimaryNotReady", format!("{} is primary and not ready", primary.name))
                }
                None => verdict(false, "NoPrimary", "no instance is primary"),
            },
        }
    }

    fn consistent(&self) -> Verdict {
        if let Some((_, reason, message)) = self.down() {
            return (Truth::Unknown, reason, message);
        }
        let Some(primary) = self.primary else {
            return verdict(false, "NoPrimary", "no instance is primary");
        };
        let wanted = self.facts.replicas;
        let pages = match consistent::pages(&self.observed.instances) {
            Ok(words) => words,
            Err((reason, message)) => return verdict(false, reason, message),
        };
        if wanted <= 1 {
            return verdict(
                true,
                "SingleInstance",
                format!("one instance, as spec.instances wants; there is no other copy; {pages}"),
            );
        }
        let (mode, standbys) = match &self.facts.durability {
            Some(durability) => (durability.mode, durability.standbys),
            None => (DurabilityMode::Asynchronous, 0),
        };
        if let Some(why) = &self.commits_wait {
            return verdict(false, COMMITS_WAIT, why);
        }
        let report = &primary.report;
        if report.streaming.is_empty() {
            return verdict(
                false,
                "SingleCopy",
                format!("{} has the only copy: no replica streams", primary.name),
            );
        }
        let others = self.observed.instances.iter().filter(|i| i.ready && i.name != primary.name);
        let apart: Vec<&str> =
            others.filter(|i| i.report.timeline != report.timeline).map(|i| i.name.as_str()).collect();
        if !apart.is_empty() {
            let list = apart.join(", ");
            return verdict(false, "TimelinesDiffer", format!("not on timeline {}: {list}", report.timeline));
        }
        let synchronous = i32::try_from(report.synchronous.len()).unwrap_or(i32::MAX);
        if mode != DurabilityMode::Asynchronous && synchronous < standbys {
            let risk = match mode {
                DurabilityMode::Required => "writes wait until they are back",
                _ => "commits do not wait meanwhile, and a failover now can lose the last ones",
            };
            return verdict(
                false,
                "NotSynchronous",
                format!(
                    "{synchronous} of {standbys} standby(s) of the promised durability are synchronous: {risk}"
                ),
            );
        }
        if self.ready < wanted {
            return verdict(false, "InstancesMissing", self.progress());
        }
        let message = match mode {
            DurabilityMode::Required => {
                format!("every commit is on {} instances before it is acknowledged", standbys + 1)
            }
            DurabilityMode::Preferred => {
                "commits wait for a standby while one is there; without one the primary goes on \
                alone, and its loss then loses what was committed since"
                    .into()
            }
            DurabilityMode::Asynchronous => {
                "commits wait for no standby: a failover can lose the last ones".to_string()
            }
        };
        let figures = format!(
            "{} of {wanted} instances are ready, on timeline {} and within {} s of the primary; synchronous standbys: {synchronous}, \
             promised: {}; {pages}; {message}",
            self.ready,
            report.timeline,
            self.observed.database.spec.postgresql.max_replica_lag_seconds,
            if mode == DurabilityMode::Asynchronous { 0 } else { standbys },
        );
        verdict(true, "InSync", figures)
    }

    fn archiving(&self) -> Verdict {
        let Some(archive) = &self.observed.database.spec.archive else {
            return verdict(
                false,
                "NotConfigured",
                "spec.archive is not set: no backups and no point-in-time recovery; set spec.archive.storeRef",
            );
        };
        let store = &archive.store_ref.name;
        if self.facts.deleting {
            return (Truth::Unknown, "Deleting".into(), "the Database is being deleted".into());
        }
        if !self.facts.store_found {
            return verdict(
                false,
                "StoreNotFound",
                format!("spec.archive.storeRef names BackupStore {store}, which does not exist; create it"),
            );
        }
        if let Some((_, reason, message)) = self.down() {
            return (Truth::Unknown, reason, message);
        }
        match self.primary.map(|p| p.report.archive.as_ref()) {
            None => (Truth::Unknown, "NoPrimary".into(), "no instance is primary".into()),
            Some(None) => {
                (Truth::Unknown, "Waiting".into(), "the primary has not reported on its archive yet".into())
            }
            Some(Some(report)) if !report.error.is_empty() => verdict(
                false,
                "ArchiveFailed",
                format!(
                    "{} segment(s) ({} MiB) wait for BackupStore {store}{}: {}",
                    report.behind_segments,
                    report.behind_segments.saturating_mul(i64::from(
                        self.observed.database.spec.postgresql.initdb.wal_segment_size_mb
                    )),
                    self.primary.map(space::room).unwrap_or_default(),
                    report.error
                ),
            ),
            Some(Some(_)) => verdict(true, "Archiving", format!("WAL reaches BackupStore {store}")),
        }
    }

    fn quiesced(&self) -> Verdict {
        match &self.facts.operation {
            Some(Operation::Quiesced { token }) => {
                verdict(true, "Operation", operation::quiesced_message(token))
            }
            Some(Operation::Stopping { left, .. }) => {
                verdict(false, "Stopping", format!("asked for; left: {}", left.join(", ")))
            }
            _ => verdict(false, "NotAsked", ""),
        }
    }

    fn archive(&self) -> Option<ArchiveStatus> {
        let report = self.primary?.report.archive.as_ref()?;
        Some(ArchiveStatus {
            last_segment: (!report.last_segment.is_empty()).then(|| report.last_segment.clone()),
            last_archived_time: report.last_archived_time.parse().ok().map(Time),
            behind_segments: report.behind_segments,
        })
    }

    /// The restart that is carried out: every instance runs from a template made for it.
    fn restarted(&self) -> Option<String> {
        let facts = self.facts;
        let wanted = facts.restart.as_ref()?;
        let set = self.observed.stateful_set.as_deref()?;
        let template = template_annotation(set, names::ANNOTATION_RESTARTED);
        let done = facts.settled
            && !facts.pending
            && facts.rollout.outdated.is_empty()
            && self.ready >= facts.replicas
            && stateful_set::data_set(set) == facts.data_set.as_ref().map(|d| d.id.as_str());
        (done && template.as_ref() == Some(wanted)).then(|| wanted.clone())
    }

    fn phase(&self, status: &DatabaseStatus) -> &'static str {
        let is = |type_| conditions::is_true(&status.conditions, type_);
        let reason = conditions::find(&status.conditions, types::READY).map_or("", |c| c.reason.as_str());
        // Until it was ready once, a primary that does not serve yet is no failover.
        let before = self.observed.database.status.as_ref();
        let served = before.is_some_and(|s| s.primary.is_some() && s.phase.as_deref() != Some("Creating"));
        let began = self.facts.data_set.as_ref().is_some_and(|d| d.system_identifier.is_some());
        if self.facts.deleting {
            "Deleting"
        } else if is(types::QUIESCED) {
            "Quiesced"
        } else if conditions::find(&status.conditions, types::AVAILABLE)
            .is_some_and(|c| c.status == "False" && c.reason == DISK_FULL)
        {
            DISK_FULL
        } else if self.problem.is_some() {
            if is(types::AVAILABLE) { "Degraded" } else { "Failed" }
        } else if is(types::READY) {
            if self.stopped() { "Stopped" } else { "Ready" }
        } else if !began {
            "Creating"
        } else if self.commits_wait.is_some() && self.primary.is_some_and(|p| p.ready) {
            // The primary is well, and there is nothing to take over.
            "Degraded"
        } else if !is(types::AVAILABLE) && served && self.down().is_none() {
            "FailingOver"
        } else if reason == "InstancesNotReady" {
            "Degraded"
        } else if !is(types::AVAILABLE) && self.down().is_none() {
            "Creating"
        } else {
            "Updating"
        }
    }
}

#[cfg(test)]
mod tests;
