//! `WorkerJob::Restore`: fills a volume from a backup, replays, promotes, asks the questions, stops. Touches the volume and the store,
//! runs PostgreSQL's programs of the database's own image.
//!
//! May be repeated at any point: a run that came to its end left its answer on the volume, anything less is removed first. The order
//! of the last writes matters: data, then the answer, then the state that vouches for both, then the store.

mod fill;
mod recovery;
mod server;
mod unpack;

pub use fill::Finished;

use crate::{fetch, state::State};
use fill::{SLOWEST_CHECK_QUERY, SLOWEST_QUERY};
use holdfast_archive::{
    HistoryFolder, Store, StoreError,
    catalogue::{self, CatalogueError, Origin},
    manifest::{Manifest, ManifestError},
    wal::Link,
};
use holdfast_core::{
    BackupStoreSpec,
    crd::restore::Check,
    wire::{self, HistoryPath, Target, WorkerResult},
};
use holdfast_postgresql::history::TimelineHistory;
use recovery::{Ended, Recovery};
use server::{Server, Session};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// What a restore is told: the fields of `WorkerJob::Restore`.
#[derive(Clone, Debug)]
pub struct RestoreJob {
    /// The store.
    pub store: BackupStoreSpec,
    /// Where the backup is.
    pub history: HistoryPath,
    /// The history whose WAL is followed: the backup's own, or one that descends from it.
    pub follows: HistoryPath,
    /// The backup.
    pub backup_uid: String,
    /// Timeline to follow.
    pub timeline: u32,
    /// The moment.
    pub target: Target,
    /// The data set that the volume belongs to.
    pub data_set: String,
    /// The history that begins here.
    pub new_history: HistoryPath,
    /// Questions.
    pub checks: Vec<Check>,
    /// Database to ask them in.
    pub app_database: String,
}

/// Why a restore did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The histories in the store cannot be told.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The backup was removed since the plan was made.
    #[error("{0} does not exist: the backup was removed since the plan was made")]
    BackupGone(String),
    /// The backup's own description cannot be used.
    #[error("{location}: {error}")]
    Manifest {
        /// Where it lies.
        location: String,
        /// What is wrong with it.
        error: ManifestError,
    },
    /// A part of the backup is not what its manifest says.
    #[error("the backup is damaged: {0}")]
    BackupDamaged(String),
    /// The volume holds data of somebody else.
    #[error("the volume holds data set {found}, not {wanted}; it was not touched")]
    VolumeInUse {
        /// What it holds.
        found: String,
        /// What this run would fill.
        wanted: String,
    },
    /// The volume has no room.
    #[error("the volume is full at {0}: a larger spec.storage.size is needed")]
    VolumeFull(String),
    /// A file on the volume.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
    /// One of PostgreSQL's programs is not in the image.
    #[error("{name} cannot be run: {why}; is the image one of PostgreSQL?")]
    ProgramMissing {
        /// The program.
        name: &'static str,
        /// What the system says.
        why: String,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{name} failed: {words}")]
    Program {
        /// The program.
        name: &'static str,
        /// Its words.
        words: String,
    },
    /// Recovery failed.
    #[error("recovery failed: {words}")]
    Recovery {
        /// The server's words.
        words: String,
        /// Trying again cannot help.
        permanent: bool,
    },
    /// The WAL ends before the target.
    #[error("the archive ends before {0} was reached")]
    TargetNotReached(String),
    /// It said and did nothing.
    #[error("no progress for {0:?}")]
    NoProgress(Duration),
    /// It did not shut down cleanly.
    #[error("the server did not shut down cleanly: {0}")]
    NotStopped(String),
    /// A question was not answered as it should be.
    #[error("spec.checks: {0}")]
    CheckFailed(String),
    /// A question to the local server failed.
    #[error("the local server says: {}", words(.0))]
    Local(tokio_postgres::Error),
    /// The local server did not answer.
    #[error("the local server did not answer in time")]
    LocalLate,
}

/// The server's own message; the crate's says only "db error".
fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_string())
}

impl RestoreError {
    /// A file could not be read or written. A full volume is told apart: only a person can help.
    fn file(path: &Path, error: &dyn std::fmt::Display) -> Self {
        let (path, why) = (path.display().to_string(), error.to_string());
        if why.contains("os error 28") || why.contains("os error 122") {
            return Self::VolumeFull(path);
        }
        Self::File { path, why }
    }

    fn program(name: &'static str, error: &std::io::Error) -> Self {
        Self::ProgramMissing { name, why: error.to_string() }
    }

    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason,
            Self::Catalogue(error) => error.reason(),
            Self::BackupGone(_) => "BackupGone",
            Self::Manifest { .. } => "ManifestUnusable",
            Self::BackupDamaged(_) => "BackupDamaged",
            Self::VolumeInUse { .. } => "VolumeInUse",
            Self::VolumeFull(_) => "VolumeFull",
            Self::File { .. } => "VolumeFailed",
            Self::ProgramMissing { .. } => "ProgramMissing",
            Self::Program { .. } => "ProgramFailed",
            Self::Recovery { .. } => "RecoveryFailed",
            Self::TargetNotReached(_) => "TargetNotReached",
            Self::NoProgress(_) => "NoProgress",
            Self::NotStopped(_) => "NotStopped",
            Self::CheckFailed(_) => "CheckFailed",
            Self::Local(_) | Self::LocalLate => "ServerFailed",
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Store(error) => error.permanent,
            Self::Catalogue(error) => error.permanent(),
            Self::Recovery { permanent, .. } => *permanent,
            Self::BackupGone(_)
            | Self::Manifest { .. }
            | Self::VolumeInUse { .. }
            | Self::VolumeFull(_)
            | Self::ProgramMissing { .. }
            | Self::TargetNotReached(_)
            | Self::CheckFailed(_) => true,
            // A part may have been damaged on its way.
            Self::BackupDamaged(_)
            | Self::File { .. }
            | Self::Program { .. }
            | Self::NoProgress(_)
            | Self::NotStopped(_)
            | Self::Local(_)
            | Self::LocalLate => false,
        }
    }
}

/// Does the job.
pub async fn run(job: RestoreJob) -> WorkerResult {
    match restore(&job, Path::new(wire::VOLUME_FOLDER)).await {
        Ok(result) => result,
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

async fn restore(job: &RestoreJob, volume: &Path) -> Result<WorkerResult, RestoreError> {
    // Filling a volume takes long: a short outage of the store must not throw it away.
    let store = Store::open_patient(&job.store).await?;
    let finished = match Finished::load(volume, &job.data_set)? {
        Some(finished) => {
            tracing::info!(data_set = job.data_set, "an earlier run came to its end; its answer is repeated");
            finished
        }
        None => {
            let manifest = fill::manifest(&store, &HistoryFolder::new(&job.history), &job.backup_uid).await?;
            let chain = chain(&store, job).await?;
            let data = unpack(&store, job, &manifest, volume).await?;
            let (result, origin) = replay(job, &manifest, &chain, &data).await?;
            let finished = Finished { data_set: job.data_set.clone(), result, origin };
            vouch(job, volume, &finished).await?;
            finished
        }
    };
    // Last: an attempt that died before would have recorded another fork, and the record cannot be changed.
    catalogue::record_origin(&store, &HistoryFolder::new(&job.new_history), &finished.origin).await?;
    Ok(finished.result)
}

/// The histories to fetch WAL from, written down for the command that PostgreSQL calls.
async fn chain(store: &Store, job: &RestoreJob) -> Result<Vec<Link>, RestoreError> {
    let chain = catalogue::chain(store, &job.follows).await?;
    let path = fetch::file();
    let config = fetch::FetchConfig::new(&job.store, &chain);
    let bytes = serde_json::to_vec(&config).map_err(|e| RestoreError::file(&path, &e))?;
    crate::state::write_durably(&path, &bytes).map_err(|e| RestoreError::file(&path, &e))?;
    Ok(chain)
}

/// Fills the data directory and compares every file with PostgreSQL's own manifest.
async fn unpack(
    store: &Store,
    job: &RestoreJob,
    manifest: &Manifest,
    volume: &Path,
) -> Result<PathBuf, RestoreError> {
    tracing::info!(
        backup = job.backup_uid,
        parts = manifest.parts.len(),
        bytes = manifest.size,
        "filling the volume"
    );
    fill::clear(volume)?;
    let data = fill::make_data(volume)?;
    unpack::unpack(store, &HistoryFolder::new(&job.history), manifest, &data).await?;
    tracing::info!("checking the files");
    fill::check_files(&data, manifest).await?;
    fill::prepare(&data)?;
    Ok(data)
}

/// Replays to the target, promotes, asks the questions, stops.
async fn replay(
    job: &RestoreJob,
    manifest: &Manifest,
    chain: &[Link],
    data: &Path,
) -> Result<(WorkerResult, Origin), RestoreError> {
    tracing::info!(target = ?job.target, timeline = job.timeline, histories = chain.len(), "replaying");
    let mut target = job.target.clone();
    let server = loop {
        let recovery = Recovery { target: &target, timeline: job.timeline, least: manifest.settings };
        let mut server = Server::start(data, &recovery)?;
        match server.serves().await? {
            None => break server,
            Some(Ended::BeforeTarget) => match recovery::instead(&target) {
                Some(other) => {
                    tracing::warn!(
                        "there is no commit after {target:?}: replaying to the end of the archive is the same"
                    );
                    target = other;
                }
                None => return Err(RestoreError::TargetNotReached(format!("{target:?}"))),
            },
            Some(Ended::Permanent(words)) => return Err(RestoreError::Recovery { words, permanent: true }),
            Some(Ended::Other(words)) => return Err(RestoreError::Recovery { words, permanent: false }),
        }
    };
    let facts = facts(data).await?;
    quieten(job).await?;
    check(job).await?;
    server.stop().await?;
    let control = server::program("pg_controldata", &["-D"], data, Duration::from_secs(60)).await?;
    if !control.lines().any(|l| l.starts_with("Database cluster state:") && l.ends_with("shut down")) {
        return Err(RestoreError::NotStopped("pg_controldata does not say \"shut down\"".into()));
    }
    fill::tidy(data)?;
    fill::announce(data, facts.timeline)?;
    let fork = fill::fork(data, facts.timeline)?;
    let origin = Origin {
        parent: job.follows.clone(),
        timeline: fork.timeline,
        lsn: fork.until,
        wal_segment_size: manifest.wal_segment_size,
    };
    tracing::info!(timeline = facts.timeline, lsn = facts.lsn, time = facts.time, "restored");
    let result = WorkerResult::Restored {
        time: facts.time,
        lsn: facts.lsn,
        timeline: facts.timeline,
        system_identifier: facts.system_identifier,
    };
    Ok((result, origin))
}

struct Facts {
    time: String,
    lsn: String,
    timeline: u32,
    system_identifier: String,
}

async fn facts(data: &Path) -> Result<Facts, RestoreError> {
    let session = Session::open("postgres", "postgres").await?;
    // The checkpoint writes the new timeline into the control file, and makes what was replayed durable.
    session.rows("checkpoint", Duration::from_secs(3600)).await?;
    let sql = "select coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn())::text,
        coalesce(to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), ''),
        (select timeline_id from pg_control_checkpoint())::text,
        (select system_identifier from pg_control_system())::text";
    let row = session.rows(sql, SLOWEST_QUERY).await?.into_iter().next().unwrap_or_default();
    let mut values = row.into_iter().map(Option::unwrap_or_default);
    let mut next = || values.next().unwrap_or_default();
    let (lsn, time, timeline, system_identifier) = (next(), next(), next(), next());
    let timeline = timeline
        .parse()
        .map_err(|_| RestoreError::file(data, &format!("the server names no timeline but {timeline:?}")))?;
    Ok(Facts { time, lsn, timeline, system_identifier })
}

/// A copy beside its source must not take part in the source's replication: its subscriptions stay off until somebody enables them.
async fn quieten(job: &RestoreJob) -> Result<(), RestoreError> {
    let same = job.history.namespace == job.new_history.namespace
        && job.history.database == job.new_history.database;
    if same {
        return Ok(());
    }
    let session = Session::open("postgres", "postgres").await?;
    let sql = "select d.datname, quote_ident(s.subname) from pg_subscription s join pg_database d on d.oid = s.subdbid
        where s.subenabled";
    for row in session.rows(sql, SLOWEST_QUERY).await? {
        let [Some(database), Some(subscription)] = row.as_slice() else { continue };
        let inside = Session::open("postgres", database).await?;
        inside.rows(&format!("alter subscription {subscription} disable"), SLOWEST_QUERY).await?;
        tracing::info!(database, subscription, "disabled a subscription of the copy");
    }
    Ok(())
}

/// Asks the questions, reading only, as the owner of the application's database: they come from a Restore's author, who is no superuser.
async fn check(job: &RestoreJob) -> Result<(), RestoreError> {
    if job.checks.is_empty() {
        return Ok(());
    }
    let session = Session::open("postgres", &job.app_database).await?;
    let owner = "select pg_get_userbyid(datdba) from pg_database where datname = current_database()";
    let owner = session.value(owner).await?.unwrap_or_default();
    for check in &job.checks {
        let session = Session::open(&owner, &job.app_database).await?;
        session.rows("set default_transaction_read_only = on", SLOWEST_QUERY).await?;
        let rows = session.rows(&check.sql, SLOWEST_CHECK_QUERY).await.map_err(|error| match error {
            RestoreError::Local(error) => {
                RestoreError::CheckFailed(format!("{}: {}", check.name, words(&error)))
            }
            RestoreError::LocalLate => {
                RestoreError::CheckFailed(format!("{}: no answer in time", check.name))
            }
            other => other,
        })?;
        answered(check, &rows).map_err(RestoreError::CheckFailed)?;
        tracing::info!(check = check.name, "passed");
    }
    Ok(())
}

/// Compares the answer to a question with what is expected.
fn answered(check: &Check, rows: &[Vec<Option<String>>]) -> Result<(), String> {
    match rows.first().and_then(|r| r.first()) {
        None => Err(format!("{}: no row, expected {:?}", check.name, check.expect)),
        Some(None) => Err(format!("{}: NULL, expected {:?}", check.name, check.expect)),
        Some(Some(value)) if *value == check.expect => Ok(()),
        Some(Some(value)) => {
            let value: String = value.chars().take(200).collect();
            Err(format!("{}: {value:?}, expected {:?}", check.name, check.expect))
        }
    }
}

/// Says on the volume that it is complete: first everything else is on disk.
async fn vouch(job: &RestoreJob, volume: &Path, finished: &Finished) -> Result<(), RestoreError> {
    let WorkerResult::Restored { system_identifier, .. } = &finished.result else { return Ok(()) };
    fill::sync(volume).await?;
    finished.store(volume)?;
    let state = State {
        data_set: job.data_set.clone(),
        system_identifier: system_identifier.clone(),
        history: job.new_history.history.clone(),
        unled: true,
        member: String::new(),
    };
    state.store(volume).map_err(|e| RestoreError::file(volume, &e))
}

/// The timeline that the server was promoted to: its ancestors.
fn lineage(text: &str, timeline: u32) -> Result<TimelineHistory, String> {
    TimelineHistory::parse(timeline, text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_compared_as_text_and_null_is_no_answer() {
        let check =
            Check { name: "rows".into(), sql: "select count(*) from orders".into(), expect: "1000".into() };
        assert_eq!(answered(&check, &[vec![Some("1000".into()), Some("x".into())]]), Ok(()));
        for wrong in [vec![], vec![vec![]], vec![vec![None]], vec![vec![Some("3".into())]]] {
            let message = answered(&check, &wrong).unwrap_err();
            assert!(message.starts_with("rows: ") && message.contains("\"1000\""), "{message}");
        }
    }

    #[test]
    fn a_full_volume_is_told_apart_and_only_a_person_can_help() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = RestoreError::file(Path::new("/v/x"), &full);
        assert_eq!((error.reason(), error.permanent()), ("VolumeFull", true));
        let other = RestoreError::file(Path::new("/v/x"), &std::io::Error::from_raw_os_error(5));
        assert_eq!((other.reason(), other.permanent()), ("VolumeFailed", false));
        assert_eq!(RestoreError::from(StoreError::new("Unreachable", "x", false)).reason(), "Unreachable");
    }

    #[test]
    fn the_fork_is_the_last_line_of_the_history_file() {
        let text = "1\t0/3000000\tbefore 2026\n2\t0/5000060\tno recovery target specified\n";
        let fork = lineage(text, 3).unwrap().forks.last().copied().unwrap();
        assert_eq!((fork.timeline, fork.until.to_string()), (2, "0/5000060".into()));
    }
}
