//! One watch a kind, shared by all controllers of the process. Touches the API by list and watch only.
//!
//! Controllers read their neighbours from here, so that a reconcile with nothing to do asks the API server for nothing.
//! A cache may be stale: whoever is about to write reads again from the API first.

use crate::backup;
use futures::{StreamExt, channel::mpsc, future::ready};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database};
use holdfast_runtime::{
    operator::{Process, expired, watching},
    packed::{Keep, Packed},
};
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use std::{collections::HashSet, fmt::Debug, sync::Arc, time::Duration};

/// How long to wait for kinds of other operators before working without them.
const PATIENCE: Duration = Duration::from_secs(10);

/// How Backups are kept: there may be tens of thousands.
pub enum Kept {}

/// What Backups are found by without being unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Their Database.
    pub database: Arc<str>,
    /// Over, well or not.
    pub is_final: bool,
    /// Being deleted.
    pub deleting: bool,
}

impl Keep<Backup> for Kept {
    type Digest = Digest;

    fn digest(backup: &Backup) -> Digest {
        Digest {
            database: backup.spec.database_ref.name.as_str().into(),
            is_final: backup::is_final(backup),
            deleting: backup.metadata.deletion_timestamp.is_some(),
        }
    }

    fn lighten(backup: &mut Backup) {
        backup::lighten(backup);
    }
}

/// A Backup as the cache keeps it.
pub type PackedBackup = Packed<Backup, Kept>;

/// What is known of the cluster.
#[derive(Clone)]
pub struct Caches {
    /// BackupStores.
    pub stores: Store<BackupStore>,
    /// Backups.
    pub backups: Store<PackedBackup>,
    /// BackupSchedules.
    pub schedules: Store<BackupSchedule>,
    /// Databases; empty as long as that kind is not installed.
    pub databases: Store<Database>,
    /// Workers' Jobs.
    pub jobs: Store<Job>,
    /// Operation Leases.
    pub leases: Store<Lease>,
}

impl Caches {
    /// Waits until the own kinds, Jobs and Leases are known, and for a while for Databases, which are another operator's.
    pub async fn ready(&self) {
        // An error means that the writer is gone, which is the end of the process.
        let _ = self.stores.wait_until_ready().await;
        let _ = self.backups.wait_until_ready().await;
        let _ = self.schedules.wait_until_ready().await;
        let _ = self.jobs.wait_until_ready().await;
        let _ = self.leases.wait_until_ready().await;
        if tokio::time::timeout(PATIENCE, self.databases.wait_until_ready()).await.is_err() {
            tracing::warn!(
                "Databases cannot be watched; without the CRD databases.holdfast.dev no Backup can be taken. Stores, \
                 schedules and retention work"
            );
        }
    }
}

/// Where a controller hears of objects to look at.
pub type Wakes<K> = mpsc::UnboundedReceiver<ObjectRef<K>>;

/// What is done about every object that appears, changes or goes.
type Listener<K> = Box<dyn Fn(&K) + Send + Sync>;

/// A watch in the making: whoever wants to hear of changes subscribes before it starts.
pub struct Feed<K: Resource<DynamicType = ()> + Clone + 'static> {
    api: Api<K>,
    config: watcher::Config,
    store: Store<K>,
    writer: Writer<K>,
    listeners: Vec<Listener<K>>,
}

impl<K> Feed<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// A feed of the objects that this label selector names; empty: all.
    pub fn new(api: Api<K>, labels: &str) -> Self {
        let config = if labels.is_empty() { watching() } else { watching().labels(labels) };
        let (store, writer) = reflector::store::<K>();
        Self { api, config, store, writer, listeners: Vec::new() }
    }

    /// The cache, which is filled once the watch has started.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// What `whom` makes of every object that appears, changes or goes from now on. The cache has it already then. Only names
    /// wait to be read: twenty thousand objects, once for each controller, would be a lot of memory.
    pub fn wakes<T, Of>(&mut self, whom: impl Fn(&K) -> Of + Send + Sync + 'static) -> Wakes<T>
    where
        T: Resource<DynamicType = ()> + 'static,
        Of: IntoIterator<Item = ObjectRef<T>>,
    {
        let (sender, receiver) = mpsc::unbounded();
        self.listeners.push(Box::new(move |object| {
            for reference in whom(object) {
                // A listener that is gone belongs to a controller that has ended.
                let _ = sender.unbounded_send(reference);
            }
        }));
        receiver
    }

    /// Begins to watch, as long as the process lives.
    pub fn start(self, process: &Process, name: &'static str) {
        let Self { api, config, store, writer, listeners } = self;
        let told = process.clone();
        process.metrics.introduce(name);
        let events = watcher::watcher(api, config)
            .default_backoff()
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer);
        let mut before: Vec<Arc<K>> = Vec::new();
        let pump = async move {
            events
                .for_each(|event| {
                    let tell = |object: &K| listeners.iter().for_each(|listener| listener(object));
                    match event {
                        Ok(Event::Init) => before = store.state(),
                        // While a list is read in, nobody is told: a reconcile now would still see the old cache.
                        Ok(Event::InitApply(_)) => {}
                        Ok(Event::InitDone) => {
                            let now = store.state();
                            now.iter().for_each(|object| tell(object));
                            // Those that went while nobody watched are news, too.
                            if !before.is_empty() {
                                let present: HashSet<_> = now.iter().filter_map(|o| o.uid()).collect();
                                before
                                    .iter()
                                    .filter(|o| o.uid().is_none_or(|uid| !present.contains(&uid)))
                                    .for_each(|object| tell(object));
                            }
                            before = Vec::new();
                        }
                        Ok(Event::Apply(object) | Event::Delete(object)) => tell(&object),
                        Err(error) if expired(&error) => {
                            tracing::debug!(watch = name, "a watch was too old and is begun again");
                        }
                        Err(error) => {
                            told.watch_failed(name);
                            tracing::warn!(
                                watch = name,
                                error = %error,
                                "a watch failed and is begun again; if it says Forbidden, apply the operator's deploy folder"
                            );
                        }
                    }
                    ready(())
                })
                .await;
        };
        process.background(name, pump);
    }
}

/// An object by namespace and name.
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// The objects of a namespace that fit.
pub fn filter<K>(store: &Store<K>, namespace: &str, fits: impl Fn(&K) -> bool) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|o| o.meta().namespace.as_deref() == Some(namespace) && fits(o))
}

/// The Backups of a Database.
pub fn backups_of(store: &Store<PackedBackup>, namespace: &str, database: &str) -> Vec<Arc<Backup>> {
    let found = filter(store, namespace, |b: &PackedBackup| *b.digest().database == *database);
    found.iter().filter_map(|packed| packed.unpack()).map(Arc::new).collect()
}
