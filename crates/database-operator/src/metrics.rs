//! The operator's metrics: three series a Database. Touches its own metrics only.

use holdfast_core::{
    DatabaseStatus,
    conditions::{is_true, types},
};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

const LABELS: &[&str] = &["namespace", "name"];

/// The metrics.
pub struct Metrics {
    ready: IntGaugeVec,
    available: IntGaugeVec,
    failovers: IntCounterVec,
    known: Mutex<BTreeSet<(String, String)>>,
}

impl Metrics {
    /// Registers them. Errors: a name is taken, which cannot happen twice in one process.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), LABELS);
        let ready = gauge("holdfast_database_instances_ready", "Instances of the Database that are ready.")?;
        let available = gauge(
            "holdfast_database_available",
            "1 while the Database accepts writes, as its condition Available.",
        )?;
        let failovers = IntCounterVec::new(
            Opts::new(
                "holdfast_database_failovers_total",
                "Changes of the primary that the operator has seen.",
            ),
            LABELS,
        )?;
        registry.register(Box::new(ready.clone()))?;
        registry.register(Box::new(available.clone()))?;
        registry.register(Box::new(failovers.clone()))?;
        Ok(Self { ready, available, failovers, known: Mutex::default() })
    }

    /// What a Database's status says.
    pub fn record(&self, namespace: &str, name: &str, status: &DatabaseStatus, failed_over: bool) {
        let labels = [namespace, name];
        let ready = status.instances.as_ref().map_or(0, |i| i.ready);
        self.ready.with_label_values(&labels).set(i64::from(ready));
        let available = is_true(&status.conditions, types::AVAILABLE);
        self.available.with_label_values(&labels).set(i64::from(available));
        self.failovers.with_label_values(&labels).inc_by(u64::from(failed_over));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((namespace.into(), name.into()));
    }

    /// Removes the series of Databases that are gone.
    pub fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(namespace, name)| {
            let stays = exists(namespace, name);
            if !stays {
                let labels = [namespace.as_str(), name.as_str()];
                // An error says that there was no such series.
                let _ = self.ready.remove_label_values(&labels);
                let _ = self.available.remove_label_values(&labels);
                let _ = self.failovers.remove_label_values(&labels);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_goes_takes_its_series_along() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.record("shop", "orders", &DatabaseStatus::default(), true);
        metrics.record("shop", "carts", &DatabaseStatus::default(), false);
        let series = || registry.gather().iter().map(|f| f.get_metric().len()).sum::<usize>();
        assert_eq!(series(), 6);
        metrics.retain(|_, name| name == "carts");
        assert_eq!(series(), 3);
    }
}
