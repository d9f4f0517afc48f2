//! Reads everything that a decision about one Database needs: from the caches, and, where a mistake would be grave, from
//! the API server itself. Writes nothing.

pub mod events;

pub use events::{Counts, Question, Words, words};

use crate::{
    packed::{Child, Kept, PackedDatabase},
    plan::growth::Refusal,
};
use holdfast_core::{BackupStore, Database, names, report::InstanceReport};
use holdfast_runtime::{
    apply::bounded,
    cache::Cache,
    packed::{Keep, Object},
};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams, runtime::reflector::Store};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server did not answer as it should.
    #[error("cannot read {what} from the API server")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: kube::Error,
    },
}

/// Caches of everything that belongs to Databases, kept fresh by watches.
#[derive(Clone)]
pub struct Caches {
    /// Databases.
    pub databases: Store<PackedDatabase>,
    /// BackupStores.
    pub stores: Cache<BackupStore, Kept>,
    /// StatefulSets.
    pub stateful_sets: Cache<StatefulSet, Kept>,
    /// Pods: instances and workers.
    pub pods: Cache<Pod, Kept>,
    /// Volumes.
    pub claims: Cache<PersistentVolumeClaim, Kept>,
    /// Leases.
    pub leases: Cache<Lease, Kept>,
    /// ConfigMaps.
    pub config_maps: Cache<ConfigMap, Kept>,
    /// Services.
    pub services: Cache<Service, Kept>,
    /// EndpointSlices of the primaries.
    pub endpoint_slices: Cache<EndpointSlice, Kept>,
    /// PodDisruptionBudgets.
    pub budgets: Cache<PodDisruptionBudget, Kept>,
    /// ServiceAccounts.
    pub service_accounts: Cache<ServiceAccount, Kept>,
    /// Roles.
    pub roles: Cache<Role, Kept>,
    /// RoleBindings.
    pub role_bindings: Cache<RoleBinding, Kept>,
}

/// A pod of the StatefulSet.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Name of the pod.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its ordinal.
    pub ordinal: i32,
    /// Condition Ready, and not on its way out.
    pub ready: bool,
    /// On its way out.
    pub terminating: bool,
    /// Revision of the template that it was made from.
    pub revision: String,
    /// What its agent says; nothing yet: the default.
    pub report: InstanceReport,
    /// The pod.
    pub pod: Arc<Pod>,
}

impl Instance {
    /// Reads a pod; `None`: not an instance of this database.
    pub fn of(database: &str, pod: Arc<Pod>) -> Option<Self> {
        let name = pod.name_any();
        let ordinal = names::ordinal(database, &name)?;
        if pod.labels().get(names::LABEL_COMPONENT).map(String::as_str) != Some("instance") {
            return None;
        }
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let ready = pod_condition(&pod, "Ready").is_some_and(|c| c.status == "True");
        let report = pod
            .annotations()
            .get(names::ANNOTATION_REPORT)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        Some(Self {
            uid: pod.uid().unwrap_or_default(),
            ordinal,
            ready: ready && !terminating,
            terminating,
            revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
            report,
            name,
            pod,
        })
    }

    /// Seconds since the pod was made.
    pub fn age(&self, now: Timestamp) -> i64 {
        self.pod.metadata.creation_timestamp.as_ref().map_or(0, |t| now.as_second() - t.0.as_second())
    }

    /// Whether the database container has ever begun to run.
    pub fn started(&self) -> bool {
        let statuses = self.pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses
            .filter(|c| c.name == crate::plan::stateful_set::CONTAINER)
            .any(|c| c.restart_count > 0 || c.state.as_ref().is_some_and(|s| s.waiting.is_none()))
    }
}

/// A condition of a pod.
pub fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// Whether a pod's containers may still run: only a pod that ended for good cannot write any more.
pub fn live_pod(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Everything that belongs to one Database.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Database.
    pub database: Arc<Database>,
    /// The BackupStore that its archive names, if it is there.
    pub store: Option<Arc<BackupStore>>,
    /// Its StatefulSet.
    pub stateful_set: Option<Arc<StatefulSet>>,
    /// The StatefulSet's pods, by ordinal.
    pub instances: Vec<Instance>,
    /// Other pods that carry its label: workers.
    pub workers: Vec<Arc<Pod>>,
    /// Volumes that carry its label, of every data set, by name.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Lease of the primary.
    pub primary_lease: Option<Arc<Lease>>,
    /// Lease of exclusive work.
    pub operation_lease: Option<Arc<Lease>>,
    /// What the agents are told.
    pub config_map: Option<Arc<ConfigMap>>,
    /// Services by name.
    pub services: BTreeMap<String, Arc<Service>>,
    /// EndpointSlice of the primary's Service.
    pub endpoint_slice: Option<Arc<EndpointSlice>>,
    /// PodDisruptionBudget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// ServiceAccount.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// Role.
    pub role: Option<Arc<Role>>,
    /// RoleBinding.
    pub role_binding: Option<Arc<RoleBinding>>,
    /// When this process made sure of the Secrets last; they cannot be read.
    pub secrets_ensured: Option<Timestamp>,
    /// Since when instances, by uid, report an error, as this process has seen it.
    pub errors_since: BTreeMap<String, Timestamp>,
    /// Since when no commit ends, as this process has seen it.
    pub commits_wait_since: Option<Timestamp>,
    /// Sizes that the API server refused to this process, by uid of the claim.
    pub refusals: BTreeMap<String, Refusal>,
    /// Kubernetes' words about cloned volumes that do not come, by uid of the claim.
    pub clone_words: BTreeMap<String, Words>,
}

impl Observed {
    /// Only the Database, nothing else there.
    pub fn alone(database: Arc<Database>) -> Self {
        Self {
            database,
            store: None,
            stateful_set: None,
            instances: Vec::new(),
            workers: Vec::new(),
            claims: Vec::new(),
            primary_lease: None,
            operation_lease: None,
            config_map: None,
            services: BTreeMap::new(),
            endpoint_slice: None,
            budget: None,
            service_account: None,
            role: None,
            role_binding: None,
            secrets_ensured: None,
            errors_since: BTreeMap::new(),
            commits_wait_since: None,
            refusals: BTreeMap::new(),
            clone_words: BTreeMap::new(),
        }
    }

    fn take_pods(&mut self, pods: Vec<Arc<Pod>>) {
        let name = self.database.name_any();
        self.instances.clear();
        self.workers.clear();
        for pod in pods {
            match Instance::of(&name, Arc::clone(&pod)) {
                Some(instance) => self.instances.push(instance),
                None => self.workers.push(pod),
            }
        }
        self.instances.sort_by_key(|i| i.ordinal);
        self.workers.sort_by_key(|p| p.name_any());
    }
}

fn one<K: Object>(cache: &Cache<K, Kept>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    Kept: Keep<K>,
{
    cache.get(namespace, name).map(Arc::new)
}

fn labelled<K: Object>(cache: &Cache<K, Kept>, namespace: &str, database: &str) -> Vec<Arc<K>>
where
    Kept: Keep<K, Digest = Child>,
{
    cache.filter(namespace, |child| child.is_of(database)).into_iter().map(Arc::new).collect()
}

/// What the caches know: no request.
pub fn cached(caches: &Caches, database: Arc<Database>) -> Observed {
    let name = database.name_any();
    let namespace = database.namespace().unwrap_or_default();
    let store_name = database.spec.archive.as_ref().map(|a| a.store_ref.name.clone());
    let mut observed = Observed::alone(Arc::clone(&database));
    observed.store = store_name.and_then(|store| one(&caches.stores, &namespace, &store));
    observed.stateful_set = one(&caches.stateful_sets, &namespace, &name);
    observed.take_pods(labelled(&caches.pods, &namespace, &name));
    observed.claims = labelled(&caches.claims, &namespace, &name);
    observed.primary_lease = one(&caches.leases, &namespace, &names::lease_primary(&name));
    observed.operation_lease = one(&caches.leases, &namespace, &names::lease_operation(&name));
    observed.config_map = one(&caches.config_maps, &namespace, &names::config_map(&name));
    let services = [names::service_rw, names::service_ro, names::service_r, names::service_pods];
    observed.services = services
        .iter()
        .filter_map(|service| Some((service(&name), one(&caches.services, &namespace, &service(&name))?)))
        .collect();
    observed.endpoint_slice = one(&caches.endpoint_slices, &namespace, &names::service_rw(&name));
    observed.budget = one(&caches.budgets, &namespace, &name);
    observed.service_account = one(&caches.service_accounts, &namespace, &name);
    observed.role = one(&caches.roles, &namespace, &name);
    observed.role_binding = one(&caches.role_bindings, &namespace, &name);
    observed
}

/// Replaces what a start of pods or a change of volumes depends on by what the API server says now. A cache may be behind: it
/// may not yet show a volume that a Restore just handed over, the operation Lease, or a worker that writes to a volume.
/// Errors: the API server cannot be read; then nothing may be started.
pub async fn live(client: &Client, mut observed: Observed) -> Result<Observed, ObserveError> {
    let name = observed.database.name_any();
    let namespace = observed.database.namespace().unwrap_or_default();
    let selector = ListParams::default().labels(&format!("{}={name}", names::LABEL_DATABASE));
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
    // The Lease first: one that is made after this finds our pods, and waits for Quiesced.
    observed.operation_lease = get(&leases, &names::lease_operation(&name), "the operation Lease").await?;
    observed.primary_lease = get(&leases, &names::lease_primary(&name), "the primary's Lease").await?;
    let set: Option<Arc<StatefulSet>> = get(&sets, &name, "the StatefulSet").await?;
    let uid = observed.database.uid().unwrap_or_default();
    observed.stateful_set = set.filter(|set| is_of(set.as_ref(), &name, &uid));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    observed.take_pods(list(&pods, &selector, "the pods").await?);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    observed.claims = list(&claims, &selector, "the volumes").await?;
    observed.claims.sort_by_key(|claim| claim.name_any());
    Ok(observed)
}

/// Whether an object is the Database's of this name and uid: it owns it, whatever became of its labels, or the labels say so.
/// Somebody's own StatefulSet may bear a Database's name: taken for one of ours with other volumes it would be stopped and deleted.
pub fn is_of<K: ResourceExt>(object: &K, database: &str, uid: &str) -> bool {
    object.labels().get(names::LABEL_DATABASE).map(String::as_str) == Some(database)
        || object.owner_references().iter().any(|owner| owner.uid == uid)
}

async fn get<K>(api: &Api<K>, name: &str, what: &'static str) -> Result<Option<Arc<K>>, ObserveError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let found = bounded(api.get_opt(name)).await.map_err(|source| ObserveError::Read { what, source })?;
    Ok(found.map(Arc::new))
}

async fn list<K>(api: &Api<K>, params: &ListParams, what: &'static str) -> Result<Vec<Arc<K>>, ObserveError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let found = bounded(api.list(params)).await.map_err(|source| ObserveError::Read { what, source })?;
    Ok(found.items.into_iter().map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_set_of_the_databases_name_may_be_somebody_elses() {
        let set = |meta: serde_json::Value| -> StatefulSet {
            serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta}))
                .unwrap()
        };
        let owner = |uid: &str| json!({"name": "orders", "ownerReferences": [{"apiVersion": "v1", "kind": "Database", "name": "orders", "uid": uid}]});
        assert!(
            !is_of(&set(json!({"name": "orders"})), "orders", "u7"),
            "stopping or deleting it would be a disaster"
        );
        assert!(!is_of(
            &set(json!({"name": "orders", "labels": {"holdfast.dev/database": "invoices"}})),
            "orders",
            "u7"
        ));
        assert!(!is_of(&set(owner("u6")), "orders", "u7"));
        assert!(is_of(&set(owner("u7")), "orders", "u7"), "its labels may be gone");
        // Left behind by an earlier Database of this name, whose volumes it has.
        assert!(is_of(
            &set(json!({"name": "orders", "labels": {"holdfast.dev/database": "orders"}})),
            "orders",
            "u7"
        ));
    }
}
