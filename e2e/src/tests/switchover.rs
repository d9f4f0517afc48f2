//! A planned change of primary: asked for by annotation, carried out once, refused with a reason.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
    writer::Writer,
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{crd::database::Handled, names};
use kube::api::{Patch, PatchParams};
use serde_json::json;

/// How long writes may be away on a small, busy machine: a shutdown, a promotion, and the clients' own time to notice.
const AWAY: u64 = 10;

async fn ask(db: &Db, value: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {names::ANNOTATION_SWITCHOVER: value}}});
    db.api().patch("ferries", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

async fn handled(db: &Db, value: &str) -> Result<Handled> {
    wait_for(&format!("switchover {value} to be handled"), seconds(60), || async {
        let handled = db.get().await?.status.and_then(|s| s.handled).unwrap_or_default();
        Ok(match handled.switchover.as_deref() == Some(value) {
            true => Seen::Yes(handled),
            false => Seen::NotYet(format!("handled is {handled:?}")),
        })
    })
    .await
}

/// To a named pod, to any, to one that does not exist; and once for each value.
pub async fn switchover(scene: Scene) -> Result<()> {
    let db = Db::start(&scene.cluster, &scene.namespace, "ferries", &spec(3)).await?;
    let client = ClientPod::start(&scene.cluster, &scene.namespace, "client", &[]).await?;
    client.login(&db).await?;
    let writer = Writer::start(&client, &db).await?;
    let (pods, old) = (db.pod_uids().await?, db.primary().await?);
    let to = pods.keys().rfind(|pod| **pod != old).context("no other instance")?.clone();

    ask(&db, &to).await?;
    ensure!(db.primary_other_than(&old, seconds(60)).await? == to, "another one than {to} is primary");
    ensure!(handled(&db, &to).await?.switchover_refused.is_none(), "it was refused as well");
    db.ready().await?;
    writer.acknowledged(20, seconds(30)).await?;

    ask(&db, "any@2").await?;
    let third = db.primary_other_than(&to, seconds(60)).await?;
    handled(&db, "any@2").await?;
    db.ready().await?;
    writer.acknowledged(20, seconds(30)).await?;

    ask(&db, "ferries-7").await?;
    let why = handled(&db, "ferries-7").await?.switchover_refused.context("it was not refused")?;
    ensure!(why.contains("ferries-7 does not stream"), "{why}");
    writer.acknowledged(20, seconds(30)).await?;
    ensure!(db.primary().await? == third, "a switchover that was refused changed the primary");
    ensure!(db.pod_uids().await? == pods, "a pod was made anew for a switchover");

    for pod in [&to, &third] {
        let switched = db.metric(pod, "holdfast_failovers_total{cause=\"switchover\"}").await?;
        ensure!(switched == Some(1.0), "{pod} counts {switched:?} switchovers");
        let away = db.metric(pod, "holdfast_failover_duration_seconds_sum").await?.unwrap_or_default();
        ensure!(away > 0.0 && away <= AWAY as f64, "{pod} says that its switchover took {away} s");
        let closed = db.metric(pod, "holdfast_write_unavailability_seconds").await?.unwrap_or_default();
        ensure!(closed >= away, "{pod}: a switchover of {away} s, and writes away for {closed} s");
    }

    let written = writer.stop().await?;
    written.none_missing(&db).await?;
    let rows = db.count("acknowledged").await?;
    db.everywhere("acknowledged", rows, seconds(30)).await?;
    let away = written.longest_gap.as_secs_f64();
    println!("        two switchovers: {rows} rows, none missing; writes away at most {away:.1} s");
    ensure!(written.longest_gap <= seconds(AWAY), "writes were away for {away:.1} s");
    Ok(())
}
