//! Where things lie in a store. Pure.
//!
//! ```text
//! <namespace>/<database>/<system identifier>/<history>/
//!   owner.json                          who may write here
//!   history.json                        where this history left its parent
//!   base/<backup uid>/000000.tar.zst …  whole tar archives
//!   base/<backup uid>/backup_manifest   PostgreSQL's own
//!   base/<backup uid>/manifest.json     last: a backup without it does not exist
//!   wal/<timeline>/<segment>.zst        also <segment>.partial.zst, <segment>.<offset>.backup
//!   wal/<timeline>.history
//! ```
//!
//! Keys have no slash in front; the store adds its own prefix or folder.

use holdfast_core::{crd::backup::CompressionAlgorithm, wire::HistoryPath};
use holdfast_postgresql::wal::WalFile;
use std::fmt;

/// The folder of one history: everything that one line of data wrote since its initdb or its restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFolder(HistoryPath);

impl HistoryFolder {
    /// The folder of this history.
    pub fn new(path: &HistoryPath) -> Self {
        Self(path.clone())
    }

    /// The path that it was made from.
    pub fn path(&self) -> &HistoryPath {
        &self.0
    }

    /// The folder's key, without a slash at the end.
    pub fn key(&self) -> String {
        let HistoryPath { namespace, database, system_identifier, history } = &self.0;
        format!("{namespace}/{database}/{system_identifier}/{history}")
    }

    /// Who may write here.
    pub fn owner(&self) -> String {
        format!("{self}/owner.json")
    }

    /// Where this history left its parent.
    pub fn lineage(&self) -> String {
        format!("{self}/history.json")
    }

    /// The folder of all backups.
    pub fn bases(&self) -> String {
        format!("{self}/base")
    }

    /// The folder of one backup.
    pub fn base(&self, backup_uid: &str) -> String {
        format!("{self}/base/{backup_uid}")
    }

    /// A backup's manifest: what makes it one.
    pub fn manifest(&self, backup_uid: &str) -> String {
        format!("{self}/base/{backup_uid}/manifest.json")
    }

    /// PostgreSQL's own manifest of a backup.
    pub fn backup_manifest(&self, backup_uid: &str) -> String {
        format!("{self}/base/{backup_uid}/backup_manifest")
    }

    /// One object of a backup, by the name that its manifest gives.
    pub fn part(&self, backup_uid: &str, name: &str) -> String {
        format!("{self}/base/{backup_uid}/{name}")
    }

    /// The folder of all WAL.
    pub fn wals(&self) -> String {
        format!("{self}/wal")
    }

    /// A WAL file.
    pub fn wal(&self, file: &WalFile) -> String {
        match file {
            WalFile::History(_) => format!("{self}/wal/{file}"),
            WalFile::Segment(_) | WalFile::Partial(_) => {
                format!("{self}/wal/{:08X}/{file}.zst", file.timeline())
            }
            WalFile::Backup(..) => format!("{self}/wal/{:08X}/{file}", file.timeline()),
        }
    }

    /// Reads a WAL file's name from a key below [`Self::wals`]; None for anything that is not one.
    pub fn wal_file(&self, key: &str) -> Option<WalFile> {
        let name = key.rsplit('/').next()?;
        let file: WalFile = name.strip_suffix(".zst").unwrap_or(name).parse().ok()?;
        (self.wal(&file) == key).then_some(file)
    }
}

impl fmt::Display for HistoryFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

/// Name of the n-th part of a backup.
pub fn part_name(number: usize, algorithm: CompressionAlgorithm) -> String {
    match algorithm {
        CompressionAlgorithm::Zstd => format!("{number:06}.tar.zst"),
        CompressionAlgorithm::None => format!("{number:06}.tar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> HistoryFolder {
        HistoryFolder::new(&HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7501".into(),
            history: "d1234567".into(),
        })
    }

    #[test]
    fn wal_names_survive_the_way_to_a_key_and_back() {
        for name in [
            "000000010000000000000005",
            "000000010000000000000005.partial",
            "000000010000000000000005.00000028.backup",
            "00000002.history",
        ] {
            let file: WalFile = name.parse().unwrap();
            let key = folder().wal(&file);
            assert!(key.starts_with("shop/orders/7501/d1234567/wal/"), "{key}");
            assert_eq!(folder().wal_file(&key), Some(file));
        }
    }

    #[test]
    fn a_file_in_the_wrong_place_is_no_wal_file() {
        for key in
            ["wal/00000002/000000010000000000000005.zst", "wal/00000001/000000010000000000000005", "wal/x"]
        {
            assert_eq!(folder().wal_file(&format!("{}/{key}", folder())), None, "{key}");
        }
    }

    #[test]
    fn parts_sort_in_the_order_of_the_stream() {
        assert_eq!(part_name(7, CompressionAlgorithm::Zstd), "000007.tar.zst");
        assert!(part_name(9, CompressionAlgorithm::None) < part_name(10, CompressionAlgorithm::None));
    }
}
