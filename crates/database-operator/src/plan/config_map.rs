//! ConfigMap `<name>-config`: what the agents are told. Pure.

use crate::{plan::children, validate::ValidatedDatabase};
use holdfast_core::{
    BackupStore,
    crd::database::{Durability, Superuser},
    names,
    wire::{AgentConfig, ArchiveConfig},
};
use k8s_openapi::api::core::v1::ConfigMap;

/// Key of the ConfigMap.
pub const KEY: &str = "agent.json";

/// What is decided elsewhere and goes into the configuration.
#[derive(Clone, Debug)]
pub struct Decided<'a> {
    /// Instances that are to run (the spec's, unless durability forbids it).
    pub instances: i32,
    /// The data set.
    pub data_set: &'a str,
    /// The archive history.
    pub history: &'a str,
    /// The system identifier on record, empty if none.
    pub system_identifier: &'a str,
    /// Durability in force.
    pub durability: &'a Durability,
    /// The archive.
    pub archive: Option<ArchiveConfig>,
    /// A switchover that is asked for and was not carried out yet.
    pub switchover: Option<&'a String>,
}

/// The agents' configuration.
pub fn agent_config(db: &ValidatedDatabase, decided: Decided<'_>) -> AgentConfig {
    let postgresql = &db.spec.postgresql;
    AgentConfig {
        database: db.name.as_str().into(),
        namespace: db.namespace.clone(),
        database_uid: db.uid.clone(),
        instances: decided.instances,
        data_set: decided.data_set.into(),
        history: decided.history.into(),
        system_identifier: decided.system_identifier.into(),
        version: db.spec.version.clone(),
        app_database: postgresql.database.clone(),
        app_owner: postgresql.owner.clone(),
        encoding: postgresql.initdb.encoding.clone(),
        locale: postgresql.initdb.locale.clone(),
        wal_segment_size_mb: postgresql.initdb.wal_segment_size_mb,
        superuser: postgresql.superuser == Superuser::Enabled,
        durability: decided.durability.clone(),
        ttl_seconds: db.spec.failover.ttl_seconds,
        max_replica_lag_seconds: postgresql.max_replica_lag_seconds,
        parameters: postgresql.parameters.clone(),
        pg_hba: postgresql.pg_hba.clone(),
        memory_bytes: db.memory_bytes,
        archive: decided.archive,
        switchover: decided.switchover.cloned(),
    }
}

/// The ConfigMap.
pub fn config_map(db: &ValidatedDatabase, config: &AgentConfig) -> ConfigMap {
    ConfigMap {
        metadata: children::meta(db, names::config_map(db.name.as_str())),
        data: Some([(KEY.to_string(), serde_json::to_string(config).unwrap_or_default())].into()),
        ..ConfigMap::default()
    }
}

/// Reads what the agents were told last.
pub fn told(config_map: &ConfigMap) -> Option<AgentConfig> {
    serde_json::from_str(config_map.data.as_ref()?.get(KEY)?).ok()
}

/// Where to archive to. When the BackupStore cannot be seen, what the agents were told last about that very store stays:
/// a store that was deleted by mistake, or a watch that is not up yet, must not stop archiving and restart pods.
pub fn archive(
    db: &ValidatedDatabase,
    store: Option<&BackupStore>,
    told: Option<&AgentConfig>,
) -> Option<ArchiveConfig> {
    let wanted = db.spec.archive.as_ref()?;
    let store_name = wanted.store_ref.name.clone();
    let max_lag_seconds = wanted.max_lag_seconds;
    match store {
        Some(store) => Some(ArchiveConfig { store: store.spec.clone(), store_name, max_lag_seconds }),
        None => {
            let before = told?.archive.as_ref().filter(|a| a.store_name == store_name)?;
            Some(ArchiveConfig { max_lag_seconds, ..before.clone() })
        }
    }
}
