//! `Restore`: one run.

use super::{
    LocalRef, NAMESPACE,
    database::{
        Durability, PARAMETER_NAMES, PARAMETER_NAMES_MESSAGE, PARAMETER_VALUES, PARAMETER_VALUES_MESSAGE,
        PARAMETERS_MANAGED, PARAMETERS_MANAGED_MESSAGE, Placement, Storage, parameters_schema,
    },
    resources_schema,
};
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One restore run, immutable: into the same Database or a new one, to the latest or to a point in time.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev", version = "v1alpha1", kind = "Restore", namespaced, status = "RestoreStatus",
    derive = "PartialEq", shortname = "hfr", category = "holdfast",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Database", type_ = "string", json_path = ".spec.databaseRef.name"),
    printcolumn(name = "New", type_ = "string", json_path = ".spec.newDatabase.name"),
    printcolumn(name = "Reached", type_ = "string", json_path = ".status.reached.time"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 60")
        .message("metadata.name must match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ and have at most 60 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.databaseRef) ? 1 : 0) + (has(self.newDatabase) ? 1 : 0) == 1")
    .message("exactly one of spec.databaseRef (in place), spec.newDatabase must be set"))]
#[x_kube(validation = Rule::new("!has(self.newDatabase) || has(self.source)")
    .message("spec.source is needed with spec.newDatabase: name a backupRef or a database"))]
#[x_kube(validation = Rule::new("has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source) && has(self.pointInTime) == has(oldSelf.pointInTime) && (!has(self.pointInTime) || self.pointInTime == oldSelf.pointInTime) && has(self.databaseRef) == has(oldSelf.databaseRef) && (!has(self.databaseRef) || self.databaseRef == oldSelf.databaseRef) && has(self.newDatabase) == has(oldSelf.newDatabase) && (!has(self.newDatabase) || self.newDatabase == oldSelf.newDatabase) && has(self.checks) == has(oldSelf.checks) && (!has(self.checks) || self.checks == oldSelf.checks)")
    .message("spec of a Restore is immutable, except approve: make another Restore"))]
pub struct RestoreSpec {
    /// Where the data comes from. With databaseRef the default is that Database's own archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<RestoreSource>,
    /// The moment to go back to. Default: the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_in_time: Option<PointInTime>,
    /// Restore this Database in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_ref: Option<LocalRef>,
    /// Restore into a Database that does not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_database: Option<NewDatabase>,
    /// Questions to ask before the data is put to use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 20))]
    pub checks: Vec<Check>,
    /// False: stop after Validated, a dry run.
    #[serde(default = "yes")]
    pub approve: bool,
}

fn yes() -> bool {
    true
}

/// Where the data comes from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.backupRef) ? 1 : 0) + (has(self.database) ? 1 : 0) == 1")
    .message("exactly one of spec.source.backupRef, spec.source.database must be set"))]
pub struct RestoreSource {
    /// A Backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalRef>,
    /// A database by what the store says of it; it need not exist any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<SourceDatabase>,
}

/// A database in a store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SourceDatabase {
    /// Its name.
    #[schemars(length(min = 1, max = 40), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its namespace. Default: the Restore's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE))]
    pub namespace: Option<String>,
    /// The store.
    pub store_ref: LocalRef,
    /// Its system identifier, where several databases bore the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,19}$')")
        .message("spec.source.database.systemIdentifier must be a number above 0 such as 7501000000000000001; leave it out where only one database bore the name"))]
    #[schemars(length(max = 24))]
    pub system_identifier: Option<String>,
}

/// A moment to go back to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.time) ? 1 : 0) + (has(self.lsn) ? 1 : 0) + (has(self.xid) ? 1 : 0) + (has(self.name) ? 1 : 0) + (has(self.backupEnd) ? 1 : 0) == 1")
    .message("exactly one of spec.pointInTime.time, lsn, xid, name, backupEnd must be set"))]
pub struct PointInTime {
    /// The last commit at or before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$') && timestamp(self) >= timestamp('2000-01-01T00:00:00Z')")
        .message("spec.pointInTime.time must be a time with its zone, such as 2026-11-21T09:13:00Z or 2026-11-21T10:13:00+01:00"))]
    #[schemars(length(max = 40))]
    pub time: Option<String>,
    /// This WAL position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$')").message("spec.pointInTime.lsn must look like 0/5000060"))]
    #[schemars(length(max = 17))]
    pub lsn: Option<String>,
    /// The commit of this transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,20}$')").message("spec.pointInTime.xid must be a number"))]
    #[schemars(length(max = 20))]
    pub xid: Option<String>,
    /// A named restore point, made with pg_create_restore_point().
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// The end of the backup, as early as it is consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self").message("spec.pointInTime.backupEnd can only be true"))]
    pub backup_end: Option<bool>,
}

/// A Database to be made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NewDatabase {
    /// Its name.
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("spec.newDatabase.name must match ^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// What differs from the source's spec.
    #[serde(default)]
    pub overrides: Overrides,
}

/// What differs from the source's spec.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.durability) || !has(self.instances) || self.durability.mode != 'Required' || self.instances >= 2")
    .message("spec.newDatabase.overrides.durability.mode Required needs instances of at least 2; raise instances, or choose Asynchronous"))]
#[x_kube(validation = Rule::new("!has(self.durability) || !has(self.instances) || self.durability.mode == 'Asynchronous' || self.durability.standbys < self.instances")
    .message("spec.newDatabase.overrides.durability.standbys must be smaller than instances; lower standbys, raise instances, or choose mode Asynchronous"))]
pub struct Overrides {
    /// Number of instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub instances: Option<i32>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources_schema")]
    pub resources: Option<ResourceRequirements>,
    /// Placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Durability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// PostgreSQL's parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgresqlOverrides>,
}

/// What differs in PostgreSQL's part.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlOverrides {
    /// Parameters, instead of all of the source's.
    #[serde(default)]
    #[x_kube(validation = Rule::new(PARAMETER_NAMES).message(PARAMETER_NAMES_MESSAGE))]
    #[x_kube(validation = Rule::new(PARAMETERS_MANAGED).message(PARAMETERS_MANAGED_MESSAGE))]
    #[x_kube(validation = Rule::new(PARAMETER_VALUES).message(PARAMETER_VALUES_MESSAGE))]
    #[schemars(schema_with = "parameters_schema")]
    pub parameters: BTreeMap<String, String>,
}

/// A question to ask before restored data is put to use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Name, for messages.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Query whose first column of the first row is compared. Runs in the application's database.
    #[schemars(length(min = 1, max = 8192))]
    pub sql: String,
    /// What it must say, as text.
    #[schemars(length(max = 1024))]
    pub expect: String,
}

/// What is observed of a Restore.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// Generation that the rest describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Validated, Restored, Succeeded, Ready, RolledBack, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// When work began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the database served again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_time: Option<Time>,
    /// What will be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<RestorePlan>,
    /// Where the data ended up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Reached>,
    /// Seconds from the beginning until the database served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_seconds: Option<i64>,
    /// Data set that was in use before; its volumes are kept, labelled retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_data_set: Option<String>,
    /// Data set that this run fills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_set: Option<String>,
}

/// What a Restore will do.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RestorePlan {
    /// The backup it starts from: its uid in the store.
    #[serde(default)]
    pub backup: String,
    /// Path of the history that backup lies in, below the store's prefix.
    #[serde(default)]
    pub location: String,
    /// Path of the history whose WAL is followed, when it is not the backup's own but one that descends from it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub follows: String,
    /// Bytes to unpack.
    #[serde(default)]
    pub bytes: i64,
    /// WAL segments known to be there to replay.
    #[serde(default)]
    pub wal_segments: i64,
    /// Timeline to follow.
    #[serde(default)]
    pub timeline: i64,
}

/// Where the data ended up.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reached {
    /// Time of the last commit replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// WAL position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// Timeline after promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<i64>,
}
