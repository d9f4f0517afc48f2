//! The report on the agent's own pod.

use super::{
    member::{Key, Process},
    world::World,
};
use holdfast_core::{
    report::{ArchiveReport, InstanceReport, PagesReport, Role, STANDS, VolumeReport, VolumeStage},
    wire::AgentConfig,
};
use holdfast_postgresql::settings::{self, Instance as Settings};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Positions that only move are reported so often at most, and a report that stands is looked for on the pod.
pub const RIDE_ALONG: Duration = STANDS;
/// How long a reload takes to be sure of.
const RELOAD: Duration = Duration::from_secs(1);
/// Parameters that a server takes up only when it starts: context `postmaster` in pg_settings.
const NEED_RESTART: [&str; 16] = [
    "archive_mode",
    "autovacuum_max_workers",
    "huge_pages",
    "max_connections",
    "max_locks_per_transaction",
    "max_logical_replication_workers",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "shared_buffers",
    "shared_preload_libraries",
    "track_commit_timestamp",
    "wal_buffers",
    "wal_level",
    "wal_log_hints",
];

/// The configuration, as far as the server has taken it up.
#[derive(Default)]
pub struct Taken {
    /// Hash of what the server has read for sure.
    pub hash: String,
    /// Hash of what is in its files, and from when on it has read them.
    written: Option<(String, Instant)>,
    files: String,
    /// Parameters that it was started with.
    started: BTreeMap<String, String>,
    /// A changed parameter takes effect only after a restart.
    pub pending_restart: bool,
}

fn files(config: &AgentConfig) -> (String, BTreeMap<String, String>) {
    let text = settings::postgresql_conf(config, &Settings::default());
    let pairs = text.lines().filter_map(|line| line.split_once(" = "));
    let fixed = pairs.filter(|(name, _)| NEED_RESTART.contains(name));
    let fixed = fixed.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    (text + &settings::pg_hba(config), fixed)
}

impl Taken {
    /// The server starts with this.
    pub fn start(&mut self, config: &AgentConfig, hash: &str) {
        let (files, fixed) = files(config);
        *self = Self { hash: hash.into(), files, started: fixed, ..Self::default() };
    }

    /// The server runs, and this is what it should have.
    pub fn reload(&mut self, config: &AgentConfig, hash: &str) {
        let known = self.written.as_ref().map_or(&self.hash, |(hash, _)| hash);
        if *known != hash {
            let (files, fixed) = files(config);
            let since = if files == self.files { Instant::now() } else { Instant::now() + RELOAD };
            self.written = Some((hash.into(), since));
            self.files = files;
            self.pending_restart = fixed != self.started;
        }
        if let Some((hash, _)) = self.written.take_if(|(_, since)| *since <= Instant::now()) {
            self.hash = hash;
        }
    }

    /// When the server will have taken up what it was told.
    pub fn due(&self) -> Option<Instant> {
        self.written.as_ref().map(|(_, since)| *since)
    }
}

/// The report of an instance.
pub fn report(
    world: &World,
    key: &Key,
    taken: &Taken,
    served: bool,
    capacity: i64,
    doing: &str,
    error: &str,
) -> InstanceReport {
    let Some(member) = world.members.get(key) else { return InstanceReport::default() };
    let config = &member.config;
    let mut report = InstanceReport {
        doing: doing.into(),
        error: error.into(),
        history: config.history.clone(),
        config_hash: taken.hash.clone(),
        server_version: if served { format!("{}.4", config.version) } else { String::new() },
        archive: config.archive.as_ref().map(|_| ArchiveReport {
            last_segment: member.archived.as_ref().map(|(name, _)| name.clone()).unwrap_or_default(),
            last_archived_time: member.archived.as_ref().map(|(_, at)| at.to_string()).unwrap_or_default(),
            behind_segments: 0,
            error: member.archive_error.clone(),
        }),
        volume: Some(VolumeReport {
            capacity_bytes: capacity,
            available_bytes: capacity / 2,
            wal_bytes: 64 << 20,
            stage: VolumeStage::Ample,
        }),
        ..InstanceReport::default()
    };
    let Some(data) = world.data(key) else { return report };
    report.data_set.clone_from(&data.data_set);
    report.system_identifier.clone_from(&data.system_identifier);
    let quiet = doing.is_empty() && error.is_empty();
    report.pages = Some(PagesReport { checksums: true, failures: 0 });
    match member.process {
        Process::Down | Process::Starting => return InstanceReport { pages: None, ..report },
        Process::Standby => {
            report.role = Role::Replica;
            report.ready = quiet && member.streaming;
        }
        Process::Primary => {
            report.role = Role::Primary;
            report.ready = quiet;
            report.streaming = world.streaming(key);
            let promised = |s: &&String| member.confirmations > 0 && member.synchronous.contains(s);
            report.synchronous = report.streaming.iter().filter(promised).cloned().collect();
        }
    }
    report.timeline = data.timeline();
    report.lsn = data.end.to_string();
    report.pending_restart = taken.pending_restart;
    report
}

/// The report without what changes with every commit.
pub fn essence(report: &InstanceReport) -> InstanceReport {
    let mut essence = InstanceReport { lsn: String::new(), lag_bytes: 0, ..report.clone() };
    if let Some(archive) = &mut essence.archive {
        archive.last_archived_time.clear();
        archive.last_segment.clear();
    }
    essence
}
