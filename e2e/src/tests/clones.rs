//! A replica from a clone of a volume, where the class can make one, and by streaming where it cannot.

use crate::{
    database::{Db, spec, with},
    objects::describe,
    runner::Scene,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::names;
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};
use kube::{
    ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

/// A claim's source, if it is a clone.
fn source(claim: &PersistentVolumeClaim) -> Option<String> {
    let source = claim.spec.as_ref()?.data_source.as_ref()?;
    (source.kind == "PersistentVolumeClaim").then(|| source.name.clone())
}

async fn claim(db: &Db, ordinal: i32) -> Result<PersistentVolumeClaim> {
    let data_set = db.get().await?.status.and_then(|s| s.data_set).context("no dataSet")?;
    let name = names::claim(&data_set, &db.name, ordinal);
    let api = db.cluster.api::<PersistentVolumeClaim>(&db.namespace);
    api.get(&name).await.with_context(|| format!("claim {name}"))
}

async fn grow_to_two(scene: &Scene, name: &str, class: &str) -> Result<Db> {
    let change = json!({"storage": {"storageClassName": class, "replicaSource": "VolumeClone"}});
    let db = Db::start(&scene.cluster, &scene.namespace, name, &with(spec(1), &change)).await?;
    db.fill("leaf", 5000).await?;
    db.change(&json!({"instances": 2})).await?;
    Ok(db)
}

/// The second instance begins with a clone of the first one's volume, catches up by streaming, and can lead.
pub async fn volume_clone(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        volume_clone: needs a class that clones, left out");
        return Ok(());
    }
    let db = grow_to_two(&scene, "herbarium", "standard").await?;
    let first = claim(&db, 0).await?.name_any();
    // Written while the clone is made or after it: only streaming can bring it.
    db.app().await?.run("insert into leaf select n, 'late' from generate_series(5001, 6000) n").await?;
    db.ready().await?;
    let second = claim(&db, 1).await?;
    ensure!(source(&second).as_deref() == Some(first.as_str()), "{:?}", second.spec);
    db.everywhere("leaf", 6000, seconds(30)).await?;
    let log = db.cluster.kubectl(&["logs", "-n", &db.namespace, "herbarium-1", "-c", "postgres"]).await?;
    ensure!(!log.contains("pg_basebackup") && !log.contains("copying"), "it was copied by streaming:\n{log}");
    db.cluster
        .api::<k8s_openapi::api::core::v1::Pod>(&db.namespace)
        .delete("herbarium-0", &DeleteParams::default())
        .await?;
    db.primary_other_than("herbarium-0", seconds(60)).await?;
    ensure!(db.count("leaf").await? == 6000, "rows are missing on the clone");
    db.ready().await?;
    db.everywhere("leaf", 6000, seconds(30)).await
}

/// A class whose driver does not clone: the replica is there all the same, on a volume of its own.
pub async fn clone_falls_back(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        clone_falls_back: needs the development cluster's driver, left out");
        return Ok(());
    }
    let class = format!("e2e-{}", scene.namespace);
    let body: Value = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
        "provisioner": "xfs.devcluster.local", "parameters": {"clones": "false"},
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
    });
    let api = scene.cluster.cluster_api::<StorageClass>();
    api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    let result = fall_back(&scene, &class).await;
    api.delete(&class, &DeleteParams::default()).await?;
    result
}

async fn fall_back(scene: &Scene, class: &str) -> Result<()> {
    let db = grow_to_two(scene, "moss", class).await?;
    wait_for("two instances although the class does not clone", seconds(180), || async {
        let object = db.get().await?;
        let ready = object.status.as_ref().and_then(|s| s.instances.as_ref()).map_or(0, |i| i.ready);
        Ok(if ready == 2 { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
    })
    .await?;
    db.ready().await?;
    let second = claim(&db, 1).await?;
    ensure!(source(&second).is_none(), "it is a clone: {:?}", second.spec);
    db.everywhere("leaf", 5000, seconds(30)).await
}
