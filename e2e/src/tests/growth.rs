//! Volumes that grow under a running database, and those that cannot.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec, with},
    objects::{self, condition, current, describe, stalled},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
    writer::Writer,
};
use anyhow::{Result, ensure};
use holdfast_core::conditions::types;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::json;
use std::collections::BTreeMap;

/// Storage requests and capacities of a Database's claims.
async fn sizes(db: &Db) -> Result<BTreeMap<String, (String, String)>> {
    let asked = |c: &PersistentVolumeClaim| {
        Some(c.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone())
    };
    let has =
        |c: &PersistentVolumeClaim| Some(c.status.as_ref()?.capacity.as_ref()?.get("storage")?.0.clone());
    let claims = db.claims().await?;
    Ok(claims
        .iter()
        .map(|c| (c.name_any(), (asked(c).unwrap_or_default(), has(c).unwrap_or_default())))
        .collect())
}

/// Size in MiB of the file system that a pod's data is on, as the pod sees it.
pub async fn file_system(db: &Db, pod: &str) -> Result<u64> {
    let text = db
        .cluster
        .kubectl(&[
            "exec",
            "-n",
            &db.namespace,
            pod,
            "-c",
            "postgres",
            "--",
            "df",
            "--output=size",
            "-BM",
            "/var/lib/holdfast",
        ])
        .await?;
    let digits: String =
        text.lines().last().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// Every volume grows while a client writes; no pod is touched.
pub async fn volume_growth(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "archive-of-maps", &spec(2)).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    let writer = Writer::start(&client, &db).await?;
    let (pods, before) = (db.pod_uids().await?, file_system(&db, "archive-of-maps-0").await?);
    ensure!(before < 1024, "the volume of 1Gi has {before} MiB: its size is no limit");
    db.change(&json!({"storage": {"size": "2Gi"}})).await?;
    wait_for("status.storage.capacity 2Gi", seconds(90), || async {
        let object = db.get().await?;
        let capacity = object.status.as_ref().and_then(|s| s.storage.as_ref()?.capacity.clone());
        let grown = capacity.as_ref().is_some_and(|c| c.0 == "2Gi");
        Ok(if grown { Seen::Yes(()) } else { Seen::NotYet(format!("{capacity:?}; {}", describe(&object))) })
    })
    .await?;
    db.ready().await?;
    for pod in ["archive-of-maps-0", "archive-of-maps-1"] {
        let now = file_system(&db, pod).await?;
        ensure!(now > 1536, "the file system of {pod} has {now} MiB");
    }
    writer.acknowledged(20, seconds(30)).await?;
    let written = writer.stop().await?;
    written.none_missing(&db).await?;
    ensure!(db.pod_uids().await? == pods, "pods were replaced");
    println!("        growth: writes away at most {:.1} s", written.longest_gap.as_secs_f64());
    ensure!(written.longest_gap < seconds(5), "writes were away for {:?}", written.longest_gap);
    // A new replica gets a volume of the new size.
    db.change(&json!({"instances": 3})).await?;
    db.ready().await?;
    let all = sizes(&db).await?;
    ensure!(all.len() == 3 && all.values().all(|(asked, has)| asked == "2Gi" && has == "2Gi"), "{all:?}");
    Ok(())
}

/// A class that does not grow: said so, everything else goes on, and taking the size back ends it.
pub async fn growth_refused(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        growth_refused: only the development cluster has such a class for sure, left out");
        return Ok(());
    }
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let spec = with(spec(1), &json!({"storage": {"storageClassName": "fixed"}}));
    let db = Db::start(cluster, ns, "ledger", &spec).await?;
    db.fill("entry", 100).await?;
    let pods = db.pod_uids().await?;
    db.change(&json!({"storage": {"size": "2Gi"}, "postgresql": {"parameters": {"work_mem": "7MB"}}}))
        .await?;
    let said = stalled(&db.api(), "ledger", seconds(30)).await?;
    ensure!(said.reason == "ExpansionRefused", "{}: {}", said.reason, said.message);
    for word in ["spec.storage.size", "fixed"] {
        ensure!(said.message.contains(word), "the message does not name {word}: {}", said.message);
    }
    let object = db.get().await?;
    let ready = current(&object, types::READY);
    ensure!(ready.is_some_and(|c| c.status == "False"), "it is Ready all the same: {}", describe(&object));
    ensure!(objects::holds(&object, types::AVAILABLE), "it does not serve: {}", describe(&object));
    wait_for("the rest of the change to be carried out", seconds(30), || async {
        let now = db.superuser().await?.value("show work_mem").await?;
        Ok(if now == "7MB" { Seen::Yes(()) } else { Seen::NotYet(now) })
    })
    .await?;
    db.change(&json!({"storage": {"size": "1Gi"}})).await?;
    condition(&db.api(), "ledger", types::READY, "True", seconds(60)).await?;
    ensure!(db.pod_uids().await? == pods, "pods were replaced");
    ensure!(db.count("entry").await? == 100, "rows are missing");
    Ok(())
}

/// A growth that the driver cannot carry out: said in its words, and ended by taking the size back.
pub async fn growth_failed(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        growth_failed: about the development cluster's largest volume, left out");
        return Ok(());
    }
    let db = Db::start(&scene.cluster, &scene.namespace, "cellar", &spec(1)).await?;
    db.fill("bottle", 100).await?;
    let pods = db.pod_uids().await?;
    // More than the driver makes.
    db.change(&json!({"storage": {"size": "20Ti"}})).await?;
    wait_for("Stalled, reason ExpansionFailed", seconds(60), || async {
        let object = db.get().await?;
        let said = current(&object, types::STALLED).filter(|c| c.status == "True");
        let found = said.is_some_and(|c| c.reason == "ExpansionFailed" && c.message.contains("cellar-0"));
        Ok(if found { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
    })
    .await?;
    ensure!(db.count("bottle").await? == 100, "it does not serve");
    db.change(&json!({"storage": {"size": "1Gi"}})).await?;
    condition(&db.api(), "cellar", types::READY, "True", seconds(90)).await?;
    let all = sizes(&db).await?;
    // Kubernetes takes a request back only to more than there is: a MiB more.
    ensure!(all.values().all(|(asked, _)| asked == "1025Mi"), "{all:?}");
    ensure!(db.pod_uids().await? == pods, "pods were replaced");
    Ok(())
}
