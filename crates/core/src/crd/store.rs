//! `BackupStore`: a place for backups and WAL.

use super::{LocalRef, OBJECT_NAME};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A place for backups and WAL: an S3 bucket or a volume.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev", version = "v1alpha1", kind = "BackupStore", namespaced, status = "BackupStoreStatus",
    derive = "PartialEq", shortname = "hfstore", category = "holdfast",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63")
        .message("metadata.name must match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ and have at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.volume) ? 1 : 0) + (has(self.s3) ? 1 : 0) == 1")
    .message("exactly one of spec.volume, spec.s3 must be set: a BackupStore is one place; make another BackupStore for another place"))]
pub struct BackupStoreSpec {
    /// A volume, mounted into database pods and Jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeStore>,
    /// An S3 bucket, or a compatible server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Store>,
    /// How many backups may write to the store at once.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 100))]
    pub max_parallel_backups: i32,
}

fn two() -> i32 {
    2
}

/// A volume as a store. ReadWriteMany where the writers run on different nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStore {
    /// PersistentVolumeClaim in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub claim_name: String,
    /// Folder inside the volume.
    #[serde(default = "slash")]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.contains('..')").message("spec.volume.path must begin with / and must not contain .."))]
    #[schemars(length(max = 512))]
    pub path: String,
}

fn slash() -> String {
    "/".into()
}

/// An S3 bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct S3Store {
    /// Bucket name.
    #[schemars(length(min = 1, max = 63))]
    pub bucket: String,
    /// Prefix of all keys.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.endsWith('/') && !self.contains('..')").message("spec.s3.prefix must neither begin nor end with / and must not contain .."))]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// Region; servers of one's own take us-east-1.
    #[serde(default = "us_east_1")]
    #[schemars(length(max = 64))]
    pub region: String,
    /// Address of the server, when it is not AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')").message("spec.s3.endpoint must begin with http:// or https://"))]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
    /// Bucket in the path instead of in the host name.
    #[serde(default)]
    pub force_path_style: bool,
    /// Secret with accessKeyId, secretAccessKey and, if needed, sessionToken. Needed, as Jobs have no identity of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
    /// Secret with ca.crt: added to the compiled-in roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<LocalRef>,
}

fn us_east_1() -> String {
    "us-east-1".into()
}

/// What is observed of a BackupStore.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupStoreStatus {
    /// Generation that the rest describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The last probe, so that the next one is neither early nor forgotten after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeStatus>,
}

/// The last probe of a BackupStore.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// Probes made so far.
    #[serde(default)]
    pub number: i64,
    /// Generation that it probed.
    #[serde(default)]
    pub generation: i64,
    /// Failures in a row, 0 after a success.
    #[serde(default)]
    pub failures: i32,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}
