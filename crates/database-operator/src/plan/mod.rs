//! Decides what is to be written, from what was observed. Pure: no client, no clock, no environment.

pub mod children;
pub mod clones;
pub mod config_map;
pub mod disruption;
pub mod durability;
pub mod ending;
pub mod growth;
pub mod quiesce;
pub mod rbac;
pub mod rollout;
pub mod secrets;
pub mod services;
pub mod stateful_set;
mod step;
pub mod trouble;
pub mod volumes;

#[cfg(test)]
pub mod fixtures;
#[cfg(test)]
mod tests;

use crate::{
    observe::Observed,
    validate::{Invalid, Settings, ValidatedDatabase},
};
use children::{Write, change};
use clones::GivenUp;
use growth::{Ask, Growing};
use holdfast_core::{
    conditions,
    crd::database::{Durability, ReplicaSource, Superuser},
    names, operation,
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::ResourceExt;
use quiesce::Operation;
use rollout::{Replace, Rollout};
use volumes::{Choice, ClaimPatch, DataSet, Named};

/// How often the Secrets are made sure of while instances are missing: a deleted one comes back, and the API server is spared.
const SECRETS_SECONDS: i64 = 10;

/// Something only a person, or time, can put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase reason of condition Stalled.
    pub reason: String,
    /// A sentence that says what to do.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// What to do about the finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizer {
    /// It is as it should be.
    Leave,
    /// The volumes are to go with the Database.
    Add,
    /// They are gone, or are to stay.
    Remove,
}

/// What to do about the StatefulSet.
#[derive(Clone, Debug, PartialEq)]
pub enum SetStep {
    /// Nothing.
    Leave,
    /// It is on its way out, or another Database's that was deleted a moment ago.
    Wait,
    /// Make it.
    Create(Box<StatefulSet>),
    /// Change it.
    Update(Box<StatefulSet>),
    /// Stop its pods; nothing else about it changes.
    Stop {
        /// Its uid.
        uid: String,
    },
    /// Delete it, so that it is made anew.
    Delete {
        /// Its uid.
        uid: String,
        /// Its pods stay and are adopted by the new one.
        orphan: bool,
    },
}

/// Everything that is to be written. Apply takes it apart field by field.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer.
    pub finalizer: Finalizer,
    /// Make sure of the Secrets: those that are not there are made. Some(true): the superuser's, too.
    pub secrets: Option<bool>,
    /// Delete the superuser's Secret, before the StatefulSet ceases to mount it.
    pub remove_superuser: bool,
    /// The pods' ServiceAccount.
    pub service_account: Write<ServiceAccount>,
    /// What agents may do.
    pub role: Write<Role>,
    /// Gives it to them.
    pub role_binding: Write<RoleBinding>,
    /// What agents are told.
    pub config_map: Write<ConfigMap>,
    /// Services.
    pub services: Vec<Write<Service>>,
    /// The primary's EndpointSlice, when it has to be created.
    pub endpoint_slice: Option<EndpointSlice>,
    /// The PodDisruptionBudget.
    pub budget: Write<PodDisruptionBudget>,
    /// The PodDisruptionBudget that one instance does not need.
    pub remove_budget: Option<Named>,
    /// Changes of volumes.
    pub claims: Vec<ClaimPatch>,
    /// Claims of clones, to be made before the StatefulSet gets the replicas that they are for.
    pub clones: Vec<PersistentVolumeClaim>,
    /// Clones that do not come.
    pub give_up: Vec<GivenUp>,
    /// The StatefulSet.
    pub stateful_set: SetStep,
    /// The pod to replace.
    pub replace: Option<Replace>,
    /// Volumes to delete, with the Database.
    pub remove_claims: Vec<Named>,
    /// The primary's Lease, to be deleted with the volumes that it speaks of.
    pub remove_lease: Option<Named>,
    /// Before this plan is carried out it must be made again from what the API server says now, not from caches.
    pub needs_live_view: bool,
    /// What was decided, for the status.
    pub facts: Facts,
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The Database is being deleted.
    pub deleting: bool,
    /// The data set.
    pub data_set: Option<DataSet>,
    /// Durability in force.
    pub durability: Option<Durability>,
    /// Instances that belong to the database (the spec's, unless durability forbids it).
    pub instances: i32,
    /// Pods that are to run now.
    pub replicas: i32,
    /// Exclusive work.
    pub operation: Option<Operation>,
    /// Why the spec cannot be carried out.
    pub problem: Option<Problem>,
    /// What is waited for, for people.
    pub waiting: Option<String>,
    /// Hash of what the agents are told.
    pub config_hash: String,
    /// Pods that are behind their template.
    pub rollout: Rollout,
    /// Something else is left to write.
    pub pending: bool,
    /// The StatefulSet is as wanted, and its controller has seen it.
    pub settled: bool,
    /// Claims that should ask for another size, those that were refused it included.
    pub asks: Vec<Ask>,
    /// Volumes that are still growing.
    pub growing: Vec<Growing>,
    /// Value of annotation `holdfast.dev/restart`.
    pub restart: Option<String>,
    /// The BackupStore of the archive is there.
    pub store_found: bool,
}

impl Plan {
    /// A plan that writes nothing.
    fn nothing() -> Self {
        Self {
            finalizer: Finalizer::Leave,
            secrets: None,
            remove_superuser: false,
            service_account: Write::Nothing,
            role: Write::Nothing,
            role_binding: Write::Nothing,
            config_map: Write::Nothing,
            services: Vec::new(),
            endpoint_slice: None,
            budget: Write::Nothing,
            remove_budget: None,
            claims: Vec::new(),
            clones: Vec::new(),
            give_up: Vec::new(),
            stateful_set: SetStep::Leave,
            replace: None,
            remove_claims: Vec::new(),
            remove_lease: None,
            needs_live_view: false,
            facts: Facts::default(),
        }
    }

    fn pending(&self) -> bool {
        self.service_account.pending()
            || self.role.pending()
            || self.role_binding.pending()
            || self.config_map.pending()
            || self.services.iter().any(Write::pending)
            || self.endpoint_slice.is_some()
            || self.budget.pending()
            || self.remove_budget.is_some()
            || !self.claims.is_empty()
            || !self.give_up.is_empty()
            || self.stateful_set != SetStep::Leave
    }

    /// Whether another object stands in the way that goes away by itself, without an event that is sure to be seen.
    pub fn waits_for_others(&self) -> bool {
        matches!(self.service_account, Write::Wait)
            || matches!(self.role, Write::Wait)
            || matches!(self.role_binding, Write::Wait)
            || matches!(self.config_map, Write::Wait)
            || self.services.iter().any(|s| matches!(s, Write::Wait))
            || matches!(self.budget, Write::Wait)
            || self.stateful_set == SetStep::Wait
            || self.facts.waiting.is_some()
    }
}

/// Decides. `valid` is what `validate` made of the Database.
pub fn plan(
    observed: &Observed,
    valid: Result<&ValidatedDatabase, &Invalid>,
    settings: &Settings,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::nothing();
    if observed.database.metadata.deletion_timestamp.is_some() {
        ending::delete(observed, &mut plan);
        return plan;
    }
    plan.finalizer = ending::finalizer(observed);
    let operation = quiesce::operation(observed);
    plan.facts.operation = Some(operation.clone());
    plan.facts.instances = observed.database.spec.instances;
    plan.facts.restart = observed.database.annotations().get(names::ANNOTATION_RESTART).cloned();
    // The answer is given once for each token, and it is believed: the pods must be gone for sure.
    plan.needs_live_view = matches!(&operation, Operation::Quiesced { token } if !answered(observed, token));
    if operation.stops() {
        // Whatever else may be wrong: who holds the Lease must get a quiet database.
        plan.stateful_set = step::stop(observed);
    } else if !observed.database.spec.stopped {
        plan.facts.replicas = observed.database.spec.instances;
    }
    let db = match valid {
        Ok(db) => db,
        Err(invalid) => {
            plan.facts.problem = Some(Problem::new(invalid.reason(), invalid.to_string()));
            return plan;
        }
    };
    match volumes::choose(observed) {
        Choice::Chosen(data_set) => carry_out(observed, db, &data_set, &operation, settings, now, &mut plan),
        Choice::Refused(problem) => plan.facts.problem = Some(problem),
        Choice::Terminating(claims) => {
            plan.facts.waiting = Some(format!("volumes that are being deleted: {}", claims.join(", ")));
        }
    }
    plan
}

/// The plan for a Database that can be carried out.
fn carry_out(
    observed: &Observed,
    db: &ValidatedDatabase,
    data_set: &DataSet,
    operation: &Operation,
    settings: &Settings,
    now: Timestamp,
    plan: &mut Plan,
) {
    let live = observed.stateful_set.as_deref();
    let told =
        observed.config_map.as_deref().and_then(config_map::told).filter(|told| told.database_uid == db.uid);
    let status = observed.database.status.as_ref();
    let recorded =
        status.and_then(|s| s.durability.clone()).or_else(|| told.as_ref().map(|t| t.durability.clone()));
    let highest = observed.instances.iter().map(|i| i.ordinal + 1).max().unwrap_or(0);
    // While the StatefulSet is made anew, its pods tell how many there were.
    let running = live.map_or(Some(highest), |set| set.spec.as_ref()?.replicas).filter(|n| *n > 0);
    let decision = durability::decide(db, recorded.as_ref(), running);
    let archive = config_map::archive(db, observed.store.as_deref(), told.as_ref());
    let store = archive.as_ref().map(|a| a.store.clone());
    let handled = status.and_then(|s| s.handled.as_ref()?.switchover.as_ref());
    let asked = observed.database.annotations().get(names::ANNOTATION_SWITCHOVER);
    let config = config_map::agent_config(
        db,
        config_map::Decided {
            instances: decision.instances,
            data_set: &data_set.id,
            history: &data_set.history,
            system_identifier: data_set.system_identifier.as_deref().unwrap_or_default(),
            durability: &decision.durability,
            archive,
            switchover: asked.filter(|asked| handled != Some(*asked)),
        },
    );
    let stopped = operation.stops() || db.spec.stopped;
    let facts = &mut plan.facts;
    facts.data_set = Some(data_set.clone());
    facts.durability = Some(decision.durability);
    facts.instances = decision.instances;
    facts.replicas = if stopped { 0 } else { decision.instances };
    facts.problem = decision.problem;
    facts.config_hash = config.hash();
    facts.store_found = observed.store.is_some();

    let pods = decision.instances.max(highest).max(running.unwrap_or(0));
    let uid = db.uid.as_str();
    plan.service_account = change(rbac::service_account(db), observed.service_account.as_deref(), uid);
    plan.role = change(rbac::role(db, pods), observed.role.as_deref(), uid);
    plan.role_binding = change(rbac::role_binding(db), observed.role_binding.as_deref(), uid);
    plan.config_map = change(config_map::config_map(db, &config), observed.config_map.as_deref(), uid);
    plan.services = services::services(db)
        .into_iter()
        .map(|service| {
            let live = observed.services.get(&service.name_any()).map(AsRef::as_ref);
            change(service, live, uid)
        })
        .collect();
    let rw = observed.services.get(&names::service_rw(db.name.as_str())).map(AsRef::as_ref);
    plan.endpoint_slice = services::endpoint_slice(db, rw, observed.endpoint_slice.as_deref());
    match disruption::budget(db, decision.instances) {
        Some(wanted) => plan.budget = change(wanted, observed.budget.as_deref(), uid),
        None => {
            let unneeded = observed.budget.as_deref().filter(|b| b.metadata.deletion_timestamp.is_none());
            plan.remove_budget =
                unneeded.map(|b| Named { name: b.name_any(), uid: b.uid().unwrap_or_default() });
        }
    }

    let kept =
        stateful_set::kept(observed.instances.iter().filter(|i| !i.terminating).map(|i| i.pod.as_ref()));
    let decided = stateful_set::Decided {
        replicas: plan.facts.replicas,
        data_set: &data_set.id,
        history: &data_set.history,
        store: store.as_ref(),
        agent_image: &settings.agent_image,
        kept: kept.as_ref(),
    };
    if operation.stops() {
        if live.is_none() && !observed.instances.is_empty() {
            // Pods whose StatefulSet is about to be made anew: only a StatefulSet can end them in an orderly way.
            plan.needs_live_view = true;
            plan.stateful_set = step::create(observed, db, decided);
        }
    } else {
        let asks = growth::asks(observed, &data_set.id, &db.size, decision.instances);
        let due: Vec<Ask> =
            asks.iter().filter(|ask| growth::due(ask, &observed.refusals, now)).cloned().collect();
        plan.claims = volumes::patches(observed, data_set, &due);
        plan.facts.asks = asks;
        plan.facts.growing = growth::growing(observed, &data_set.id, &db.size, decision.instances);
        plan.give_up = clones::given_up(observed, now);
        step::decide(observed, db, decided, operation, plan);
        if let SetStep::Update(set) = &plan.stateful_set
            && db.spec.storage.replica_source == ReplicaSource::VolumeClone
        {
            plan.clones = clones::wanted(observed, set, data_set, &settings.agent_image);
            // A cache may not show a claim, or a replica, that is there: an instance that has begun must not get a clone.
            plan.needs_live_view |= !plan.clones.is_empty();
        }
        let settled = plan.stateful_set == SetStep::Leave
            && live.is_some_and(|set| {
                set.status.as_ref().and_then(|s| s.observed_generation) >= set.metadata.generation
            });
        plan.facts.settled = settled;
        if plan.facts.replicas > 0 {
            plan.facts.rollout =
                rollout::rollout(observed, plan.facts.replicas, settled, &plan.facts.config_hash);
            plan.replace = plan.facts.rollout.next.clone();
        }
    }
    plan.secrets = want_secrets(observed, db, now, plan);
    plan.remove_superuser = superuser_ends(live, db, &plan.stateful_set);
    plan.facts.pending = plan.pending();
}

/// Whether status says already that the database is quiet for this token.
fn answered(observed: &Observed, token: &str) -> bool {
    let conditions = observed.database.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::find(conditions, conditions::types::QUIESCED)
        .is_some_and(|c| c.status == "True" && operation::message_has_token(&c.message, token))
}

/// The Secrets cannot be read, so they are made sure of when a missing one would show: before the first pods, when the
/// template changes, and while instances are missing.
fn want_secrets(observed: &Observed, db: &ValidatedDatabase, now: Timestamp, plan: &Plan) -> Option<bool> {
    let bound = observed.database.status.as_ref().is_some_and(|s| s.binding.is_some());
    let ready = observed.instances.iter().filter(|i| i.ready).count();
    let missing = i32::try_from(ready).unwrap_or(i32::MAX) < plan.facts.replicas;
    let written = matches!(plan.stateful_set, SetStep::Create(_) | SetStep::Update(_));
    let long_ago =
        observed.secrets_ensured.is_none_or(|then| now.as_second() - then.as_second() >= SECRETS_SECONDS);
    let wanted = written || ((missing || !bound) && long_ago);
    wanted.then_some(db.spec.postgresql.superuser == Superuser::Enabled)
}

/// Whether the superuser's Secret is to go. It cannot be looked up; a StatefulSet that still mounts it tells that it was wanted, until it
/// is written anew. So the Secret goes first: whoever dies in between finds the StatefulSet as it was, and deletes again.
fn superuser_ends(live: Option<&StatefulSet>, db: &ValidatedDatabase, step: &SetStep) -> bool {
    db.spec.postgresql.superuser == Superuser::Disabled
        && matches!(step, SetStep::Update(_) | SetStep::Delete { .. })
        && live.is_some_and(|set| stateful_set::mounts(set, &names::secret_superuser(db.name.as_str())))
}
