//! Names, labels and annotations: the one place where they are spelled.

/// Field managers: one for each controller.
pub mod managers {
    /// The database operator.
    pub const DATABASE: &str = "holdfast-database-operator";
    /// The backup-scheduler operator.
    pub const BACKUP: &str = "holdfast-backup-scheduler-operator";
    /// The restore operator.
    pub const RESTORE: &str = "holdfast-restore-operator";
    /// The agent in a database pod.
    pub const AGENT: &str = "holdfast-agent";
}

/// Label: name of the Database that an object belongs to.
pub const LABEL_DATABASE: &str = "holdfast.dev/database";
/// Label: role of a database pod: `primary` or `replica`. Set by its agent.
pub const LABEL_ROLE: &str = "holdfast.dev/role";
/// Label: `true` while a replica streams within the lag limit. Set by its agent; `<name>-ro` selects it.
pub const LABEL_SERVES_READS: &str = "holdfast.dev/serves-reads";
/// Label: what a pod is: `instance` for database pods, `worker` for Jobs' pods.
pub const LABEL_COMPONENT: &str = "holdfast.dev/component";
/// Label of volumes and Leases: the data set.
pub const LABEL_DATA_SET: &str = "holdfast.dev/data-set";
/// Label of volumes: `current`, `seed` or `retired`.
pub const LABEL_DATA_SET_STATE: &str = "holdfast.dev/data-set-state";
/// Label of volumes and of the primary Lease: PostgreSQL's system identifier.
pub const LABEL_SYSTEM_IDENTIFIER: &str = "holdfast.dev/system-identifier";
/// Label of volumes: the archive history that the data set writes to.
pub const LABEL_HISTORY: &str = "holdfast.dev/history";
/// Annotation of the primary's Lease: what the agents agreed on, JSON of `holdfast_postgresql::failover::Record`.
pub const ANNOTATION_RECORD: &str = "holdfast.dev/record";
/// Annotation of a `current` volume: the data set that it replaces, which from then on counts as retired.
pub const ANNOTATION_REPLACES: &str = "holdfast.dev/replaces";
/// Label of pods that work under an operation: the token, which is the uid of the operation Lease.
pub const LABEL_OPERATION_TOKEN: &str = "holdfast.dev/operation-token";
/// Label: name of the BackupSchedule that made a Backup.
pub const LABEL_SCHEDULE: &str = "holdfast.dev/schedule";
/// Annotation of a database pod: its agent's report, JSON of `report::InstanceReport`.
pub const ANNOTATION_REPORT: &str = "holdfast.dev/report";
/// Annotation of a Database: restart all instances, once for each new value.
pub const ANNOTATION_RESTART: &str = "holdfast.dev/restart";
/// Annotation of a Database: `POD` or `any`, with `@` and anything behind it to ask again: another instance is to be primary, once for
/// each new value.
pub const ANNOTATION_SWITCHOVER: &str = "holdfast.dev/switchover";
/// Annotation of a pod template: the restart value that it was made for.
pub const ANNOTATION_RESTARTED: &str = "holdfast.dev/restarted";
/// Finalizer of Databases with deletionPolicy Delete, and of Restores while they hold the operation Lease.
pub const FINALIZER: &str = "holdfast.dev/finalizer";

/// Volumes in use.
pub const STATE_CURRENT: &str = "current";
/// Volumes that a Restore fills.
pub const STATE_SEED: &str = "seed";
/// Volumes kept for a way back.
pub const STATE_RETIRED: &str = "retired";

/// Port of PostgreSQL.
pub const PORT_POSTGRESQL: u16 = 5432;
/// Port of the agent's metrics and probes, plain HTTP.
pub const PORT_METRICS: u16 = 9187;
/// Port on which agents ask each other, mutual TLS.
pub const PORT_PEERS: u16 = 9188;

/// Role that replicas and workers connect as. It can replicate, read files for pg_rewind and switch WAL; it owns nothing.
pub const REPLICATION_ROLE: &str = "holdfast_replication";

/// Service of the primary.
pub fn service_rw(database: &str) -> String {
    format!("{database}-rw")
}

/// Service of the replicas within the lag limit.
pub fn service_ro(database: &str) -> String {
    format!("{database}-ro")
}

/// Service of all ready instances.
pub fn service_r(database: &str) -> String {
    format!("{database}-r")
}

/// Headless Service that names the pods.
pub fn service_pods(database: &str) -> String {
    format!("{database}-pods")
}

/// Secret of the application's connection.
pub fn secret_app(database: &str) -> String {
    format!("{database}-app")
}

/// Secret of role postgres.
pub fn secret_superuser(database: &str) -> String {
    format!("{database}-superuser")
}

/// Secret of the replication role.
pub fn secret_replication(database: &str) -> String {
    format!("{database}-replication")
}

/// Secret of the instances' certificate.
pub fn secret_tls(database: &str) -> String {
    format!("{database}-tls")
}

/// Secret of the certificate authority.
pub fn secret_ca(database: &str) -> String {
    format!("{database}-ca")
}

/// ConfigMap of what the agents are told: key `agent.json`, `wire::AgentConfig`.
pub fn config_map(database: &str) -> String {
    format!("{database}-config")
}

/// Lease of the primary.
pub fn lease_primary(database: &str) -> String {
    format!("{database}-primary")
}

/// Lease of exclusive work.
pub fn lease_operation(database: &str) -> String {
    format!("{database}-operation")
}

/// Pod of an instance.
pub fn pod(database: &str, ordinal: i32) -> String {
    format!("{database}-{ordinal}")
}

/// Ordinal of a pod of this database.
pub fn ordinal(database: &str, pod: &str) -> Option<i32> {
    pod.strip_prefix(database)?.strip_prefix('-')?.parse().ok()
}

/// Volume of an instance.
pub fn claim(data_set: &str, database: &str, ordinal: i32) -> String {
    format!("{data_set}-{database}-{ordinal}")
}

/// DNS name of a pod inside the cluster, without the cluster's domain, which differs between clusters.
pub fn pod_host(database: &str, namespace: &str, pod: &str) -> String {
    format!("{pod}.{}.{namespace}.svc", service_pods(database))
}

/// DNS name of the primary's Service, without the cluster's domain.
pub fn rw_host(database: &str, namespace: &str) -> String {
    format!("{}.{namespace}.svc", service_rw(database))
}

/// DNS names that an instance's certificate carries.
pub fn certificate_names(database: &str, namespace: &str) -> Vec<String> {
    let mut names = vec!["localhost".to_string()];
    for service in [service_rw(database), service_ro(database), service_r(database)] {
        names.push(service.clone());
        for suffix in [String::new(), ".svc".into(), ".svc.cluster.local".into()] {
            names.push(format!("{service}.{namespace}{suffix}"));
        }
    }
    let pods = service_pods(database);
    names.push(format!("*.{pods}"));
    for suffix in ["", ".svc", ".svc.cluster.local"] {
        names.push(format!("*.{pods}.{namespace}{suffix}"));
    }
    names
}

/// Labels of everything that belongs to a Database.
pub fn labels(database: &str) -> std::collections::BTreeMap<String, String> {
    [
        (LABEL_DATABASE, database),
        ("app.kubernetes.io/name", "postgresql"),
        ("app.kubernetes.io/instance", database),
        ("app.kubernetes.io/managed-by", "holdfast"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_belongs_to_exactly_one_database() {
        assert_eq!(ordinal("orders", "orders-2"), Some(2));
        assert_eq!(ordinal("orders", "orders-eu-2"), None);
        assert_eq!(ordinal("orders-eu", "orders-eu-2"), Some(2));
    }
}
