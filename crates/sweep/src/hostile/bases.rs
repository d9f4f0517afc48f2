//! Valid objects to begin from, and the scene that they need. Pure.

use serde_json::{Value, json};

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let api_version = format!("{}/{}", holdfast_core::crd::GROUP, holdfast_core::crd::VERSION);
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}}})
}

fn store(name: &str, claim: &str) -> Value {
    object("BackupStore", name, json!({"volume": {"claimName": claim, "path": "/"}, "maxParallelBackups": 2}))
}

/// The object that is changed.
pub fn base(kind: &str) -> Value {
    match kind {
        "Database" => object(
            kind,
            "orders",
            json!({
                "engine": "PostgreSQL", "version": "17", "instances": 3, "storage": {"size": "10Gi"},
                "durability": {"mode": "Required", "standbys": 1},
                "archive": {"storeRef": {"name": "main"}, "maxLagSeconds": 60},
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
                "postgresql": {
                    "database": "orders", "owner": "orders",
                    "parameters": {"shared_buffers": "256MB", "work_mem": "8MB"},
                },
            }),
        ),
        "BackupStore" => store("main", "backups"),
        "BackupSchedule" => object(
            kind,
            "nightly",
            // Due once a year: a schedule that is due while it is looked at never comes to rest.
            json!({
                "databaseRef": {"name": "orders"}, "schedule": "30 2 1 1 *", "timeZone": "Europe/Paris",
                "template": {"target": "PreferStandby"}, "retention": {"days": 30, "last": 7},
            }),
        ),
        "Backup" => {
            object(kind, "before", json!({"databaseRef": {"name": "orders"}, "deletionPolicy": "Retain"}))
        }
        _ => object(
            kind,
            "undo",
            json!({
                "databaseRef": {"name": "orders"},
                "checks": [{"name": "has-orders", "sql": "select count(*) > 0 from orders", "expect": "t"}],
                "approve": false,
            }),
        ),
    }
}

/// Objects that are made with something wrong in them: the first that has the wrong field's surroundings is taken, else
/// the first.
pub fn made(kind: &str) -> Vec<Value> {
    match kind {
        "Database" => vec![object(
            kind,
            "fresh",
            json!({"engine": "PostgreSQL", "version": "17", "instances": 1, "storage": {"size": "1Gi"},
                "deletionPolicy": "Delete"}),
        )],
        "BackupStore" => vec![store("fresh", "other-backups")],
        "Restore" => vec![
            object(kind, "fresh", base(kind)["spec"].clone()),
            // What of the source is wrong shows in the plan.
            object(kind, "fresh", into_new(false)),
            // What of the overrides is wrong shows only in the database that is made.
            object(kind, "fresh", into_new(true)),
        ],
        "Backup" => {
            let mut spec = base(kind)["spec"].clone();
            spec["deletionPolicy"] = json!("Delete");
            vec![object(kind, "fresh", spec)]
        }
        _ => vec![object(kind, "fresh", base(kind)["spec"].clone())],
    }
}

fn into_new(approve: bool) -> Value {
    json!({
        "source": {"backupRef": {"name": "before"}}, "approve": approve,
        "newDatabase": {"name": "copy", "overrides": {"instances": 1, "durability": {"mode": "Asynchronous"}}},
    })
}

/// What is there before the base of a kind is: objects in the order in which they are made. After each [`None`] all comes
/// to rest.
pub fn scene(kind: &str) -> Vec<Option<Value>> {
    let mut all = vec![
        Some(claim("backups")),
        Some(claim("other-backups")),
        Some(store("main", "backups")),
        Some(store("other", "other-backups")),
        None,
    ];
    if kind != "Database" {
        all.extend([Some(base("Database")), None]);
    }
    if kind != "Database" && kind != "BackupStore" {
        // One that is not archived: what needs an archive has to say so.
        let ledger =
            json!({"engine": "PostgreSQL", "version": "17", "instances": 1, "storage": {"size": "1Gi"}});
        all.extend([Some(object("Database", "ledger", ledger)), None]);
    }
    if kind == "Restore" {
        all.extend([Some(base("Backup")), None]);
    }
    // The base of a BackupStore is a part of every scene.
    all.retain(|one| {
        one.as_ref()
            .is_none_or(|o| o["kind"] != kind || o["metadata"]["name"] != base(kind)["metadata"]["name"])
    });
    all
}
