//! `BackupSchedule`: when Backups are made and how long they are kept.

use super::{
    DeletionPolicy, LocalRef,
    backup::{BackupMethod, BackupTarget, BackupType, Compression},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// When Backups are made, and how long they are kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev", version = "v1alpha1", kind = "BackupSchedule", namespaced, status = "BackupScheduleStatus",
    derive = "PartialEq", shortname = "hfsched", category = "holdfast",
    printcolumn(name = "Database", type_ = "string", json_path = ".spec.databaseRef.name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastSuccessTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 45")
        .message("metadata.name must match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ and have at most 45 characters: Backups are named after it")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupScheduleSpec {
    /// The Database to back up.
    pub database_ref: LocalRef,
    /// Five cron fields (minute, hour, day of month, month, day of week; 0 and 7 are Sunday; when both day fields are
    /// restricted either one suffices), or @hourly, @daily, @weekly, @monthly, @yearly.
    #[x_kube(validation = Rule::new("self.startsWith('@') || self.trim().split(' ').filter(f, f.size() > 0).size() == 5")
        .message("spec.schedule takes five fields: minute hour day-of-month month day-of-week, such as \"30 2 * * *\" for 02:30 every night; there is no field for seconds"))]
    #[x_kube(validation = Rule::new("self.startsWith('@') || self.trim().split(' ').filter(f, f.size() > 0).size() != 5 || self.matches('(?i)^ *([*]|[0-5]?[0-9](-[0-5]?[0-9])?)(/[1-9][0-9]*)?(,([*]|[0-5]?[0-9](-[0-5]?[0-9])?)(/[1-9][0-9]*)?)* +([*]|([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3]))?)(/[1-9][0-9]*)?(,([*]|([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3]))?)(/[1-9][0-9]*)?)* +([*]|(0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01]))?)(/[1-9][0-9]*)?(,([*]|(0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01]))?)(/[1-9][0-9]*)?)* +([*]|(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)(-(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))?)(/[1-9][0-9]*)?(,([*]|(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)(-(0?[1-9]|1[0-2]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))?)(/[1-9][0-9]*)?)* +([*]|(0?[0-7]|sun|mon|tue|wed|thu|fri|sat)(-(0?[0-7]|sun|mon|tue|wed|thu|fri|sat))?)(/[1-9][0-9]*)?(,([*]|(0?[0-7]|sun|mon|tue|wed|thu|fri|sat)(-(0?[0-7]|sun|mon|tue|wed|thu|fri|sat))?)(/[1-9][0-9]*)?)* *$')")
        .message("spec.schedule has a field outside its range: minute 0-59, hour 0-23, day of month 1-31, month 1-12 or jan-dec, day of week 0-7 or sun-sat; each a value, a range a-b, * or a list of these with commas, with /step if needed"))]
    #[x_kube(validation = Rule::new("!self.startsWith('@') || self in ['@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@annually']")
        .message("spec.schedule: of the macros @hourly, @daily, @weekly, @monthly and @yearly are known"))]
    #[schemars(length(min = 1, max = 100))]
    pub schedule: String,
    /// IANA time zone in which the fields are read.
    #[serde(default = "utc")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z][A-Za-z0-9_+/-]*$') && self != 'Local' && timestamp('2000-01-01T00:00:00Z').getHours(self) >= 0")
        .message("spec.timeZone must be an IANA time zone such as Europe/Paris or Etc/UTC; Local and offsets are refused"))]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// True: no new Backups.
    #[serde(default)]
    pub suspend: bool,
    /// True: one Backup right when the schedule is made.
    #[serde(default)]
    pub immediate: bool,
    /// A slot that is later than this is missed.
    #[serde(default = "hour")]
    #[schemars(range(min = 10, max = 604800))]
    pub starting_deadline_seconds: i64,
    /// What to do about slots missed while nobody was looking.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// Spread the start over so many seconds; the same for every run of one schedule.
    #[serde(default)]
    #[schemars(range(min = 0, max = 86400))]
    pub jitter_seconds: i64,
    /// What to do when a Backup of the Database still runs.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// What the Backups are like.
    #[serde(default)]
    pub template: BackupTemplate,
    /// How long backups are kept. Without it they are kept for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How many run records are kept.
    #[serde(default)]
    pub history: History,
    /// What happens to its Backups when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn utc() -> String {
    "Etc/UTC".into()
}

fn hour() -> i64 {
    3600
}

/// What to do about missed slots.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CatchUp {
    /// One run for the newest missed slot.
    #[default]
    Latest,
    /// Nothing; they are counted.
    None,
}

/// What to do when a Backup of the Database still runs.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// The due run waits, up to its deadline, and is then missed.
    #[default]
    Forbid,
    /// The due run is made and waits its turn.
    Queue,
}

/// What the Backups of a schedule are like.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupTemplate {
    /// How the data is taken.
    #[serde(default)]
    pub method: BackupMethod,
    /// How much of it.
    #[serde(default, rename = "type")]
    pub type_: BackupType,
    /// The store. Default: the Database's archive store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<LocalRef>,
    /// From which instance.
    #[serde(default)]
    pub target: BackupTarget,
    /// How the parts are compressed.
    #[serde(default)]
    pub compression: Compression,
}

/// How long backups are kept: a base is kept when any rule keeps it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.days) || has(self.last)").message("spec.retention needs at least one of days, last"))]
pub struct Retention {
    /// The point-in-time window in days: every moment of it stays restorable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub days: Option<i32>,
    /// The newest so many backups are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub last: Option<i32>,
}

/// How many run records are kept. Records only: data is governed by retention.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Failed Backups to keep.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 1000))]
    pub failed: i32,
}

fn three() -> i32 {
    3
}

impl Default for History {
    fn default() -> Self {
        Self { failed: three() }
    }
}

/// What is observed of a BackupSchedule.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupScheduleStatus {
    /// Generation that the rest describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Active, Suspended, Overdue or Failed: for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Ready, Overdue, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The fields and the zone that `lastScheduleTime` was computed with: others begin anew, they have missed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Newest slot that was handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Next slot, jitter included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// When a Backup of this schedule last succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_time: Option<Time>,
    /// The Backup made last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<LocalRef>,
    /// Slots missed since the schedule was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_runs: Option<i64>,
    /// Backups that run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub active: Vec<LocalRef>,
    /// What retention did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,
}

/// What retention did last.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// Backups in the store that stay.
    #[serde(default)]
    pub kept: i64,
    /// Backups removed from the store since the schedule was made.
    #[serde(default)]
    pub expired: i64,
    /// Runs of retention so far.
    #[serde(default)]
    pub round: i64,
    /// When the last run was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// uid of the newest good Backup that the last run knew of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// The last run left work for another one.
    #[serde(default)]
    pub more: bool,
    /// Why the last run failed; none when it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
