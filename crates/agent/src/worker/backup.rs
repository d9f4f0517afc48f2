//! `WorkerJob::Backup`: a physical backup from a running instance into the store. Talks to the database, runs `pg_basebackup` of the
//! database's own image, writes the store.
//!
//! The order matters: data, read back; the WAL that makes it consistent, seen in the store; then the manifest, created only if there is
//! none. Before that nothing counts; whatever an attempt leaves behind, the next one removes first.

mod facts;
mod label;
mod stream;

use crate::sql::Session;
use facts::Facts;
use holdfast_archive::{
    HistoryFolder, Store, StoreError,
    manifest::{self, Manifest, Verified},
    parts::{PartsError, Written},
};
use holdfast_core::{
    BackupStoreSpec,
    crd::backup::{Compression, PostgresqlBackup},
    wire::{Connection, HistoryPath, WorkerJob, WorkerResult},
};
use holdfast_postgresql::wal::{SegmentName, WalFile};
use jiff::Timestamp;
use label::{Label, WalRange};
use std::time::{Duration, Instant};

/// Longest message: the result has to fit a container's last words.
const LONGEST: usize = 1400;
/// How often the store is asked for a segment that is not there yet.
const POLL: Duration = Duration::from_secs(1);

/// What a backup is told: the fields of `WorkerJob::Backup`.
struct Order {
    store: BackupStoreSpec,
    connection: Connection,
    history: HistoryPath,
    backup_uid: String,
    backup_name: String,
    schedule: Option<String>,
    database_uid: String,
    database_spec: serde_json::Value,
    compression: Compression,
    max_bytes_per_second: i64,
    patience: Duration,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database does not answer as it should.
    #[error("{0}")]
    Database(String),
    /// The server holds other data than the one that is to be backed up.
    #[error("{host} has system identifier {found}, not {wanted}")]
    OtherSystem {
        /// Who answered.
        host: String,
        /// What it said.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// There are tablespaces outside the data directory.
    #[error(
        "tablespaces outside the data directory cannot be backed up: {0}; move their content to pg_default and drop them"
    )]
    Tablespaces(String),
    /// `pg_basebackup` cannot be run.
    #[error("pg_basebackup cannot be run: {0}; is the image one of PostgreSQL?")]
    ProgramMissing(String),
    /// `pg_basebackup` failed.
    #[error("pg_basebackup failed ({status}): {words}")]
    Program {
        /// How it ended.
        status: String,
        /// Its words.
        words: String,
    },
    /// PostgreSQL waited for its own archive to end the backup, and nothing came.
    #[error("the backup's last WAL was not archived within {} s: see condition Archiving of the Database; pg_basebackup said: {words}", .waited.as_secs())]
    ArchiveStuck {
        /// For how long nothing came.
        waited: Duration,
        /// Its words.
        words: String,
    },
    /// Its stream did not get into the store.
    #[error("{error}{}", beside(.words))]
    Parts {
        /// What went wrong.
        error: PartsError,
        /// What pg_basebackup said meanwhile.
        words: String,
    },
    /// Label or manifest cannot be read.
    #[error("the backup cannot be understood: {0}")]
    Understood(#[from] label::LabelError),
    /// A promotion came in between.
    #[error("the timeline changed from {0} to {1} during the backup")]
    TimelineChanged(u32, u32),
    /// The WAL that makes the backup consistent did not come to the store.
    #[error("WAL segment {segment} did not come to the store within {} s: is archiving stuck?", .waited.as_secs())]
    WalNotArchived {
        /// What is missing.
        segment: String,
        /// For how long nothing came.
        waited: Duration,
    },
    /// An object is missing or has another size just after the manifest was written.
    #[error("{location} has {found} bytes instead of {wanted}")]
    Incomplete {
        /// Where it lies.
        location: String,
        /// What the store says.
        found: u64,
        /// What was written.
        wanted: u64,
    },
    /// The manifest that is there cannot be read, or is not of this backup.
    #[error("{location} exists and is not this backup's manifest: {why}")]
    ForeignManifest {
        /// Where it lies.
        location: String,
        /// What is wrong with it.
        why: String,
    },
}

fn beside(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; pg_basebackup said: {words}") }
}

impl BackupError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason,
            Self::Database(_) => "DatabaseUnreachable",
            Self::OtherSystem { .. } => "OtherSystemIdentifier",
            Self::Tablespaces(_) => "ExtraTablespaces",
            Self::ProgramMissing(_) => "ProgramMissing",
            Self::Program { .. } => "BasebackupFailed",
            Self::Parts { error, .. } => error.reason(),
            Self::ArchiveStuck { .. } => "WalNotArchived",
            Self::Understood(_) => "BackupNotUnderstood",
            Self::TimelineChanged(..) => "TimelineChanged",
            Self::WalNotArchived { .. } => "WalNotArchived",
            Self::Incomplete { .. } => "ReadBackFailed",
            Self::ForeignManifest { .. } => "ForeignManifest",
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Store(error) => error.permanent,
            Self::Parts { error, .. } => error.permanent(),
            Self::Tablespaces(_) | Self::ProgramMissing(_) | Self::ForeignManifest { .. } => true,
            _ => false,
        }
    }
}

/// Does the job. May be repeated: a backup whose manifest is there already is told again.
pub async fn run(job: WorkerJob) -> WorkerResult {
    let WorkerJob::Backup {
        store,
        connection,
        history,
        backup_uid,
        backup_name,
        schedule,
        database_uid,
        database_spec,
        compression,
        max_bytes_per_second,
        progress_deadline_seconds,
    } = job
    else {
        return WorkerResult::Failed {
            reason: "InvalidJob".into(),
            message: "this is no order for a backup".into(),
            permanent: true,
        };
    };
    let patience = Duration::from_secs(u64::try_from(progress_deadline_seconds).unwrap_or(600).max(1));
    let order = Order {
        store,
        connection,
        history,
        backup_uid,
        backup_name,
        schedule,
        database_uid,
        database_spec,
        compression,
        max_bytes_per_second,
        patience,
    };
    match back_up(&order).await {
        Ok(manifest) => told(&manifest),
        Err(error) => {
            tracing::error!(reason = error.reason(), permanent = error.permanent(), "{error}");
            let message: String = error.to_string().chars().take(LONGEST).collect();
            WorkerResult::Failed { reason: error.reason().into(), message, permanent: error.permanent() }
        }
    }
}

async fn back_up(order: &Order) -> Result<Manifest, BackupError> {
    // Hours of reading must survive a short outage of the store.
    let store = Store::open_patient(&order.store).await?;
    let folder = HistoryFolder::new(&order.history);
    if let Some(manifest) = finished(&store, &folder, order).await? {
        tracing::info!(
            backup = order.backup_uid,
            "an earlier attempt came to its end; its answer is repeated"
        );
        return Ok(manifest);
    }
    clear(&store, &folder, &order.backup_uid).await?;

    let facts = Facts::of(&order.connection.host, &order.history.system_identifier).await?;
    let primary = facts::connect(&order.connection.primary_host).await?;
    let start_time = facts::now(&primary).await?;
    // A session that is hours old may be cut off by something in between: the next question opens its own.
    drop(primary);
    let written = stream::take(&store, &folder, order, &facts).await?;
    let label = Label::parse(&written.backup_label)?;
    let range = WalRange::parse(&written.manifest_end)?;
    if range.timeline != label.timeline {
        return Err(BackupError::TimelineChanged(label.timeline, range.timeline));
    }
    let primary = facts::connect(&order.connection.primary_host).await?;
    let stop_time = facts::now(&primary).await?;
    wait_for_wal(&store, &folder, order, &facts, &label, &range, &primary).await?;
    let manifest = describe(order, &facts, written, &label, &range, start_time, stop_time);
    commit(&store, &folder, &manifest).await?;
    Ok(manifest)
}

/// The manifest of an earlier attempt, whose answer was lost.
async fn finished(
    store: &Store,
    folder: &HistoryFolder,
    order: &Order,
) -> Result<Option<Manifest>, BackupError> {
    let key = folder.manifest(&order.backup_uid);
    let Some(bytes) = store.find(&key).await? else { return Ok(None) };
    let foreign = |why: String| BackupError::ForeignManifest { location: store.location(&key), why };
    let manifest = Manifest::parse(&bytes).map_err(|e| foreign(e.to_string()))?;
    if manifest.backup_uid != order.backup_uid || manifest.history != order.history {
        return Err(foreign(format!("it names backup {} of {:?}", manifest.backup_uid, manifest.history)));
    }
    sizes(store, folder, &manifest).await?;
    Ok(Some(manifest))
}

/// Removes what an earlier attempt left. A part more than the manifest names would spoil a restore by hand.
async fn clear(store: &Store, folder: &HistoryFolder, backup_uid: &str) -> Result<(), BackupError> {
    let left: Vec<String> = store.list(&folder.base(backup_uid)).await?.into_iter().map(|o| o.key).collect();
    if !left.is_empty() {
        tracing::info!(objects = left.len(), "removing what an earlier attempt left");
    }
    Ok(store.delete_all(&left).await?)
}

/// Waits until the store has every segment from start to stop, and the history of the timeline. Bounded by lack of progress.
async fn wait_for_wal(
    store: &Store,
    folder: &HistoryFolder,
    order: &Order,
    facts: &Facts,
    label: &Label,
    range: &WalRange,
    primary: &Session,
) -> Result<(), BackupError> {
    // The stop lies in a segment that is still being written, unless the backup came from the primary, which ends it by itself.
    facts::switch_wal(primary).await?;
    let history = (range.timeline > 1).then_some(WalFile::History(range.timeline));
    let segments =
        manifest::segments(range.timeline, label.start_lsn, range.stop_lsn, facts.wal_segment_size);
    let mut progress = Instant::now();
    for file in history.into_iter().chain(segments.map(|s: SegmentName| WalFile::Segment(s))) {
        let key = folder.wal(&file);
        while store.head(&key).await?.is_none() {
            let waited = progress.elapsed();
            if waited >= order.patience {
                return Err(BackupError::WalNotArchived { segment: file.to_string(), waited });
            }
            tokio::time::sleep(POLL).await;
        }
        progress = Instant::now();
    }
    Ok(())
}

fn describe(
    order: &Order,
    facts: &Facts,
    written: Written,
    label: &Label,
    range: &WalRange,
    start_time: Timestamp,
    stop_time: Timestamp,
) -> Manifest {
    Manifest {
        format_version: manifest::FORMAT,
        history: order.history.clone(),
        database_uid: order.database_uid.clone(),
        database_spec: order.database_spec.clone(),
        backup_name: order.backup_name.clone(),
        backup_uid: order.backup_uid.clone(),
        schedule: order.schedule.clone(),
        server_version: facts.server_version.clone(),
        timeline: range.timeline,
        start_lsn: label.start_lsn,
        stop_lsn: range.stop_lsn,
        start_time,
        stop_time,
        wal_segment_size: facts.wal_segment_size,
        compression: order.compression.algorithm,
        parts: written.parts,
        backup_manifest: written.backup_manifest,
        settings: facts.settings,
        size: written.size,
        stored_size: written.stored_size,
        verified: Verified::ReadAgain,
    }
}

/// Makes the backup one: its manifest, created only if there is none, after a last look at all that it names.
async fn commit(store: &Store, folder: &HistoryFolder, manifest: &Manifest) -> Result<(), BackupError> {
    sizes(store, folder, manifest).await?;
    let key = folder.manifest(&manifest.backup_uid);
    let bytes = serde_json::to_vec_pretty(manifest)
        .map_err(|e| BackupError::ForeignManifest { location: store.location(&key), why: e.to_string() })?;
    store.put_same(&key, bytes.into()).await?;
    // What cannot be read back would be found out at a restore.
    let back = store.get(&key).await?;
    match Manifest::parse(&back) {
        Ok(back) if back == *manifest => Ok(()),
        Ok(_) => Err(BackupError::ForeignManifest {
            location: store.location(&key),
            why: "it is another one".into(),
        }),
        Err(error) => {
            Err(BackupError::ForeignManifest { location: store.location(&key), why: error.to_string() })
        }
    }
}

async fn sizes(store: &Store, folder: &HistoryFolder, manifest: &Manifest) -> Result<(), BackupError> {
    let listed = store.list(&folder.base(&manifest.backup_uid)).await?;
    for part in manifest.parts.iter().chain([&manifest.backup_manifest]) {
        let key = folder.part(&manifest.backup_uid, &part.name);
        let found = listed.iter().find(|o| o.key == key).map_or(0, |o| o.size);
        if found != part.stored_bytes {
            let wanted = part.stored_bytes;
            return Err(BackupError::Incomplete { location: store.location(&key), found, wanted });
        }
    }
    Ok(())
}

/// The answer.
fn told(manifest: &Manifest) -> WorkerResult {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    WorkerResult::BackedUp {
        location: HistoryFolder::new(&manifest.history).base(&manifest.backup_uid),
        size: number(manifest.size),
        stored_size: number(manifest.stored_size),
        backup_time: manifest.stop_time.to_string(),
        postgresql: PostgresqlBackup {
            system_identifier: manifest.history.system_identifier.clone(),
            timeline: i64::from(manifest.timeline),
            start_lsn: manifest.start_lsn.to_string(),
            stop_lsn: manifest.stop_lsn.to_string(),
            server_version: manifest.server_version.clone(),
        },
    }
}
