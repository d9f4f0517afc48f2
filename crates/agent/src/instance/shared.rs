//! What the main loop lets others see: probes, metrics, the report on the pod.

use holdfast_core::report::InstanceReport;
use std::sync::{Arc, RwLock};
use tokio::sync::Notify;

/// The latest report, and whether the process itself is well.
#[derive(Clone, Default)]
pub struct Shared {
    report: Arc<RwLock<InstanceReport>>,
    changed: Arc<Notify>,
    beat: Arc<std::sync::atomic::AtomicU64>,
}

impl Shared {
    /// The latest report.
    pub fn report(&self) -> InstanceReport {
        self.report.read().map(|r| r.clone()).unwrap_or_default()
    }

    /// Puts a new one in its place.
    pub fn publish(&self, report: InstanceReport) {
        self.beat();
        if let Ok(mut held) = self.report.write()
            && *held != report
        {
            *held = report;
            self.changed.notify_one();
        }
    }

    /// The main loop is alive.
    pub fn beat(&self) {
        self.beat.store(super::clock::now().as_secs(), std::sync::atomic::Ordering::SeqCst);
    }

    /// Seconds since the main loop's last sign of life.
    pub fn silence(&self) -> u64 {
        super::clock::now().as_secs().saturating_sub(self.beat.load(std::sync::atomic::Ordering::SeqCst))
    }

    /// Waits for a change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
