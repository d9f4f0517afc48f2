//! What an agent reports on its own pod, as JSON in annotation `holdfast.dev/report`.

use crate::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a report is taken to stand as it was written. After so long what only moves is written anew, or the pod is
/// read once: labels and annotations can be changed by anybody who may edit pods, and a replica without its labels would
/// be out of Service `<name>-ro` for good.
pub const STANDS: Duration = Duration::from_secs(60);

/// Role of an instance.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Accepts writes.
    Primary,
    /// Follows the primary.
    Replica,
    /// Neither yet: starting, cloning, rewinding, waiting.
    #[default]
    Unknown,
}

impl Role {
    /// As status shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "Primary",
            Self::Replica => "Replica",
            Self::Unknown => "Unknown",
        }
    }
}

/// An agent's report.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct InstanceReport {
    /// Role.
    pub role: Role,
    /// Whether the instance serves what its role promises.
    pub ready: bool,
    /// What it does when it is not ready, for people: "cloning from orders-0".
    pub doing: String,
    /// An error that a person should see; empty when there is none.
    pub error: String,
    /// Timeline.
    pub timeline: u32,
    /// Flushed (primary) or received (replica) LSN.
    pub lsn: String,
    /// Bytes behind the primary.
    pub lag_bytes: i64,
    /// PostgreSQL's system identifier; empty while there is no data.
    pub system_identifier: String,
    /// Version of the server, such as 17.11.
    pub server_version: String,
    /// The data set of its volume.
    pub data_set: String,
    /// The archive history in use.
    pub history: String,
    /// Primary only: standbys that stream and are in the synchronous set.
    pub synchronous: Vec<String>,
    /// Primary only: standbys that stream.
    pub streaming: Vec<String>,
    /// Hash of the configuration that is in effect, `wire::AgentConfig::hash`.
    pub config_hash: String,
    /// A changed parameter takes effect only after a restart.
    pub pending_restart: bool,
    /// Its pages, while the server answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<PagesReport>,
    /// The archive, when there is one.
    pub archive: Option<ArchiveReport>,
    /// The volume, once it was measured.
    pub volume: Option<VolumeReport>,
}

impl InstanceReport {
    /// The labels that Services select by, as this report wants them; `None`: not on the pod.
    fn labels(&self) -> [(&'static str, Option<&'static str>); 2] {
        let role = match self.role {
            Role::Primary => Some("primary"),
            Role::Replica => Some("replica"),
            Role::Unknown => None,
        };
        let reads = self.role == Role::Replica && self.ready;
        [(names::LABEL_ROLE, role), (names::LABEL_SERVES_READS, reads.then_some("true"))]
    }

    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The merge patch that puts this report on its pod: on the very one with this uid, since an agent that outlives its pod (deleted by
    /// force on a node that is cut off) must not speak for the next one of the name.
    pub fn patch(&self, uid: &str) -> serde_json::Value {
        let labels: serde_json::Map<_, _> =
            self.labels().into_iter().map(|(name, value)| (name.to_string(), value.into())).collect();
        serde_json::json!({"metadata": {
            "uid": uid,
            "labels": labels,
            "annotations": {names::ANNOTATION_REPORT: self.text()},
        }})
    }

    /// Whether a pod still carries what [`Self::patch`] puts there.
    pub fn stands_on(&self, pod: &ObjectMeta) -> bool {
        let label = |name: &str| pod.labels.as_ref().and_then(|l| l.get(name)).map(String::as_str);
        let report = pod.annotations.as_ref().and_then(|a| a.get(names::ANNOTATION_REPORT));
        self.labels().into_iter().all(|(name, value)| label(name) == value) && report == Some(&self.text())
    }
}

/// How much room a volume has left.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeStage {
    /// Enough.
    #[default]
    Ample,
    /// A tenth is left, or little more than what is held back for when it is full: time to grow it.
    Low,
    /// Next to nothing is left: a primary refuses writes until there is room again.
    Full,
}

/// The volume of an instance: data and WAL.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeReport {
    /// Size of its filesystem, bytes.
    pub capacity_bytes: i64,
    /// What the server may still write, bytes.
    pub available_bytes: i64,
    /// Files in `pg_wal`, bytes.
    pub wal_bytes: i64,
    /// What that means.
    pub stage: VolumeStage,
}

/// What an instance knows of damage in its pages.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PagesReport {
    /// Each page is written with a checksum.
    pub checksums: bool,
    /// Pages that were read and whose checksum was wrong, since the server's statistics began.
    pub failures: i64,
}

/// How an instance's archiving goes.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ArchiveReport {
    /// Newest segment in the store.
    pub last_segment: String,
    /// When, RFC 3339.
    pub last_archived_time: String,
    /// Segments that wait.
    pub behind_segments: i64,
    /// The store's own words about the last failure; empty when the last upload went well.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_from_the_pod_by_hand_is_seen() {
        let report = InstanceReport { role: Role::Replica, ready: true, ..InstanceReport::default() };
        let pod: ObjectMeta = serde_json::from_value(report.patch("pod-7")["metadata"].clone()).unwrap();
        assert!(report.stands_on(&pod));
        for name in [names::LABEL_ROLE, names::LABEL_SERVES_READS] {
            let mut edited = pod.clone();
            edited.labels.as_mut().unwrap().remove(name);
            assert!(!report.stands_on(&edited), "{name}");
        }
        assert!(!report.stands_on(&ObjectMeta { annotations: None, ..pod.clone() }));
        // One that says more than the instance does is wrong as well.
        assert!(!InstanceReport { ready: false, ..report }.stands_on(&pod));
    }

    #[test]
    fn a_label_that_no_longer_holds_is_removed() {
        let replica = InstanceReport { role: Role::Replica, ready: false, ..InstanceReport::default() };
        let labels = &replica.patch("pod-7")["metadata"]["labels"];
        assert_eq!(labels[names::LABEL_ROLE], "replica");
        assert!(labels[names::LABEL_SERVES_READS].is_null());
    }

    #[test]
    fn a_report_without_a_volume_is_read_and_one_with_it_is_spelled_as_documented() {
        assert_eq!(serde_json::from_str::<InstanceReport>("{}").unwrap().volume, None);
        let volume =
            VolumeReport { capacity_bytes: 960, stage: VolumeStage::Full, ..VolumeReport::default() };
        let text = serde_json::to_string(&volume).unwrap();
        assert_eq!(text, r#"{"capacityBytes":960,"availableBytes":0,"walBytes":0,"stage":"Full"}"#);
    }
}
