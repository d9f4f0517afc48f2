//! Fills the volume with a backup. Touches the volume and reads the store. May be repeated: what is not complete is removed first.

use super::{RestoreError, server};
use crate::state::{State, data_directory, write_durably};
use holdfast_archive::{HistoryFolder, Store, catalogue::Origin, manifest::Manifest};
use holdfast_core::wire::WorkerResult;
use holdfast_postgresql::history::Fork;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Pace, in bytes a second, that checking the unpacked files beats.
const SLOWEST_CHECK: u64 = 2 << 20;
/// Seconds of the check's deadline that do not depend on size.
const CHECK_SECONDS: u64 = 600;
/// Limit of a question of the worker's own to the local server.
pub const SLOWEST_QUERY: Duration = Duration::from_secs(60);
/// Limit of a question from the Restore's spec, which may count a large table.
pub const SLOWEST_CHECK_QUERY: Duration = Duration::from_secs(1800);

/// What a finished run leaves on the volume, so that a repeated one answers the same.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// The data set.
    pub data_set: String,
    /// The answer.
    pub result: WorkerResult,
    /// Where the new history left its parent.
    pub origin: Origin,
}

fn finished_file(volume: &Path) -> PathBuf {
    volume.join("agent").join("restored.json")
}

impl Finished {
    /// What an earlier run left, if it came to its end.
    ///
    /// Errors: the volume holds complete data of another data set.
    pub fn load(volume: &Path, data_set: &str) -> Result<Option<Self>, RestoreError> {
        let state = State::load(volume).map_err(|e| RestoreError::file(volume, &e))?;
        let Some(state) = state else { return Ok(None) };
        if state.data_set != data_set {
            return Err(RestoreError::VolumeInUse { found: state.data_set, wanted: data_set.into() });
        }
        let read = fs::read(finished_file(volume)).ok();
        Ok(read
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|f| f.data_set == data_set))
    }

    /// Writes it durably.
    pub fn store(&self, volume: &Path) -> Result<(), RestoreError> {
        let path = finished_file(volume);
        let folder = volume.join("agent");
        fs::create_dir_all(&folder).map_err(|e| RestoreError::file(&folder, &e))?;
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| RestoreError::file(&path, &e))?;
        write_durably(&path, &bytes).map_err(|e| RestoreError::file(&path, &e))
    }
}

/// Empties the volume. The caller has seen that it holds nothing that is complete.
pub fn clear(volume: &Path) -> Result<(), RestoreError> {
    let failed = |e: io::Error| RestoreError::file(volume, &e);
    // First, so that a crash in the middle never leaves a state file beside half a data directory.
    State::remove(volume).map_err(|e| RestoreError::file(volume, &e))?;
    for entry in fs::read_dir(volume).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(failed)?;
        let removed = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| RestoreError::file(&path, &e))?;
    }
    Ok(())
}

/// Makes the empty data directory.
pub fn make_data(volume: &Path) -> Result<PathBuf, RestoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let data = data_directory(volume);
    // PostgreSQL refuses one that others can read.
    fs::DirBuilder::new().mode(0o700).create(&data).map_err(|e| RestoreError::file(&data, &e))?;
    Ok(data)
}

/// Reads what the backup says of itself.
pub async fn manifest(
    store: &Store,
    folder: &HistoryFolder,
    backup_uid: &str,
) -> Result<Manifest, RestoreError> {
    let key = folder.manifest(backup_uid);
    let Some(bytes) = store.find(&key).await? else {
        return Err(RestoreError::BackupGone(store.location(&key)));
    };
    Manifest::parse(&bytes).map_err(|error| RestoreError::Manifest { location: store.location(&key), error })
}

/// Compares every file with PostgreSQL's own manifest of the backup.
pub async fn check_files(data: &Path, manifest: &Manifest) -> Result<(), RestoreError> {
    let limit = Duration::from_secs(CHECK_SECONDS + manifest.size / SLOWEST_CHECK);
    // The WAL is not in the backup but in the archive.
    let arguments = ["--no-parse-wal", "--exit-on-error", "--quiet"];
    match server::program("pg_verifybackup", &arguments, data, limit).await {
        Err(RestoreError::Program { words, .. }) => Err(RestoreError::BackupDamaged(words)),
        other => other.map(|_| ()),
    }
}

/// Removes what belongs to the server that the backup was taken of, and asks for recovery.
pub fn prepare(data: &Path) -> Result<(), RestoreError> {
    for name in ["postmaster.pid", "postmaster.opts", "standby.signal", "backup_manifest", "recovery.conf"] {
        remove_file(&data.join(name))?;
    }
    // Slots would keep WAL for consumers that this copy does not have.
    for folder in ["pg_replslot", "pg_dynshmem", "pg_notify", "pg_stat_tmp"] {
        let folder = data.join(folder);
        remove_tree(&folder)?;
        fs::create_dir(&folder).map_err(|e| RestoreError::file(&folder, &e))?;
        private(&folder)?;
    }
    let status = server::wal_folder(data).join("archive_status");
    fs::create_dir_all(&status).map_err(|e| RestoreError::file(&status, &e))?;
    private(&server::wal_folder(data))?;
    private(&status)?;
    let signal = data.join("recovery.signal");
    write_durably(&signal, b"").map_err(|e| RestoreError::file(&signal, &e))
}

/// Removes what recovery leaves behind.
pub fn tidy(data: &Path) -> Result<(), RestoreError> {
    for name in ["recovery.signal", "backup_label.old", "tablespace_map.old", "postmaster.opts"] {
        remove_file(&data.join(name))?;
    }
    Ok(())
}

/// Where the new timeline left the one before.
pub fn fork(data: &Path, timeline: u32) -> Result<Fork, RestoreError> {
    let path = server::wal_folder(data).join(format!("{timeline:08X}.history"));
    let text = fs::read_to_string(&path).map_err(|e| RestoreError::file(&path, &e))?;
    let lineage = super::lineage(&text, timeline).map_err(|e| RestoreError::file(&path, &e))?;
    lineage.forks.last().copied().ok_or_else(|| RestoreError::file(&path, &"it names no ancestor"))
}

/// Has the new timeline's history file archived by the instance that starts here. The server did not ask for it itself, since it was
/// promoted with archiving off; without the file nothing of that timeline could ever be restored.
pub fn announce(data: &Path, timeline: u32) -> Result<(), RestoreError> {
    let ready = server::wal_folder(data).join("archive_status").join(format!("{timeline:08X}.history.ready"));
    write_durably(&ready, b"").map_err(|e| RestoreError::file(&ready, &e))
}

/// Makes everything on the volume durable: the State that is written next must never be older than what it vouches for.
pub async fn sync(volume: &Path) -> Result<(), RestoreError> {
    let volume = volume.to_path_buf();
    let synced = tokio::task::spawn_blocking(move || {
        let folder = fs::File::open(&volume).map_err(|e| RestoreError::file(&volume, &e))?;
        nix::unistd::syncfs(&folder).map_err(|e| RestoreError::file(&volume, &e))
    });
    synced.await.map_err(|e| RestoreError::NotStopped(e.to_string()))?
}

fn private(folder: &Path) -> Result<(), RestoreError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|e| RestoreError::file(folder, &e))
}

fn remove_file(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RestoreError::file(path, &e)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RestoreError::file(path, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::wire::HistoryPath;
    use holdfast_postgresql::Lsn;

    fn complete(volume: &Path, data_set: &str) {
        fs::create_dir_all(data_directory(volume)).unwrap();
        fs::write(data_directory(volume).join("PG_VERSION"), "17").unwrap();
        State { data_set: data_set.into(), ..State::default() }.store(volume).unwrap();
    }

    #[test]
    fn a_finished_run_is_found_again_and_another_data_set_is_not_touched() {
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        assert_eq!(Finished::load(volume, "d1").unwrap(), None);
        let finished = Finished {
            data_set: "d1".into(),
            result: WorkerResult::Deleted,
            origin: Origin {
                parent: HistoryPath::default(),
                timeline: 1,
                lsn: Lsn(7),
                wal_segment_size: 16 << 20,
            },
        };
        finished.store(volume).unwrap();
        assert_eq!(Finished::load(volume, "d1").unwrap(), None, "without a state nothing is complete");
        complete(volume, "d1");
        assert_eq!(Finished::load(volume, "d1").unwrap(), Some(finished));
        assert!(matches!(Finished::load(volume, "d2"), Err(RestoreError::VolumeInUse { .. })));
    }

    #[test]
    fn what_is_half_filled_goes_and_the_data_directory_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let volume = tempfile::tempdir().unwrap();
        let volume = volume.path();
        fs::create_dir(volume.join("lost+found")).unwrap();
        fs::create_dir_all(volume.join("pgdata/base/1")).unwrap();
        fs::write(volume.join("rest"), "x").unwrap();
        clear(volume).unwrap();
        let left: Vec<_> = fs::read_dir(volume).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lost+found"]);
        let data = make_data(volume).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["postmaster.pid", "standby.signal"] {
            fs::write(data.join(name), "").unwrap();
        }
        fs::create_dir_all(data.join("pg_replslot/old")).unwrap();
        prepare(&data).unwrap();
        assert!(data.join("recovery.signal").exists() && !data.join("standby.signal").exists());
        assert!(!data.join("pg_replslot/old").exists() && data.join("pg_wal/archive_status").exists());
        tidy(&data).unwrap();
        assert!(!data.join("recovery.signal").exists());
    }
}
