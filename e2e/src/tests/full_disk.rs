//! A volume that is full is no crash: writes are refused, reads go on, nothing is lost, and room ends it.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    objects::{condition, current, describe},
    runner::Scene,
    wait::{Seen, say, seconds, wait_for},
    writer::Writer,
};
use anyhow::{Result, ensure};
use holdfast_core::conditions::types;
use serde_json::json;

/// Restarts of the database containers.
async fn restarts(db: &Db) -> Result<i32> {
    let pods = db.pods().await?;
    let statuses =
        pods.values().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
    Ok(statuses.map(|s| s.restart_count).sum())
}

/// Fills a table until the server refuses; returns its words.
async fn fill(db: &Db, table: &str) -> Result<String> {
    let sql = db.app().await?;
    // Kept as it is, not compressed; in small steps, so that the server is asked often.
    let table_sql =
        format!("create table {table} (filler text); alter table {table} alter filler set storage external");
    sql.run(&table_sql).await?;
    let step = format!("insert into {table} select repeat('x', 1000000) from generate_series(1, 4)");
    for _ in 0..400 {
        if let Err(error) = sql.run(&step).await {
            return Ok(say(&error));
        }
    }
    anyhow::bail!("400 steps and the volume is not full")
}

async fn disk_full(db: &Db) -> Result<String> {
    wait_for("Available=False, reason DiskFull", seconds(40), || async {
        let object = db.get().await?;
        let available = current(&object, types::AVAILABLE);
        let stalled = current(&object, types::STALLED);
        let full = available.is_some_and(|c| c.status == "False" && c.reason == "DiskFull")
            && stalled.is_some_and(|c| c.status == "True" && c.reason == "DiskFull");
        let message = stalled.map(|c| c.message.clone()).unwrap_or_default();
        Ok(if full { Seen::Yes(message) } else { Seen::NotYet(describe(&object)) })
    })
    .await
}

async fn writable(db: &Db, table: &str) -> Result<()> {
    let sql = format!("insert into {table} values ('room again')");
    wait_for("writes to be accepted", seconds(90), || async {
        db.app().await?.run(&sql).await?;
        Ok(Seen::Yes(()))
    })
    .await
}

/// Twice full: ended by growth, then by making room.
pub async fn full_disk(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        full_disk: it fills a volume, and is run only on the development cluster");
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "attic", &spec(2)).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    db.fill("kept", 1000).await?;
    let (primary, pods) = (db.primary().await?, db.pod_uids().await?);
    let writer = Writer::start(&client, &db).await?;
    let words = fill(&db, "filler").await?;
    println!("        the server's words: {words}");
    let message = disk_full(&db).await?;
    ensure!(message.contains("spec.storage.size"), "the message does not say what to do: {message}");
    ensure!(db.count("kept").await? == 1000, "reads are refused as well");
    let refused = db.app().await?.run("insert into filler values ('one more')").await;
    ensure!(refused.is_err(), "a write was accepted while the condition says that none are");

    db.change(&json!({"storage": {"size": "2Gi"}})).await?;
    writable(&db, "filler").await?;
    db.ready().await?;
    writer.acknowledged(20, seconds(30)).await?;
    writer.stop().await?.none_missing(&db).await?;
    ensure!(db.primary().await? == primary, "a full disk made another instance primary");
    ensure!(db.pod_uids().await? == pods, "pods were replaced");

    fill(&db, "more").await?;
    disk_full(&db).await?;
    // What the message tells a person to do. Who is quick enough to begin while the volume fills is still taken for a writer.
    wait_for("a session to make room", seconds(30), || async {
        let sql = db.app().await?;
        sql.run("set default_transaction_read_only = off").await?;
        sql.run("drop table if exists more").await?;
        Ok(Seen::Yes(()))
    })
    .await?;
    writable(&db, "filler").await?;
    db.ready().await?;
    ensure!(db.count("kept").await? == 1000, "rows are missing");
    let rows = db.count("filler").await?;
    db.everywhere("filler", rows, seconds(60)).await?;
    ensure!(restarts(&db).await? == 0, "a full disk restarted a container");
    Ok(())
}

/// Something else fills the volume at once, under a client that writes: postgres may end for lack of room, and comes back in its place.
pub async fn disk_filled_at_once(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!(
            "        disk_filled_at_once: it fills a volume, and is run only on the development cluster"
        );
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "garret", &spec(2)).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    let primary = db.primary().await?;
    let inside = |script: &'static str| {
        let (cluster, ns, primary) = (cluster.clone(), ns.to_string(), primary.clone());
        async move {
            let arguments = ["exec", "-n", &ns, &primary, "-c", "postgres", "--", "sh", "-c", script];
            cluster.kubectl(&arguments).await
        }
    };
    let writer = Writer::start(&client, &db).await?;
    // The WAL moves on to segments that are not there yet, in big steps, while the room goes in one.
    let flood = db.app().await?;
    let flooding = tokio::spawn(async move {
        let _ = flood
            .run("create table flood (water text); alter table flood alter water set storage external")
            .await;
        while flood
            .run("insert into flood select repeat('x', 1000000) from generate_series(1, 4)")
            .await
            .is_ok()
        {}
    });
    inside("f=/var/lib/holdfast/somebody-elses; dd if=/dev/zero of=$f bs=1M 2>/dev/null; stat -c %s $f")
        .await?;
    let message = disk_full(&db).await?;
    println!("        {message}");
    let _ = tokio::time::timeout(seconds(30), flooding).await;
    inside("rm /var/lib/holdfast/somebody-elses").await?;
    condition(&db.api(), "garret", types::READY, "True", seconds(90)).await?;
    writer.acknowledged(20, seconds(60)).await?;
    let written = writer.stop().await?;
    written.none_missing(&db).await?;
    println!("        writes away at most {:.1} s", written.longest_gap.as_secs_f64());
    ensure!(db.primary().await? == primary, "a full disk made another instance primary");
    ensure!(restarts(&db).await? == 0, "a full disk restarted a container");
    let rows = db.count("acknowledged").await?;
    db.everywhere("acknowledged", rows, seconds(60)).await
}
