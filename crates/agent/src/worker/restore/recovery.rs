//! How PostgreSQL is told to recover: its settings and what its last words mean. Pure.

use holdfast_archive::manifest::Settings;
use holdfast_core::wire::{self, Target};

/// What is to be reached, and how.
#[derive(Clone, Debug)]
pub struct Recovery<'a> {
    /// The moment.
    pub target: &'a Target,
    /// Timeline to follow: always a number, since "latest" would also find what was abandoned.
    pub timeline: u32,
    /// What the server that wrote the WAL had.
    pub least: Settings,
}

/// The settings of the server that replays, in order. They go on its command line, where nothing that the copy
/// brings along (`postgresql.auto.conf`) can override them.
pub fn settings(recovery: &Recovery<'_>) -> Vec<(&'static str, String)> {
    let run = wire::RUN_FOLDER;
    let least = |value: i64, floor: i64| value.max(floor).to_string();
    let Settings {
        max_connections,
        max_worker_processes,
        max_wal_senders,
        max_prepared_transactions,
        max_locks_per_transaction,
    } = recovery.least;
    let mut all: Vec<(&'static str, String)> = vec![
        ("config_file", format!("{run}/restore.conf")),
        ("hba_file", format!("{run}/restore_hba.conf")),
        ("ident_file", format!("{run}/restore_ident.conf")),
        ("listen_addresses", String::new()),
        ("unix_socket_directories", run.into()),
        ("port", "5432".into()),
        ("ssl", "off".into()),
        // A copy must not act: it neither archives, nor streams, nor runs what the source runs by itself.
        ("archive_mode", "off".into()),
        ("archive_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        ("max_logical_replication_workers", "0".into()),
        ("shared_preload_libraries", String::new()),
        ("session_preload_libraries", String::new()),
        ("local_preload_libraries", String::new()),
        ("autovacuum", "off".into()),
        // Nobody reads while it replays, so nothing can hold replay up: neither queries nor settings that were raised later.
        ("hot_standby", "off".into()),
        ("restore_command", format!("{} wal-fetch %f %p", wire::AGENT_BINARY)),
        ("recovery_target_timeline", recovery.timeline.to_string()),
        ("recovery_target_action", "promote".into()),
        ("recovery_target_inclusive", "on".into()),
        ("recovery_end_command", String::new()),
        ("archive_cleanup_command", String::new()),
        ("max_connections", least(max_connections, 100)),
        ("max_worker_processes", least(max_worker_processes, 8)),
        ("max_wal_senders", least(max_wal_senders, 10)),
        // Prepared transactions are brought back at the end of recovery, and WAL may hold more than the backup knew.
        ("max_prepared_transactions", least(max_prepared_transactions, 200)),
        ("max_locks_per_transaction", least(max_locks_per_transaction, 64)),
        ("wal_level", "replica".into()),
        ("wal_log_hints", "on".into()),
        ("fsync", "on".into()),
        ("full_page_writes", "on".into()),
        ("restart_after_crash", "off".into()),
        ("huge_pages", "try".into()),
        ("dynamic_shared_memory_type", "posix".into()),
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
        ("log_min_messages", "warning".into()),
        ("log_statement", "none".into()),
        ("log_line_prefix", String::new()),
        // Its words are read below.
        ("lc_messages", "C".into()),
        ("timezone", "UTC".into()),
        ("log_timezone", "UTC".into()),
        ("cluster_name", "restore".into()),
        ("external_pid_file", String::new()),
    ];
    // Exactly one may be set; the others are cleared, since the copy may bring one along from an earlier recovery.
    let (wanted, value) = match recovery.target {
        Target::Latest => ("", String::new()),
        Target::Time(time) => ("recovery_target_time", spelled(time)),
        Target::Lsn(lsn) => ("recovery_target_lsn", lsn.clone()),
        Target::Xid(xid) => ("recovery_target_xid", xid.clone()),
        Target::Name(name) => ("recovery_target_name", name.clone()),
        Target::BackupEnd => ("recovery_target", "immediate".into()),
    };
    for name in [
        "recovery_target",
        "recovery_target_time",
        "recovery_target_lsn",
        "recovery_target_xid",
        "recovery_target_name",
    ] {
        if name != wanted {
            all.push((name, String::new()));
        }
    }
    if !wanted.is_empty() {
        all.push((wanted, value));
    }
    all
}

/// A time as the server reads it while it starts: it knows no names of time zones yet, not even `Z`. Cut to microseconds, so that the
/// moment never lies after the one that was asked for.
fn spelled(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string(),
        // The server's own words about it are better than any of ours.
        Err(_) => time.to_string(),
    }
}

/// What the server says when it serves.
pub const READY: &str = "database system is ready to accept connections";

/// `pg_hba.conf` of the server that replays. Its socket lies in a folder of this pod alone.
pub const HBA: &str = "local all all trust\n";

/// Why the server ended before it served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The WAL ended before the target.
    BeforeTarget,
    /// Trying again cannot help.
    Permanent(String),
    /// Something else; its last words.
    Other(String),
}

/// Reads the server's last words.
pub fn ended(lines: &[String]) -> Ended {
    let has = |text: &str| lines.iter().any(|l| l.contains(text));
    if has("recovery ended before configured recovery target was reached") {
        return Ended::BeforeTarget;
    }
    let fatal: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        // "fetching" begins what the restore_command has to say, which is why the server says that it could not restore a file.
        .filter(|l| {
            ["FATAL:", "PANIC:", "DETAIL:", "HINT:", "ERROR:", "fetching "].iter().any(|w| l.starts_with(w))
        })
        .collect();
    let words = if fatal.is_empty() {
        lines.iter().rev().take(5).rev().map(String::as_str).collect::<Vec<_>>().join(" ")
    } else {
        fatal.join(" ")
    };
    let permanent = [
        "is not a child of this server's history",
        "recovery target timeline",
        "requested recovery stop point is before consistent recovery point",
        "WAL ends before consistent recovery point",
        "WAL ends before end of online backup",
        "database files are incompatible with server",
        "invalid value for parameter",
        "is not a valid value",
    ];
    if permanent.iter().any(|p| has(p)) { Ended::Permanent(words) } else { Ended::Other(words) }
}

/// What to do when the WAL ended before the target: to replay to its end is right for a time, since no commit lies between, and for
/// nothing else.
pub fn instead(target: &Target) -> Option<Target> {
    matches!(target, Target::Time(_)).then_some(Target::Latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &Target) -> Vec<(&'static str, String)> {
        settings(&Recovery {
            target,
            timeline: 3,
            least: Settings { max_connections: 500, ..Settings::default() },
        })
    }

    fn value(all: &[(&'static str, String)], name: &str) -> String {
        let found: Vec<_> = all.iter().filter(|(n, _)| *n == name).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.clone()
    }

    #[test]
    fn exactly_one_target_is_set_and_the_timeline_is_a_number() {
        for (target, name, wanted) in [
            (
                Target::Time("2026-11-21T10:13:00.1234569+01:00".into()),
                "recovery_target_time",
                "2026-11-21 09:13:00.123456+00",
            ),
            (Target::Lsn("0/5000060".into()), "recovery_target_lsn", "0/5000060"),
            (Target::Xid("731".into()), "recovery_target_xid", "731"),
            (Target::Name("before".into()), "recovery_target_name", "before"),
            (Target::BackupEnd, "recovery_target", "immediate"),
        ] {
            let all = of(&target);
            assert_eq!(value(&all, name), wanted);
            let set = all.iter().filter(|(n, v)| {
                !v.is_empty()
                    && n.starts_with("recovery_target")
                    && !["_timeline", "_action", "_inclusive"].iter().any(|e| n.ends_with(e))
            });
            assert_eq!(set.count(), 1, "{name}");
            assert_eq!(value(&all, "recovery_target_timeline"), "3");
        }
        assert!(of(&Target::Latest).iter().all(|(n, v)| *n != "recovery_target_time" || v.is_empty()));
    }

    #[test]
    fn a_copy_does_not_act_and_can_hold_what_the_source_held() {
        let all = of(&Target::Latest);
        for (name, wanted) in [
            ("archive_mode", "off"),
            ("listen_addresses", ""),
            ("max_logical_replication_workers", "0"),
            ("primary_conninfo", ""),
            ("max_connections", "500"),
            ("max_wal_senders", "10"),
        ] {
            assert_eq!(value(&all, name), wanted, "{name}");
        }
    }

    #[test]
    fn last_words_are_understood() {
        let lines = |text: &[&str]| text.iter().map(|l| l.to_string()).collect::<Vec<_>>();
        let early = lines(&["FATAL:  recovery ended before configured recovery target was reached"]);
        assert_eq!(ended(&early), Ended::BeforeTarget);
        let store = lines(&[
            "LOG:  starting archive recovery",
            "FATAL:  could not restore file \"000000010000000000000004\" from archive: child process exited with exit code 200",
        ]);
        assert!(
            matches!(ended(&store), Ended::Other(words) if words.contains("exit code 200") && !words.contains("LOG:"))
        );
        let branch = lines(&[
            "FATAL:  requested timeline 2 is not a child of this server's history",
            "DETAIL:  Latest checkpoint is at 0/3000060 on timeline 1.",
        ]);
        assert!(matches!(ended(&branch), Ended::Permanent(words) if words.contains("DETAIL")));
        assert_eq!(instead(&Target::Time("x".into())), Some(Target::Latest));
        assert_eq!(instead(&Target::Xid("1".into())), None);
    }
}
