//! Changes to a running database: its number of instances, its parameters.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
    writer::Writer,
};
use anyhow::{Result, ensure};
use holdfast_core::Database;
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// From one to three and back: the data is everywhere, and stays.
pub async fn scale_up_down(scene: Scene) -> Result<()> {
    let db = Db::start(&scene.cluster, &scene.namespace, "ledger", &spec(1)).await?;
    db.fill("entry", 1000).await?;
    // As `kubectl scale` does it.
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    db.api().patch_scale("ledger", &PatchParams::default(), &scale).await?;
    db.ready().await?;
    db.everywhere("entry", 1000, seconds(30)).await?;
    ensure!(db.pods().await?.len() == 3, "there are not three pods");
    db.change(&json!({"instances": 1})).await?;
    db.ready().await?;
    wait_for("one pod", seconds(60), || async {
        let left: Vec<String> = db.pods().await?.into_keys().collect();
        Ok(if left == ["ledger-0"] { Seen::Yes(()) } else { Seen::NotYet(format!("{left:?}")) })
    })
    .await?;
    ensure!(db.count("entry").await? == 1000, "rows are missing");
    db.app().await?.run("insert into entry values (1001, 'after')").await?;
    Ok(())
}

/// What a reload can do is done by a reload; what needs a restart goes through replicas first and the primary last.
pub async fn parameter_change(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "tuned", &spec(3)).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    let (pods, primary, started) = (db.pod_uids().await?, db.primary().await?, start_times(&db).await?);

    db.change(&json!({"postgresql": {"parameters": {"work_mem": "5MB"}}})).await?;
    shown(&db, "work_mem", "5MB").await?;
    db.ready().await?;
    ensure!(db.pod_uids().await? == pods && start_times(&db).await? == started, "work_mem needed a restart");

    let writer = Writer::start(&client, &db).await?;
    db.change(&json!({"postgresql": {"parameters": {"shared_buffers": "48MB", "max_connections": "120"}}}))
        .await?;
    shown(&db, "max_connections", "120").await?;
    shown(&db, "shared_buffers", "48MB").await?;
    let object: Database = db.ready().await?;
    let now = start_times(&db).await?;
    ensure!(
        now.iter().zip(&started).all(|(now, old)| now.0 == old.0 && now.1 > old.1),
        "not all restarted: {now:?}"
    );
    let last = now.iter().max_by(|a, b| a.1.cmp(&b.1)).map(|(pod, _)| pod.clone()).unwrap_or_default();
    ensure!(last == primary, "{last} restarted last, not the primary {primary}: {now:?}");
    writer.acknowledged(20, seconds(30)).await?;
    let written = writer.stop().await?;
    written.none_missing(&db).await?;
    println!("        an ordered restart: writes away at most {:.1} s", written.longest_gap.as_secs_f64());
    ensure!(written.longest_gap < seconds(30), "writes were away for {:?}", written.longest_gap);
    ensure!(object.status.is_some_and(|s| s.primary.is_some()), "no primary is shown");
    Ok(())
}

/// Pods and when their postgres was started, seconds since 1970.
async fn start_times(db: &Db) -> Result<Vec<(String, String)>> {
    let mut times = Vec::new();
    for pod in db.pods().await?.into_keys() {
        let sql = "select to_char(pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI:SS.US')";
        let time = db.superuser_on(&pod).await?.value(sql).await?;
        times.push((pod, time));
    }
    Ok(times)
}

/// Waits until every pod shows a parameter with this value.
async fn shown(db: &Db, parameter: &str, value: &str) -> Result<()> {
    for pod in db.pods().await?.into_keys() {
        wait_for(&format!("{parameter} = {value} on {pod}"), seconds(120), || async {
            let now = db.superuser_on(&pod).await?.value(&format!("show {parameter}")).await?;
            Ok(if now == value { Seen::Yes(()) } else { Seen::NotYet(now) })
        })
        .await?;
    }
    Ok(())
}
