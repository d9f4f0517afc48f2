//! Deletion of each kind, in the background and in the foreground, at rest and in the middle of work, and re-creation under
//! the same name.

use super::{
    DB, STORE, Workload, apply_database, backed_up, make_archived, make_backup, nothing, patch_database,
    ready, spec,
};
use crate::world::{World, get};
use futures::future::LocalBoxFuture;
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore};
use kube::{Resource, api::PropagationPolicy, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{fmt::Debug, time::Duration};

type Done<'a> = LocalBoxFuture<'a, Result<(), String>>;

pub(super) fn all() -> Vec<Workload> {
    use PropagationPolicy::{Background, Foreground};
    vec![
        Workload { name: "delete-database", setup: two, act: |w| Box::pin(delete_database(w, Background)) },
        Workload {
            name: "delete-database-foreground",
            setup: two,
            act: |w| Box::pin(delete_database(w, Foreground)),
        },
        Workload {
            name: "delete-database-with-data",
            setup: two_to_delete,
            act: |w| Box::pin(delete_database(w, Background)),
        },
        Workload { name: "delete-database-starting", setup: nothing, act: delete_starting },
        Workload { name: "delete-database-rolling", setup: two, act: delete_rolling },
        Workload { name: "recreate-database", setup: two, act: |w| Box::pin(recreate(w, false)) },
        Workload {
            name: "recreate-database-with-data",
            setup: two_to_delete,
            act: |w| Box::pin(recreate(w, true)),
        },
        Workload {
            name: "delete-backup",
            setup: backup_to_delete,
            act: |w| Box::pin(delete_backup(w, Background)),
        },
        Workload {
            name: "delete-backup-foreground",
            setup: backup_to_delete,
            act: |w| Box::pin(delete_backup(w, Foreground)),
        },
        Workload {
            name: "delete-backup-running",
            setup: |w| Box::pin(make_archived(w, 1)),
            act: delete_running,
        },
        Workload { name: "delete-schedule", setup: scheduled, act: delete_schedule },
        Workload { name: "delete-store", setup: |w| Box::pin(super::make_store(w)), act: delete_store },
        Workload { name: "delete-restore-running", setup: backed, act: delete_restore },
    ]
}

async fn gone<K>(world: &mut World, name: &'static str) -> Result<(), String>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + 'static,
{
    let goal = format!("{} {name} is gone", K::kind(&()));
    world.until(&goal, move |client| async move { get::<K>(client, name).await.is_none() }).await
}

fn two(world: &mut World) -> Done<'_> {
    Box::pin(async {
        apply_database(world, spec(2)).await?;
        ready(world, DB).await
    })
}

fn two_to_delete(world: &mut World) -> Done<'_> {
    Box::pin(async {
        let mut spec = spec(2);
        spec["deletionPolicy"] = "Delete".into();
        apply_database(world, spec).await?;
        ready(world, DB).await
    })
}

fn backed(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_archived(world, 1).await?;
        make_backup(world, "monday", json!({})).await?;
        backed_up(world, "monday").await
    })
}

fn backup_to_delete(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_archived(world, 1).await?;
        make_backup(world, "monday", json!({"deletionPolicy": "Delete"})).await?;
        backed_up(world, "monday").await
    })
}

async fn delete_database(world: &mut World, how: PropagationPolicy) -> Result<(), String> {
    world.delete::<Database>(DB, how).await?;
    gone::<Database>(world, DB).await
}

fn delete_starting(world: &mut World) -> Done<'_> {
    Box::pin(async {
        apply_database(world, spec(3)).await?;
        world.pass(Duration::from_secs(2)).await;
        delete_database(world, PropagationPolicy::Background).await
    })
}

fn delete_rolling(world: &mut World) -> Done<'_> {
    Box::pin(async {
        patch_database(world, json!({"resources": {"requests": {"memory": "256Mi"}}})).await?;
        world.pass(Duration::from_secs(2)).await;
        delete_database(world, PropagationPolicy::Background).await
    })
}

/// The name is taken again as soon as it is free: the new Database must not be mistaken for the old one. Kept volumes are
/// taken up again, deleted ones are not.
async fn recreate(world: &mut World, with_data: bool) -> Result<(), String> {
    delete_database(world, PropagationPolicy::Background).await?;
    let mut spec = spec(2);
    if with_data {
        spec["deletionPolicy"] = "Delete".into();
    }
    apply_database(world, spec).await?;
    ready(world, DB).await
}

async fn delete_backup(world: &mut World, how: PropagationPolicy) -> Result<(), String> {
    world.delete::<Backup>("monday", how).await?;
    gone::<Backup>(world, "monday").await
}

fn delete_running(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_backup(world, "monday", json!({"deletionPolicy": "Delete"})).await?;
        world.pass(Duration::from_secs(1)).await;
        delete_backup(world, PropagationPolicy::Background).await
    })
}

fn scheduled(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_archived(world, 1).await?;
        // One at once, the next one in years.
        let spec = json!({"databaseRef": {"name": DB}, "schedule": "0 0 29 2 *", "timeZone": "UTC", "immediate": true,
            "jitterSeconds": 0, "template": {"storeRef": {"name": STORE}}, "retention": {"last": 2}});
        world.apply::<BackupSchedule>("hourly", json!({"spec": spec})).await?;
        world
            .until("the first Backup Succeeded", |client| async {
                let schedule = get::<BackupSchedule>(client, "hourly").await;
                schedule.and_then(|s| s.status).is_some_and(|s| s.last_success_time.is_some())
            })
            .await
    })
}

fn delete_schedule(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.delete::<BackupSchedule>("hourly", PropagationPolicy::Background).await?;
        gone::<BackupSchedule>(world, "hourly").await
    })
}

fn delete_store(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.delete::<BackupStore>(STORE, PropagationPolicy::Background).await?;
        gone::<BackupStore>(world, STORE).await
    })
}

fn delete_restore(world: &mut World) -> Done<'_> {
    Box::pin(async {
        let spec = json!({"databaseRef": {"name": DB}, "source": {"backupRef": {"name": "monday"}}, "approve": true});
        world.apply::<Restore>("undo", json!({"spec": spec})).await?;
        world.pass(Duration::from_secs(5)).await;
        world.delete::<Restore>("undo", PropagationPolicy::Background).await?;
        gone::<Restore>(world, "undo").await?;
        ready(world, DB).await
    })
}
