//! `Database`: a replicated database.

mod status;

pub use status::*;

use super::{
    ANNOTATIONS_OF_OTHERS, ANNOTATIONS_OF_OTHERS_MESSAGE, DeletionPolicy, ExtraMetadata, LABEL_VALUES,
    LABEL_VALUES_MESSAGE, LocalRef, OBJECT_NAME, OBJECT_NAME_OR_NONE, annotations_schema, labels_schema,
    resources_schema, tolerations_schema,
};
use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A replicated database: its engine, version, size, storage, durability and archive.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev", version = "v1alpha1", kind = "Database", namespaced, status = "DatabaseStatus",
    derive = "PartialEq", shortname = "hfdb", category = "holdfast",
    scale(
        spec_replicas_path = ".spec.instances",
        status_replicas_path = ".status.instances.ready",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.instances.ready"),
    printcolumn(name = "Instances", type_ = "integer", json_path = ".spec.instances"),
    printcolumn(name = "Primary", type_ = "string", json_path = ".status.primary"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.serverVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 40")
        .message("metadata.name must match ^[a-z]([-a-z0-9]*[a-z0-9])?$ and have at most 40 characters: it becomes part of pod names"),
    validation = Rule::new("!isQuantity(self.spec.storage.size) || !isQuantity(oldSelf.spec.storage.size) || quantity(self.spec.storage.size).compareTo(quantity(oldSelf.spec.storage.size)) >= 0 || (has(self.status) && has(self.status.storage) && has(self.status.storage.capacity) && quantity(self.spec.storage.size).compareTo(quantity(self.status.storage.capacity)) >= 0)")
        .message("spec.storage.size cannot go below what the volumes already have (status.storage.capacity): volumes do not shrink; set it to that or more")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.durability) || self.durability.mode != 'Required' || self.instances >= 2")
    .message("spec.durability.mode Required needs spec.instances of at least 2: with one instance no standby can confirm a commit; raise spec.instances, or choose Preferred with two or more instances or Asynchronous"))]
#[x_kube(validation = Rule::new("!has(self.durability) || self.durability.mode == 'Asynchronous' || self.durability.standbys < self.instances")
    .message("spec.durability.standbys must be smaller than spec.instances: the primary is not its own standby; lower spec.durability.standbys, raise spec.instances, or choose spec.durability.mode Asynchronous"))]
pub struct DatabaseSpec {
    /// The engine. Immutable.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.engine is immutable: make a new Database and move the data"))]
    pub engine: Engine,
    /// Major version, such as "17"; the operator's image catalogue turns it into an image.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("spec.version cannot change: a data directory belongs to one major version, and major upgrades are not supported yet; make a new Database of the other version and move the data"))]
    #[x_kube(validation = Rule::new("self in ['15', '16', '17', '18']")
        .message("spec.version must be one of \"15\", \"16\", \"17\", \"18\""))]
    #[schemars(length(max = 16))]
    pub version: String,
    /// An image instead of the catalogue's. It must hold the server programs of `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._:/@-]*$')")
        .message("spec.image must be an image reference such as registry.example/postgres:17.6, without spaces"))]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// How many instances: one primary, the others standbys.
    #[serde(default = "default_instances")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 9")
        .message("spec.instances must be from 1 to 9; to take the database down and keep its volumes set spec.stopped: true"))]
    #[schemars(range(min = 1, max = 9))]
    pub instances: i32,
    /// The volumes.
    pub storage: Storage,
    /// When a commit counts. Default: Required from three instances on, Preferred with two, Asynchronous with one;
    /// decided once and kept in `status.durability`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Continuous WAL archiving, which makes point-in-time recovery possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// How fast a lost primary is replaced.
    #[serde(default)]
    pub failover: Failover,
    /// Resources of the database container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "resources_schema")]
    pub resources: Option<ResourceRequirements>,
    /// Where pods may run.
    #[serde(default)]
    pub placement: Placement,
    /// What is particular to PostgreSQL.
    #[serde(default)]
    pub postgresql: Postgresql,
    /// The client Services.
    #[serde(default)]
    pub service: ServiceOptions,
    /// Annotations of the pods' ServiceAccount, such as a cloud's workload identity.
    #[serde(default)]
    pub service_account: ServiceAccountOptions,
    /// Extra labels and annotations of the pods.
    #[serde(default)]
    pub pod_metadata: ExtraMetadata,
    /// Secrets to pull images with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// True: pods down, volumes kept.
    #[serde(default)]
    pub stopped: bool,
    /// What happens to the volumes when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn default_instances() -> i32 {
    3
}

/// A database engine that works.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL.
    PostgreSQL,
}

/// The volumes of the instances.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName)")
    .message("spec.storage.storageClassName is immutable, also setting it later: volumes do not change their class; make a new Database of the other class and move the data"))]
pub struct Storage {
    /// Size of each instance's volume. It may grow, where the StorageClass allows volume expansion, and never goes below what
    /// the volumes have. A growth that the volumes have not followed can be taken back.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('256Mi')) >= 0")
        .message("spec.storage.size must be a quantity of at least 256Mi, such as 10Gi"))]
    #[schemars(schema_with = "quantity_schema")]
    pub size: Quantity,
    /// StorageClass; default: the cluster's default class. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.storage.storageClassName is immutable: volumes do not change their class; make a new Database of the other class and move the data"))]
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub storage_class_name: Option<String>,
    /// Where the data of a replica that is added comes from. Stream: copied from the primary over the network. VolumeClone: the
    /// StorageClass's CSI driver clones the volume of a running instance, a standby's if one streams (same class, at least its
    /// size), and the replica catches up by streaming; when no clone comes within two minutes, as with Stream. Only for drivers
    /// whose clone of a volume in use is of one moment, as block storage's are; never where files are copied one by one (NFS).
    #[serde(default)]
    pub replica_source: ReplicaSource,
}

/// Where the data of a replica that is added comes from.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaSource {
    /// Copied from the primary over the network.
    #[default]
    Stream,
    /// Cloned by the CSI driver from a running instance's volume, where that works.
    VolumeClone,
}

/// A quantity as a string: CEL's `quantity()` takes no number.
pub(crate) fn quantity_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "maxLength": 32})
}

/// When a commit counts as durable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// Whether commits wait for standbys.
    pub mode: DurabilityMode,
    /// How many standbys confirm a commit.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    pub standbys: i32,
}

fn one() -> i32 {
    1
}

/// Whether commits wait for standbys.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurabilityMode {
    /// No commit is acknowledged before standbys have it; without them writes wait.
    Required,
    /// As Required while standbys are there; alone, the primary goes on and says so.
    Preferred,
    /// Commits never wait; a failover can lose the last ones.
    Asynchronous,
}

/// Continuous WAL archiving.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// The BackupStore that receives the WAL.
    pub store_ref: LocalRef,
    /// A WAL segment is closed and archived after so many seconds at the latest, if anything was written.
    #[serde(default = "sixty")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_lag_seconds: i32,
}

fn sixty() -> i32 {
    60
}

/// How fast a lost primary is replaced.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// The primary's Lease runs out after so many seconds without renewal.
    #[serde(default = "six")]
    #[schemars(range(min = 3, max = 60))]
    pub ttl_seconds: i32,
}

fn six() -> i32 {
    6
}

impl Default for Failover {
    fn default() -> Self {
        Self { ttl_seconds: six() }
    }
}

/// Where pods may run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Whether two instances may share a node.
    #[serde(default)]
    pub anti_affinity: AntiAffinity,
    /// Spread instances over zones where nodes carry zone labels. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_zones: Option<bool>,
    /// Labels a node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(LABEL_VALUES).message(LABEL_VALUES_MESSAGE))]
    #[schemars(schema_with = "labels_schema")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(schema_with = "tolerations_schema")]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = OBJECT_NAME_OR_NONE))]
    pub priority_class_name: String,
}

/// Whether two instances may share a node.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AntiAffinity {
    /// They may, if nothing else is possible.
    #[default]
    Preferred,
    /// They may not; an instance without a node waits.
    Required,
    /// No preference.
    None,
}

/// What is particular to PostgreSQL.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Postgresql {
    /// The application's database, made at the beginning. Immutable.
    #[serde(default = "app")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.postgresql.database is immutable: it is made once, at the beginning; put the old value back, and rename with SQL"))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z_][a-z0-9_]*$') && !(self in ['postgres', 'template0', 'template1'])")
        .message("spec.postgresql.database must match ^[a-z_][a-z0-9_]*$ and be none of postgres, template0, template1"))]
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Owner of the application's database. Immutable.
    #[serde(default = "app")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.postgresql.owner is immutable: it is made once, at the beginning; put the old value back, and rename with SQL"))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z_][a-z0-9_]*$') && self != 'postgres' && !self.startsWith('pg_') && !self.startsWith('holdfast')")
        .message("spec.postgresql.owner must match ^[a-z_][a-z0-9_]*$, and postgres, pg_… and holdfast… are taken"))]
    #[schemars(length(min = 1, max = 63))]
    pub owner: String,
    /// How the data directory is made. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.postgresql.initdb is immutable: it is used once, at the beginning; put the old values back, or make a new Database and move the data"))]
    pub initdb: Initdb,
    /// Enabled: Secret `<name>-superuser` holds the password of role postgres. Disabled: that Secret is deleted, whoever made it, and
    /// the role has no password.
    #[serde(default)]
    pub superuser: Superuser,
    /// Server parameters as strings, as in postgresql.conf.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(PARAMETER_NAMES).message(PARAMETER_NAMES_MESSAGE))]
    #[x_kube(validation = Rule::new(PARAMETERS_MANAGED).message(PARAMETERS_MANAGED_MESSAGE))]
    #[x_kube(validation = Rule::new(PARAMETER_VALUES).message(PARAMETER_VALUES_MESSAGE))]
    #[schemars(schema_with = "parameters_schema")]
    pub parameters: BTreeMap<String, String>,
    /// Extra pg_hba.conf lines, before the defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[x_kube(validation = Rule::new("self.all(l, !l.contains('\\n'))")
        .message("spec.postgresql.pgHba: an entry must be one line of pg_hba.conf; make an entry of each line"))]
    #[schemars(schema_with = "pg_hba_schema")]
    pub pg_hba: Vec<String>,
    /// Beyond this lag a replica leaves Service `<name>-ro`, and cannot take over in Asynchronous mode.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_replica_lag_seconds: i32,
}

/// CEL: how parameters are spelled.
pub(crate) const PARAMETER_NAMES: &str = "self.all(k, k.matches('^[a-z_][a-z0-9_.]*$'))";
/// What a refusal by [`PARAMETER_NAMES`] says.
pub(crate) const PARAMETER_NAMES_MESSAGE: &str = "spec.postgresql.parameters: names must match ^[a-z_][a-z0-9_.]*$, such as work_mem; spell them in lower case";
/// CEL: parameters that Holdfast sets itself.
pub(crate) const PARAMETERS_MANAGED: &str = "self.all(k, !(k in [\
     'listen_addresses', 'port', 'unix_socket_directories', 'unix_socket_group', \
     'unix_socket_permissions', 'archive_mode', 'archive_command', 'archive_library', \
     'archive_timeout', 'archive_cleanup_command', 'restore_command', 'recovery_end_command', \
     'recovery_min_apply_delay', 'primary_conninfo', 'primary_slot_name', \
     'promote_trigger_file', 'synchronous_standby_names', 'synchronous_commit', 'wal_level', \
     'hot_standby', 'ssl', 'ssl_cert_file', 'ssl_key_file', 'ssl_ca_file', 'ssl_crl_file', \
     'ssl_crl_dir', 'ssl_min_protocol_version', 'ssl_passphrase_command', \
     'ssl_passphrase_command_supports_reload', 'data_directory', 'config_file', 'hba_file', \
     'ident_file', 'include', 'include_if_exists', 'include_dir', 'cluster_name', \
     'recovery_target', 'recovery_target_time', 'recovery_target_lsn', 'recovery_target_xid', \
     'recovery_target_name', 'recovery_target_timeline', 'recovery_target_action', \
     'recovery_target_inclusive', 'wal_log_hints', 'full_page_writes', 'fsync', \
     'logging_collector', 'log_destination', 'dynamic_shared_memory_type', \
     'password_encryption', 'external_pid_file', 'restart_after_crash'\
     ]))";
/// What a refusal by [`PARAMETERS_MANAGED`] says.
pub(crate) const PARAMETERS_MANAGED_MESSAGE: &str = "spec.postgresql.parameters names one that Holdfast manages itself, \
     because failover, archiving, recovery or access depend on it (such as archive_command, synchronous_standby_names, \
     synchronous_commit, ssl, fsync, wal_level); remove it; spec.durability, spec.archive and spec.postgresql.pgHba \
     change what may be changed";
/// CEL: a value cannot bring lines of its own into postgresql.conf.
pub(crate) const PARAMETER_VALUES: &str = "self.all(k, !self[k].contains('\\n'))";
/// What a refusal by [`PARAMETER_VALUES`] says.
pub(crate) const PARAMETER_VALUES_MESSAGE: &str =
    "spec.postgresql.parameters: a value must be one line; remove the line breaks";

pub(crate) fn parameters_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "maxProperties": 300, "additionalProperties": {"type": "string", "maxLength": 1024}})
}

fn pg_hba_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 100, "items": {"type": "string", "minLength": 1, "maxLength": 1024}})
}

fn app() -> String {
    "app".into()
}

fn thirty() -> i32 {
    30
}

impl Default for Postgresql {
    fn default() -> Self {
        Self {
            database: app(),
            owner: app(),
            initdb: Initdb::default(),
            superuser: Superuser::default(),
            parameters: BTreeMap::new(),
            pg_hba: Vec::new(),
            max_replica_lag_seconds: thirty(),
        }
    }
}

/// How the data directory is made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Initdb {
    /// Encoding of the databases.
    #[serde(default = "utf8")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')").message("spec.postgresql.initdb.encoding must be a PostgreSQL encoding name such as UTF8"))]
    #[schemars(length(min = 1, max = 32))]
    pub encoding: String,
    /// Locale of the databases.
    #[serde(default = "c_utf8")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.@-]+$')").message("spec.postgresql.initdb.locale must be a locale name such as C.UTF-8"))]
    #[schemars(length(min = 1, max = 64))]
    pub locale: String,
    /// Size of a WAL segment in MiB, a power of two from 1 to 1024.
    #[serde(default = "sixteen", rename = "walSegmentSizeMB")]
    #[x_kube(validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]")
        .message("spec.postgresql.initdb.walSegmentSizeMB must be a power of two from 1 to 1024"))]
    pub wal_segment_size_mb: i32,
}

fn utf8() -> String {
    "UTF8".into()
}

fn c_utf8() -> String {
    "C.UTF-8".into()
}

fn sixteen() -> i32 {
    16
}

impl Default for Initdb {
    fn default() -> Self {
        Self { encoding: utf8(), locale: c_utf8(), wal_segment_size_mb: sixteen() }
    }
}

/// Whether role postgres gets a password.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Superuser {
    /// Only local connections inside the pod. The role has no password, and Secret `<name>-superuser` goes when it was Enabled before.
    #[default]
    Disabled,
    /// Secret `<name>-superuser` holds its password.
    Enabled,
}

/// The client Services.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceOptions {
    /// Type of the Services `<name>-rw`, `<name>-ro`, `<name>-r`.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Annotations of those Services.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(ANNOTATIONS_OF_OTHERS).message(ANNOTATIONS_OF_OTHERS_MESSAGE))]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
}

/// Type of a Service.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also through the cloud's load balancer.
    LoadBalancer,
}

/// The pods' ServiceAccount.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountOptions {
    /// Annotations to add.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(ANNOTATIONS_OF_OTHERS).message(ANNOTATIONS_OF_OTHERS_MESSAGE))]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
}
