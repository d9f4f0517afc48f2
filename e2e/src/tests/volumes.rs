//! Whose data it is: initdb happens once, volumes are adopted, an empty volume never leads.

use crate::{
    database::{Db, spec, with},
    objects::{self, condition, current, describe},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{Database, conditions::types, names};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, PropagationPolicy},
};

/// A new pod on the old volume opens the old data.
pub async fn initdb_once(scene: Scene) -> Result<()> {
    let db = Db::start(&scene.cluster, &scene.namespace, "notes", &spec(1)).await?;
    db.fill("note", 500).await?;
    let identifier = db.system_identifier().await?;
    let old = db.pod_uids().await?;
    scene.cluster.api::<Pod>(&scene.namespace).delete("notes-0", &DeleteParams::default()).await?;
    wait_for("a new pod", seconds(60), || async {
        let now = db.pod_uids().await?;
        Ok(if now.contains_key("notes-0") && now != old {
            Seen::Yes(())
        } else {
            Seen::NotYet(format!("{now:?}"))
        })
    })
    .await?;
    // The condition may still speak of the old pod, so ask the database first.
    ensure!(db.count("note").await? == 500, "rows are missing");
    db.ready().await?;
    let sql = "select system_identifier from pg_control_system()";
    let own = db.superuser().await?.value(sql).await?;
    ensure!(own == identifier, "it is another database now: {own} instead of {identifier}");
    ensure!(db.system_identifier().await? == identifier, "status.systemIdentifier changed");
    Ok(())
}

/// Deleting a Database keeps its volumes, and a Database of the same name goes on with them.
pub async fn adopt_volumes(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "invoices", &spec(2)).await?;
    db.fill("invoice", 500).await?;
    let before = db.get().await?;
    objects::delete::<Database>(cluster, ns, "invoices", PropagationPolicy::Foreground, seconds(90)).await?;
    ensure!(db.claims().await?.len() == 2, "the volumes did not stay");
    wait_for("the pods to be gone", seconds(60), || async {
        let left = db.pod_uids().await?;
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::NotYet(format!("{left:?}")) })
    })
    .await?;
    let db = Db::start(cluster, ns, "invoices", &spec(2)).await?;
    let after = db.get().await?;
    ensure!(before.uid() != after.uid(), "it is the old object");
    let (before, after) = (before.status.unwrap_or_default(), after.status.unwrap_or_default());
    ensure!(before.data_set == after.data_set, "dataSet {:?} became {:?}", before.data_set, after.data_set);
    ensure!(before.system_identifier == after.system_identifier, "systemIdentifier changed");
    ensure!(before.history == after.history, "history changed");
    // The password is a new one; the application gets in with it all the same.
    ensure!(db.count("invoice").await? == 500, "rows are missing");
    db.everywhere("invoice", 500, seconds(30)).await
}

/// The primary's volume is lost: another instance leads, and the empty one clones instead of leading.
pub async fn empty_volume_never_leads(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "stock", &spec(3)).await?;
    db.fill("part", 2000).await?;
    let identifier = db.system_identifier().await?;
    let primary = db.primary().await?;
    let ordinal = names::ordinal("stock", &primary).context("the primary's name has no number")?;
    let data_set = db.get().await?.status.and_then(|s| s.data_set).context("no dataSet")?;
    let claim = names::claim(&data_set, "stock", ordinal);
    let claims = cluster.api::<PersistentVolumeClaim>(ns);
    let old = claims.get(&claim).await?.uid();
    claims.delete(&claim, &DeleteParams::default()).await?;
    cluster.api::<Pod>(ns).delete(&primary, &DeleteParams::default()).await?;
    db.primary_other_than(&primary, seconds(60)).await?;
    ensure!(db.count("part").await? == 2000, "rows are missing after the failover");
    wait_for("a new volume in place of the lost one", seconds(90), || async {
        let now = claims.get_opt(&claim).await?;
        let fresh = now.as_ref().is_some_and(|c| c.uid() != old && c.metadata.deletion_timestamp.is_none());
        Ok(if fresh { Seen::Yes(()) } else { Seen::NotYet(format!("claim {:?}", now.and_then(|c| c.uid()))) })
    })
    .await?;
    db.everywhere("part", 2000, seconds(90)).await?;
    db.ready().await?;
    ensure!(
        db.system_identifier().await? == identifier,
        "systemIdentifier changed: something ran initdb again"
    );
    let own =
        db.superuser_on(&primary).await?.value("select system_identifier from pg_control_system()").await?;
    ensure!(own == identifier, "{primary} has another database: {own}");
    Ok(())
}

/// A volume fails under the primary, another is lost for good: what a person has to do is said, and nothing is lost.
pub async fn volumes_fail(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        volumes_fail: only the development cluster's volumes can be broken, left out");
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "vase", &spec(3)).await?;
    db.fill("shard", 2000).await?;
    // Before the synchronous set is recorded only the primary has every commit, and nobody may take over.
    condition(&db.api(), "vase", types::CONSISTENT, "True", seconds(30)).await?;
    let data_set = db.get().await?.status.and_then(|s| s.data_set).context("no dataSet")?;
    let claim = |pod: &str| {
        let ordinal = names::ordinal("vase", pod).context("a pod without a number");
        ordinal.map(|n| names::claim(&data_set, "vase", n))
    };
    let said = |reason: &'static str, words: String| {
        let db = db.clone();
        async move {
            wait_for(&format!("Stalled, reason {reason}, naming {words}"), seconds(40), || async {
                let object = db.get().await?;
                let said = current(&object, types::STALLED).filter(|c| c.status == "True");
                let found = said.is_some_and(|c| c.reason == reason && c.message.contains(&words));
                Ok(if found { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
            })
            .await
        }
    };
    let pods = cluster.api::<Pod>(ns);

    let first = db.primary().await?;
    let began = std::time::Instant::now();
    cluster.script("volume", &["read-only", &format!("{ns}/{}", claim(&first)?)]).await?;
    let second = db.primary_other_than(&first, seconds(60)).await?;
    // It need not wait for a TTL.
    ensure!(began.elapsed() < seconds(10), "the failover took {:?}", began.elapsed());
    println!(
        "        a volume that turned read-only: another primary after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    said("VolumeFailed", first.clone()).await?;
    ensure!(db.count("shard").await? == 2000, "rows are missing");
    cluster.script("volume", &["read-only", &format!("{ns}/{}", claim(&first)?), "off"]).await?;
    // What the message says to do.
    pods.delete(&first, &DeleteParams::default()).await?;
    db.ready().await?;

    cluster.script("volume", &["lose", &format!("{ns}/{}", claim(&second)?)]).await?;
    db.primary_other_than(&second, seconds(60)).await?;
    said("VolumeFailed", second.clone()).await?;
    pods.delete(&second, &DeleteParams::default()).await?;
    said("FailedMount", second.clone()).await?;
    let claims = cluster.api::<PersistentVolumeClaim>(ns);
    claims.delete(&claim(&second)?, &DeleteParams::default()).await?;
    pods.delete(&second, &DeleteParams::default()).await?;
    wait_for("three instances again", seconds(90), || async {
        let object = db.get().await?;
        let ready = object.status.as_ref().and_then(|s| s.instances.as_ref()).map_or(0, |i| i.ready);
        Ok(if ready == 3 { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
    })
    .await?;
    db.ready().await?;
    db.everywhere("shard", 2000, seconds(60)).await
}

/// Volumes that write 8 MiB a second: slow is not broken, and nobody is replaced for it.
pub async fn slow_volume(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        slow_volume: needs the development cluster's class slow, left out");
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let change = serde_json::json!({"storage": {"storageClassName": "slow"}});
    let began = std::time::Instant::now();
    let db = Db::start(cluster, ns, "snail", &with(spec(2), &change)).await?;
    println!("        two instances on slow volumes: Ready after {:.0} s", began.elapsed().as_secs_f64());
    let primary = db.primary().await?;
    let began = std::time::Instant::now();
    db.app()
        .await?
        .run("create table trail (slime text); alter table trail alter slime set storage external")
        .await?;
    db.app().await?.run("insert into trail select repeat('x', 1000000) from generate_series(1, 20)").await?;
    let took = began.elapsed();
    ensure!(took > seconds(2), "20 MB were written in {took:?}: the volume is not slow");
    db.everywhere("trail", 20, seconds(60)).await?;
    ensure!(db.primary().await? == primary, "slowness made another instance primary");
    let timeline = db.get().await?.status.and_then(|s| s.timeline);
    ensure!(timeline == Some(1), "somebody was promoted: timeline {timeline:?}");
    // Ended in good order: a namespace that is deleted looks again only after half of the pods' grace period.
    db.change(&serde_json::json!({"stopped": true})).await?;
    wait_for("the pods to be gone", seconds(60), || async {
        let left = db.pod_uids().await?;
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::NotYet(format!("{left:?}")) })
    })
    .await
}
