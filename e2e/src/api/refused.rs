//! Bad specs: each is refused at apply, and the refusal names the field as it is spelled and says what to do.

use super::server::{Bad, all_refused, bad};
use crate::{database::with, runner::Scene};
use anyhow::Result;
use serde_json::{Value, json};

fn database() -> Value {
    json!({"engine": "PostgreSQL", "version": "17", "storage": {"size": "1Gi"}})
}

fn bad_database(change: Value, words: &'static [&'static str]) -> Bad {
    bad("Database", with(database(), &change), words)
}

/// Databases.
pub async fn bad_databases(scene: Scene) -> Result<()> {
    let mut table = vec![
        bad("Database", json!({"version": "17", "storage": {"size": "1Gi"}}), &["spec.engine"]),
        bad("Database", json!({"engine": "PostgreSQL", "storage": {"size": "1Gi"}}), &["spec.version"]),
        bad("Database", json!({"engine": "PostgreSQL", "version": "17"}), &["spec.storage"]),
        bad(
            "Database",
            json!({"engine": "PostgreSQL", "version": "17", "storage": {}}),
            &["spec.storage.size"],
        ),
        bad_database(json!({"engine": "Oracle"}), &["spec.engine", "PostgreSQL"]),
        bad_database(json!({"version": "9.6"}), &["spec.version", "\"17\""]),
        bad_database(json!({"version": "17.2"}), &["spec.version", "\"17\""]),
        bad_database(json!({"instances": 0}), &["spec.instances", "1"]),
        bad_database(json!({"instances": 12}), &["spec.instances", "9"]),
        bad_database(json!({"storage": {"size": "small"}}), &["spec.storage.size", "10Gi"]),
        bad_database(json!({"storage": {"size": "1Mi"}}), &["spec.storage.size", "256Mi"]),
        bad_database(json!({"storage": {"size": "-1Gi"}}), &["spec.storage.size"]),
        bad_database(
            json!({"instances": 1, "durability": {"mode": "Required", "standbys": 1}}),
            &["spec.durability.mode", "Required", "spec.instances", "at least 2"],
        ),
        bad_database(
            json!({"instances": 2, "durability": {"mode": "Required", "standbys": 2}}),
            &["spec.durability.standbys", "smaller than spec.instances"],
        ),
        bad_database(
            json!({"durability": {"mode": "Sometimes"}}),
            &["spec.durability.mode", "Required", "Preferred"],
        ),
        bad_database(
            json!({"durability": {"mode": "Required", "standbys": 0}}),
            &["spec.durability.standbys"],
        ),
        bad_database(json!({"failover": {"ttlSeconds": 1}}), &["spec.failover.ttlSeconds", "3"]),
        bad_database(json!({"failover": {"ttlSeconds": 600}}), &["spec.failover.ttlSeconds", "60"]),
        bad_database(json!({"archive": {}}), &["spec.archive.storeRef"]),
        bad_database(json!({"archive": {"storeRef": {"name": ""}}}), &["spec.archive.storeRef.name"]),
        bad_database(
            json!({"archive": {"storeRef": {"name": "m"}, "maxLagSeconds": 0}}),
            &["spec.archive.maxLagSeconds"],
        ),
        bad_database(
            json!({"postgresql": {"database": "postgres"}}),
            &["spec.postgresql.database", "template0"],
        ),
        bad_database(json!({"postgresql": {"database": "My-App"}}), &["spec.postgresql.database", "^[a-z_]"]),
        bad_database(json!({"postgresql": {"owner": "postgres"}}), &["spec.postgresql.owner", "taken"]),
        bad_database(json!({"postgresql": {"owner": "pg_me"}}), &["spec.postgresql.owner", "taken"]),
        bad_database(
            json!({"postgresql": {"initdb": {"walSegmentSizeMB": 17}}}),
            &["walSegmentSizeMB", "power of two"],
        ),
        bad_database(
            json!({"postgresql": {"initdb": {"locale": "C; rm -rf"}}}),
            &["spec.postgresql.initdb.locale"],
        ),
        bad_database(
            json!({"postgresql": {"parameters": {"Work_Mem": "1MB"}}}),
            &["spec.postgresql.parameters", "^[a-z_]"],
        ),
        bad_database(json!({"postgresql": {"parameters": {"work_mem": 8}}}), &["work_mem"]),
        bad_database(
            json!({"postgresql": {"superuser": "Maybe"}}),
            &["spec.postgresql.superuser", "Enabled"],
        ),
        bad_database(
            json!({"postgresql": {"maxReplicaLagSeconds": 0}}),
            &["spec.postgresql.maxReplicaLagSeconds"],
        ),
        bad_database(
            json!({"placement": {"antiAffinity": "Never"}}),
            &["spec.placement.antiAffinity", "Preferred"],
        ),
        bad_database(json!({"service": {"type": "ExternalName"}}), &["spec.service.type", "ClusterIP"]),
        bad_database(
            json!({"podMetadata": {"labels": {"team": "a\u{0}b"}}}),
            &["spec.podMetadata.labels", "a letter or digit"],
        ),
        bad_database(
            json!({"placement": {"nodeSelector": {"disktype": "a b"}}}),
            &["spec.placement.nodeSelector", "a letter or digit"],
        ),
        bad_database(
            json!({"podMetadata": {"annotations": {"holdfast.dev/restarted": "on"}}}),
            &["spec.podMetadata.annotations", "holdfast.dev/"],
        ),
        bad_database(
            json!({"service": {"annotations": {"holdfast.dev/applied": "on"}}}),
            &["spec.service.annotations", "holdfast.dev/"],
        ),
        bad_database(json!({"deletionPolicy": "Keep"}), &["spec.deletionPolicy", "Retain"]),
    ];
    for reserved in [
        "archive_command",
        "synchronous_standby_names",
        "ssl",
        "fsync",
        "wal_level",
        "primary_conninfo",
        "port",
        "restore_command",
        "listen_addresses",
        "data_directory",
        "hba_file",
        "archive_mode",
    ] {
        let spec = json!({"postgresql": {"parameters": {reserved: "x"}}});
        table.push(bad_database(
            spec,
            &["spec.postgresql.parameters", "Holdfast manages itself", "remove it"],
        ));
    }
    for name in ["9lives", "a.b", &"x".repeat(41)] {
        table.push(Bad {
            kind: "Database",
            name: name.into(),
            spec: database(),
            words: &["metadata.name", "at most 40 characters"],
        });
    }
    all_refused(&scene.cluster, &scene.namespace, table).await
}

/// BackupStores.
pub async fn bad_stores(scene: Scene) -> Result<()> {
    let one = &["exactly one of", "spec.volume", "spec.s3"][..];
    let table = vec![
        bad("BackupStore", json!({}), one),
        bad("BackupStore", json!({"volume": {"claimName": "a"}, "s3": {"bucket": "b"}}), one),
        bad("BackupStore", json!({"s3": {}}), &["spec.s3.bucket"]),
        bad("BackupStore", json!({"s3": {"bucket": ""}}), &["spec.s3.bucket"]),
        bad("BackupStore", json!({"volume": {}}), &["spec.volume.claimName"]),
        bad(
            "BackupStore",
            json!({"volume": {"claimName": "a", "path": "../b"}}),
            &["spec.volume.path", "must begin with /"],
        ),
        bad(
            "BackupStore",
            json!({"s3": {"bucket": "b", "endpoint": "s3.example"}}),
            &["spec.s3.endpoint", "https://"],
        ),
        bad(
            "BackupStore",
            json!({"s3": {"bucket": "b", "prefix": "/p"}}),
            &["spec.s3.prefix", "neither begin nor end"],
        ),
        bad("BackupStore", json!({"s3": {"bucket": "b", "prefix": "p/../q"}}), &["spec.s3.prefix", ".."]),
        bad(
            "BackupStore",
            json!({"volume": {"claimName": "a"}, "maxParallelBackups": 0}),
            &["spec.maxParallelBackups"],
        ),
    ];
    all_refused(&scene.cluster, &scene.namespace, table).await
}

/// BackupSchedules.
pub async fn bad_schedules(scene: Scene) -> Result<()> {
    let base = json!({"databaseRef": {"name": "orders"}, "schedule": "30 2 * * *"});
    let changed = |change: Value, words| bad("BackupSchedule", with(base.clone(), &change), words);
    let mut table = vec![
        bad("BackupSchedule", json!({"schedule": "30 2 * * *"}), &["spec.databaseRef"]),
        bad("BackupSchedule", json!({"databaseRef": {"name": "orders"}}), &["spec.schedule"]),
        // Six fields: somebody's seconds would silently become minutes.
        changed(json!({"schedule": "0 30 2 * * *"}), &["spec.schedule", "five fields", "seconds"]),
        changed(json!({"schedule": "30 2 * *"}), &["spec.schedule", "five fields"]),
        changed(json!({"schedule": ""}), &["spec.schedule"]),
        changed(json!({"schedule": "@reboot"}), &["spec.schedule", "@daily"]),
        changed(json!({"startingDeadlineSeconds": 1}), &["spec.startingDeadlineSeconds"]),
        changed(json!({"jitterSeconds": -1}), &["spec.jitterSeconds"]),
        changed(json!({"catchUp": "All"}), &["spec.catchUp", "Latest"]),
        changed(json!({"concurrencyPolicy": "Replace"}), &["spec.concurrencyPolicy", "Forbid"]),
        changed(json!({"retention": {}}), &["spec.retention", "at least one of", "days", "last"]),
        changed(json!({"retention": {"days": 0}}), &["spec.retention.days"]),
        changed(json!({"retention": {"last": 0}}), &["spec.retention.last"]),
        changed(json!({"template": {"method": "Magic"}}), &["spec.template.method", "Physical"]),
    ];
    for zone in ["Mars/Olympus", "Local", "+02:00", "-05:00"] {
        table.push(changed(json!({ "timeZone": zone }), &["spec.timeZone", "IANA"]));
    }
    for schedule in ["99 2 * * *", "30 24 * * *", "30 2 0 * *", "30 2 * 13 *", "30 2 * * 8"] {
        table.push(changed(json!({ "schedule": schedule }), &["spec.schedule", "minute 0-59"]));
    }
    table.push(Bad {
        kind: "BackupSchedule",
        name: "s".repeat(46),
        spec: base.clone(),
        words: &["metadata.name", "at most 45 characters"],
    });
    all_refused(&scene.cluster, &scene.namespace, table).await
}

/// Backups and Restores.
pub async fn bad_backups_and_restores(scene: Scene) -> Result<()> {
    let backup = json!({"databaseRef": {"name": "orders"}});
    let in_place = json!({"databaseRef": {"name": "orders"}});
    let table = vec![
        bad("Backup", json!({}), &["spec.databaseRef"]),
        bad("Backup", with(backup.clone(), &json!({"method": "Magic"})), &["spec.method", "Physical"]),
        bad("Backup", with(backup.clone(), &json!({"type": "Half"})), &["spec.type", "Full"]),
        bad("Backup", with(backup.clone(), &json!({"target": "Any"})), &["spec.target", "PreferStandby"]),
        bad(
            "Backup",
            with(backup.clone(), &json!({"compression": {"level": 40}})),
            &["spec.compression.level", "19"],
        ),
        bad(
            "Backup",
            with(backup.clone(), &json!({"compression": {"algorithm": "Gzip"}})),
            &["spec.compression.algorithm", "Zstd"],
        ),
        bad("Backup", with(backup.clone(), &json!({"maxBytesPerSecond": -1})), &["spec.maxBytesPerSecond"]),
        bad("Backup", with(backup.clone(), &json!({"retries": 99})), &["spec.retries", "10"]),
        bad(
            "Backup",
            with(backup.clone(), &json!({"progressDeadlineSeconds": 1})),
            &["spec.progressDeadlineSeconds"],
        ),
        Bad {
            kind: "Backup",
            name: "b".repeat(61),
            spec: backup,
            words: &["metadata.name", "at most 60 characters"],
        },
        bad("Restore", json!({}), &["exactly one of", "spec.databaseRef", "spec.newDatabase"]),
        bad(
            "Restore",
            with(
                in_place.clone(),
                &json!({"newDatabase": {"name": "copy"}, "source": {"backupRef": {"name": "b"}}}),
            ),
            &["exactly one of", "spec.databaseRef", "spec.newDatabase"],
        ),
        bad("Restore", json!({"newDatabase": {"name": "copy"}}), &["spec.source", "backupRef"]),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"source": {}})),
            &["exactly one of", "spec.source.backupRef"],
        ),
        bad(
            "Restore",
            with(
                in_place.clone(),
                &json!({"source": {"backupRef": {"name": "b"}, "database": {"name": "o", "storeRef": {"name": "s"}}}}),
            ),
            &["exactly one of", "spec.source.database"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {}})),
            &["exactly one of", "spec.pointInTime.time"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"time": "2026-11-21T09:13:00Z", "xid": "7"}})),
            &["exactly one of", "spec.pointInTime.time"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"time": "yesterday"}})),
            &["spec.pointInTime.time"],
        ),
        // Leap seconds come at 23:59:60 UTC, if at all, and Kubernetes knows none.
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"time": "2026-01-01T00:00:60Z"}})),
            &["spec.pointInTime.time", "with its zone"],
        ),
        bad(
            "Restore",
            with(
                in_place.clone(),
                &json!({"source": {"database":
                    {"name": "orders", "storeRef": {"name": "main"}, "systemIdentifier": "0"}}}),
            ),
            &["spec.source.database.systemIdentifier", "above 0"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"lsn": "5000060"}})),
            &["spec.pointInTime.lsn", "0/5000060"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"xid": "x"}})),
            &["spec.pointInTime.xid", "number"],
        ),
        bad(
            "Restore",
            with(in_place.clone(), &json!({"pointInTime": {"backupEnd": false}})),
            &["spec.pointInTime.backupEnd"],
        ),
        bad("Restore", with(in_place.clone(), &json!({"checks": [{"name": "a"}]})), &["spec.checks[0].sql"]),
        bad(
            "Restore",
            json!({"newDatabase": {"name": "Copy"}, "source": {"backupRef": {"name": "b"}}}),
            &["spec.newDatabase.name", "must match"],
        ),
        Bad {
            kind: "Restore",
            name: "r".repeat(61),
            spec: in_place,
            words: &["metadata.name", "at most 60 characters"],
        },
    ];
    all_refused(&scene.cluster, &scene.namespace, table).await
}

/// A misspelled field is refused and named, at every depth.
pub async fn unknown_fields(scene: Scene) -> Result<()> {
    let table = vec![
        bad_database(json!({"instancess": 3}), &["instancess"]),
        bad_database(json!({"storage": {"class": "fast"}}), &["class"]),
        bad_database(json!({"postgresql": {"params": {}}}), &["params"]),
        bad_database(json!({"archive": {"storeRef": {"name": "m", "namespace": "other"}}}), &["namespace"]),
        bad("BackupStore", json!({"s3": {"bucket": "b", "secret": "s"}}), &["secret"]),
        bad(
            "BackupSchedule",
            json!({"databaseRef": {"name": "o"}, "schedule": "@daily", "timezone": "UTC"}),
            &["timezone"],
        ),
        bad("Backup", json!({"databaseRef": {"name": "o"}, "kind": "Full"}), &["kind"]),
        bad(
            "Restore",
            json!({"databaseRef": {"name": "o"}, "pointInTime": {"timestamp": "x"}}),
            &["timestamp"],
        ),
    ];
    all_refused(&scene.cluster, &scene.namespace, table).await
}
