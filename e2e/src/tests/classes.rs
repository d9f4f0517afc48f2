//! The development cluster's volumes are what they claim to be: access modes, snapshots and the end of a volume. What the tests
//! of Holdfast say about storage rests on this.

use crate::{
    client_pod,
    database::{Db, spec, with},
    objects::{current, describe},
    runner::Scene,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::conditions::types;
use k8s_openapi::api::{
    core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

async fn claim(scene: &Scene, name: &str, class: &str, mode: &str, source: Value) -> Result<()> {
    let body = json!({
        "metadata": {"name": name},
        "spec": {"storageClassName": class, "accessModes": [mode], "dataSource": source,
                 "resources": {"requests": {"storage": "512Mi"}}},
    });
    let api = scene.cluster.api::<PersistentVolumeClaim>(&scene.namespace);
    api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    Ok(())
}

/// A pod on a node that runs a script over a claim mounted at /data, and then sleeps.
async fn pod(
    scene: &Scene,
    name: &str,
    node: &str,
    claim: &str,
    read_only: bool,
    script: &str,
) -> Result<()> {
    let body = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "fsGroup": 999,
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "shell", "image": client_pod::image(&scene.cluster).await?,
                "command": ["sh", "-euc", format!("{script}\nsleep infinity")],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}],
        },
    });
    let api = scene.cluster.api::<Pod>(&scene.namespace);
    api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    Ok(())
}

async fn runs(scene: &Scene, name: &str) -> Result<()> {
    let api = scene.cluster.api::<Pod>(&scene.namespace);
    wait_for(&format!("pod {name} to run"), seconds(40), || async {
        let status = api.get(name).await?.status.unwrap_or_default();
        let running = status.phase.as_deref() == Some("Running");
        Ok(if running {
            Seen::Yes(())
        } else {
            Seen::NotYet(format!("{:?} {:?}", status.phase, status.conditions))
        })
    })
    .await
}

/// Waits for a warning about a pod that contains these words.
async fn warned(scene: &Scene, pod: &str, words: &str) -> Result<()> {
    let api = scene.cluster.api::<Event>(&scene.namespace);
    wait_for(&format!("a warning about {pod} that says \"{words}\""), seconds(40), || async {
        let events =
            api.list(&ListParams::default().fields(&format!("involvedObject.name={pod}"))).await?.items;
        let said: Vec<String> = events.into_iter().filter_map(|e| e.message).collect();
        let found = said.iter().any(|text| text.contains(words));
        Ok(if found { Seen::Yes(()) } else { Seen::NotYet(said.join(" | ")) })
    })
    .await
}

async fn shell(scene: &Scene, pod: &str, script: &str) -> Result<String> {
    let arguments = ["exec", "-n", &scene.namespace, pod, "--", "sh", "-euc", script];
    Ok(scene.cluster.kubectl(&arguments).await?.trim().to_string())
}

/// One node, one pod, many readers, many writers: each mode lets in whom it promises, and nobody else.
pub async fn access_modes(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        access_modes: about the development cluster's own driver, left out");
        return Ok(());
    }
    let none = Value::Null;
    claim(&scene, "one-node", "standard", "ReadWriteOnce", none.clone()).await?;
    pod(&scene, "first", "node1", "one-node", false, "echo hello > /data/hello").await?;
    runs(&scene, "first").await?;
    pod(&scene, "neighbour", "node1", "one-node", false, "cat /data/hello").await?;
    runs(&scene, "neighbour").await?;
    pod(&scene, "stranger", "node2", "one-node", false, "cat /data/hello").await?;
    warned(&scene, "stranger", "node1").await?;

    claim(&scene, "one-pod", "standard", "ReadWriteOncePod", none.clone()).await?;
    pod(&scene, "only", "node1", "one-pod", false, "true").await?;
    runs(&scene, "only").await?;
    pod(&scene, "second", "node1", "one-pod", false, "true").await?;
    warned(&scene, "second", "ReadWriteOncePod").await?;

    claim(&scene, "many", "shared", "ReadWriteMany", none.clone()).await?;
    pod(&scene, "writer-a", "node1", "many", false, "echo a > /data/a").await?;
    runs(&scene, "writer-a").await?;
    pod(&scene, "writer-b", "node2", "many", false, "echo b > /data/b").await?;
    pod(&scene, "reader", "node3", "many", true, "true").await?;
    runs(&scene, "writer-b").await?;
    runs(&scene, "reader").await?;
    let seen = wait_for("the reader to see both files", seconds(10), || async {
        let text = shell(&scene, "reader", "cat /data/a /data/b").await?;
        Ok(Seen::Yes(text))
    })
    .await?;
    ensure!(seen == "a\nb", "the reader sees {seen:?}");
    let refused = shell(&scene, "reader", "echo c > /data/c").await;
    ensure!(
        refused.is_err_and(|e| format!("{e:#}").contains("Read-only")),
        "a read-only mount was written to"
    );

    // The default class is for one node at a time and says so.
    claim(&scene, "too-many", "standard", "ReadOnlyMany", none).await?;
    pod(&scene, "waits", "node1", "too-many", true, "true").await?;
    warned(&scene, "too-many", "access").await
}

/// A provisioner that refuses: the Database says so in its words.
pub async fn claim_never_binds(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        claim_never_binds: needs the development cluster's driver, left out");
        return Ok(());
    }
    let name = format!("e2e-{}", scene.namespace);
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": {"name": name}, "provisioner": "xfs.devcluster.local", "parameters": {"writeBytesPerSecond": "lots"},
        "volumeBindingMode": "WaitForFirstConsumer",
    }))?;
    let api = scene.cluster.cluster_api::<StorageClass>();
    api.create(&PostParams::default(), &class).await?;
    let result = refused_by_the_provisioner(&scene, &name).await;
    api.delete(&name, &DeleteParams::default()).await?;
    result
}

async fn refused_by_the_provisioner(scene: &Scene, class: &str) -> Result<()> {
    let spec = with(spec(1), &json!({"storage": {"storageClassName": class}}));
    let db = Db::apply(&scene.cluster, &scene.namespace, "homeless", &spec).await?;
    wait_for("Stalled in the provisioner's words", seconds(40), || async {
        let object = db.get().await?;
        let said = current(&object, types::STALLED).filter(|c| c.status == "True");
        let found = said.is_some_and(|c| c.reason == "ProvisioningFailed" && c.message.contains("lots"));
        Ok(if found { Seen::Yes(()) } else { Seen::NotYet(describe(&object)) })
    })
    .await
}

fn snapshots_api(scene: &Scene) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshot");
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(scene.cluster.client.clone(), &scene.namespace, &resource)
}

/// A snapshot holds what was there when it was taken, a volume made from it begins with that, and a deleted claim's volume is gone.
pub async fn snapshots(scene: Scene) -> Result<()> {
    if scene.cluster.run.is_none() {
        println!("        snapshots: about the development cluster's own driver, left out");
        return Ok(());
    }
    claim(&scene, "source", "standard", "ReadWriteOnce", Value::Null).await?;
    pod(&scene, "author", "node1", "source", false, "echo before > /data/page; sync").await?;
    runs(&scene, "author").await?;
    wait_for("the page", seconds(10), || async {
        Ok(Seen::Yes(shell(&scene, "author", "cat /data/page").await?))
    })
    .await?;
    let api = snapshots_api(&scene);
    let body: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "yesterday"},
        "spec": {"volumeSnapshotClassName": "standard", "source": {"persistentVolumeClaimName": "source"}},
    }))?;
    api.create(&PostParams::default(), &body).await?;
    wait_for("the snapshot to be ready", seconds(40), || async {
        let snapshot = api.get("yesterday").await?;
        let ready = snapshot.data["status"]["readyToUse"] == json!(true);
        Ok(if ready { Seen::Yes(()) } else { Seen::NotYet(snapshot.data["status"].to_string()) })
    })
    .await?;
    shell(&scene, "author", "echo after > /data/page").await?;
    let source =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "yesterday"});
    claim(&scene, "copy", "standard", "ReadWriteOnce", source).await?;
    pod(&scene, "historian", "node2", "copy", false, "true").await?;
    runs(&scene, "historian").await?;
    let page = shell(&scene, "historian", "cat /data/page").await?;
    ensure!(page == "before", "the copy says {page:?}");

    let claims = scene.cluster.api::<PersistentVolumeClaim>(&scene.namespace);
    let volume =
        claims.get("copy").await?.spec.and_then(|s| s.volume_name).context("the copy is not bound")?;
    scene.cluster.api::<Pod>(&scene.namespace).delete("historian", &DeleteParams::default()).await?;
    claims.delete("copy", &DeleteParams::default()).await?;
    let volumes = scene.cluster.cluster_api::<PersistentVolume>();
    wait_for("the copy's volume to be gone", seconds(60), || async {
        let left = volumes.get_opt(&volume).await?;
        Ok(match left {
            None => Seen::Yes(()),
            Some(left) => Seen::NotYet(format!("{:?}", left.status.and_then(|s| s.phase))),
        })
    })
    .await?;
    api.delete("yesterday", &DeleteParams::default()).await?;
    wait_for("the snapshot to be gone", seconds(40), || async {
        Ok(if api.get_opt("yesterday").await?.is_none() {
            Seen::Yes(())
        } else {
            Seen::NotYet("it is there".into())
        })
    })
    .await
}
