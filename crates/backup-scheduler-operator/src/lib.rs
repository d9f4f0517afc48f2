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

use cache::{Caches, Feed};
use context::Context;
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, names};
use holdfast_runtime::operator::{Process, drive};
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease};
use kube::runtime::Controller;
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
    let mut backups = Feed::<Backup>::new(process.api(), "");
    let mut schedules = Feed::<BackupSchedule>::new(process.api(), "");
    let mut databases = Feed::<Database>::new(process.api(), "");
    let mut jobs = Feed::<Job>::new(process.api(), jobs::LABEL_PURPOSE);
    // Primaries renew their Leases every few seconds; those carry a data set, operation Leases do not.
    let operations = format!("{},!{}", names::LABEL_DATABASE, names::LABEL_DATA_SET);
    let mut leases = Feed::<Lease>::new(process.api(), &operations);

    let for_stores = (stores.subscribe(), jobs.subscribe());
    let for_backups = (
        backups.subscribe(),
        jobs.subscribe(),
        databases.subscribe(),
        stores.subscribe(),
        leases.subscribe(),
    );
    let for_schedules = (
        schedules.subscribe(),
        jobs.subscribe(),
        backups.subscribe(),
        databases.subscribe(),
        stores.subscribe(),
    );
    let for_windows = (databases.subscribe(), backups.subscribe());

    let caches = Caches {
        stores: stores.start(&process, "backupstores"),
        backups: backups.start(&process, "backups"),
        schedules: schedules.start(&process, "backupschedules"),
        databases: databases.start(&process, "databases"),
        jobs: jobs.start(&process, "jobs"),
        leases: leases.start(&process, "leases"),
    };
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
        clock: process.clock(),
    });

    let (own, jobs) = for_stores;
    let controller = Controller::for_stream(own, caches.stores.clone()).owns_stream(jobs);
    let of_stores = drive(controller, "backupstore", &process, Arc::clone(&ctx), store::reconcile);

    let (own, jobs, databases, stores, leases) = for_backups;
    let controller = Controller::for_stream(own, caches.backups.clone())
        .owns_stream(jobs)
        .watches_stream(databases, watches::backups_of_database(caches.backups.clone()))
        .watches_stream(stores, watches::backups_beside(caches.backups.clone()))
        .watches_stream(leases, watches::backups_of_lease(caches.backups.clone()));
    let of_backups = drive(controller, "backup", &process, Arc::clone(&ctx), backup::reconcile);

    let (own, jobs, backups, databases, stores) = for_schedules;
    let controller = Controller::for_stream(own, caches.schedules.clone())
        .owns_stream(jobs)
        .watches_stream(backups, watches::schedules_of_backup(caches.schedules.clone()))
        .watches_stream(databases, watches::schedules_of_database(caches.schedules.clone()))
        .watches_stream(stores, watches::schedules_beside(caches.schedules.clone()));
    let of_schedules = drive(controller, "backupschedule", &process, Arc::clone(&ctx), schedule::reconcile);

    let (own, backups) = for_windows;
    let windows = Arc::new(recoverable::Windows::new(Arc::clone(&ctx)));
    let controller =
        Controller::for_stream(own, caches.databases.clone()).watches_stream(backups, watches::database_of);
    let of_windows = drive(controller, "recoverable", &process, windows, recoverable::reconcile);

    tokio::join!(of_stores, of_backups, of_schedules, of_windows);
}
