//! Changes that are refused because data cannot follow them.

use super::server::{dry, made};
use crate::{cluster::Cluster, database::with, runner::Scene};
use anyhow::{Result, bail, ensure};
use holdfast_core::Database;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

/// A Database that starts no pod.
fn database() -> Value {
    json!({
        "engine": "PostgreSQL", "version": "16", "stopped": true, "storage": {"size": "2Gi", "storageClassName": "none"},
        "postgresql": {"database": "shop", "owner": "shop"},
    })
}

async fn refused(cluster: &Cluster, ns: &str, kind: &str, spec: &Value, words: &[&str]) -> Result<()> {
    match dry(cluster, ns, kind, "sample", spec).await {
        Ok(_) => bail!("{kind}: the change was taken: {spec}"),
        Err(error) => {
            let said = format!("{error:#}");
            let missing: Vec<_> = words.iter().filter(|w| !said.contains(**w)).collect();
            ensure!(missing.is_empty(), "{kind}: the refusal lacks {missing:?}: {said}");
            Ok(())
        }
    }
}

/// What is decided once stays; what may change, changes.
pub async fn immutable_fields(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let base = database();
    made(cluster, ns, "Database", "sample", &base).await?;
    let table: [(Value, &[&str]); 7] = [
        (json!({"version": "15"}), &["spec.version", "cannot change"]),
        (json!({"version": "17"}), &["spec.version", "cannot change"]),
        (json!({"storage": {"storageClassName": "other"}}), &["spec.storage.storageClassName", "immutable"]),
        (json!({"storage": {"storageClassName": null}}), &["spec.storage", "immutable"]),
        (json!({"postgresql": {"database": "other"}}), &["spec.postgresql.database", "immutable"]),
        (json!({"postgresql": {"owner": "other"}}), &["spec.postgresql.owner", "immutable"]),
        (json!({"postgresql": {"initdb": {"encoding": "LATIN1"}}}), &["spec.postgresql.initdb", "immutable"]),
    ];
    for (change, words) in &table {
        refused(cluster, ns, "Database", &with(base.clone(), change), words).await?;
    }
    for change in [
        json!({"instances": 2}),
        json!({"storage": {"size": "3Gi"}}),
        json!({"postgresql": {"parameters": {"work_mem": "8MB"}}}),
        json!({"deletionPolicy": "Delete"}),
    ] {
        dry(cluster, ns, "Database", "sample", &with(base.clone(), &change)).await?;
    }

    let backup = json!({"databaseRef": {"name": "nobody"}});
    made(cluster, ns, "Backup", "sample", &backup).await?;
    for change in [
        json!({"databaseRef": {"name": "other"}}),
        json!({"storeRef": {"name": "other"}}),
        json!({"compression": {"level": 9}}),
        json!({"retries": 0}),
        json!({"target": "Primary"}),
    ] {
        refused(cluster, ns, "Backup", &with(backup.clone(), &change), &["immutable", "make another Backup"])
            .await?;
    }
    dry(cluster, ns, "Backup", "sample", &with(backup, &json!({"deletionPolicy": "Delete"}))).await?;

    let restore = json!({"databaseRef": {"name": "nobody"}, "pointInTime": {"time": "2026-11-21T09:13:00Z"}, "approve": false});
    made(cluster, ns, "Restore", "sample", &restore).await?;
    for change in [
        json!({"databaseRef": {"name": "other"}}),
        json!({"pointInTime": {"time": "2026-11-21T09:14:00Z"}}),
        json!({"pointInTime": null}),
        json!({"source": {"backupRef": {"name": "b"}}}),
        json!({"checks": [{"name": "a", "sql": "select 1", "expect": "1"}]}),
    ] {
        refused(
            cluster,
            ns,
            "Restore",
            &with(restore.clone(), &change),
            &["immutable", "make another Restore"],
        )
        .await?;
    }
    dry(cluster, ns, "Restore", "sample", &with(restore, &json!({"approve": true}))).await?;
    Ok(())
}

/// A size below what the volumes have is refused; a growth that no volume has followed yet can be taken back.
pub async fn shrinking(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let base = database();
    made(cluster, ns, "Database", "sample", &base).await?;
    let api = cluster.api::<Database>(ns);
    let status = Patch::Merge(json!({"status": {"storage": {"capacity": "2Gi"}}}));
    api.patch_status("sample", &PatchParams::default(), &status).await?;
    let smaller = with(base.clone(), &json!({"storage": {"size": "1Gi"}}));
    refused(cluster, ns, "Database", &smaller, &["spec.storage.size", "status.storage.capacity"]).await?;
    made(cluster, ns, "Database", "sample", &with(base.clone(), &json!({"storage": {"size": "9Gi"}})))
        .await?;
    api.patch_status("sample", &PatchParams::default(), &status).await?;
    dry(cluster, ns, "Database", "sample", &base).await?;
    Ok(())
}
