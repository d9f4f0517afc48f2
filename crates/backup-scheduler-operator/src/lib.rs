//! The backup-scheduler operator: BackupStores are probed, BackupSchedules make Backups, Backups are carried out by
//! worker Jobs, retention is run, and each Database is told the window of time it can be restored to.
//!
//! It knows other operators only by their objects: it reads Databases and Restores, takes the operation Lease for a
//! Backup, and writes one field of a Database's status. It has no right to read Secrets: workers mount them.

pub mod backup;
pub mod cache;
pub mod context;
pub mod cron;
pub mod jobs;
pub mod metrics;
pub mod recoverable;
pub mod schedule;
pub mod store;

mod finalizers;
mod watches;

use cache::{Caches, Feed, PackedBackup, Wakes};
use context::Context;
use holdfast_core::{BackupSchedule, BackupStore, Database, names};
use holdfast_runtime::operator::{Process, drive};
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease};
use kube::{
    Resource,
    runtime::{Controller, reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;

/// The operator's name.
pub const NAME: &str = "holdfast-backup-scheduler-operator";
/// The kinds that it cannot work without. Databases and Restores are other operators'.
pub const CRDS: &[&str] =
    &["backupstores.holdfast.dev", "backups.holdfast.dev", "backupschedules.holdfast.dev"];

/// Runs the controllers until the process is told to end; workers run `agent_image`. Returns early, which ends the
/// process, if metrics cannot be registered.
pub async fn run(process: Process, agent_image: String) {
    let mut stores = Feed::<BackupStore>::new(process.api(), "");
    let mut backups = Feed::<PackedBackup>::new(process.api(), "");
    let mut schedules = Feed::<BackupSchedule>::new(process.api(), "");
    let mut databases = Feed::<Database>::new(process.api(), "");
    let mut jobs = Feed::<Job>::new(process.api(), jobs::LABEL_PURPOSE);
    // Primaries renew their Leases every few seconds; those carry a data set, operation Leases do not.
    let operations = format!("{},!{}", names::LABEL_DATABASE, names::LABEL_DATA_SET);
    let mut leases = Feed::<Lease>::new(process.api(), &operations);
    let caches = Caches {
        stores: stores.store(),
        backups: backups.store(),
        schedules: schedules.store(),
        databases: databases.store(),
        jobs: jobs.store(),
        leases: leases.store(),
    };

    let for_stores = [stores.wakes(watches::itself), jobs.wakes(watches::owners)];
    let all = &caches.backups;
    let for_backups = [
        backups.wakes(watches::itself),
        jobs.wakes(watches::owners),
        databases.wakes(watches::backups_of_database(all.clone())),
        stores.wakes(watches::backups_beside(all.clone())),
        leases.wakes(watches::backups_of_lease(all.clone())),
    ];
    let all = &caches.schedules;
    let for_schedules = [
        schedules.wakes(watches::itself),
        jobs.wakes(watches::owners),
        backups.wakes(watches::schedules_of_backup(all.clone())),
        databases.wakes(watches::schedules_of_database(all.clone())),
        stores.wakes(watches::schedules_beside(all.clone())),
    ];
    let for_windows = [databases.wakes(watches::itself), backups.wakes(watches::database_of)];

    stores.start(&process, "backupstores");
    backups.start(&process, "backups");
    schedules.start(&process, "backupschedules");
    databases.start(&process, "databases");
    jobs.start(&process, "jobs");
    leases.start(&process, "leases");
    let registry = &process.metrics.registry;
    let results = metrics::Schedules::register(registry, caches.schedules.clone(), process.clock())
        .and_then(|()| metrics::Results::new(registry));
    let results = match results {
        Ok(results) => results,
        Err(error) => {
            tracing::error!(error = %error, "cannot register the metrics");
            return;
        }
    };
    caches.ready().await;

    let ctx = Arc::new(Context {
        client: process.client.clone(),
        agent_image,
        namespace: process.namespace.clone(),
        events: process.events.clone(),
        caches: caches.clone(),
        results,
        places: tokio::sync::Mutex::new(()),
        lists: tokio::sync::Semaphore::new(context::LISTS),
        clock: process.clock(),
    });

    let controller = controller(caches.stores.clone(), for_stores);
    let of_stores = drive(controller, "backupstore", &process, Arc::clone(&ctx), store::reconcile);
    let controller = self::controller(caches.backups.clone(), for_backups);
    let of_backups = drive(controller, "backup", &process, Arc::clone(&ctx), backup::reconcile);
    let controller = self::controller(caches.schedules.clone(), for_schedules);
    let of_schedules = drive(controller, "backupschedule", &process, Arc::clone(&ctx), schedule::reconcile);
    let windows = Arc::new(recoverable::Windows::new(Arc::clone(&ctx)));
    let controller = self::controller(caches.databases.clone(), for_windows);
    let of_windows = drive(controller, "recoverable", &process, windows, recoverable::reconcile);

    tokio::join!(of_stores, of_backups, of_schedules, of_windows);
}

/// A controller that hears only names: the objects are in the cache.
fn controller<K, const N: usize>(cache: Store<K>, wakes: [Wakes<K>; N]) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let own = futures::stream::pending::<Result<K, watcher::Error>>();
    Controller::for_stream(own, cache).reconcile_on(futures::stream::select_all(wakes))
}
