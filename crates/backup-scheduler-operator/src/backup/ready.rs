//! Whether a Backup may begin, and if not, why. Pure.

use crate::backup::{observe::Observed, plan::Wait};
use holdfast_core::{
    conditions::{self, types},
    operation,
};
use kube::ResourceExt;

/// Everything that must be so before an attempt begins. Errors: the first thing that is not, and what it waits for.
pub fn check(o: &Observed) -> Result<(), Wait> {
    let name = &o.backup.spec.database_ref.name;
    let Some(database) = &o.database else {
        return Err(Wait::person(
            "DatabaseNotFound",
            format!("spec.databaseRef: there is no Database {name} in this namespace"),
        ));
    };
    if database.metadata.deletion_timestamp.is_some() {
        return Err(Wait::person("DatabaseDeleting", format!("Database {name} is being deleted")));
    }
    let Some(store_name) = o.store_name() else {
        return Err(Wait::person(
            "ArchiveRequired",
            format!("neither spec.storeRef of this Backup nor spec.archive of Database {name} names a store"),
        ));
    };
    let archive = database.spec.archive.as_ref().map(|a| &a.store_ref.name);
    if archive != Some(&store_name) {
        return Err(Wait::person(
            "ArchiveRequired",
            format!(
                "a physical backup is of use only with the WAL written meanwhile, so it goes to the store that the WAL \
                 goes to: set spec.archive.storeRef of Database {name} to {store_name}"
            ),
        ));
    }
    let Some(store) = o.store.as_deref().filter(|s| s.metadata.deletion_timestamp.is_none()) else {
        return Err(Wait::person(
            "StoreNotFound",
            format!("there is no BackupStore {store_name} in this namespace"),
        ));
    };
    let store_conditions = store.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if !conditions::is_true_for(store_conditions, types::READY, store.metadata.generation) {
        let said =
            conditions::find(store_conditions, types::READY).map(|c| c.message.as_str()).unwrap_or_default();
        let message = format!("BackupStore {store_name} is not Ready: {said}");
        return Err(Wait {
            stalled: conditions::is_true(store_conditions, types::STALLED),
            ..Wait::until("StoreNotReady", message.trim_end_matches([':', ' ']))
        });
    }
    if database.spec.stopped {
        return Err(Wait::person(
            "DatabaseStopped",
            format!("Database {name} is stopped; set its spec.stopped to false"),
        ));
    }
    let status = database.status.clone().unwrap_or_default();
    if conditions::is_true(&status.conditions, types::QUIESCED) {
        return Err(Wait::until(
            "DatabaseQuiesced",
            format!("Database {name} is stopped for another operation"),
        ));
    }
    // A backup reads; when commits wait for a standby that is lost it is worth more than ever.
    if !conditions::serves(&status.conditions) {
        let said = conditions::find(&status.conditions, types::AVAILABLE).map(|c| c.message.as_str());
        let message = format!("Database {name} is not Available: {}", said.unwrap_or_default());
        return Err(Wait::until("DatabaseNotAvailable", message.trim_end_matches([':', ' '])));
    }
    if status.system_identifier.as_deref().unwrap_or_default().is_empty()
        || status.history.as_deref().unwrap_or_default().is_empty()
    {
        return Err(Wait::until(
            "DatabaseNotReported",
            format!("Database {name} has not reported its system identifier and history yet"),
        ));
    }
    if let Some(lease) = o.lease.as_deref()
        && !operation::held_by(lease, &o.backup.uid().unwrap_or_default())
    {
        let holder =
            lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or("another operation");
        return Err(Wait::until("OperationInProgress", format!("{holder} works on Database {name}")));
    }
    let places = usize::try_from(store.spec.max_parallel_backups).unwrap_or(1).max(1);
    if o.busy >= places {
        return Err(Wait::poll(
            "StoreBusy",
            format!(
                "{} of {places} backups (spec.maxParallelBackups) write to BackupStore {store_name}",
                o.busy
            ),
        ));
    }
    let Some(facts) = &o.facts else { return Ok(()) };
    if let Some(restore) = &facts.restore {
        return Err(Wait::poll("OperationInProgress", format!("Restore {restore} works on Database {name}")));
    }
    if let Some(pod) = &facts.pod {
        return Err(Wait::poll(
            "OperationInProgress",
            format!("pod {pod} of an earlier operation still runs"),
        ));
    }
    if facts.image.is_none() {
        return Err(Wait::poll(
            "DatabaseNotReported",
            format!("StatefulSet {name} has no container postgres yet"),
        ));
    }
    Ok(())
}
