//! Metrics. Touches the process's registry; what schedules show is computed from the cache when it is asked for.
//!
//! A series that is set during reconciles would outlive its schedule and would be missing until the first reconcile;
//! one that is computed at the scrape is there from creation and gone with its schedule.

use crate::schedule::slots;
use holdfast_core::BackupSchedule;
use holdfast_runtime::operator::Clock;
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::Store};
use prometheus::{
    CounterVec, GaugeVec, IntCounterVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

const LABELS: [&str; 2] = ["namespace", "name"];

/// Counts ended Backups.
#[derive(Clone)]
pub struct Results(IntCounterVec);

impl Results {
    /// Registers the counter, with both results at 0 from the beginning. Errors: a name registered twice.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let ended = IntCounterVec::new(
            Opts::new("holdfast_backup_total", "Backups that ended since this process leads, by result."),
            &["result"],
        )?;
        registry.register(Box::new(ended.clone()))?;
        let results = Self(ended);
        results.0.with_label_values(&["succeeded"]);
        results.0.with_label_values(&["failed"]);
        Ok(results)
    }

    /// Counts one.
    pub fn ended(&self, succeeded: bool) {
        self.0.with_label_values(&[if succeeded { "succeeded" } else { "failed" }]).inc();
    }
}

/// The gauges of all schedules, from the cache.
pub struct Schedules {
    cache: Store<BackupSchedule>,
    now: Clock,
    families: Families,
}

struct Families {
    last_success: GaugeVec,
    interval: GaugeVec,
    lag: GaugeVec,
    missed: CounterVec,
}

impl Families {
    fn new() -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &LABELS);
        Ok(Self {
            last_success: gauge(
                "holdfast_backup_last_success_timestamp_seconds",
                "When a Backup of the schedule last succeeded; its creation as long as none did.",
            )?,
            interval: gauge(
                "holdfast_backup_expected_interval_seconds",
                "The longest pause between two slots of the schedule.",
            )?,
            lag: gauge(
                "holdfast_schedule_lag_seconds",
                "For how long a due run of the schedule has been waiting.",
            )?,
            missed: CounterVec::new(
                Opts::new("holdfast_schedule_missed_runs_total", "Slots that passed without a run."),
                &LABELS,
            )?,
        })
    }
}

impl Schedules {
    /// Registers the collector. Errors: a name registered twice.
    pub fn register(
        registry: &Registry,
        cache: Store<BackupSchedule>,
        now: Clock,
    ) -> Result<(), prometheus::Error> {
        registry.register(Box::new(Self { cache, now, families: Families::new()? }))
    }
}

impl Collector for Schedules {
    fn desc(&self) -> Vec<&Desc> {
        let Families { last_success, interval, lag, missed } = &self.families;
        [last_success.desc(), interval.desc(), lag.desc(), missed.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Made anew each time: series of schedules that are gone would stay in old ones.
        let Ok(Families { last_success, interval, lag, missed }) = Families::new() else { return Vec::new() };
        let now = (self.now)();
        for schedule in self.cache.state() {
            let figures = figures(&schedule, now);
            let labels = &[schedule.namespace().unwrap_or_default(), schedule.name_any()];
            last_success.with_label_values(labels).set(figures.last_success);
            if let Some(seconds) = figures.interval {
                interval.with_label_values(labels).set(seconds);
            }
            lag.with_label_values(labels).set(figures.lag);
            missed.with_label_values(labels).inc_by(figures.missed);
        }
        [last_success.collect(), interval.collect(), lag.collect(), missed.collect()].concat()
    }
}

/// What the metrics say of one schedule.
#[derive(Debug, PartialEq)]
pub struct Figures {
    /// Seconds since the epoch.
    pub last_success: f64,
    /// Seconds; none for a schedule that cannot be read.
    pub interval: Option<f64>,
    /// Seconds.
    pub lag: f64,
    /// Slots.
    pub missed: f64,
}

/// Computes the figures of one schedule.
#[allow(clippy::cast_precision_loss)] // Seconds and counts stay far below 2^52.
pub fn figures(schedule: &BackupSchedule, now: Timestamp) -> Figures {
    let status = schedule.status.clone().unwrap_or_default();
    let created = schedule.creation_timestamp().map_or(now, |t| t.0);
    let last = status.last_success_time.as_ref().map_or(created, |t| t.0);
    let parsed = slots::parse(schedule).ok();
    let interval =
        parsed.as_ref().and_then(|p| slots::expected_interval(p, created)).map(|d| d.as_secs() as f64);
    let lag = match &parsed {
        Some(parsed)
            if !schedule.spec.suspend && status.schedule.as_deref().is_none_or(|s| s == parsed.text) =>
        {
            let handled = status.last_schedule_time.as_ref().map_or(created, |t| t.0);
            slots::newest_due(parsed, handled, now)
                .map_or(0, |slot| now.duration_since(slot + parsed.jitter).as_secs())
        }
        _ => 0,
    };
    Figures {
        last_success: last.as_second() as f64,
        interval,
        lag: lag.max(0) as f64,
        missed: status.missed_runs.unwrap_or(0).max(0) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::{reflector, watcher::Event};
    use prometheus::{Encoder, TextEncoder};
    use serde_json::json;

    #[test]
    fn series_come_and_go_with_their_schedule() {
        let registry = Registry::new();
        let (cache, mut writer) = reflector::store::<BackupSchedule>();
        Schedules::register(
            &registry,
            cache,
            std::sync::Arc::new(|| Timestamp::from_second(1_800_000_000).unwrap()),
        )
        .unwrap();
        Results::new(&registry).unwrap().ended(true);
        let text = || {
            let mut text = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert!(!text().contains("nightly"));
        let schedule: BackupSchedule = serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupSchedule",
            "metadata": {"name": "nightly", "namespace": "shop", "creationTimestamp": "2026-11-20T12:00:00Z"},
            "spec": {"databaseRef": {"name": "orders"}, "schedule": "@daily"}, "status": {"missedRuns": 3}}))
        .unwrap();
        writer.apply_watcher_event(&Event::Apply(schedule.clone()));
        let shown = text();
        for line in [
            "holdfast_backup_last_success_timestamp_seconds{name=\"nightly\",namespace=\"shop\"} 1795176000",
            "holdfast_backup_expected_interval_seconds{name=\"nightly\",namespace=\"shop\"} 86400",
            "holdfast_schedule_missed_runs_total{name=\"nightly\",namespace=\"shop\"} 3",
            "holdfast_backup_total{result=\"succeeded\"} 1",
            "holdfast_backup_total{result=\"failed\"} 0",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line} is not in\n{shown}");
        }
        writer.apply_watcher_event(&Event::Delete(schedule));
        assert!(!text().contains("nightly"));
    }
}
