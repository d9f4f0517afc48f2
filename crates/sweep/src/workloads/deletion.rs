//! Deletion of each kind, in the background and in the foreground, at rest and in the middle of work, and re-creation under
//! the same name.

use super::{
    DB, STORE, Workload, apply_database, apply_store, backed_up, backup_ended, failure, make_archived,
    make_backup, make_restore, no_pods, nothing, patch_database, ready, restore, restored, spec,
};
use crate::{
    agent::Kind,
    world::{NAMESPACE, World, get},
};
use futures::future::LocalBoxFuture;
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    api::{ListParams, PropagationPolicy},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{fmt::Debug, sync::Arc};

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
        Workload {
            name: "delete-database-stopped",
            setup: stopped,
            act: |w| Box::pin(delete_database(w, Background)),
        },
        Workload {
            name: "delete-database-backed-up",
            setup: backed,
            act: |w| Box::pin(delete_database(w, Background)),
        },
        Workload { name: "delete-database-restoring", setup: backed, act: delete_restoring },
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
        Workload {
            name: "delete-backup-failed",
            setup: failed,
            act: |w| Box::pin(delete_backup(w, Background)),
        },
        Workload { name: "delete-schedule", setup: scheduled, act: delete_schedule },
        Workload { name: "delete-store", setup: |w| Box::pin(super::make_store(w)), act: delete_store },
        Workload { name: "delete-store-probing", setup: nothing, act: delete_probed },
        Workload { name: "delete-store-used", setup: |w| Box::pin(make_archived(w, 1)), act: delete_store },
        Workload {
            name: "delete-restore-running",
            setup: backed,
            act: |w| Box::pin(delete_restore(w, Background)),
        },
        Workload {
            name: "delete-restore-running-foreground",
            setup: backed,
            act: |w| Box::pin(delete_restore(w, Foreground)),
        },
        Workload { name: "delete-restore-done", setup: restored_before, act: delete_restored },
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

/// Pods are held, so that it is the same moment whenever operators die.
fn delete_starting(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.cluster.hold_pods(true);
        apply_database(world, spec(3)).await?;
        world.until("a pod waits for a node", pod_waits).await?;
        let deleted = delete_database(world, PropagationPolicy::Background).await;
        world.cluster.hold_pods(false);
        deleted
    })
}

fn delete_rolling(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.cluster.hold_pods(true);
        patch_database(world, json!({"resources": {"requests": {"memory": "256Mi"}}})).await?;
        world.until("a pod was replaced and waits for a node", pod_waits).await?;
        let deleted = delete_database(world, PropagationPolicy::Background).await;
        world.cluster.hold_pods(false);
        deleted
    })
}

async fn pod_waits(client: Client) -> bool {
    let pods = Api::<Pod>::namespaced(client, NAMESPACE).list(&ListParams::default()).await;
    let waits = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
    pods.is_ok_and(|pods| pods.items.iter().any(waits))
}

/// Waits until a worker has begun that hangs.
async fn hung(world: &mut World, kind: Kind) -> Result<(), String> {
    let agents = Arc::clone(&world.agents);
    let begun = move |_| std::future::ready(agents.hung(kind));
    world.until(&format!("a {kind:?} worker runs"), begun).await
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
        world.agents.hang(Kind::Backup, true);
        make_backup(world, "monday", json!({"deletionPolicy": "Delete"})).await?;
        hung(world, Kind::Backup).await?;
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

/// Its worker has begun, and goes with it.
fn delete_probed(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.agents.hang(Kind::Probe, true);
        apply_store(world).await?;
        hung(world, Kind::Probe).await?;
        delete_store(world).await
    })
}

fn delete_store(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.delete::<BackupStore>(STORE, PropagationPolicy::Background).await?;
        gone::<BackupStore>(world, STORE).await
    })
}

fn stopped(world: &mut World) -> Done<'_> {
    Box::pin(async {
        two(world).await?;
        patch_database(world, json!({"stopped": true})).await?;
        world.until("no pod runs", no_pods).await
    })
}

fn failed(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_archived(world, 1).await?;
        world.agents.fail_next(Kind::Backup, 1, &failure(true));
        make_backup(world, "monday", json!({"deletionPolicy": "Delete"})).await?;
        let ended = |client| async { backup_ended(client, "monday").await == Some(false) };
        world.until("the Backup failed", ended).await
    })
}

/// A Restore in place whose worker has begun, and comes to no end.
async fn restoring(world: &mut World) -> Result<(), String> {
    world.agents.hang(Kind::Restore, true);
    make_restore(world).await?;
    hung(world, Kind::Restore).await
}

async fn delete_restore(world: &mut World, how: PropagationPolicy) -> Result<(), String> {
    restoring(world).await?;
    world.delete::<Restore>("undo", how).await?;
    gone::<Restore>(world, "undo").await?;
    ready(world, DB).await
}

/// The Restore is left without what it was to restore, and says so.
fn delete_restoring(world: &mut World) -> Done<'_> {
    Box::pin(async {
        restoring(world).await?;
        delete_database(world, PropagationPolicy::Background).await?;
        world.agents.hang(Kind::Restore, false);
        restored(world, "undo", false).await
    })
}

fn restored_before(world: &mut World) -> Done<'_> {
    Box::pin(async {
        backed(world).await?;
        restore::in_place(world).await
    })
}

fn delete_restored(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.delete::<Restore>("undo", PropagationPolicy::Background).await?;
        gone::<Restore>(world, "undo").await
    })
}
