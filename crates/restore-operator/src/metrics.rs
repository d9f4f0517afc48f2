//! Series of the restore operator. Labels are closed sets or name a Database, never a run.

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

/// Series of the restore operator.
pub struct RestoreMetrics {
    total: IntCounterVec,
    recovery_seconds: GaugeVec,
    completion: GaugeVec,
}

impl RestoreMetrics {
    /// Registers the series. Fails when a series of the same name is there already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let of_database = ["namespace", "name"];
        let metrics = Self {
            total: IntCounterVec::new(
                Opts::new(
                    "holdfast_restore_total",
                    "Restores that ended, by Database and result (succeeded, failed).",
                ),
                &["namespace", "name", "result"],
            )?,
            recovery_seconds: GaugeVec::new(
                Opts::new(
                    "holdfast_restore_last_recovery_seconds",
                    "Seconds from the beginning of the last good Restore of a Database until it served again.",
                ),
                &of_database,
            )?,
            completion: GaugeVec::new(
                Opts::new(
                    "holdfast_restore_last_success_timestamp_seconds",
                    "When the last good Restore of a Database ended, in seconds since 1970.",
                ),
                &of_database,
            )?,
        };
        registry.register(Box::new(metrics.total.clone()))?;
        registry.register(Box::new(metrics.recovery_seconds.clone()))?;
        registry.register(Box::new(metrics.completion.clone()))?;
        Ok(metrics)
    }

    /// A Restore ended well.
    pub fn succeeded(&self, namespace: &str, database: &str, recovery_seconds: i64, now_seconds: i64) {
        self.total.with_label_values(&[namespace, database, "succeeded"]).inc();
        self.recovery_seconds.with_label_values(&[namespace, database]).set(recovery_seconds as f64);
        self.completion.with_label_values(&[namespace, database]).set(now_seconds as f64);
    }

    /// A Restore failed.
    pub fn failed(&self, namespace: &str, database: &str) {
        self.total.with_label_values(&[namespace, database, "failed"]).inc();
    }
}
