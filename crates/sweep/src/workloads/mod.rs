//! What users do: each workload is a calm preparation and a part in which things go wrong.

mod backup;
mod database;
mod deletion;
mod restore;

use crate::world::{World, get};
use futures::future::LocalBoxFuture;
use holdfast_core::{
    Backup, BackupStore, Database, Restore,
    conditions::{self, types},
    wire::WorkerResult,
};
use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::Condition};
use kube::Client;
use serde_json::{Value, json};

/// A part of a workload.
pub type Part = for<'a> fn(&'a mut World) -> LocalBoxFuture<'a, Result<(), String>>;

/// What a user does.
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// What must be there before. Nothing goes wrong in it.
    pub setup: Part,
    /// The part that is swept: it ends when its goal is reached.
    pub act: Part,
}

/// Those in which a user changes his mind half-way: how far it had come, and so what was made and deleted, is a matter of time.
/// Their ends are not. And those in which a Backup's data is removed: who dies between the removal of the worker and that of the
/// finalizer orders another removal, which finds nothing left to remove.
pub const UNCOUNTED: [&str; 9] = [
    "change-of-mind",
    "delete-database-starting",
    "delete-database-rolling",
    "delete-database-restoring",
    "delete-backup-running",
    "delete-restore-running",
    "delete-restore-running-foreground",
    "delete-backup",
    "delete-backup-foreground",
];

/// All of them.
pub fn all() -> Vec<Workload> {
    let mut all = database::all();
    all.extend(backup::all());
    all.extend(restore::all());
    all.extend(deletion::all());
    all
}

/// The Database of most workloads.
const DB: &str = "ledger";
/// Where it is backed up to.
const STORE: &str = "vault";

fn spec(instances: i32) -> Value {
    json!({"engine": "PostgreSQL", "version": "17", "instances": instances,
        "storage": {"size": "1Gi", "storageClassName": "standard"},
        // Fewer renewals, fewer milliseconds.
        "failover": {"ttlSeconds": 60},
        "postgresql": {"parameters": {"work_mem": "8MB"}}})
}

async fn apply_database(world: &World, spec: Value) -> Result<(), String> {
    world.apply::<Database>(DB, json!({"spec": spec})).await.map(|_| ())
}

async fn patch_database(world: &World, spec: Value) -> Result<(), String> {
    world.patch::<Database>(DB, json!({"spec": spec})).await.map(|_| ())
}

fn holds(status: Option<&[Condition]>, type_: &str, generation: Option<i64>) -> bool {
    status.is_some_and(|all| conditions::is_true_for(all, type_, generation))
}

/// This generation of a Database is ready.
async fn database_ready(client: Client, name: &str) -> bool {
    let Some(database) = get::<Database>(client, name).await else { return false };
    let all = database.status.as_ref().map(|s| s.conditions.as_slice());
    holds(all, types::READY, database.metadata.generation)
}

/// The Database has no pods.
async fn no_pods(client: Client) -> bool {
    let set = get::<StatefulSet>(client, DB).await;
    set.is_some_and(|set| set.status.is_some_and(|status| status.replicas == 0))
}

async fn ready(world: &mut World, name: &'static str) -> Result<(), String> {
    let goal = format!("Database {name} is Ready");
    world.until(&goal, move |client| async move { database_ready(client, name).await }).await
}

async fn store_ready(world: &mut World) -> Result<(), String> {
    world
        .until("the BackupStore is Ready", |client| async {
            let Some(store) = get::<BackupStore>(client, STORE).await else { return false };
            let all = store.status.as_ref().map(|s| s.conditions.as_slice());
            holds(all, types::READY, store.metadata.generation)
        })
        .await
}

/// How a Backup ended, if it did.
async fn backup_ended(client: Client, name: &str) -> Option<bool> {
    let status = get::<Backup>(client, name).await?.status?;
    conditions::find(&status.conditions, types::SUCCEEDED).map(|c| c.status == "True")
}

async fn backed_up(world: &mut World, name: &'static str) -> Result<(), String> {
    let goal = format!("Backup {name} Succeeded");
    world.until(&goal, move |client| async move { backup_ended(client, name).await == Some(true) }).await
}

/// How a Restore ended, if it did.
async fn restore_ended(client: Client, name: &str) -> Option<bool> {
    let status = get::<Restore>(client, name).await?.status?;
    let find = |type_| conditions::find(&status.conditions, type_);
    match find(types::SUCCEEDED).map(|c| c.status.as_str()) {
        Some("True") => Some(true),
        Some("False") => Some(false),
        _ => None,
    }
}

async fn restored(world: &mut World, name: &'static str, well: bool) -> Result<(), String> {
    let goal = format!("Restore {name} ended with Succeeded={well}");
    world.until(&goal, move |client| async move { restore_ended(client, name).await == Some(well) }).await
}

/// A store on a volume.
async fn make_store(world: &mut World) -> Result<(), String> {
    apply_store(world).await?;
    store_ready(world).await
}

async fn apply_store(world: &mut World) -> Result<(), String> {
    use k8s_openapi::api::core::v1::PersistentVolumeClaim;
    let claim = json!({"spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "standard",
        "resources": {"requests": {"storage": "5Gi"}}}});
    world.apply::<PersistentVolumeClaim>("shelf", claim).await?;
    world
        .apply::<BackupStore>(STORE, json!({"spec": {"volume": {"claimName": "shelf", "path": "/"}}}))
        .await
        .map(|_| ())
}

/// A Database that archives, and its store.
async fn make_archived(world: &mut World, instances: i32) -> Result<(), String> {
    make_store(world).await?;
    let mut spec = spec(instances);
    spec["archive"] = json!({"storeRef": {"name": STORE}});
    apply_database(world, spec).await?;
    ready(world, DB).await
}

async fn make_backup(world: &mut World, name: &'static str, more: Value) -> Result<(), String> {
    let mut spec = json!({"databaseRef": {"name": DB}});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    world.apply::<Backup>(name, json!({"spec": spec})).await.map(|_| ())
}

/// A Restore in place from the Backup `monday`.
async fn make_restore(world: &mut World) -> Result<(), String> {
    let spec =
        json!({"databaseRef": {"name": DB}, "source": {"backupRef": {"name": "monday"}}, "approve": true});
    world.apply::<Restore>("undo", json!({"spec": spec})).await.map(|_| ())
}

/// What a worker says that failed.
fn failure(permanent: bool) -> WorkerResult {
    let (reason, message) = ("DiskOnFire".into(), "the disk is on fire".into());
    WorkerResult::Failed { reason, message, permanent }
}

fn nothing(_: &mut World) -> LocalBoxFuture<'_, Result<(), String>> {
    Box::pin(std::future::ready(Ok(())))
}
