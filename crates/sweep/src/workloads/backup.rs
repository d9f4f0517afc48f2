//! Backups: on demand, on schedule, failing, removed by retention.

use super::{
    DB, STORE, Workload, backed_up, backup_ended, failure, make_archived, make_backup, make_store, nothing,
};
use crate::{
    agent::Kind,
    world::{NAMESPACE, World},
};
use futures::future::LocalBoxFuture;
use holdfast_core::{Backup, BackupSchedule};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

type Done<'a> = LocalBoxFuture<'a, Result<(), String>>;

pub(super) fn all() -> Vec<Workload> {
    vec![
        Workload { name: "store", setup: nothing, act: |w| Box::pin(make_store(w)) },
        Workload { name: "backup", setup: |w| Box::pin(make_archived(w, 1)), act: on_demand },
        Workload { name: "backup-retried", setup: |w| Box::pin(make_archived(w, 1)), act: retried },
        Workload { name: "backup-failed", setup: |w| Box::pin(make_archived(w, 1)), act: failed },
        Workload { name: "schedule", setup: |w| Box::pin(make_archived(w, 1)), act: schedule },
    ]
}

fn on_demand(world: &mut World) -> Done<'_> {
    Box::pin(async {
        make_backup(world, "monday", json!({})).await?;
        backed_up(world, "monday").await
    })
}

/// The first attempt fails, the second one does not.
fn retried(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.agents.fail_next(Kind::Backup, 1, &failure(false));
        make_backup(world, "monday", json!({"retries": 2})).await?;
        backed_up(world, "monday").await
    })
}

fn failed(world: &mut World) -> Done<'_> {
    Box::pin(async {
        world.agents.fail_next(Kind::Backup, 1, &failure(true));
        make_backup(world, "monday", json!({"retries": 2})).await?;
        world
            .until("the Backup failed", |client| async {
                backup_ended(client, "monday").await == Some(false)
            })
            .await
    })
}

/// One at once, three more at their times; the newest two are kept, the others removed from the store.
fn schedule(world: &mut World) -> Done<'_> {
    Box::pin(async {
        let spec: Value = json!({"databaseRef": {"name": DB}, "schedule": "8,11,14 10 2 3 *", "timeZone": "UTC",
            "immediate": true, "jitterSeconds": 0, "template": {"storeRef": {"name": STORE}}, "retention": {"last": 2}});
        world.apply::<BackupSchedule>("hourly", json!({"spec": spec})).await?;
        world
            .until("four Backups were made and two are left", |client| async move {
                let names = succeeded(client).await;
                names.len() == 2 && names.iter().any(|name| name.ends_with("t1014"))
            })
            .await
    })
}

async fn succeeded(client: Client) -> Vec<String> {
    let all = Api::<Backup>::namespaced(client, NAMESPACE).list(&ListParams::default()).await;
    let done = |b: &Backup| {
        let conditions = b.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        holdfast_core::conditions::is_true(conditions, holdfast_core::conditions::types::SUCCEEDED)
    };
    all.map(|list| list.items.iter().filter(|b| done(b)).map(ResourceExt::name_any).collect())
        .unwrap_or_default()
}
