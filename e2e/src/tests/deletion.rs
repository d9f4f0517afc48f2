//! Deleting objects keeps data, in both of Kubernetes' ways of cascading, unless it was asked to go.

use crate::{
    database::Db,
    objects::{self, holds},
    runner::Scene,
    store,
    tests::{archive::listing, schedule::backups_of, stores::archived},
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{Backup, BackupSchedule, Database, conditions::types};
use kube::{ResourceExt, api::PropagationPolicy};
use serde_json::json;

/// Schedule, Backup and Database are deleted; the volumes and what lies in the store stay.
pub async fn delete_keeps_data(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let store = store::make(cluster, ns, "main").await?;
    let mut db = Db::start(cluster, ns, "papers", &archived(1, "main")).await?;
    db.fill("paper", 300).await?;
    let mut kept: Vec<String> = Vec::new();
    let history = if store.files.is_some() { Some(store.history_folder(&db).await?) } else { None };
    for how in [PropagationPolicy::Foreground, PropagationPolicy::Background] {
        let schedule = format!("yearly-{}", kept.len());
        let spec = json!({"databaseRef": {"name": "papers"}, "schedule": "@yearly", "immediate": true});
        objects::apply::<BackupSchedule>(cluster, ns, &schedule, &spec).await?;
        let backup = wait_for("the schedule's first Backup", seconds(120), || async {
            let all = backups_of(&db, &schedule).await?;
            let good = all.into_iter().find(|b| holds(b, types::SUCCEEDED));
            Ok(good.map_or_else(|| Seen::NotYet("no good one".into()), Seen::Yes))
        })
        .await?;
        kept.push(backup.uid().context("no uid")?);
        objects::delete::<BackupSchedule>(cluster, ns, &schedule, how.clone(), seconds(60)).await?;
        // In the foreground Kubernetes may take the Backup along before the schedule can let it go; its data stays even so.
        let left = cluster.api::<Backup>(ns).get_opt(&backup.name_any()).await?;
        if matches!(how, PropagationPolicy::Background) {
            let stays = left.as_ref().is_some_and(|b| b.metadata.deletion_timestamp.is_none());
            ensure!(stays, "the Backup went with its schedule, whose deletionPolicy is Retain");
        }
        if left.is_some_and(|b| b.metadata.deletion_timestamp.is_none()) {
            objects::delete::<Backup>(cluster, ns, &backup.name_any(), how.clone(), seconds(60)).await?;
        }
        objects::delete::<Database>(cluster, ns, "papers", how.clone(), seconds(90)).await?;
        ensure!(db.claims().await?.len() == 1, "the volume went with its Database ({how:?})");
        if let Some(history) = &history {
            let there = listing(&history.join("base"))?;
            ensure!(
                kept.iter().all(|uid| there.contains(uid)),
                "of the backups {kept:?} only {there:?} are left ({how:?})"
            );
        }
        db = Db::start(cluster, ns, "papers", &archived(1, "main")).await?;
        ensure!(db.count("paper").await? == 300, "rows are missing");
    }

    // Asked to go, they go.
    let asked = json!({"databaseRef": {"name": "papers"}, "deletionPolicy": "Delete"});
    let backup = objects::apply::<Backup>(cluster, ns, "passing", &asked).await?;
    objects::succeeded(&cluster.api::<Backup>(ns), "passing", seconds(90)).await?;
    objects::delete::<Backup>(cluster, ns, "passing", PropagationPolicy::Background, seconds(90)).await?;
    if let Some(history) = &history {
        let there = listing(&history.join("base"))?;
        let uid = backup.uid().unwrap_or_default();
        ensure!(!there.contains(&uid), "a Backup with deletionPolicy Delete left its data");
        ensure!(kept.iter().all(|uid| there.contains(uid)), "it took others with it: {there:?}");
    }
    db.change(&json!({"deletionPolicy": "Delete"})).await?;
    // The operator's finalizer says that it has seen the wish; before that a deletion keeps the volumes.
    wait_for("the operator to know of deletionPolicy Delete", seconds(20), || async {
        let finalizers = db.get().await?.finalizers().to_vec();
        Ok(if finalizers.is_empty() { Seen::NotYet("no finalizer".into()) } else { Seen::Yes(()) })
    })
    .await?;
    objects::delete::<Database>(cluster, ns, "papers", PropagationPolicy::Background, seconds(90)).await?;
    wait_for("the volumes to go with their Database", seconds(60), || async {
        let left: Vec<String> = db.claims().await?.iter().map(|c| c.name_any()).collect();
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::NotYet(format!("{left:?}")) })
    })
    .await
}
