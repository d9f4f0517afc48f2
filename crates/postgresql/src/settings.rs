//! Contents of `postgresql.conf` and `pg_hba.conf`.

use holdfast_core::{
    crd::database::{Durability, DurabilityMode},
    names,
    wire::{self, AgentConfig},
};
use std::{collections::BTreeMap, fmt::Write};

/// What only the running instance knows when its settings are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Pod name: `cluster_name` and application name towards the primary.
    pub pod: String,
    /// Host of the primary to stream from; empty: stream from nobody.
    pub upstream: String,
    /// File with the replication role's password in libpq's pgpass format.
    pub passfile: String,
    /// Members whose confirmation counts, empty: none.
    pub synchronous: Vec<String>,
    /// How many of them must confirm.
    pub confirmations: i32,
    /// Settings that a standby must have at least as high as whoever wrote its WAL, or it refuses to start.
    pub at_least: BTreeMap<String, i64>,
    /// Transactions only read unless a session asks for more: the volume is full.
    pub read_only: bool,
    /// Size of the volume, bytes; 0: not known.
    pub volume_bytes: u64,
}

/// A value in single quotes, as postgresql.conf wants it.
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A value in a libpq connection string.
fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Connection string towards another instance.
pub fn conninfo(host: &str, application: &str, passfile: &str) -> String {
    [
        ("host", host),
        ("port", "5432"),
        ("user", names::REPLICATION_ROLE),
        ("dbname", "postgres"),
        ("application_name", application),
        ("passfile", passfile),
        ("sslmode", "verify-full"),
        ("sslrootcert", &format!("{}/ca.crt", wire::TLS_FOLDER)),
        // A peer that is cut off must be noticed in seconds, not after the kernel's two hours.
        ("connect_timeout", "3"),
        ("keepalives_idle", "3"),
        ("keepalives_interval", "1"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "6000"),
    ]
    .map(|(k, v)| format!("{k}={}", conninfo_value(v)))
    .join(" ")
}

/// `synchronous_standby_names` for a set of members; empty when nobody's confirmation counts.
pub fn synchronous_standby_names(members: &[String], confirmations: i32) -> String {
    if members.is_empty() || confirmations < 1 {
        return String::new();
    }
    let quoted: Vec<String> = members.iter().map(|m| format!("\"{m}\"")).collect();
    format!("ANY {confirmations} ({})", quoted.join(", "))
}

/// How many standbys must confirm under this durability when so many stream.
pub fn confirmations(durability: &Durability, members: usize) -> i32 {
    match durability.mode {
        DurabilityMode::Asynchronous => 0,
        DurabilityMode::Required => durability.standbys,
        DurabilityMode::Preferred => durability.standbys.min(i32::try_from(members).unwrap_or(i32::MAX)),
    }
}

/// How much WAL the server may keep, MiB: min_wal_size, max_wal_size, wal_keep_size, max_slot_wal_keep_size.
///
/// PostgreSQL's own defaults alone would fill a volume of 1 GiB with WAL before its first checkpoint.
fn wal_sizes(config: &AgentConfig, volume_bytes: u64) -> [u64; 4] {
    let segment = u64::try_from(config.wal_segment_size_mb).unwrap_or(16).max(1);
    let part = |of: u64| if volume_bytes == 0 { u64::MAX } else { volume_bytes / of / 1024 / 1024 };
    // The server refuses to start with less than two segments.
    let least = 80.max(2 * segment);
    let most = 1024.max(4 * segment).min(part(6)).max(least);
    [least, most, 256.min(part(8)), 1024.min(part(6))]
}

/// Defaults that the spec's parameters may override.
fn defaults(config: &AgentConfig, volume_bytes: u64) -> BTreeMap<String, String> {
    let [min_wal, max_wal, keep, slots] = wal_sizes(config, volume_bytes);
    // A quarter of the container's memory is PostgreSQL's own advice; without a limit stay at its modest default.
    let shared = match config.memory_bytes {
        0 => 128,
        bytes => (bytes / 4 / 1024 / 1024).clamp(32, 16 * 1024),
    };
    [
        ("max_connections", "100".to_string()),
        ("shared_buffers", format!("{shared}MB")),
        ("max_wal_senders", "16".into()),
        ("max_replication_slots", "16".into()),
        ("min_wal_size", format!("{min_wal}MB")),
        ("max_wal_size", format!("{max_wal}MB")),
        ("wal_keep_size", format!("{keep}MB")),
        ("max_slot_wal_keep_size", format!("{slots}MB")),
        ("checkpoint_completion_target", "0.9".into()),
        ("log_checkpoints", "on".into()),
        ("log_line_prefix", "%m [%p] %q%u@%d ".into()),
        ("log_timezone", "UTC".into()),
        ("timezone", "UTC".into()),
        ("wal_receiver_status_interval", "1s".into()),
        ("wal_sender_timeout", "5s".into()),
        ("wal_receiver_timeout", "5s".into()),
        ("wal_retrieve_retry_interval", "500ms".into()),
        ("hot_standby_feedback", "off".into()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), v))
    .collect()
}

/// The whole of `postgresql.conf`.
pub fn postgresql_conf(config: &AgentConfig, instance: &Instance) -> String {
    let mut all = defaults(config, instance.volume_bytes);
    all.extend(config.parameters.clone());
    if instance.read_only {
        all.insert("default_transaction_read_only".into(), "on".into());
        // It writes WAL, too, and what it makes room for cannot be written.
        all.insert("autovacuum".into(), "off".into());
    }
    for (name, least) in &instance.at_least {
        let wanted = all.get(name).and_then(|v| v.trim().parse::<i64>().ok());
        if wanted.is_none_or(|w| w < *least) {
            all.insert(name.clone(), least.to_string());
        }
    }
    // What failover, archiving and recovery depend on comes last and cannot be overridden.
    let tls = wire::TLS_FOLDER;
    let upstream = match instance.upstream.as_str() {
        "" => String::new(),
        host => conninfo(host, &instance.pod, &instance.passfile),
    };
    let own: [(&str, String); 28] = [
        ("listen_addresses", "*".into()),
        ("port", names::PORT_POSTGRESQL.to_string()),
        ("unix_socket_directories", wire::RUN_FOLDER.into()),
        ("cluster_name", instance.pod.clone()),
        ("hba_file", format!("{}/pg_hba.conf", wire::RUN_FOLDER)),
        ("ssl", "on".into()),
        ("ssl_cert_file", format!("{tls}/tls.crt")),
        ("ssl_key_file", format!("{}/tls.key", wire::RUN_FOLDER)),
        ("ssl_ca_file", format!("{tls}/ca.crt")),
        ("ssl_min_protocol_version", "TLSv1.2".into()),
        ("password_encryption", "scram-sha-256".into()),
        ("wal_level", "replica".into()),
        ("wal_log_hints", "on".into()),
        ("full_page_writes", "on".into()),
        ("fsync", "on".into()),
        ("hot_standby", "on".into()),
        // From the first start: switching it on later would need a restart, and a promoted standby must already have
        // kept what a dead primary did not upload.
        ("archive_mode", "always".into()),
        ("archive_command", format!("{} wal-push %f %p", wire::AGENT_BINARY)),
        (
            "archive_timeout",
            // Each switch takes a whole segment, and with the store away none comes back.
            config
                .archive
                .as_ref()
                .filter(|_| !instance.read_only)
                .map_or(0, |a| a.max_lag_seconds)
                .to_string(),
        ),
        ("restore_command", format!("{} wal-fetch %f %p", wire::AGENT_BINARY)),
        ("recovery_target_timeline", "latest".into()),
        ("primary_conninfo", upstream),
        ("synchronous_commit", "on".into()),
        (
            "synchronous_standby_names",
            synchronous_standby_names(&instance.synchronous, instance.confirmations),
        ),
        // PID 1 decides what to do about a crash; a server that restarts itself would hide it.
        ("restart_after_crash", "off".into()),
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
        ("dynamic_shared_memory_type", "posix".into()),
    ];
    let mut text =
        String::from("# Written by the agent; changes are lost. Use spec.postgresql.parameters.\n");
    for (name, value) in &all {
        if !own.iter().any(|(o, _)| o == name) {
            let _ = writeln!(text, "{name} = {}", quote(value));
        }
    }
    for (name, value) in &own {
        let _ = writeln!(text, "{name} = {}", quote(value));
    }
    text
}

/// The whole of `pg_hba.conf`. Local connections are the pod's own: only the agent's user gets in, as postgres.
pub fn pg_hba(config: &AgentConfig) -> String {
    let mut text = String::from(
        "# Written by the agent; changes are lost. Use spec.postgresql.pgHba.\nlocal all postgres peer\n",
    );
    for line in &config.pg_hba {
        let _ = writeln!(text, "{line}");
    }
    let role = names::REPLICATION_ROLE;
    let _ = write!(
        text,
        "hostssl replication {role} all scram-sha-256\n\
         hostssl postgres {role} all scram-sha-256\n\
         host all {role} all reject\n\
         {superuser}\
         host all postgres all reject\n\
         hostssl all all all scram-sha-256\n\
         host all all all reject\n",
        superuser = if config.superuser { "hostssl all postgres all scram-sha-256\n" } else { "" },
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            database: "orders".into(),
            namespace: "shop".into(),
            database_uid: "u".into(),
            instances: 3,
            data_set: "d1".into(),
            history: "d2".into(),
            system_identifier: String::new(),
            version: "17".into(),
            app_database: "app".into(),
            app_owner: "app".into(),
            encoding: "UTF8".into(),
            locale: "C.UTF-8".into(),
            wal_segment_size_mb: 16,
            superuser: false,
            durability: Durability { mode: DurabilityMode::Required, standbys: 1 },
            ttl_seconds: 6,
            max_replica_lag_seconds: 30,
            parameters: BTreeMap::from([
                ("work_mem".into(), "8MB".into()),
                ("archive_mode".into(), "off".into()),
                ("search_path".into(), "it's \\ here".into()),
            ]),
            pg_hba: vec!["hostssl all reader 10.0.0.0/8 scram-sha-256".into()],
            memory_bytes: 1 << 30,
            archive: None,
            switchover: None,
        }
    }

    #[test]
    fn the_spec_overrides_defaults_but_never_what_safety_rests_on() {
        let instance = Instance {
            pod: "orders-1".into(),
            synchronous: vec!["orders-0".into(), "orders-2".into()],
            confirmations: 1,
            ..Instance::default()
        };
        let text = postgresql_conf(&config(), &instance);
        assert!(text.contains("work_mem = '8MB'"));
        assert!(text.contains("shared_buffers = '256MB'"));
        assert!(text.contains("archive_mode = 'always'") && !text.contains("archive_mode = 'off'"));
        assert!(text.contains("search_path = 'it''s \\\\ here'"));
        assert!(text.contains("synchronous_standby_names = 'ANY 1 (\"orders-0\", \"orders-2\")'"));
        assert!(text.contains("primary_conninfo = ''"));
    }

    #[test]
    fn a_standby_keeps_up_with_who_wrote_its_wal() {
        let at_least =
            BTreeMap::from([("max_connections".to_string(), 200), ("max_wal_senders".to_string(), 3)]);
        let text = postgresql_conf(&config(), &Instance { at_least, ..Instance::default() });
        assert!(text.contains("max_connections = '200'") && text.contains("max_wal_senders = '16'"));
    }

    #[test]
    fn a_full_volume_refuses_writes_whatever_the_spec_says_and_only_then() {
        let mut config = config();
        let full = Instance { read_only: true, ..Instance::default() };
        assert!(!postgresql_conf(&config, &Instance::default()).contains("default_transaction_read_only"));
        config.parameters.insert("default_transaction_read_only".into(), "off".into());
        let text = postgresql_conf(&config, &full);
        assert!(text.contains("default_transaction_read_only = 'on'"));
        assert_eq!(text.matches("default_transaction_read_only").count(), 1);
    }

    #[test]
    fn wal_leaves_room_for_data_on_a_small_volume() {
        let sizes =
            |segment, volume| wal_sizes(&AgentConfig { wal_segment_size_mb: segment, ..config() }, volume);
        assert_eq!(sizes(16, 960 << 20), [80, 160, 120, 160]);
        assert_eq!(sizes(16, 0), [80, 1024, 256, 1024]);
        assert_eq!(sizes(16, 100 << 30), [80, 1024, 256, 1024]);
        assert_eq!(sizes(64, 1 << 30), [128, 170, 128, 170], "the server wants two segments at least");
        let config = AgentConfig { parameters: [("max_wal_size".into(), "2GB".into())].into(), ..config() };
        let text = postgresql_conf(&config, &Instance { volume_bytes: 1 << 30, ..Instance::default() });
        assert!(text.contains("max_wal_size = '2GB'") && text.contains("wal_keep_size = '128MB'"));
    }

    #[test]
    fn nobody_gets_in_without_tls_and_the_users_lines_come_first() {
        let text = pg_hba(&config());
        let position = |needle: &str| text.find(needle).unwrap();
        assert!(position("reader") < position("hostssl all all all"));
        assert!(!text.contains("hostssl all postgres"));
        assert!(text.trim_end().ends_with("host all all all reject"));
        let open = AgentConfig { superuser: true, ..config() };
        let text = pg_hba(&open);
        assert!(
            text.find("hostssl all postgres").unwrap() < text.find("host all postgres all reject").unwrap()
        );
    }

    #[test]
    fn preferred_relaxes_and_required_does_not() {
        let preferred = Durability { mode: DurabilityMode::Preferred, standbys: 1 };
        assert_eq!(confirmations(&preferred, 0), 0);
        assert_eq!(confirmations(&preferred, 2), 1);
        let required = Durability { mode: DurabilityMode::Required, standbys: 2 };
        assert_eq!(confirmations(&required, 0), 2);
    }
}
