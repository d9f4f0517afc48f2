//! What the main loop lets others see: probes, metrics, the report on the pod.

use holdfast_core::report::{InstanceReport, VolumeReport};
use std::sync::{Arc, RwLock};
use tokio::sync::Notify;

/// The latest report, and whether the process itself is well.
#[derive(Clone, Default)]
pub struct Shared {
    report: Arc<RwLock<InstanceReport>>,
    volume: Arc<RwLock<Option<VolumeReport>>>,
    changed: Arc<Notify>,
    beat: Arc<std::sync::atomic::AtomicU64>,
}

impl Shared {
    /// The latest report, with the volume as it is now: it fills while the main loop waits for something long.
    pub fn report(&self) -> InstanceReport {
        let report = self.report.read().map(|r| r.clone()).unwrap_or_default();
        InstanceReport { volume: self.volume.read().ok().and_then(|v| v.clone()), ..report }
    }

    /// The volume was measured.
    pub fn volume_is(&self, now: VolumeReport) {
        let Ok(mut held) = self.volume.write() else { return };
        let turned = held.as_ref().is_none_or(|old| old.stage != now.stage);
        *held = Some(now);
        if turned {
            self.changed.notify_one();
        }
    }

    /// Puts a new one in its place. Its volume does not count.
    pub fn publish(&self, report: InstanceReport) {
        self.beat();
        let report = InstanceReport { volume: None, ..report };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_carries_the_volume_as_it_is_now() {
        let shared = Shared::default();
        shared.volume_is(VolumeReport { available_bytes: 7, ..VolumeReport::default() });
        let old = shared.report();
        shared.volume_is(VolumeReport { available_bytes: 5, ..VolumeReport::default() });
        shared.publish(InstanceReport { ready: true, ..old });
        let now = shared.report();
        assert!(now.ready && now.volume.is_some_and(|v| v.available_bytes == 5));
    }
}
