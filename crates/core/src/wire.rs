//! What operators tell agents and workers, and what workers answer.
//!
//! An agent reads [`AgentConfig`] from its ConfigMap. A worker (a Job's pod) reads [`WorkerJob`] from the environment variable
//! [`JOB_VARIABLE`] and answers with [`WorkerResult`] in its termination message, so it needs no API access at all.
//! No secret is in any of these: secrets are files, mounted at the paths below.

use crate::crd::{backup::Compression, database::Durability, schedule::Retention, store::BackupStoreSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Environment variable with a worker's job.
pub const JOB_VARIABLE: &str = "HOLDFAST_JOB";
/// Where the agent's binary is in every pod that uses it.
pub const AGENT_BINARY: &str = "/holdfast/bin/holdfast-agent";
/// Folder of sockets and other state that ends with the container.
pub const RUN_FOLDER: &str = "/holdfast/run";
/// Where an instance's (or a restore's) volume is mounted.
pub const VOLUME_FOLDER: &str = "/var/lib/holdfast";
/// Where the agent's configuration is mounted: file `agent.json`.
pub const CONFIG_FOLDER: &str = "/etc/holdfast/config";
/// Secret `<name>-tls`: tls.crt, tls.key, ca.crt.
pub const TLS_FOLDER: &str = "/etc/holdfast/tls";
/// Secret `<name>-app`: username, password.
pub const APP_FOLDER: &str = "/etc/holdfast/app";
/// Secret `<name>-replication`: username, password.
pub const REPLICATION_FOLDER: &str = "/etc/holdfast/replication";
/// Secret `<name>-superuser`: username, password. Only when enabled.
pub const SUPERUSER_FOLDER: &str = "/etc/holdfast/superuser";
/// S3 credentials: accessKeyId, secretAccessKey, sessionToken.
pub const STORE_CREDENTIALS_FOLDER: &str = "/etc/holdfast/store/credentials";
/// The store's CA: ca.crt.
pub const STORE_CA_FOLDER: &str = "/etc/holdfast/store/ca";
/// Volume of a volume store.
pub const STORE_VOLUME_FOLDER: &str = "/holdfast/store";

/// What the database operator tells the agents of one Database: `agent.json` in ConfigMap `<name>-config`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The Database.
    pub database: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub database_uid: String,
    /// Instances wanted.
    pub instances: i32,
    /// The data set that the volumes belong to.
    pub data_set: String,
    /// The archive history in use.
    pub history: String,
    /// PostgreSQL's system identifier as status and volume labels record it; empty: none, so initdb is allowed.
    pub system_identifier: String,
    /// Major version.
    pub version: String,
    /// The application's database.
    pub app_database: String,
    /// Its owner.
    pub app_owner: String,
    /// Encoding for initdb.
    pub encoding: String,
    /// Locale for initdb.
    pub locale: String,
    /// WAL segment size for initdb, MiB.
    pub wal_segment_size_mb: i32,
    /// Whether role postgres gets a password.
    pub superuser: bool,
    /// Durability in force.
    pub durability: Durability,
    /// The primary Lease's time to live, seconds.
    pub ttl_seconds: i32,
    /// Lag limit of replicas, seconds.
    pub max_replica_lag_seconds: i32,
    /// Parameters from the spec.
    pub parameters: BTreeMap<String, String>,
    /// Extra pg_hba lines.
    pub pg_hba: Vec<String>,
    /// Memory limit of the container, bytes, 0 if none; defaults are derived from it.
    pub memory_bytes: i64,
    /// The archive, if any.
    pub archive: Option<ArchiveConfig>,
    /// A switchover that is asked for, see `names::ANNOTATION_SWITCHOVER`. None once it was carried out or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover: Option<String>,
}

impl AgentConfig {
    /// A short hash, to see which configuration an instance has taken up. What is asked for once is no part of it.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(&Self { switchover: None, ..self.clone() }).unwrap_or_default();
        Sha256::digest(json).iter().take(6).map(|b| format!("{b:02x}")).collect()
    }
}

/// Where an instance archives to.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveConfig {
    /// The store.
    pub store: BackupStoreSpec,
    /// Name of the store.
    pub store_name: String,
    /// archive_timeout, seconds.
    pub max_lag_seconds: i32,
}

/// How a worker reaches a database that runs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Host to read from: a pod or a Service.
    pub host: String,
    /// Host of the primary's Service.
    pub primary_host: String,
    /// The application's database.
    pub app_database: String,
}

/// Names a history in a store: `<namespace>/<database>/<system identifier>/<history>`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct HistoryPath {
    /// Namespace of the Database that wrote it.
    pub namespace: String,
    /// That Database.
    pub database: String,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// The history's id.
    pub history: String,
}

/// What a worker is to do.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum WorkerJob {
    /// Write, read back and delete an object.
    #[serde(rename_all = "camelCase")]
    Probe {
        /// The store.
        store: BackupStoreSpec,
        /// Unique part of the object's name.
        uid: String,
    },
    /// Take a physical backup.
    #[serde(rename_all = "camelCase")]
    Backup {
        /// The store.
        store: BackupStoreSpec,
        /// How to reach the database.
        connection: Connection,
        /// Where in the store.
        history: HistoryPath,
        /// uid of the Backup object: the folder's name.
        backup_uid: String,
        /// Name of the Backup object, for the manifest.
        backup_name: String,
        /// Name of the BackupSchedule, if one made it.
        schedule: Option<String>,
        /// uid of the Database.
        database_uid: String,
        /// Spec of the Database as JSON, so that a bucket alone suffices to make it anew.
        database_spec: serde_json::Value,
        /// Compression.
        compression: Compression,
        /// Limit on reading, bytes a second, 0: none.
        max_bytes_per_second: i64,
        /// No byte read for so many seconds: give up.
        progress_deadline_seconds: i32,
    },
    /// Remove what the retention rules no longer keep: backups and WAL.
    #[serde(rename_all = "camelCase")]
    Retention {
        /// The store.
        store: BackupStoreSpec,
        /// Namespace of the Database.
        namespace: String,
        /// The Database.
        database: String,
        /// Rules of all schedules of this Database that write to this store.
        rules: Vec<Retention>,
        /// uids of backups that must stay: those that a Restore uses.
        pinned: Vec<String>,
        /// Now, RFC 3339.
        now: String,
    },
    /// Remove one backup, for deletionPolicy Delete.
    #[serde(rename_all = "camelCase")]
    DeleteBackup {
        /// The store.
        store: BackupStoreSpec,
        /// Where it is.
        history: HistoryPath,
        /// Which one.
        backup_uid: String,
    },
    /// Find out whether a restore is possible, and from what.
    #[serde(rename_all = "camelCase")]
    Plan {
        /// The store.
        store: BackupStoreSpec,
        /// What to restore from.
        source: PlanSource,
        /// The moment.
        target: Target,
        /// When the database runs: switch WAL first and wait until it is in the store.
        connection: Option<Connection>,
    },
    /// Fill a volume, replay, check, promote, stop.
    #[serde(rename_all = "camelCase")]
    Restore {
        /// The store.
        store: BackupStoreSpec,
        /// Where the backup is.
        history: HistoryPath,
        /// The history whose WAL is followed, when it is not the backup's own but one that descends from it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<HistoryPath>,
        /// The backup.
        backup_uid: String,
        /// Timeline to follow.
        timeline: u32,
        /// The moment.
        target: Target,
        /// The data set that the volume belongs to.
        data_set: String,
        /// The history that begins here: its path.
        new_history: HistoryPath,
        /// uid of the Database that will own the new history; empty: not known yet.
        database_uid: String,
        /// Questions.
        checks: Vec<crate::crd::restore::Check>,
        /// Database to ask them in.
        app_database: String,
    },
}

/// What to restore from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", tag = "by")]
pub enum PlanSource {
    /// The newest suitable backup of a history and, where it has parents, of those up to the fork.
    #[serde(rename_all = "camelCase")]
    History {
        /// The history.
        path: HistoryPath,
    },
    /// This very backup.
    #[serde(rename_all = "camelCase")]
    Backup {
        /// Where it is.
        path: HistoryPath,
        /// Its uid.
        backup_uid: String,
    },
    /// A database by name: the history written to last.
    #[serde(rename_all = "camelCase")]
    Database {
        /// Namespace that wrote it.
        namespace: String,
        /// Its name.
        database: String,
        /// Its system identifier, if it must be this one.
        system_identifier: Option<String>,
    },
}

/// A moment to recover to.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// As far as the archive goes.
    #[default]
    Latest,
    /// The last commit at or before this time, RFC 3339.
    Time(String),
    /// This WAL position.
    Lsn(String),
    /// The commit of this transaction.
    Xid(String),
    /// This named restore point.
    Name(String),
    /// As soon as the backup is consistent.
    BackupEnd,
}

/// What a worker answers in its termination message (at most 4,096 bytes, Kubernetes' limit).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum WorkerResult {
    /// It did not work.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// CamelCase reason for a condition, such as `BucketNotFound`.
        reason: String,
        /// A sentence, with the store's or PostgreSQL's own words.
        message: String,
        /// True when trying again cannot help before something is put right by hand.
        permanent: bool,
    },
    /// The store answered as it should.
    Probed,
    /// The backup is in the store and was read back.
    #[serde(rename_all = "camelCase")]
    BackedUp {
        /// Where, below the store.
        location: String,
        /// Bytes read.
        size: i64,
        /// Bytes stored.
        stored_size: i64,
        /// When it is consistent, RFC 3339.
        backup_time: String,
        /// Facts.
        postgresql: crate::crd::backup::PostgresqlBackup,
    },
    /// Retention is done, or as much of it as fits one answer: `more` asks for another run.
    #[serde(rename_all = "camelCase")]
    Retained {
        /// Backups that stay.
        kept: i64,
        /// uids of backups removed in this run.
        expired: Vec<String>,
        /// WAL segments removed.
        wal_removed: i64,
        /// Stop of the oldest backup that is left, RFC 3339; empty if none.
        earliest: String,
        /// There is more to do.
        more: bool,
    },
    /// The backup is gone.
    Deleted,
    /// The restore is possible.
    #[serde(rename_all = "camelCase")]
    Planned {
        /// Where the backup is.
        history: HistoryPath,
        /// The history whose WAL is followed, when it is not the backup's own but one that descends from it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<Box<HistoryPath>>,
        /// The backup's uid.
        backup_uid: String,
        /// Bytes to unpack.
        bytes: i64,
        /// Segments there to replay.
        wal_segments: i64,
        /// Timeline to follow.
        timeline: u32,
        /// Major version of the server that wrote it.
        version: String,
        /// Spec of the Database when the backup was taken. Only what a new Database needs, so that it fits.
        database_spec: serde_json::Value,
    },
    /// The volume holds the restored data, promoted and stopped.
    #[serde(rename_all = "camelCase")]
    Restored {
        /// Time of the last commit replayed, RFC 3339; empty if none was.
        time: String,
        /// End of replay.
        lsn: String,
        /// Timeline after promotion.
        timeline: u32,
        /// PostgreSQL's system identifier.
        system_identifier: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_results_survive_the_wire() {
        let job = WorkerJob::Plan {
            store: BackupStoreSpec { volume: None, s3: None, max_parallel_backups: 2 },
            source: PlanSource::History { path: HistoryPath::default() },
            target: Target::Time("2026-11-21T09:13:00Z".into()),
            connection: None,
        };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<WorkerJob>(&text).unwrap(), job);
        let result =
            WorkerResult::Failed { reason: "NoBackup".into(), message: "none".into(), permanent: true };
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<WorkerResult>(&text).unwrap(), result);
    }
}
