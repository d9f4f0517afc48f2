//! `Backup`: one run.

use super::{DeletionPolicy, LocalRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// One backup run, immutable: on demand or made by a BackupSchedule.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev", version = "v1alpha1", kind = "Backup", namespaced, status = "BackupStatus",
    derive = "PartialEq", shortname = "hfb", category = "holdfast",
    printcolumn(name = "Database", type_ = "string", json_path = ".spec.databaseRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.size"),
    printcolumn(name = "Stored", type_ = "integer", json_path = ".status.storedSize"),
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completionTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 60")
        .message("metadata.name must match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ and have at most 60 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.databaseRef == oldSelf.databaseRef && has(self.storeRef) == has(oldSelf.storeRef) && (!has(self.storeRef) || self.storeRef == oldSelf.storeRef) && self.method == oldSelf.method && self.type == oldSelf.type && self.target == oldSelf.target && self.compression == oldSelf.compression && self.maxBytesPerSecond == oldSelf.maxBytesPerSecond && self.progressDeadlineSeconds == oldSelf.progressDeadlineSeconds && self.retries == oldSelf.retries")
    .message("spec of a Backup is immutable, except deletionPolicy: make another Backup"))]
pub struct BackupSpec {
    /// The Database to back up.
    pub database_ref: LocalRef,
    /// The store. Default: the Database's archive store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<LocalRef>,
    /// How the data is taken.
    #[serde(default)]
    pub method: BackupMethod,
    /// How much of it.
    #[serde(default, rename = "type")]
    pub type_: BackupType,
    /// From which instance.
    #[serde(default)]
    pub target: BackupTarget,
    /// How the parts are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Limit on reading from the database; 0: none.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub max_bytes_per_second: i64,
    /// What happens to the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// No progress for so many seconds: the attempt has failed.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: i32,
    /// Further attempts after a failed one.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
}

fn ten_minutes() -> i32 {
    600
}

fn two() -> i32 {
    2
}

/// How the data is taken.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupMethod {
    /// The data directory, with the WAL that makes it consistent.
    #[default]
    Physical,
}

/// How much is taken.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupType {
    /// Everything.
    #[default]
    Full,
}

/// From which instance the data is read.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupTarget {
    /// A standby when one streams, else the primary.
    #[default]
    PreferStandby,
    /// The primary.
    Primary,
}

/// How the parts are compressed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// The algorithm.
    #[serde(default)]
    pub algorithm: CompressionAlgorithm,
    /// Zstd level.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 19))]
    pub level: i32,
    /// Threads that compress.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 64))]
    pub workers: i32,
}

fn three() -> i32 {
    3
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: CompressionAlgorithm::default(), level: three(), workers: two() }
    }
}

/// A compression algorithm.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionAlgorithm {
    /// Zstandard.
    #[default]
    Zstd,
    /// Not compressed.
    None,
}

/// What is observed of a Backup.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// Generation that the rest describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Running, Succeeded or Failed: for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Succeeded, Ready, Stalled, Verified.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// When the data is consistent: the stop of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_time: Option<Time>,
    /// When the first attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Where it lies in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_location: Option<String>,
    /// Bytes read from the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Bytes in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_size: Option<i64>,
    /// What PostgreSQL says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgresqlBackup>,
    /// What was taken.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Attempts begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// Name of the store used, so that the data is found when the Database is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<LocalRef>,
}

/// What PostgreSQL says of a backup.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlBackup {
    /// System identifier of the data.
    pub system_identifier: String,
    /// Timeline at the stop.
    pub timeline: i64,
    /// First WAL position needed.
    #[serde(rename = "startLSN")]
    pub start_lsn: String,
    /// Consistent from this WAL position on.
    #[serde(rename = "stopLSN")]
    pub stop_lsn: String,
    /// Version of the server.
    pub server_version: String,
}
