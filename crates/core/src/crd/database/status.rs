//! What is observed of a `Database`.

use super::{Durability, quantity_schema};
use crate::crd::LocalRef;
use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{Condition, Time},
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is observed of a Database.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Generation that the rest describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people; code reads the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Ready, Available, Reconciling, Stalled, Consistent, Archiving, Quiesced.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How many instances there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<InstanceCounts>,
    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Durability as decided at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// What the volumes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
    /// Annotation values already carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled: Option<Handled>,
    /// The instances, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub members: Vec<Member>,
    /// Pod that is primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// PostgreSQL timeline of the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<i64>,
    /// PostgreSQL's system identifier of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Version that the server reports, such as 17.11.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Unique id of the volumes in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_set: Option<String>,
    /// Unique id of the archive's history in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
    /// How far the WAL archive is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveStatus>,
    /// Window of time that can be restored. Written by the backup-scheduler operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recoverable: Option<Recoverable>,
    /// The application's Secret, as servicebinding.io expects it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<LocalRef>,
}

/// How many instances there are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InstanceCounts {
    /// Wanted.
    #[serde(default)]
    pub desired: i32,
    /// Ready to serve.
    #[serde(default)]
    pub ready: i32,
    /// Standbys in the synchronous set.
    #[serde(default)]
    pub synchronous: i32,
}

/// What the volumes have.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// Smallest capacity of the instances' volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity_schema")]
    pub capacity: Option<Quantity>,
}

/// Annotation values already carried out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Handled {
    /// Value of `holdfast.dev/restart` carried out last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// Value of `holdfast.dev/switchover` carried out or refused last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover: Option<String>,
    /// Why that switchover was refused; none: another instance is primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover_refused: Option<String>,
}

/// One instance.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Pod name.
    pub name: String,
    /// Primary, Replica or Unknown.
    #[serde(default)]
    pub role: String,
    /// Timeline it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<i64>,
    /// Last flushed LSN it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// Bytes of WAL it was behind the primary when it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Whether it is ready.
    #[serde(default)]
    pub ready: bool,
    /// Its volume, as its agent measured it; sizes in whole MiB, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<MemberVolume>,
}

/// The volume of an instance. Sizes are in whole MiB, rounded down.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberVolume {
    /// Size of the file system.
    #[schemars(schema_with = "quantity_schema")]
    pub capacity: Quantity,
    /// What is left of it.
    #[schemars(schema_with = "quantity_schema")]
    pub available: Quantity,
    /// What WAL takes of it.
    #[schemars(schema_with = "quantity_schema")]
    pub wal: Quantity,
    /// Ample, Low, or Full: then writes are refused.
    #[serde(default)]
    pub stage: String,
}

/// How far the WAL archive is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveStatus {
    /// Newest WAL segment in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_segment: Option<String>,
    /// When it was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_archived_time: Option<Time>,
    /// Segments that wait.
    #[serde(default)]
    pub behind_segments: i64,
}

/// Window of time that can be restored.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Recoverable {
    /// Earliest point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest: Option<Time>,
    /// Latest point that is known to be in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<Time>,
}
