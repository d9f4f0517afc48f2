//! Good specs, the promised defaults, and the examples.

use super::server::{PLURALS, dry, install, made};
use crate::{cluster::project, database::with, runner::Scene};
use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

/// The definitions: group, version, scope, category, subresources, and small enough for every API server.
pub async fn definitions(scene: Scene) -> Result<()> {
    let cluster = &scene.cluster;
    install(cluster).await?;
    let short = ["hfdb", "hfstore", "hfsched", "hfb", "hfr"];
    for (plural, short) in PLURALS.iter().zip(short) {
        let crd =
            cluster.cluster_api::<CustomResourceDefinition>().get(&format!("{plural}.holdfast.dev")).await?;
        let size = serde_json::to_string(&crd.spec)?.len();
        ensure!(size < 256 * 1024, "{plural} has {size} bytes");
        ensure!(crd.spec.scope == "Namespaced", "{plural} is {}", crd.spec.scope);
        ensure!(
            crd.spec.names.short_names.iter().flatten().any(|n| n == short),
            "{plural} has no short name {short}"
        );
        ensure!(
            crd.spec.names.categories.iter().flatten().any(|c| c == "holdfast"),
            "{plural} is in no category"
        );
        let version = crd.spec.versions.iter().find(|v| v.name == "v1alpha1").context("no v1alpha1")?;
        let subresources = version.subresources.clone().unwrap_or_default();
        ensure!(subresources.status.is_some(), "{plural} has no status subresource");
        ensure!(subresources.scale.is_some() == (*plural == "databases"), "{plural}: scale subresource");
    }
    cluster.kubectl(&["get", "holdfast", "-n", &scene.namespace]).await?;
    Ok(())
}

/// What is not said has the promised value.
pub async fn defaults(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let table = [
        (
            "Database",
            json!({"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"}, "stopped": true}),
            json!({
                "instances": 3, "deletionPolicy": "Retain", "failover": {"ttlSeconds": 6},
                "postgresql": {
                    "database": "app", "owner": "app", "superuser": "Disabled", "maxReplicaLagSeconds": 30,
                    "initdb": {"encoding": "UTF8", "locale": "C.UTF-8", "walSegmentSizeMB": 16},
                },
                "placement": {"antiAffinity": "Preferred"}, "service": {"type": "ClusterIP"},
            }),
        ),
        (
            "BackupStore",
            json!({"volume": {"claimName": "none"}}),
            json!({"maxParallelBackups": 2, "volume": {"path": "/"}}),
        ),
        (
            "BackupSchedule",
            json!({"databaseRef": {"name": "none"}, "schedule": "@yearly"}),
            json!({
                "timeZone": "Etc/UTC", "suspend": false, "immediate": false, "startingDeadlineSeconds": 3600,
                "catchUp": "Latest", "jitterSeconds": 0, "concurrencyPolicy": "Forbid", "deletionPolicy": "Retain",
                "history": {"failed": 3}, "template": {"method": "Physical", "type": "Full", "target": "PreferStandby"},
            }),
        ),
        (
            "Backup",
            json!({"databaseRef": {"name": "none"}}),
            json!({
                "method": "Physical", "type": "Full", "target": "PreferStandby", "deletionPolicy": "Retain", "retries": 2,
                "compression": {"algorithm": "Zstd", "level": 3, "workers": 2}, "maxBytesPerSecond": 0,
                "progressDeadlineSeconds": 600,
            }),
        ),
        ("Restore", json!({"databaseRef": {"name": "none"}}), json!({"approve": true})),
    ];
    for (kind, spec, expected) in table {
        let object = made(cluster, ns, kind, "sample", &spec).await?;
        let got = &object.data["spec"];
        let wrong = differences(got, &expected, "spec");
        ensure!(wrong.is_empty(), "{kind}: {}", wrong.join(", "));
        let generation = object.data["status"]["observedGeneration"].as_i64();
        ensure!(
            generation.is_some(),
            "{kind}: status.observedGeneration does not default to -1: {}",
            object.data["status"]
        );
    }
    Ok(())
}

/// Where `got` lacks something of `expected`.
fn differences(got: &Value, expected: &Value, path: &str) -> Vec<String> {
    match expected {
        Value::Object(map) => {
            map.iter().flat_map(|(k, v)| differences(&got[k], v, &format!("{path}.{k}"))).collect()
        }
        _ if got == expected => Vec::new(),
        _ => vec![format!("{path} is {got}, not {expected}")],
    }
}

/// Rich specs of every kind are taken.
pub async fn good_specs(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    install(cluster).await?;
    let database = json!({"engine": "PostgreSQL", "version": "17", "storage": {"size": "10Gi"}});
    let schedule = json!({"databaseRef": {"name": "orders"}, "schedule": "30 2 * * *"});
    let mut table = vec![
        ("Database", database.clone()),
        (
            "Database",
            with(
                database.clone(),
                &json!({
                    "instances": 5, "durability": {"mode": "Required", "standbys": 2}, "image": "registry.example/postgres:17.6",
                    "storage": {"storageClassName": "fast"}, "failover": {"ttlSeconds": 10},
                    "archive": {"storeRef": {"name": "main"}, "maxLagSeconds": 30},
                    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
                    "placement": {
                        "antiAffinity": "Required", "spreadZones": true, "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high",
                        "tolerations": [{"key": "db", "operator": "Exists", "effect": "NoSchedule"}],
                    },
                    "postgresql": {
                        "database": "shop", "owner": "shop", "superuser": "Enabled", "pgHba": ["hostssl shop shop 10.0.0.0/8 scram-sha-256"],
                        "initdb": {"encoding": "UTF8", "locale": "C.UTF-8", "walSegmentSizeMB": 64},
                        "parameters": {"shared_buffers": "256MB", "work_mem": "8MB", "auto_explain.log_min_duration": "1s"},
                    },
                    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}}, "serviceAccount": {"annotations": {"a": "b"}},
                    "podMetadata": {"labels": {"team": "shop"}}, "imagePullSecrets": [{"name": "pull"}], "deletionPolicy": "Delete",
                }),
            ),
        ),
        ("Database", with(database.clone(), &json!({"instances": 2, "durability": {"mode": "Preferred"}}))),
        ("Database", with(database, &json!({"instances": 1, "durability": {"mode": "Asynchronous"}}))),
        ("BackupStore", json!({"volume": {"claimName": "backups", "path": "/prod"}})),
        ("BackupStore", json!({"s3": {"bucket": "b"}})),
        (
            "BackupStore",
            json!({"s3": {
                "bucket": "b", "prefix": "prod/eu", "region": "eu-west-1", "endpoint": "https://s3.example:9000", "forcePathStyle": true,
                "credentialsSecretRef": {"name": "s3"}, "caSecretRef": {"name": "ca"},
            }, "maxParallelBackups": 4}),
        ),
        (
            "Backup",
            json!({"databaseRef": {"name": "orders"}, "storeRef": {"name": "main"}, "compression": {"algorithm": "None"}}),
        ),
        (
            "Restore",
            json!({"databaseRef": {"name": "orders"}, "pointInTime": {"time": "2026-11-21T09:13:00.123456Z"}}),
        ),
        (
            "Restore",
            json!({"databaseRef": {"name": "orders"}, "pointInTime": {"time": "2026-11-21T10:13:00+01:00"}}),
        ),
        ("Restore", json!({"databaseRef": {"name": "orders"}, "pointInTime": {"lsn": "0/5000060"}})),
        (
            "Restore",
            json!({"databaseRef": {"name": "orders"}, "pointInTime": {"backupEnd": true}, "source": {"backupRef": {"name": "b"}}}),
        ),
        (
            "Restore",
            json!({
                "source": {"database": {"name": "orders", "namespace": "old", "storeRef": {"name": "main"}}},
                "newDatabase": {"name": "copy", "overrides": {"instances": 1, "postgresql": {"parameters": {"work_mem": "4MB"}}}},
                "checks": [{"name": "rows", "sql": "select count(*) from orders", "expect": "1000"}], "approve": false,
            }),
        ),
    ];
    for cron in [
        "* * * * *",
        "*/15 9-17 * * 1-5",
        "0 0 1,15 * 7",
        "@hourly",
        "@daily",
        "@weekly",
        "@monthly",
        "@yearly",
    ] {
        table.push(("BackupSchedule", with(schedule.clone(), &json!({ "schedule": cron }))));
    }
    for zone in ["Europe/Paris", "America/St_Johns", "Etc/UTC", "UTC"] {
        table.push((
            "BackupSchedule",
            with(schedule.clone(), &json!({ "timeZone": zone, "retention": {"days": 30, "last": 7} })),
        ));
    }
    for (kind, spec) in &table {
        dry(cluster, ns, kind, "sample", spec)
            .await
            .with_context(|| format!("{kind} {spec} should be taken"))?;
    }
    for (kind, name) in
        [("Database", "d".repeat(40)), ("BackupSchedule", "s".repeat(45)), ("Backup", "b".repeat(60))]
    {
        let spec = &table.iter().find(|(k, _)| *k == kind).context("no such kind")?.1;
        dry(cluster, ns, kind, &name, spec).await.with_context(|| format!("the longest name of a {kind}"))?;
    }
    Ok(())
}

/// Every file of examples/ is taken, strictly.
pub async fn examples(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    install(cluster).await?;
    let folder = project().join("examples");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).context("examples/")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "examples/ has no file");
    files.sort();
    for path in files {
        let text = std::fs::read_to_string(&path)?;
        // An example may name a namespace of its own and make it; a dry run does not make it, so all goes into the test's.
        let kept: Vec<&str> =
            text.split("\n---").filter(|d| !d.lines().any(|l| l.trim_end() == "kind: Namespace")).collect();
        let text: String = kept
            .join("\n---")
            .lines()
            .filter(|l| !l.starts_with("  namespace:"))
            .map(|l| format!("{l}\n"))
            .collect();
        let arguments = ["apply", "--dry-run=server", "--validate=strict", "-n", ns, "-f", "-"];
        let applied = cluster.kubectl_with(&arguments, Some(&text)).await;
        applied.with_context(|| {
            format!("examples/{}", path.file_name().unwrap_or_default().to_string_lossy())
        })?;
    }
    Ok(())
}
