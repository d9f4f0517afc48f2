//! Going back: to a second, to the latest, into a new database; and what happens when it cannot be.

use crate::{
    database::{Db, with},
    objects::{self, condition, current, describe, stalled, succeeded},
    runner::Scene,
    store,
    tests::stores::archived,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{Backup, Database, Restore, conditions::types, names};
use kube::{Api, ResourceExt, api::PropagationPolicy};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a restore may take on a small, busy machine.
const RESTORE: Duration = seconds(180);

/// A database with a store, a backup, and a table of 1000 rows that is in the backup.
async fn prepared(scene: &Scene, name: &str, instances: i32) -> Result<Db> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    store::make(cluster, ns, "main").await?;
    let db = Db::start(cluster, ns, name, &archived(instances, "main")).await?;
    db.fill("orders", 1000).await?;
    store::backup(&db, "base").await?;
    Ok(db)
}

async fn restore(db: &Db, name: &str, spec: Value) -> Result<Api<Restore>> {
    objects::apply::<Restore>(&db.cluster, &db.namespace, name, &spec).await?;
    Ok(db.cluster.api(&db.namespace))
}

/// Nothing of a finished Restore is left that could be in the way: no Lease, no finalizer, no half-filled volume.
async fn left_nothing(db: &Db, name: &str) -> Result<()> {
    wait_for("the operation Lease and the finalizer to be let go", seconds(30), || async {
        let lease = db.operation_lease().await?.map(|l| l.name_any());
        let object = db.cluster.api::<Restore>(&db.namespace).get(name).await?;
        let clean = lease.is_none() && object.finalizers().is_empty();
        Ok(if clean { Seen::Yes(()) } else { Seen::NotYet(format!("{lease:?} {:?}", object.finalizers())) })
    })
    .await?;
    let seeds = db.claims_in_state(names::STATE_SEED).await?;
    ensure!(seeds.is_empty(), "half-filled volumes are left: {seeds:?}");
    Ok(())
}

/// DROP TABLE by mistake, and back to the moment before: all rows, all replicas, the old volumes kept, a full backup after it.
pub async fn restore_in_place_pitr(scene: Scene) -> Result<()> {
    let db = prepared(&scene, "shop", 3).await?;
    db.app().await?.run("insert into orders select n, 'late' from generate_series(1001, 1500) n").await?;
    let moment = db.server_time().await?;
    db.app().await?.run("drop table orders; create table mistake (id int)").await?;
    let before = db.get().await?.status.unwrap_or_default();
    let spec = json!({
        "databaseRef": {"name": "shop"}, "pointInTime": {"time": moment},
        "checks": [{"name": "rows", "sql": "select count(*) from orders", "expect": "1500"}],
    });
    let api = restore(&db, "undo", spec).await?;
    let done = succeeded(&api, "undo", RESTORE).await?.status.unwrap_or_default();
    ensure!(done.restore_time.is_some(), "status.restoreTime is empty");
    ensure!(done.previous_data_set == before.data_set, "previousDataSet is {:?}", done.previous_data_set);
    ensure!(done.plan.is_some() && done.reached.is_some(), "status.plan or status.reached is empty");
    let object = db.ready().await?;
    let after = object.status.clone().unwrap_or_default();
    ensure!(db.count("orders").await? == 1500, "not all rows are back");
    db.everywhere("orders", 1500, seconds(60)).await?;
    let mistake = db.app().await?.value("select to_regclass('mistake') is null").await?;
    ensure!(mistake == "t", "what came after the moment is still there");
    ensure!(
        after.data_set != before.data_set && after.data_set == done.data_set,
        "dataSet is {:?}",
        after.data_set
    );
    ensure!(after.system_identifier == before.system_identifier, "systemIdentifier changed");
    ensure!(after.history != before.history, "the restored database writes into the old history");
    ensure!(after.timeline > before.timeline, "timeline {:?} became {:?}", before.timeline, after.timeline);
    let (now, old) =
        (db.claims_in_state(names::STATE_CURRENT).await?, db.claims_in_state(names::STATE_RETIRED).await?);
    ensure!(now.len() == 3 && old.len() == 3, "volumes in use: {now:?}, kept: {old:?}");
    left_nothing(&db, "undo").await?;
    succeeded::<Backup>(&db.cluster.api(&db.namespace), "undo-base", seconds(120))
        .await
        .context("a full backup follows")?;
    db.app().await?.run("insert into orders values (1501, 'after')").await?;
    let streaming = "select count(*) from pg_stat_replication where state = 'streaming'";
    ensure!(db.superuser().await?.value(streaming).await? == "2", "the replicas do not stream");
    Ok(())
}

/// The second before the restore lies in a segment that was not archived yet; it comes back all the same.
pub async fn restore_latest(scene: Scene) -> Result<()> {
    let db = prepared(&scene, "till", 1).await?;
    db.app().await?.run("insert into orders values (1001, 'the last second')").await?;
    let api = restore(&db, "again", json!({"databaseRef": {"name": "till"}})).await?;
    succeeded(&api, "again", RESTORE).await?;
    db.ready().await?;
    ensure!(db.count("orders").await? == 1001, "the row committed right before the restore is missing");
    left_nothing(&db, "again").await
}

/// A copy beside the source, from a Backup; then, with the source and its objects gone, another one from the store alone.
pub async fn restore_new_database(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = prepared(&scene, "origin", 1).await?;
    let uids = db.pod_uids().await?;
    let first = json!({"source": {"backupRef": {"name": "base"}}, "newDatabase": {"name": "copy", "overrides": {"instances": 2}}});
    let api = restore(&db, "to-copy", first).await?;
    succeeded(&api, "to-copy", RESTORE).await?;
    let copy = Db::at(cluster, ns, "copy");
    let made = copy.ready().await?;
    ensure!(made.spec.instances == 2, "overrides.instances was not taken");
    ensure!(copy.count("orders").await? == 1000, "the copy lacks rows");
    copy.app().await?.run("delete from orders").await?;
    ensure!(db.count("orders").await? == 1000 && db.pod_uids().await? == uids, "the source was touched");
    let histories = (db.get().await?.status.and_then(|s| s.history), made.status.and_then(|s| s.history));
    ensure!(histories.0 != histories.1, "the copy writes into the source's history");
    left_nothing(&copy, "to-copy").await?;

    // Two databases are enough for a small machine.
    objects::delete::<Database>(cluster, ns, "copy", PropagationPolicy::Background, seconds(90)).await?;
    db.app().await?.run("insert into orders values (1001, 'archived at the stop')").await?;
    objects::delete::<Database>(cluster, ns, "origin", PropagationPolicy::Background, seconds(90)).await?;
    wait_for("the source's pods to be gone", seconds(60), || async {
        let left = db.pod_uids().await?;
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::NotYet(format!("{left:?}")) })
    })
    .await?;
    objects::delete::<Backup>(cluster, ns, "base", PropagationPolicy::Background, seconds(60)).await?;
    let second = json!({
        "source": {"database": {"name": "origin", "storeRef": {"name": "main"}}},
        "newDatabase": {"name": "reborn", "overrides": {"instances": 1}},
    });
    let api = restore(&db, "to-reborn", second).await?;
    succeeded(&api, "to-reborn", RESTORE).await?;
    let reborn = Db::at(cluster, ns, "reborn");
    reborn.ready().await?;
    let rows = reborn.count("orders").await?;
    ensure!(rows == 1001, "from the store alone {rows} rows came back: a graceful stop archives the tail");
    Ok(())
}

/// A check says no: the database is back as it was.
pub async fn restore_fails_rolls_back(scene: Scene) -> Result<()> {
    let db = prepared(&scene, "vault", 1).await?;
    db.app().await?.run("insert into orders values (1001, 'stays')").await?;
    let before = db.get().await?.status.unwrap_or_default();
    let spec = json!({
        "databaseRef": {"name": "vault"},
        "checks": [{"name": "too-many", "sql": "select count(*) from orders", "expect": "5000"}],
    });
    let api = restore(&db, "wrong", spec).await?;
    let failed = condition(&api, "wrong", types::ROLLED_BACK, "True", RESTORE).await?;
    ensure!(current(&failed, types::SUCCEEDED).is_some_and(|c| c.status == "False"), "{}", describe(&failed));
    let said = stalled(&api, "wrong", seconds(10)).await?;
    ensure!(said.message.contains("too-many"), "the message does not name the check: {}", said.message);
    db.ready().await?;
    ensure!(db.count("orders").await? == 1001, "rows are missing after the way back");
    let after = db.get().await?.status.unwrap_or_default();
    ensure!(before.data_set == after.data_set && before.history == after.history, "it is on other volumes");
    left_nothing(&db, "wrong").await?;
    db.app().await?.run("insert into orders values (1002, 'goes on')").await
}

/// What is not possible is refused before anything stops; a dry run stops after the plan.
pub async fn restore_refused(scene: Scene) -> Result<()> {
    let db = prepared(&scene, "archive-only", 1).await?;
    let uids = db.pod_uids().await?;
    let started = db.superuser().await?.value("select pg_postmaster_start_time()").await?;
    let early =
        json!({"databaseRef": {"name": "archive-only"}, "pointInTime": {"time": "2020-01-01T00:00:00Z"}});
    let api = restore(&db, "too-early", early).await?;
    let object = condition(&api, "too-early", types::VALIDATED, "False", seconds(90)).await?;
    let said = stalled(&api, "too-early", seconds(10)).await?;
    ensure!(!said.message.is_empty(), "no message: {}", describe(&object));
    let dry = json!({"databaseRef": {"name": "archive-only"}, "approve": false});
    let api = restore(&db, "dry", dry).await?;
    let object = condition(&api, "dry", types::VALIDATED, "True", seconds(90)).await?;
    let plan = object.status.clone().unwrap_or_default().plan.context("status.plan is empty")?;
    ensure!(plan.bytes > 0 && !plan.backup.is_empty(), "status.plan is {plan:?}");
    condition(&api, "dry", types::READY, "True", seconds(10)).await.context("a finished dry run is Ready")?;
    let missing = with(
        json!({"databaseRef": {"name": "archive-only"}}),
        &json!({"source": {"backupRef": {"name": "none"}}}),
    );
    let api = restore(&db, "no-backup", missing).await?;
    let said = stalled(&api, "no-backup", seconds(20)).await?;
    ensure!(said.message.contains("none"), "the message does not name the Backup: {}", said.message);

    let now = db.superuser().await?.value("select pg_postmaster_start_time()").await?;
    ensure!(now == started && db.pod_uids().await? == uids, "the database was touched");
    for name in ["too-early", "dry", "no-backup"] {
        left_nothing(&db, name).await?;
    }
    ensure!(db.count("orders").await? == 1000, "rows are missing");
    Ok(())
}
