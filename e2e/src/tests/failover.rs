//! The primary goes away in different ways. No acknowledged row may be lost, and the old primary comes back as a replica.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
    writer::Writer,
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

/// How long writes may be away on a small, busy machine: a TTL, the promotion, and the clients' own time to notice.
const AWAY: u64 = 30;

async fn begin(scene: &Scene, name: &str) -> Result<(Db, Writer)> {
    let db = Db::start(&scene.cluster, &scene.namespace, name, &spec(3)).await?;
    let client = ClientPod::start(&scene.cluster, &scene.namespace, "client", &[]).await?;
    client.login(&db).await?;
    let writer = Writer::start(&client, &db).await?;
    Ok((db, writer))
}

async fn end(db: &Db, writer: Writer, what: &str) -> Result<()> {
    let written = writer.stop().await?;
    written.none_missing(db).await?;
    let rows = db.count("acknowledged").await?;
    db.everywhere("acknowledged", rows, seconds(30)).await?;
    println!(
        "        {what}: {} acknowledged rows, none missing; writes away at most {:.1} s",
        written.ids.len(),
        written.longest_gap.as_secs_f64()
    );
    ensure!(
        written.longest_gap <= seconds(AWAY),
        "writes were away for {:.1} s",
        written.longest_gap.as_secs_f64()
    );
    Ok(())
}

/// The primary's pod is deleted as `kubectl delete pod` does it.
pub async fn failover_pod_delete(scene: Scene) -> Result<()> {
    let (db, writer) = begin(&scene, "orders").await?;
    let (identifier, timeline) =
        (db.system_identifier().await?, db.get().await?.status.and_then(|s| s.timeline));
    let old = db.primary().await?;
    let uid = db.pod_uids().await?.remove(&old).context("the primary has no uid")?;
    scene.cluster.api::<Pod>(&scene.namespace).delete(&old, &DeleteParams::default()).await?;
    db.primary_other_than(&old, seconds(60)).await?;
    writer.acknowledged(40, seconds(60)).await?;
    rejoined(&db, &old, &uid).await?;
    writer.acknowledged(40, seconds(30)).await?;
    end(&db, writer, "the primary's pod deleted").await?;
    ensure!(db.system_identifier().await? == identifier, "systemIdentifier changed");
    let now = db.get().await?.status.and_then(|s| s.timeline);
    ensure!(now > timeline, "timeline {timeline:?} became {now:?}: nobody was promoted");
    Ok(())
}

/// The primary's pod is deleted by force; then, on what became primary, postgres alone is killed.
pub async fn failover_force_delete(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let (db, writer) = begin(&scene, "trades").await?;
    let old = db.primary().await?;
    let uid = db.pod_uids().await?.remove(&old).context("the primary has no uid")?;
    cluster.api::<Pod>(ns).delete(&old, &DeleteParams::default().grace_period(0)).await?;
    db.primary_other_than(&old, seconds(60)).await?;
    writer.acknowledged(40, seconds(60)).await?;
    rejoined(&db, &old, &uid).await?;

    let primary = db.primary().await?;
    let started = db.superuser_on(&primary).await?.value("select pg_postmaster_start_time()").await?;
    let pods = db.pod_uids().await?;
    let kill = "kill -9 $(head -n1 /var/lib/holdfast/pgdata/postmaster.pid)";
    cluster.kubectl(&["exec", "-n", ns, &primary, "-c", "postgres", "--", "sh", "-c", kill]).await?;
    wait_for("postgres to have been started anew", seconds(90), || async {
        let now = db.superuser_on(&primary).await?.value("select pg_postmaster_start_time()").await?;
        Ok(if now != started { Seen::Yes(()) } else { Seen::NotYet("it runs as before".into()) })
    })
    .await?;
    writer.acknowledged(40, seconds(60)).await?;
    db.ready().await?;
    ensure!(db.pod_uids().await? == pods, "a pod was made anew because postgres died");
    let restarts = db
        .pods()
        .await?
        .remove(&primary)
        .and_then(|p| p.status?.container_statuses?.first().map(|c| c.restart_count));
    ensure!(restarts == Some(0), "the container was restarted because postgres died: {restarts:?}");
    end(&db, writer, "the primary's pod deleted by force, then postgres killed").await
}

/// Whether a pod is a replica again, and both replicas stream.
pub async fn follows(db: &Db, pod: &str) -> Result<Seen<()>> {
    let recovering = db.superuser_on(pod).await?.value("select pg_is_in_recovery()").await?;
    let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
    let streaming = db.superuser().await?.value(sql).await?;
    Ok(match (recovering.as_str(), streaming.as_str()) {
        ("t", "2") => Seen::Yes(()),
        _ => Seen::NotYet(format!("in recovery {recovering}, {streaming} replicas stream")),
    })
}

/// Waits until the deleted pod's successor streams and the Database is whole again.
async fn rejoined(db: &Db, pod: &str, old_uid: &str) -> Result<()> {
    wait_for(&format!("{pod} to come back as a replica"), seconds(120), || async {
        let uids = db.pod_uids().await?;
        if uids.get(pod).is_none_or(|uid| uid == old_uid) {
            return Ok(Seen::NotYet("the new pod is not there".into()));
        }
        follows(db, pod).await
    })
    .await?;
    db.ready().await.map(|_| ())
}

/// The primary is lost in the middle of a large write, and does not come back: what the others received ends inside a record.
pub async fn failover_inside_a_record(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let (db, writer) = begin(&scene, "quarry").await?;
    let old = db.primary().await?;
    let uid = db.pod_uids().await?.remove(&old).context("the primary has no uid")?;
    // Records of twice a segment's size: what is flushed, and so sent, ends inside one nearly all the time.
    let large = "do $$ begin for n in 1 .. 14 loop \
                 perform pg_logical_emit_message(false, 'quarry', repeat(md5(n::text), 1048576)); end loop; end $$";
    let sent = "select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint >> 20";
    let watch = db.superuser_on(&old).await?;
    let before: u64 = watch.value(sent).await?.parse()?;
    let load = db.superuser_on(&old).await?;
    let load = tokio::spawn(async move { load.run(large).await });
    wait_for("the large write to be under way", seconds(30), || async {
        let now: u64 = watch.value(sent).await?.parse()?;
        Ok(if now > before + 40 { Seen::Yes(()) } else { Seen::NotYet(format!("{before} became {now} MiB")) })
    })
    .await?;
    // Nothing may come in place of the pod: else it would be back, with everything, before another needs to take over.
    let quota = json!({"metadata": {"name": "nothing-new"}, "spec": {"hard": {"pods": "1"}}});
    let quotas = cluster.api::<ResourceQuota>(ns);
    quotas.create(&PostParams::default(), &serde_json::from_value(quota)?).await?;
    // And its server may not end in good order.
    let frozen = ["exec", "-n", ns, &old, "-c", "postgres", "--", "sh", "-c", "kill -STOP -1"];
    cluster.kubectl(&frozen).await?;
    ensure!(!load.is_finished(), "the write ended before its server did: nothing was tested");
    cluster.api::<Pod>(ns).delete(&old, &DeleteParams::default().grace_period(0)).await?;
    let ends = "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";
    for pod in db.pods().await?.into_keys().filter(|pod| *pod != old) {
        println!(
            "        {pod} received more than it replayed: {}",
            db.superuser_on(&pod).await?.value(ends).await?
        );
    }
    let new = db.primary_other_than(&old, seconds(60)).await?;
    writer.acknowledged(40, seconds(60)).await?;
    load.abort();
    let counted = db.metric(&new, "holdfast_failover_duration_seconds_count").await?;
    ensure!(counted == Some(1.0), "{new} counts {counted:?} failovers");
    quotas.delete("nothing-new", &DeleteParams::default()).await?;
    rejoined(&db, &old, &uid).await?;
    end(&db, writer, "the primary lost within a large write").await
}
