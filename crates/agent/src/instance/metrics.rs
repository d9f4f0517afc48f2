//! What `/metrics` shows of an instance: what it reports, what changes of primary cost, and what PostgreSQL counts.

use super::{shared::Shared, statistics::Statistics, takeover::Counters};
use holdfast_core::report::{Role, VolumeStage};
use k8s_openapi::jiff::Timestamp;
use prometheus::{Encoder, Gauge, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::path::Path;

/// The instance's metrics.
pub struct Metrics {
    registry: Registry,
    statistics: Statistics,
    /// What changes of primary cost.
    pub counters: Counters,
    ready: IntGauge,
    role: IntGaugeVec,
    timeline: IntGauge,
    lag_bytes: IntGauge,
    synchronous: IntGauge,
    archive_behind: IntGauge,
    archive_failing: IntGauge,
    archived: Gauge,
    capacity: IntGauge,
    available: IntGauge,
    wal: IntGauge,
    full: IntGauge,
}

impl Metrics {
    /// Of the instance on this volume. Errors: none in practice; a name registered twice.
    pub fn new(volume: &Path) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let role = IntGaugeVec::new(
            Opts::new("holdfast_instance_role", "1 for the role that the instance has"),
            &["role"],
        )?;
        registry.register(Box::new(role.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let archived = Gauge::new(
            "holdfast_instance_archive_last_success_timestamp_seconds",
            "When the last WAL segment reached the store, seconds since 1970; 0: none since the start",
        )?;
        registry.register(Box::new(archived.clone()))?;
        Ok(Self {
            statistics: Statistics::new(volume),
            counters: Counters::new(&registry)?,
            archived,
            ready: gauge("holdfast_instance_ready", "1 when the instance serves what its role promises")?,
            timeline: gauge("holdfast_instance_timeline", "PostgreSQL timeline")?,
            lag_bytes: gauge(
                "holdfast_instance_replay_lag_bytes",
                "WAL known to a replica and not replayed yet",
            )?,
            synchronous: gauge(
                "holdfast_instance_synchronous_standbys",
                "Standbys in the synchronous set, on the primary",
            )?,
            archive_behind: gauge(
                "holdfast_instance_archive_behind_segments",
                "WAL files that wait for the store",
            )?,
            archive_failing: gauge("holdfast_instance_archive_failing", "1 when the last upload failed")?,
            capacity: gauge(
                "holdfast_instance_volume_capacity_bytes",
                "Size of the volume with data and WAL",
            )?,
            available: gauge(
                "holdfast_instance_volume_available_bytes",
                "What the server may still write to it; room held back for a full volume is not counted",
            )?,
            wal: gauge("holdfast_instance_wal_bytes", "Size of pg_wal")?,
            full: gauge(
                "holdfast_instance_disk_full",
                "1 while the volume is full: a primary refuses writes",
            )?,
            role,
            registry,
        })
    }

    /// Everything, as text. Bounded.
    pub async fn text(&self, shared: &Shared) -> Result<Vec<u8>, prometheus::Error> {
        let told = self.statistics.families().await;
        let report = shared.report();
        self.ready.set(i64::from(report.ready));
        for role in [Role::Primary, Role::Replica, Role::Unknown] {
            self.role.with_label_values(&[role.as_str()]).set(i64::from(role == report.role));
        }
        self.timeline.set(i64::from(report.timeline));
        self.lag_bytes.set(report.lag_bytes);
        self.synchronous.set(i64::try_from(report.synchronous.len()).unwrap_or(0));
        let archive = report.archive.unwrap_or_default();
        self.archive_behind.set(archive.behind_segments);
        self.archive_failing.set(i64::from(!archive.error.is_empty()));
        let archived = archive.last_archived_time.parse::<Timestamp>().map(|at| at.as_second() as f64);
        self.archived.set(archived.unwrap_or(0.0));
        let volume = report.volume.unwrap_or_default();
        self.capacity.set(volume.capacity_bytes);
        self.available.set(volume.available_bytes);
        self.wal.set(volume.wal_bytes);
        self.full.set(i64::from(volume.stage == VolumeStage::Full));
        let mut text = Vec::new();
        let families: Vec<_> = self.registry.gather().into_iter().chain(told).collect();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}
