//! Who is to be looked at again when a neighbour changes. Pure, over the caches. Backups that are over are not: nothing
//! that changes around them changes them.

use crate::cache::{self, PackedBackup};
use holdfast_core::{BackupSchedule, BackupStore, Database, names};
use k8s_openapi::api::{batch::v1::Job, coordination::v1::Lease};
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

fn references<K>(all: &Store<K>, namespace: Option<String>, fits: impl Fn(&K) -> bool) -> Vec<ObjectRef<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let found = cache::filter(all, &namespace.unwrap_or_default(), fits);
    found.iter().map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}

/// The object itself.
pub fn itself<K: Resource<DynamicType = ()>>(object: &K) -> Option<ObjectRef<K>> {
    Some(ObjectRef::from_obj(object))
}

/// A Job changed: the objects of a kind that own it.
pub fn owners<K: Resource<DynamicType = ()>>(job: &Job) -> Vec<ObjectRef<K>> {
    let namespace = job.namespace();
    let of = |owner| ObjectRef::from_owner_ref(namespace.as_deref(), owner, ());
    job.owner_references().iter().filter_map(of).collect()
}

/// A Database changed: its Backups that are not over.
pub fn backups_of_database(all: Store<PackedBackup>) -> impl Fn(&Database) -> Vec<ObjectRef<PackedBackup>> {
    move |database: &Database| {
        let name = database.name_any();
        references(&all, database.namespace(), |b| *b.digest().database == *name && !b.digest().is_final)
    }
}

/// A store changed: the Backups beside it that are not over, or are being deleted. Whose store it is depends on more.
pub fn backups_beside(all: Store<PackedBackup>) -> impl Fn(&BackupStore) -> Vec<ObjectRef<PackedBackup>> {
    move |store: &BackupStore| {
        references(&all, store.namespace(), |b| !b.digest().is_final || b.digest().deleting)
    }
}

/// An operation began or ended: the Backups of its database. One that is over may still have to let go of it.
pub fn backups_of_lease(all: Store<PackedBackup>) -> impl Fn(&Lease) -> Vec<ObjectRef<PackedBackup>> {
    move |lease: &Lease| {
        let Some(name) = lease.labels().get(names::LABEL_DATABASE).cloned() else { return Vec::new() };
        if lease.name_any() != names::lease_operation(&name) {
            return Vec::new();
        }
        let holders: Vec<_> = lease.owner_references().iter().map(|o| o.uid.clone()).collect();
        references(&all, lease.namespace(), |b| {
            *b.digest().database == *name
                && (!b.digest().is_final || b.uid().is_some_and(|uid| holders.contains(&uid)))
        })
    }
}

/// A Backup changed: all schedules of its Database, because they do not run two at once.
pub fn schedules_of_backup(
    all: Store<BackupSchedule>,
) -> impl Fn(&PackedBackup) -> Vec<ObjectRef<BackupSchedule>> {
    move |backup: &PackedBackup| {
        let name = &backup.digest().database;
        references(&all, backup.namespace(), |s| *s.spec.database_ref.name == **name)
    }
}

/// A Database changed: its schedules.
pub fn schedules_of_database(
    all: Store<BackupSchedule>,
) -> impl Fn(&Database) -> Vec<ObjectRef<BackupSchedule>> {
    move |database: &Database| {
        let name = database.name_any();
        references(&all, database.namespace(), |s| s.spec.database_ref.name == name)
    }
}

/// A store changed: the schedules beside it.
pub fn schedules_beside(
    all: Store<BackupSchedule>,
) -> impl Fn(&BackupStore) -> Vec<ObjectRef<BackupSchedule>> {
    move |store: &BackupStore| references(&all, store.namespace(), |_| true)
}

/// A Backup changed: its Database's window may have moved.
pub fn database_of(backup: &PackedBackup) -> Option<ObjectRef<Database>> {
    let namespace = backup.namespace()?;
    Some(ObjectRef::new(&backup.digest().database).within(&namespace))
}
