//! The objects that a benchmark makes: as users and operators would have left them.

use crate::{MANAGER, objects::Kind};
use anyhow::{Context, Result};
use futures::{TryStreamExt, stream};
use holdfast_core::{
    Backup, BackupSchedule, BackupStore, Database, Restore,
    conditions::{Truth, condition, types},
    names,
};
use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    jiff::{SignedDuration, Timestamp, tz::TimeZone},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{fmt::Debug, time::Duration};

/// Databases in one namespace.
pub const PER_NAMESPACE: usize = 10;
/// Instances of a Database: the default of `spec.instances`.
pub const INSTANCES: i32 = 3;
/// Requests that this program makes at once.
pub const AT_ONCE: usize = 16;
/// Name of the store in each namespace.
const STORE: &str = "main";

/// The namespace of a Database.
pub fn namespace(number: usize) -> String {
    format!("team-{:03}", number / PER_NAMESPACE)
}

/// Name of a Database.
pub fn database(number: usize) -> String {
    format!("orders-{number:04}")
}

/// PostgreSQL's system identifier of a Database, by its name.
pub fn system_identifier(database: &str) -> String {
    let number: u64 = database.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    (7_512_000_000_000_000_000 + number).to_string()
}

/// Does something for each of these, a few at once. The first error ends it.
pub async fn each<T, F, Fut>(items: impl IntoIterator<Item = T>, work: F) -> Result<()>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    stream::iter(items.into_iter().map(Ok)).try_for_each_concurrent(AT_ONCE, work).await
}

/// Tries a call again when the API server did not answer, or says that it cannot now: a busy machine is no failure of what is
/// measured. Calls must be safe to repeat.
pub async fn patiently<T, F, Fut>(call: F) -> kube::Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = kube::Result<T>>,
{
    const ATTEMPTS: usize = 20;
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                return Err(kube::Error::Api(status));
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            Ok(value) => return Ok(value),
        }
    }
    call().await
}

/// Creates an object; one that is there already is this program's from an attempt whose answer was lost.
pub async fn create<K>(api: &Api<K>, object: &K) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + serde::Serialize + serde::de::DeserializeOwned + Debug,
{
    let name = object.name_any();
    let parameters = PostParams::default();
    let made = match patiently(|| api.create(&parameters, object)).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => patiently(|| api.get(&name)).await,
        other => other,
    };
    made.with_context(|| format!("making {} {name}", K::kind(&())))
}

async fn make<K>(api: &Api<K>, body: Value) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + serde::Serialize + serde::de::DeserializeOwned + Debug,
{
    create(api, &serde_json::from_value(body)?).await
}

/// Namespaces as Kubernetes' controllers leave them, with a store each.
pub async fn namespaces(client: &Client, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut all: Vec<String> = numbers.map(namespace).collect();
    all.dedup();
    each(all, |name| async move {
        make::<Namespace>(&Api::all(client.clone()), json!({"metadata": {"name": name}})).await?;
        // The controller that makes it does not run; pods of Jobs need it.
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &name);
        make(&accounts, json!({"metadata": {"name": "default"}})).await?;
        let store = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore", "metadata": {"name": STORE},
            "spec": {"s3": {"bucket": "backups", "prefix": name, "region": "eu-west-1",
                "endpoint": "https://objects.example", "credentialsSecretRef": {"name": "objects"}}}});
        make::<BackupStore>(&Api::namespaced(client.clone(), &name), store).await?;
        Ok(())
    })
    .await
}

/// Databases, each with a BackupSchedule whose next slot is hours away.
pub async fn databases(client: &Client, numbers: std::ops::Range<usize>) -> Result<()> {
    let later = (Timestamp::now() + SignedDuration::from_hours(10)).to_zoned(TimeZone::UTC);
    each(numbers, |number| {
        let hour = later.hour();
        async move {
            let (namespace, name) = (namespace(number), database(number));
            let body = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Database", "metadata": {"name": name},
                "spec": {"engine": "PostgreSQL", "version": "17", "instances": INSTANCES, "storage": {"size": "10Gi"},
                    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
                    "postgresql": {"parameters": {"work_mem": "16MB", "max_connections": "200"}},
                    "archive": {"storeRef": {"name": STORE}}}});
            make::<Database>(&Api::namespaced(client.clone(), &namespace), body).await?;
            let body = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupSchedule",
                "metadata": {"name": schedule(&name)},
                "spec": {"databaseRef": {"name": name}, "schedule": format!("{} {hour} * * *", number % 60),
                    "timeZone": "Etc/UTC", "retention": {"days": 36500}}});
            make::<BackupSchedule>(&Api::namespaced(client.clone(), &namespace), body).await?;
            Ok(())
        }
    })
    .await
}

fn schedule(database: &str) -> String {
    format!("{database}-nightly")
}

/// Writes an object and then its status.
async fn with_status<K: Kind>(api: &Api<K>, body: Value, status: Value) -> Result<()> {
    let made: K = make(api, body).await?;
    let body = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status});
    let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let (name, body) = (made.name_any(), Patch::Merge(&body));
    patiently(|| api.patch_status(&name, &parameters, &body))
        .await
        .with_context(|| format!("writing the status of {} {name}", K::kind(&())))?;
    Ok(())
}

fn all(conditions: &[(&str, Truth, &str, &str)], at: Timestamp) -> Value {
    let all: Vec<_> = conditions
        .iter()
        .map(|(type_, truth, reason, message)| condition(type_, *truth, reason, *message, Some(1), at))
        .collect();
    json!(all)
}

/// Succeeded Backups: `each_schedule` of each of the first so many Databases' schedules, one a night into the past.
/// The operator must not run, or it would begin with those that have no status yet.
pub async fn backups(client: &Client, schedules: usize, each_schedule: usize) -> Result<()> {
    let mut owners = Vec::new();
    for number in 0..schedules {
        let api = Api::<BackupSchedule>::namespaced(client.clone(), &namespace(number));
        let found = api.get(&schedule(&database(number))).await?;
        owners.push(found.owner_ref(&()).context("a BackupSchedule without uid")?);
    }
    let owners = &owners;
    let now = Timestamp::now();
    let pairs = (0..each_schedule).flat_map(|night| (0..schedules).map(move |number| (night, number)));
    each(pairs, |(night, number)| async move {
        let nights = i32::try_from(night + 1)?;
        let end = now - SignedDuration::from_hours(24) * nights;
        let (name, uid) = (database(number), &owners[number].uid);
        let mut labels = names::labels(&name);
        labels.insert(names::LABEL_SCHEDULE.into(), schedule(&name));
        let body = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Backup",
            "metadata": {"name": format!("{}-{}", schedule(&name), end.strftime("%Y%m%dt%H%M")), "labels": labels,
                "ownerReferences": [owners[number]]},
            "spec": {"databaseRef": {"name": name}}});
        let good = "in the store, and read back";
        let identifier = system_identifier(&name);
        let below = format!("{}/{name}/{identifier}/h{}/base/{uid}-{night}", namespace(number), &uid[..8]);
        let status = json!({"observedGeneration": 1, "phase": "Succeeded", "conditions": all(&[
                (types::SUCCEEDED, Truth::True, "BackedUp", good), (types::READY, Truth::True, "BackedUp", good),
                (types::STALLED, Truth::False, "BackedUp", ""),
                (types::VERIFIED, Truth::Unknown, "NotVerified", "no restore has tried this backup yet")], end),
            "backupTime": second(end), "startTime": second(end - SignedDuration::from_mins(12)), "completionTime": second(end),
            "backupLocation": format!("s3://backups/{}/{below}", namespace(number)), "size": 41_234_567_890_i64,
            "storedSize": 9_876_543_210_i64, "type": "Full", "attempts": 1, "store": {"name": STORE},
            "postgresql": {"systemIdentifier": identifier, "timeline": 1, "startLSN": "2A/5000028", "stopLSN": "2A/7000120",
                "serverVersion": "17.6"}});
        with_status::<Backup>(&Api::namespaced(client.clone(), &namespace(number)), body, status).await
    })
    .await
}

/// Finished in-place Restores, one a Database. The operator must not run.
pub async fn restores(client: &Client, numbers: std::ops::Range<usize>) -> Result<()> {
    let end = Timestamp::now() - SignedDuration::from_hours(30);
    each(numbers, |number| async move {
        let name = database(number);
        let moment = second(end - SignedDuration::from_hours(1));
        let body = json!({"apiVersion": "holdfast.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": format!("{name}-undo")},
            "spec": {"databaseRef": {"name": name}, "pointInTime": {"time": moment},
                "checks": [{"name": "has-orders", "sql": "select count(*) > 0 from orders", "expect": "t"}]}});
        let identifier = system_identifier(&name);
        let done = "the Database serves the restored data";
        let status = json!({"observedGeneration": 1, "phase": "Succeeded", "conditions": all(&[
                (types::VALIDATED, Truth::True, "Planned", "the backup and the WAL up to the moment are there"),
                (types::RESTORED, Truth::True, "Restored", "restored and checked"),
                (types::SUCCEEDED, Truth::True, "Serving", done), (types::READY, Truth::True, "Serving", done),
                (types::ROLLED_BACK, Truth::False, "Serving", ""), (types::STALLED, Truth::False, "Serving", "")], end),
            "startTime": second(end), "restoreTime": second(end), "recoverySeconds": 612,
            "plan": {"backup": identifier, "location": format!("{}/{name}/{identifier}/h1", namespace(number)),
                "bytes": 41_234_567_890_i64, "walSegments": 321, "timeline": 1},
            "reached": {"time": moment, "lsn": "2B/31A2B3C8", "timeline": 2}, "previousDataSet": "d1", "dataSet": "d2"});
        with_status::<Restore>(&Api::namespaced(client.clone(), &namespace(number)), body, status).await
    })
    .await
}

/// To the second, as the API's own times are.
fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How many objects of a kind are Ready, and how many there are.
pub async fn ready<K: Kind>(client: &Client) -> Result<(usize, usize)> {
    let list = Api::<K>::all(client.clone()).list(&kube::api::ListParams::default()).await?;
    let ready = list.items.iter().filter(|object| crate::objects::holds(*object, types::READY)).count();
    Ok((ready, list.items.len()))
}
