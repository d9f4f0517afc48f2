//! Networks break: the API server is away, or an instance is cut off from everybody.

use super::failover::follows;
use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    runner::Scene,
    wait::{seconds, wait_for},
    writer::{Writer, Written},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::names;
use k8s_openapi::api::coordination::v1::Lease;
use std::time::Duration;

/// How long one commit may take while the API server is away: as long as ever, on a small and busy machine.
const PAUSE: Duration = Duration::from_secs(4);

async fn cut(scene: &Scene, how: &str, uid: &str, from: &[String]) -> Result<()> {
    let mut arguments = vec![how, uid];
    arguments.extend(from.iter().map(String::as_str));
    scene.cluster.script("cut", &arguments).await.map(drop)
}

async fn lease_version(scene: &Scene, db: &str) -> Result<Option<String>> {
    let leases = scene.cluster.api::<Lease>(&scene.namespace);
    Ok(leases.get(&names::lease_primary(db)).await?.metadata.resource_version)
}

async fn whole(db: &Db, written: &Written) -> Result<()> {
    written.none_missing(db).await?;
    let rows = db.count("acknowledged").await?;
    db.everywhere("acknowledged", rows, seconds(60)).await
}

/// The API server is away from all instances for several TTLs: the primary stays, since the others agree. Then the primary is cut off from
/// them as well: another one takes over, no acknowledged row is lost, and the old primary comes back as a replica.
pub async fn api_server_away(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "harvest", &spec(3)).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    let writer = Writer::start(&client, &db).await?;
    let old = db.primary().await?;
    let timeline = db.get().await?.status.and_then(|s| s.timeline);
    let uids = db.pod_uids().await?;
    let api = ["api".to_string()];
    for uid in uids.values() {
        cut(&scene, "off", uid, &api).await?;
    }
    // A row takes 25 ms at least: what was under way ends, and then come two TTLs of six seconds and more.
    writer.acknowledged(100, seconds(30)).await?;
    let renewed = lease_version(&scene, "harvest").await?;
    writer.acknowledged(700, seconds(90)).await?;
    ensure!(
        lease_version(&scene, "harvest").await? == renewed,
        "the Lease was renewed: the primary was not cut off"
    );
    for uid in uids.values() {
        cut(&scene, "on", uid, &api).await?;
    }
    writer.acknowledged(40, seconds(30)).await?;
    db.ready().await?;
    ensure!(db.primary().await? == old, "another one became primary");
    ensure!(db.get().await?.status.and_then(|s| s.timeline) == timeline, "somebody was promoted");
    ensure!(db.pod_uids().await? == uids, "a pod was made anew");
    let written = writer.stop().await?;
    whole(&db, &written).await?;
    println!(
        "        API server away from all: {} acknowledged rows, none missing; writes away at most {:.1} s",
        written.ids.len(),
        written.longest_gap.as_secs_f64()
    );
    ensure!(written.longest_gap < PAUSE, "writes were away for {:?}", written.longest_gap);

    let writer = Writer::start(&client, &db).await?;
    let uid = uids.get(&old).context("the primary has no uid")?;
    let mut from = api.to_vec();
    for (name, pod) in db.pods().await? {
        if name != old {
            from.push(pod.status.and_then(|s| s.pod_ip).with_context(|| format!("{name} has no address"))?);
        }
    }
    cut(&scene, "off", uid, &from).await?;
    db.primary_other_than(&old, seconds(60)).await?;
    writer.acknowledged(40, seconds(60)).await?;
    cut(&scene, "on", uid, &from).await?;
    wait_for(&format!("{old} to come back as a replica"), seconds(120), || follows(&db, &old)).await?;
    db.ready().await?;
    writer.acknowledged(40, seconds(30)).await?;
    let written = writer.stop().await?;
    whole(&db, &written).await?;
    println!(
        "        primary cut off from everybody: {} acknowledged rows, none missing; writes away at most {:.1} s",
        written.ids.len(),
        written.longest_gap.as_secs_f64()
    );
    ensure!(written.longest_gap < seconds(30), "writes were away for {:?}", written.longest_gap);
    Ok(())
}
