//! The report on the agent's own pod: labels that Services select by, and an annotation that the operator watches.

use super::shared::Shared;
use holdfast_core::report::{InstanceReport, STANDS, VolumeReport, VolumeStage};
use holdfast_postgresql::failover::Holder;
use holdfast_runtime::apply::bounded;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use std::time::Duration;
use tokio::time::Instant;

/// The report without what changes with every commit: positions that only move are written every [`STANDS`] at most, live
/// values are in the metrics.
fn essence(report: &InstanceReport) -> InstanceReport {
    let mut essence = InstanceReport { lsn: String::new(), lag_bytes: 0, ..report.clone() };
    if let Some(archive) = &mut essence.archive {
        archive.last_archived_time.clear();
        archive.last_segment.clear();
        // Whether it is behind matters at once; by how much rides along.
        archive.behind_segments = i64::from(archive.behind_segments > 8);
    }
    if let Some(volume) = &mut essence.volume {
        *volume = VolumeReport { stage: volume.stage, ..VolumeReport::default() };
        if volume.stage == VolumeStage::Full {
            // Its words carry numbers that move as well.
            essence.error.retain(|c| !c.is_ascii_digit());
        }
    }
    essence
}

/// What a look at the report calls for.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing: it stands.
    Nothing,
    /// To read the pod, and write only if somebody took the report or a label away.
    Look,
    /// To write.
    Write,
}

/// At most one request in [`STANDS`] while nothing happens: a write when positions moved, which puts labels back as well,
/// else a read of the pod's metadata. A watch would show an edit sooner, but would wake every agent for each change of its
/// pod's status and keep a connection for each; writing blindly would fill audit logs.
fn due(written: Option<(&InstanceReport, Duration)>, report: &InstanceReport) -> Due {
    match written {
        None if *report == InstanceReport::default() => Due::Nothing,
        None => Due::Write,
        Some((sent, _)) if essence(sent) != essence(report) => Due::Write,
        Some((_, age)) if age < STANDS => Due::Nothing,
        Some((sent, _)) if sent != report => Due::Write,
        Some(_) => Due::Look,
    }
}

/// Patches the pod whenever the report says something new, or is not there any more, until the process ends.
pub async fn run(client: kube::Client, namespace: String, holder: Holder, shared: Shared) {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let mut last: Option<(InstanceReport, Instant)> = None;
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(5), shared.changed()).await;
        let report = shared.report();
        let done = match due(last.as_ref().map(|(sent, at)| (sent, at.elapsed())), &report) {
            Due::Nothing => continue,
            Due::Look => match bounded(api.get_metadata(&holder.pod)).await {
                Ok(there) if report.stands_on(&there.metadata) => Ok(()),
                Ok(_) => {
                    tracing::warn!(
                        "labels or the report were changed on this pod by somebody else: put back"
                    );
                    write(&api, &holder, &report).await
                }
                Err(error) => Err(error),
            },
            Due::Write => write(&api, &holder, &report).await,
        };
        match done {
            Ok(()) => last = Some((report, Instant::now())),
            Err(error) => {
                tracing::warn!(%error, "reporting on the pod");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn write(api: &Api<Pod>, holder: &Holder, report: &InstanceReport) -> Result<(), kube::Error> {
    let patch = Patch::Merge(report.patch(&holder.uid));
    bounded(api.patch(&holder.pod, &PatchParams::default(), &patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::report::Role;

    #[test]
    fn a_moving_lsn_alone_is_not_worth_a_request() {
        let first = InstanceReport { lsn: "0/1".into(), ..InstanceReport::default() };
        let second = InstanceReport { lsn: "0/2".into(), lag_bytes: 5, ..InstanceReport::default() };
        assert_eq!(essence(&first), essence(&second));
        assert_ne!(essence(&first), essence(&InstanceReport { ready: true, ..second }));
    }

    #[test]
    fn a_volume_is_worth_a_request_when_its_stage_changes() {
        let of = |available_bytes, stage, error: &str| InstanceReport {
            volume: Some(VolumeReport {
                capacity_bytes: 960,
                available_bytes,
                wal_bytes: available_bytes,
                stage,
            }),
            error: error.into(),
            ..InstanceReport::default()
        };
        let low = of(90, VolumeStage::Low, "");
        assert_eq!(essence(&low), essence(&of(80, VolumeStage::Low, "")));
        assert_ne!(essence(&low), essence(&of(90, VolumeStage::Full, "")));
        let full = of(12, VolumeStage::Full, "DiskFull: 12 MiB of 960 MiB are left");
        assert_eq!(essence(&full), essence(&of(9, VolumeStage::Full, "DiskFull: 9 MiB of 960 MiB are left")));
        assert_ne!(essence(&full), essence(&of(9, VolumeStage::Full, "")));
    }

    #[test]
    fn a_report_that_stands_for_a_minute_is_looked_for_once() {
        let sent = InstanceReport { role: Role::Replica, ready: true, ..InstanceReport::default() };
        let moved = InstanceReport { lsn: "0/2".into(), ..sent.clone() };
        let early = Duration::from_secs(59);
        assert_eq!(due(None, &InstanceReport::default()), Due::Nothing);
        assert_eq!(due(None, &sent), Due::Write);
        assert_eq!(due(Some((&sent, early)), &sent), Due::Nothing);
        assert_eq!(due(Some((&sent, early)), &moved), Due::Nothing);
        // At rest nothing changes: without the look nobody would miss a label that was taken away.
        assert_eq!(due(Some((&sent, STANDS)), &sent), Due::Look);
        assert_eq!(due(Some((&sent, STANDS)), &moved), Due::Write);
        assert_eq!(due(Some((&sent, early)), &InstanceReport { ready: false, ..moved }), Due::Write);
    }
}
