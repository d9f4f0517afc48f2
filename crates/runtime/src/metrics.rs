//! Metrics in Prometheus' text format. Touches its own registry only.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};
use std::time::Duration;

/// The process's metrics. Operators add their own to `registry`, with the prefix `holdfast_`.
pub struct Metrics {
    /// Everything that `/metrics` shows.
    pub registry: Registry,
    reconciles: IntCounterVec,
    errors: IntCounterVec,
    seconds: HistogramVec,
    failing: IntGaugeVec,
    watch_errors: IntCounterVec,
    crd_missing: IntGaugeVec,
    leader: IntGauge,
}

/// How a reconcile ended, as controller-runtime's dashboards know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing left to do until something changes.
    Success,
    /// To be looked at again after a while.
    RequeueAfter,
    /// Failed; tried again after a backoff.
    Error,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Error => "error",
        }
    }
}

impl Metrics {
    /// A registry with the metrics that every operator has. Errors: none in practice; a name registered twice.
    pub fn new(component: &str) -> Result<Self, prometheus::Error> {
        let reconciles = IntCounterVec::new(
            Opts::new("controller_runtime_reconcile_total", "Reconciles by controller and result."),
            &["controller", "result"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new("controller_runtime_reconcile_errors_total", "Reconciles that failed, by controller."),
            &["controller"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "controller_runtime_reconcile_time_seconds",
                "Seconds that a reconcile took, by controller.",
            )
            .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            &["controller"],
        )?;
        let failing = IntGaugeVec::new(
            Opts::new(
                "holdfast_reconcile_failing_objects",
                "Objects whose last reconcile failed, by controller.",
            ),
            &["controller"],
        )?;
        let watch_errors = IntCounterVec::new(
            Opts::new(
                "holdfast_watch_errors_total",
                "Watches that failed and were begun again, by controller.",
            ),
            &["controller"],
        )?;
        let crd_missing = IntGaugeVec::new(
            Opts::new(
                "holdfast_crd_missing",
                "1 while the API server does not serve this CRD, which the operator needs.",
            ),
            &["crd"],
        )?;
        let leader =
            IntGauge::new("holdfast_leader", "1 while this process holds the leader Lease and works.")?;
        let build = IntGaugeVec::new(
            Opts::new("holdfast_build_info", "Always 1; the version is a label."),
            &["component", "version"],
        )?;
        build.with_label_values(&[component, env!("CARGO_PKG_VERSION")]).set(1);

        let registry = Registry::new();
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(failing.clone()))?;
        registry.register(Box::new(watch_errors.clone()))?;
        registry.register(Box::new(crd_missing.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        registry.register(Box::new(build))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self { registry, reconciles, errors, seconds, failing, watch_errors, crd_missing, leader })
    }

    /// Makes a controller's series exist from the beginning: a rate over a series that appears later misses its first count.
    pub fn introduce(&self, controller: &str) {
        for outcome in [Outcome::Success, Outcome::RequeueAfter, Outcome::Error] {
            self.reconciles.with_label_values(&[controller, outcome.as_str()]);
        }
        self.errors.with_label_values(&[controller]);
        self.failing.with_label_values(&[controller]);
        self.watch_errors.with_label_values(&[controller]);
    }

    /// Counts a reconcile.
    pub fn reconciled(&self, controller: &str, outcome: Outcome, took: Duration) {
        self.reconciles.with_label_values(&[controller, outcome.as_str()]).inc();
        if outcome == Outcome::Error {
            self.errors.with_label_values(&[controller]).inc();
        }
        self.seconds.with_label_values(&[controller]).observe(took.as_secs_f64());
    }

    /// Sets how many of a controller's objects fail now.
    pub fn failing(&self, controller: &str, objects: usize) {
        self.failing.with_label_values(&[controller]).set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self, controller: &str) {
        self.watch_errors.with_label_values(&[controller]).inc();
    }

    /// Sets whether a CRD is missing.
    pub fn crd_missing(&self, crd: &str, missing: bool) {
        self.crd_missing.with_label_values(&[crd]).set(i64::from(missing));
    }

    /// Sets whether this process leads.
    pub fn leading(&self, leading: bool) {
        self.leader.set(i64::from(leading));
    }

    /// All metrics as text. Errors: a metric family that cannot be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconcile_shows_under_the_names_that_dashboards_know() {
        let metrics = Metrics::new("test").unwrap();
        metrics.introduce("database");
        metrics.reconciled("database", Outcome::Error, Duration::from_millis(7));
        metrics.crd_missing("databases.holdfast.dev", true);
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for line in [
            "controller_runtime_reconcile_total{controller=\"database\",result=\"error\"} 1",
            "controller_runtime_reconcile_total{controller=\"database\",result=\"success\"} 0",
            "controller_runtime_reconcile_errors_total{controller=\"database\"} 1",
            "controller_runtime_reconcile_time_seconds_count{controller=\"database\"} 1",
            "holdfast_crd_missing{crd=\"databases.holdfast.dev\"} 1",
            "holdfast_leader 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
