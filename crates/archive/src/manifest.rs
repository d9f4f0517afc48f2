//! What a backup says of itself: `manifest.json`. Pure.
//!
//! It is written last and only once. It suffices, with the objects that it names, to restore without any other knowledge: also in a
//! new cluster, also by hand.

use holdfast_core::{crd::backup::CompressionAlgorithm, wire::HistoryPath};
use holdfast_postgresql::{Lsn, wal::SegmentName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The format that this code writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// A whole backup.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT`].
    pub format_version: u32,
    /// Where it lies.
    pub history: HistoryPath,
    /// uid of the Database that it was taken of.
    pub database_uid: String,
    /// Spec of that Database at the time.
    pub database_spec: serde_json::Value,
    /// Name of the Backup object.
    pub backup_name: String,
    /// uid of the Backup object: the folder's name.
    pub backup_uid: String,
    /// The BackupSchedule that made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Version of the server, such as 17.11.
    pub server_version: String,
    /// Timeline, the same at start and stop.
    pub timeline: u32,
    /// First WAL position needed.
    #[serde(rename = "startLSN")]
    pub start_lsn: Lsn,
    /// Consistent from this WAL position on.
    #[serde(rename = "stopLSN")]
    pub stop_lsn: Lsn,
    /// When it began, by the server's clock.
    pub start_time: Timestamp,
    /// When it was over, by the server's clock: no earlier moment can be reached with it.
    pub stop_time: Timestamp,
    /// Segment size, bytes.
    pub wal_segment_size: u64,
    /// How the parts are compressed.
    pub compression: CompressionAlgorithm,
    /// The parts in order, each a whole tar archive.
    pub parts: Vec<Part>,
    /// PostgreSQL's own manifest, which is also the last file in the last part.
    pub backup_manifest: Part,
    /// Settings that a server must have at least as high to replay the WAL.
    pub settings: Settings,
    /// Bytes of the tar stream.
    pub size: u64,
    /// Bytes of all parts in the store.
    pub stored_size: u64,
    /// How the objects were read back before this file was written.
    pub verified: Verified,
}

/// An object of a backup.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Name inside the backup's folder.
    pub name: String,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// SHA-256 of the object in the store, hexadecimal.
    pub sha256: String,
    /// SHA-256 before compression, hexadecimal.
    pub plain_sha256: String,
}

/// `max_…` settings that hot standby and recovery compare with those in the WAL.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// max_connections.
    pub max_connections: i64,
    /// max_worker_processes.
    pub max_worker_processes: i64,
    /// max_wal_senders.
    pub max_wal_senders: i64,
    /// max_prepared_transactions.
    pub max_prepared_transactions: i64,
    /// max_locks_per_transaction.
    pub max_locks_per_transaction: i64,
}

/// How objects were read back.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verified {
    /// Every object was read again from the store and its SHA-256 compared.
    #[default]
    ReadAgain,
}

/// A manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this shape.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Written by a newer Holdfast.
    #[error("it has format {0}; this version of Holdfast reads up to {FORMAT}")]
    Newer(u32),
    /// It describes no possible backup.
    #[error("it makes no sense: {0}")]
    Senseless(&'static str),
}

impl Manifest {
    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// When it cannot be read, is of a newer format, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        // The version first: a newer format may lack what this one requires.
        let Version { format_version } = serde_json::from_slice(bytes)?;
        if format_version > FORMAT {
            return Err(ManifestError::Newer(format_version));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        let size = manifest.wal_segment_size;
        if !size.is_power_of_two() || !(1 << 20..=1 << 30).contains(&size) {
            return Err(ManifestError::Senseless(
                "walSegmentSize is no power of two between 1 MiB and 1 GiB",
            ));
        }
        if manifest.start_lsn >= manifest.stop_lsn {
            return Err(ManifestError::Senseless("stopLSN is not after startLSN"));
        }
        if manifest.parts.is_empty() {
            return Err(ManifestError::Senseless("there are no parts"));
        }
        if manifest
            .parts
            .iter()
            .chain([&manifest.backup_manifest])
            .any(|p| p.name.is_empty() || p.name.contains('/'))
        {
            return Err(ManifestError::Senseless("a part's name is no name of a file"));
        }
        Ok(manifest)
    }

    /// The segments that make the backup consistent: without each of them it is worth nothing.
    pub fn needed_segments(&self) -> impl Iterator<Item = SegmentName> + use<> {
        segments(self.timeline, self.start_lsn, self.stop_lsn, self.wal_segment_size)
    }

    /// Major version: `17` of 17.11.
    pub fn major(&self) -> &str {
        self.server_version.split('.').next().unwrap_or_default()
    }
}

/// The segments from the one with `start` to the one with the last byte before `stop`.
pub fn segments(
    timeline: u32,
    start: Lsn,
    stop: Lsn,
    size: u64,
) -> impl Iterator<Item = SegmentName> + use<> {
    let first = SegmentName::containing(timeline, start, size).number(size);
    let last = SegmentName::ending_at(timeline, stop, size).number(size);
    (first..=last).map(move |number| SegmentName::from_number(timeline, number, size))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A backup for tests: 16 MiB segments, one per ten minutes of the story.
    pub(crate) fn backup(uid: &str, timeline: u32, start: &str, stop: &str, stop_time: &str) -> Manifest {
        let stop_time: Timestamp = stop_time.parse().unwrap();
        Manifest {
            format_version: FORMAT,
            history: HistoryPath::default(),
            database_uid: "u".into(),
            database_spec: serde_json::json!({"version": "17"}),
            backup_name: uid.into(),
            backup_uid: uid.into(),
            schedule: None,
            server_version: "17.11".into(),
            timeline,
            start_lsn: start.parse().unwrap(),
            stop_lsn: stop.parse().unwrap(),
            start_time: stop_time - std::time::Duration::from_secs(60),
            stop_time,
            wal_segment_size: 16 << 20,
            compression: CompressionAlgorithm::Zstd,
            parts: vec![Part { name: "000000.tar.zst".into(), ..Part::default() }],
            backup_manifest: Part { name: "backup_manifest".into(), ..Part::default() },
            settings: Settings::default(),
            size: 10,
            stored_size: 5,
            verified: Verified::ReadAgain,
        }
    }

    #[test]
    fn survives_the_store_and_names_the_segments_it_needs() {
        let manifest = backup("b1", 1, "0/2000028", "0/4000000", "2026-11-20T02:00:00Z");
        let read = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert_eq!(read, manifest);
        let names: Vec<String> = read.needed_segments().map(|s| s.to_string()).collect();
        assert_eq!(names, ["000000010000000000000002", "000000010000000000000003"]);
        assert_eq!(read.major(), "17");
    }

    #[test]
    fn refuses_what_is_newer_or_makes_no_sense() {
        assert!(matches!(Manifest::parse(br#"{"formatVersion": 9}"#), Err(ManifestError::Newer(9))));
        assert!(matches!(Manifest::parse(b"{"), Err(ManifestError::Unreadable(_))));
        let mut bad = backup("b1", 1, "0/2000028", "0/4000000", "2026-11-20T02:00:00Z");
        bad.parts[0].name = "../../etc".into();
        assert!(matches!(
            Manifest::parse(&serde_json::to_vec(&bad).unwrap()),
            Err(ManifestError::Senseless(_))
        ));
    }
}
