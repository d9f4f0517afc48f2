//! `WorkerJob::Plan`: finds out whether a restore is possible, and from what. Reads the store; where the database runs, has it switch WAL
//! first: the second before an accident lies in a segment that is not archived yet.

use crate::sql;
use holdfast_archive::{
    HistoryFolder, Store, StoreError,
    catalogue::{self, CatalogueError},
    plan::{self, Choice, Refusal},
    wal::{self, WalError},
};
use holdfast_core::{
    BackupStoreSpec,
    wire::{Connection, HistoryPath, PlanSource, Target, WorkerResult},
};
use holdfast_postgresql::wal::{SegmentName, WalFile};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a switched segment may take into the store. Without it the plan is made from what is there.
const ARCHIVE_WAIT: Duration = Duration::from_secs(90);
/// How often the store is asked for it.
const POLL: Duration = Duration::from_secs(1);
/// Limit of the question to the database.
const DEADLINE: Duration = Duration::from_secs(15);
/// Bytes of a spec that fit an answer, beside everything else in it.
const LONGEST_SPEC: usize = 3000;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The histories in the store cannot be told.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The lineage of a timeline cannot be told.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// There is no way to the target.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store knows no such database.
    #[error("the store holds nothing of database {database} of namespace {namespace}{}", of_system(.system_identifier))]
    UnknownDatabase {
        /// Its namespace.
        namespace: String,
        /// Its name.
        database: String,
        /// The system identifier asked for.
        system_identifier: Option<String>,
    },
}

fn of_system(system_identifier: &Option<String>) -> String {
    system_identifier.as_ref().map(|s| format!(" with system identifier {s}")).unwrap_or_default()
}

impl PlanError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason,
            Self::Catalogue(error) => error.reason(),
            Self::Wal(error) => error.reason(),
            Self::Refused(refusal) => refusal.reason(),
            Self::UnknownDatabase { .. } => "UnknownDatabase",
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Store(error) => error.permanent,
            Self::Catalogue(error) => error.permanent(),
            Self::Wal(WalError::Store(error)) => error.permanent,
            Self::Wal(_) | Self::Refused(_) | Self::UnknownDatabase { .. } => true,
        }
    }
}

/// Does the job.
pub async fn run(
    store: &BackupStoreSpec,
    source: &PlanSource,
    target: &Target,
    connection: Option<&Connection>,
) -> WorkerResult {
    match make(store, source, target, connection).await {
        Ok(choice) => planned(&choice),
        Err(error) => {
            tracing::error!(reason = error.reason(), permanent = error.permanent(), "{error}");
            WorkerResult::Failed {
                reason: error.reason().into(),
                message: error.to_string(),
                permanent: error.permanent(),
            }
        }
    }
}

async fn make(
    store: &BackupStoreSpec,
    source: &PlanSource,
    target: &Target,
    connection: Option<&Connection>,
) -> Result<Choice, PlanError> {
    let store = Store::open(store).await?;
    let (path, wanted) = match source {
        PlanSource::History { path } => (path.clone(), None),
        PlanSource::Backup { path, backup_uid } => (path.clone(), Some(backup_uid.as_str())),
        PlanSource::Database { namespace, database, system_identifier } => {
            let found =
                catalogue::written_last(&store, namespace, database, system_identifier.as_deref()).await?;
            let unknown = || PlanError::UnknownDatabase {
                namespace: namespace.clone(),
                database: database.clone(),
                system_identifier: system_identifier.clone(),
            };
            (found.ok_or_else(unknown)?, None)
        }
    };
    let complete_until = match connection {
        Some(connection) => bring_up_to_date(&store, &path, connection).await,
        None => None,
    };
    choose(&store, &path, wanted, target, complete_until).await
}

/// Reads the store and chooses.
async fn choose(
    store: &Store,
    path: &HistoryPath,
    wanted: Option<&str>,
    target: &Target,
    complete_until: Option<Timestamp>,
) -> Result<Choice, PlanError> {
    let ancestors = plan::load(store, path).await?;
    let timeline = plan::timeline(&ancestors);
    let lineage = wal::lineage(store, &plan::links(&ancestors), timeline).await?;
    let choice = plan::choose(&ancestors, &lineage, wanted, target, complete_until)?;
    tracing::info!(
        backup = choice.backup.backup_uid,
        timeline = choice.timeline,
        segments = choice.wal_segments,
        reaches = %choice.reaches,
        "there is a way"
    );
    Ok(choice)
}

/// Has the database switch WAL and waits until the segment is in the store. Gives the time up to which every commit is there then;
/// None when that could not be had: the database may be the very thing that is broken, and then the archive is all there is.
async fn bring_up_to_date(store: &Store, path: &HistoryPath, connection: &Connection) -> Option<Timestamp> {
    let (time, name) = match timeout(DEADLINE, switch(connection)).await {
        Ok(Ok(switched)) => switched,
        Ok(Err(error)) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "WAL could not be switched; the plan rests on what is archived"
            );
            return None;
        }
        Err(_) => {
            tracing::warn!("the database did not answer in {DEADLINE:?}; the plan rests on what is archived");
            return None;
        }
    };
    let file: WalFile = name.parse().ok()?;
    let key = HistoryFolder::new(path).wal(&file);
    let deadline = Instant::now() + ARCHIVE_WAIT;
    loop {
        match store.head(&key).await {
            Ok(Some(_)) => {
                tracing::info!(segment = name, %time, "the archive is up to date");
                return Some(time);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(segment = name, "{error}"),
        }
        if Instant::now() > deadline {
            tracing::warn!(
                segment = name,
                "the segment did not come to {path:?} in {ARCHIVE_WAIT:?}; the plan rests on what is archived"
            );
            return None;
        }
        sleep(POLL).await;
    }
}

/// The time before the switch, and the segment that ends with it.
async fn switch(connection: &Connection) -> anyhow::Result<(Timestamp, String)> {
    let session = sql::connect(&connection.primary_host, "postgres").await?;
    // clock_timestamp() comes first: whatever committed before it lies before the switch. The segment is told from the position:
    // versions differ in which one pg_walfile_name() means at a boundary, and on a quiet server the switch ends at one.
    let question =
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        pg_switch_wal(), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
        pg_size_bytes(current_setting('wal_segment_size'))";
    let row = session.row(question).await?;
    let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
    let timeline = u32::from_str_radix(&text(2), 16)?;
    let segment = SegmentName::ending_at(timeline, text(1).parse()?, text(3).parse()?);
    Ok((text(0).parse()?, segment.to_string()))
}

/// The answer.
fn planned(choice: &Choice) -> WorkerResult {
    let bytes = i64::try_from(choice.backup.size).unwrap_or(i64::MAX);
    let follows = (choice.follows != choice.history).then(|| Box::new(choice.follows.clone()));
    WorkerResult::Planned {
        history: choice.history.clone(),
        follows,
        backup_uid: choice.backup.backup_uid.clone(),
        bytes,
        wal_segments: i64::try_from(choice.wal_segments).unwrap_or(i64::MAX),
        timeline: choice.timeline,
        version: choice.backup.major().to_string(),
        database_spec: fitting(&choice.backup.database_spec),
    }
}

/// The spec, without what means nothing; null if it does not fit an answer even so. A Database that still runs says it better anyhow.
fn fitting(spec: &serde_json::Value) -> serde_json::Value {
    let spec = without_empty(spec);
    if spec.to_string().len() > LONGEST_SPEC {
        tracing::warn!(
            "the Database's spec is too long for an answer: a new Database needs one that still runs"
        );
        return serde_json::Value::Null;
    }
    spec
}

fn without_empty(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), without_empty(v)));
            Value::Object(
                kept.filter(|(_, v)| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty())).collect(),
            )
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_spec_loses_what_means_nothing_and_is_left_out_when_it_is_too_long() {
        let spec = json!({"version": "17", "image": null, "service": {"annotations": {}}, "stopped": false});
        assert_eq!(fitting(&spec), json!({"version": "17", "stopped": false}));
        assert_eq!(fitting(&json!({"version": "x".repeat(LONGEST_SPEC)})), serde_json::Value::Null);
    }

    #[tokio::test]
    async fn a_database_that_the_store_does_not_know_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path()).unwrap();
        let path = HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7501".into(),
            history: "d1".into(),
        };
        let error = choose(&store, &path, None, &Target::Latest, None).await.unwrap_err();
        assert_eq!((error.reason(), error.permanent()), ("NoBackup", true));
        let unknown = PlanError::UnknownDatabase {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: Some("7".into()),
        };
        let said = unknown.to_string();
        assert!(said.contains("orders") && said.contains("system identifier 7"), "{said}");
    }
}
