//! The report on the agent's own pod: labels that Services select by, and an annotation that the operator watches.

use super::shared::Shared;
use holdfast_core::{
    names,
    report::{InstanceReport, Role, VolumeReport, VolumeStage},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use std::time::Duration;
use tokio::time::Instant;

/// Positions that only move are reported so often at most: live values are in the metrics.
const RIDE_ALONG: Duration = Duration::from_secs(60);

/// The report without what changes with every commit.
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

fn patch(report: &InstanceReport) -> serde_json::Value {
    let role = match report.role {
        Role::Primary => Some("primary"),
        Role::Replica => Some("replica"),
        Role::Unknown => None,
    };
    let reads = report.role == Role::Replica && report.ready;
    serde_json::json!({"metadata": {
        "labels": {names::LABEL_ROLE: role, names::LABEL_SERVES_READS: if reads { Some("true") } else { None }},
        "annotations": {names::ANNOTATION_REPORT: serde_json::to_string(report).unwrap_or_default()},
    }})
}

/// Patches the pod whenever the report says something new, until the process ends.
pub async fn run(client: kube::Client, namespace: String, pod: String, shared: Shared) {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let mut last: Option<(InstanceReport, Instant)> = None;
    loop {
        let _ = tokio::time::timeout(Duration::from_secs(5), shared.changed()).await;
        let report = shared.report();
        let due = match &last {
            None => report != InstanceReport::default(),
            Some((sent, at)) => {
                essence(sent) != essence(&report) || (*sent != report && at.elapsed() > RIDE_ALONG)
            }
        };
        if !due {
            continue;
        }
        let (parameters, change) = (PatchParams::default(), Patch::Merge(patch(&report)));
        match holdfast_runtime::apply::bounded(api.patch(&pod, &parameters, &change)).await {
            Ok(_) => last = Some((report, Instant::now())),
            Err(error) => {
                tracing::warn!(%error, "reporting on the pod");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_label_that_no_longer_holds_is_removed() {
        let replica = InstanceReport { role: Role::Replica, ready: false, ..InstanceReport::default() };
        let labels = &patch(&replica)["metadata"]["labels"];
        assert_eq!(labels[names::LABEL_ROLE], "replica");
        assert!(labels[names::LABEL_SERVES_READS].is_null());
    }
}
