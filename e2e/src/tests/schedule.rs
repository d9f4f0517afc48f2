//! Backups made by the clock, and how long they are kept.

use crate::{
    database::Db,
    objects::{self, condition, current, describe, holds},
    runner::Scene,
    store,
    tests::{archive::listing, stores::archived},
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{Backup, BackupSchedule, conditions::types, names};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;

/// Backups of a schedule, oldest first.
pub async fn backups_of(db: &Db, schedule: &str) -> Result<Vec<Backup>> {
    let selector = format!("{}={schedule}", names::LABEL_SCHEDULE);
    let api = db.cluster.api::<Backup>(&db.namespace);
    let mut all = api.list(&ListParams::default().labels(&selector)).await?.items;
    all.sort_by_key(|b| b.metadata.creation_timestamp.as_ref().map(|t| t.0));
    Ok(all)
}

/// A schedule makes a Backup at its minute, owns it, and says what comes next. Suspended, it makes none.
pub async fn backup_schedule(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    store::make(cluster, ns, "main").await?;
    let db = Db::start(cluster, ns, "bookings", &archived(1, "main")).await?;
    let spec = json!({"databaseRef": {"name": "bookings"}, "schedule": "* * * * *"});
    let schedule = objects::apply::<BackupSchedule>(cluster, ns, "minutely", &spec).await?;
    let api = cluster.api::<BackupSchedule>(ns);
    let ready = condition(&api, "minutely", types::READY, "True", seconds(20)).await?;
    let next = ready.status.and_then(|s| s.next_schedule_time).context("status.nextScheduleTime is empty")?;
    let backup = wait_for("the Backup of the next minute", seconds(90), || async {
        Ok(match backups_of(&db, "minutely").await?.into_iter().next() {
            Some(backup) => Seen::Yes(backup),
            None => Seen::NotYet("none".into()),
        })
    })
    .await?;
    // Each slot makes one Backup, named after the slot in UTC: 2026-11-21T09:13 is …-20261121t0913.
    let created = backup.creation_timestamp().context("no creationTimestamp")?.0.to_string();
    let slot: String = created.chars().filter(|c| !matches!(c, '-' | ':')).take(13).collect();
    let name = backup.name_any();
    ensure!(
        name == format!("minutely-{}", slot.to_lowercase()),
        "the Backup made at {created} is named {name}"
    );
    let owner = backup.owner_references().iter().find(|o| Some(&o.uid) == schedule.uid().as_ref());
    let owner = owner.context("the schedule does not own its Backup")?;
    ensure!(owner.block_owner_deletion != Some(true), "blockOwnerDeletion would keep a schedule from going");
    objects::succeeded(&cluster.api::<Backup>(ns), &name, seconds(90)).await?;
    wait_for("the schedule to know of it", seconds(20), || async {
        let object = api.get("minutely").await?;
        let status = object.status.clone().unwrap_or_default();
        let known =
            status.last_success_time.is_some() && status.last_schedule_time.is_some_and(|t| t.0 >= next.0);
        Ok(if known { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
    })
    .await?;
    objects::merge::<BackupSchedule>(cluster, ns, "minutely", &json!({"spec": {"suspend": true}})).await?;
    let suspended = condition(&api, "minutely", types::READY, "True", seconds(20)).await?;
    let said = objects::current(&suspended, types::READY).map(|c| c.reason.clone()).unwrap_or_default();
    ensure!(said == "Suspended", "a suspended schedule is Ready for reason {said}");
    Ok(())
}

/// `last: 1`: when the second backup has succeeded the first leaves the store, with the WAL that only it needed.
pub async fn retention(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let store = store::make(cluster, ns, "main").await?;
    let db = Db::start(cluster, ns, "visits", &archived(1, "main")).await?;
    db.fill("visit", 1000).await?;
    let spec = json!({
        "databaseRef": {"name": "visits"}, "schedule": "* * * * *", "immediate": true, "retention": {"last": 1},
    });
    objects::apply::<BackupSchedule>(cluster, ns, "short", &spec).await?;
    let second = wait_for("a second good Backup", seconds(150), || async {
        let all = backups_of(&db, "short").await?;
        let good: Vec<&Backup> = all.iter().filter(|b| holds(*b, types::SUCCEEDED)).collect();
        // Once retention ran only the newer one may be left, so look at what the schedule counts, too.
        let status = cluster.api::<BackupSchedule>(ns).get("short").await?.status.unwrap_or_default();
        let expired = status.retention.map_or(0, |r| r.expired);
        Ok(if good.len() as i64 + expired >= 2 {
            Seen::Yes(())
        } else {
            Seen::NotYet(format!("{} good ones", good.len()))
        })
    })
    .await;
    second?;
    objects::merge::<BackupSchedule>(cluster, ns, "short", &json!({"spec": {"suspend": true}})).await?;
    wait_for("the schedule to say what retention did", seconds(90), || async {
        let object = cluster.api::<BackupSchedule>(ns).get("short").await?;
        let retention = object.status.clone().unwrap_or_default().retention.unwrap_or_default();
        let done = retention.kept == 1 && retention.expired >= 1;
        Ok(if done { Seen::Yes(()) } else { Seen::NotYet(format!("{retention:?}; {}", describe(&object))) })
    })
    .await?;
    if store.files.is_none() {
        return Ok(());
    }
    let history = store.history_folder(&db).await?;
    // A run that began before the suspension may still be under way.
    let kept = wait_for("one backup in the store", seconds(60), || async {
        let there = listing(&history.join("base"))?;
        let running = backups_of(&db, "short")
            .await?
            .iter()
            .filter(|b| current(*b, types::SUCCEEDED).is_none())
            .count();
        Ok(if there.len() == 1 && running == 0 {
            Seen::Yes(there)
        } else {
            Seen::NotYet(format!("{there:?}, {running} run"))
        })
    })
    .await?;
    let manifest = std::fs::read_to_string(history.join("base").join(&kept[0]).join("manifest.json"));
    manifest.context("the kept backup has no manifest.json")?;
    // What is kept can be restored: its WAL is there.
    let status = wait_for("the Backup that was kept", seconds(30), || async {
        let all = backups_of(&db, "short").await?;
        let found = all.into_iter().find(|b| b.uid().as_deref() == Some(kept[0].as_str()));
        Ok(found.map_or_else(|| Seen::NotYet("not there".into()), Seen::Yes))
    })
    .await?
    .status
    .unwrap_or_default();
    let facts = status.postgresql.context("status.postgresql is empty")?;
    let wal = listing(&history.join("wal").join(format!("{:08X}", facts.timeline)))?;
    let first = crate::tests::archive::segment(facts.timeline, &facts.start_lsn)?;
    ensure!(
        wal.contains(&format!("{first}.zst")),
        "the kept backup's first segment {first} is gone: {wal:?}"
    );
    let older = wal
        .iter()
        .filter(|n| n.len() >= 24 && n.as_str() < first.as_str() && !n.contains(".history"))
        .count();
    ensure!(older == 0, "WAL that nobody needs is still there: {wal:?} before {first}");
    Ok(())
}
