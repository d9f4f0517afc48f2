//! Bounds on the speed of devices, by version 1 of the blkio control groups. A bound there counts for the processes of one group only,
//! not for those of the groups below it, and each container is a group of its own. So every bound is written to every group, and
//! again to those that appear.

use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const GROUPS: &str = "/sys/fs/cgroup/blkio";
const WRITE: &str = "blkio.throttle.write_bps_device";
const READ: &str = "blkio.throttle.read_bps_device";
/// How long a new container may go without its bounds.
const PERIOD: Duration = Duration::from_millis(250);

/// Bytes a second; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speed {
    /// Of writes.
    pub write: u64,
    /// Of reads.
    pub read: u64,
}

/// The bounds of all devices that are or were ours, by their numbers.
#[derive(Clone)]
pub struct Throttles {
    bounds: Arc<Mutex<BTreeMap<String, Speed>>>,
    groups: PathBuf,
}

impl Throttles {
    #[allow(clippy::new_without_default)] // nothing about it is a default: it looks at this machine
    /// No bounds yet.
    pub fn new() -> Self {
        Self { bounds: Arc::default(), groups: GROUPS.into() }
    }

    /// A device of ours that was found: bounds on it count as left over until they are set again.
    pub fn adopt(&self, device: &str) {
        self.lock().entry(device.to_string()).or_default();
        self.sweep();
    }

    /// Bounds a device from now on, or frees it. A number that another file's device had before starts free.
    pub fn set(&self, device: &str, speed: Speed) -> Result<()> {
        if self.works() {
            // A number that was never seen may carry what an earlier process left.
            let before = self.lock().insert(device.to_string(), speed);
            if before != Some(speed) {
                self.sweep();
            }
        } else if speed != Speed::default() {
            bail!(
                "there is no version 1 of the blkio control groups at {}, so nothing can be slowed",
                self.groups.display()
            );
        }
        Ok(())
    }

    fn works(&self) -> bool {
        self.groups.join(WRITE).exists()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Speed>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the bounds to groups that appear. Never ends.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            if self.lock().values().any(|speed| *speed != Speed::default()) {
                let all = self.clone();
                if let Err(error) = tokio::task::spawn_blocking(move || all.sweep()).await {
                    tracing::warn!(%error, "bounds were not brought to new groups");
                }
            }
        }
    }

    fn sweep(&self) {
        let bounds = self.lock().clone();
        let mut folders = vec![self.groups.clone()];
        while let Some(folder) = folders.pop() {
            for (file, of) in [(WRITE, (|s| s.write) as fn(&Speed) -> u64), (READ, |s| s.read)] {
                let wanted = bounds.iter().map(|(device, speed)| (device.as_str(), of(speed)));
                settle(&folder.join(file), wanted);
            }
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
    }
}

/// Writes what differs: each write begins a new period of counting, so repeating it would let more through.
fn settle<'a>(file: &Path, wanted: impl Iterator<Item = (&'a str, u64)>) {
    // A group that ends meanwhile has no such file any more.
    let Ok(table) = std::fs::read_to_string(file) else { return };
    for (device, bytes) in wanted.filter(|(device, bytes)| bound(&table, device) != *bytes) {
        if let Err(error) = std::fs::write(file, format!("{device} {bytes}\n"))
            && file.exists()
        {
            tracing::warn!(%error, device, bytes, file = %file.display(), "a bound was not taken");
        }
    }
}

/// The bound of a device in a table of lines such as `7:3 1048576`; 0 is none.
fn bound(table: &str, device: &str) -> u64 {
    let lines = table.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(name, _)| *name == device).find_map(|(_, bytes)| bytes.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_found_by_the_whole_number() {
        let table = "7:10 5\n7:1 4194304\n";
        assert_eq!(bound(table, "7:1"), 4_194_304);
        assert_eq!(bound(table, "7:10"), 5);
        assert_eq!(bound(table, "7:0"), 0);
    }

    #[test]
    fn where_nothing_can_be_slowed_only_slowing_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        let all = Throttles { bounds: Arc::default(), groups: empty.path().into() };
        assert!(all.set("7:1", Speed::default()).is_ok());
        let error = all.set("7:1", Speed { write: 1, read: 0 }).unwrap_err().to_string();
        assert!(error.contains("blkio"), "{error}");
    }

    #[test]
    fn every_group_gets_the_bounds_and_only_what_differs_is_written() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("kubepods/agate");
        std::fs::create_dir_all(&below).unwrap();
        for folder in [root.path(), &root.path().join("kubepods"), &below] {
            std::fs::write(folder.join(WRITE), "").unwrap();
            std::fs::write(folder.join(READ), "7:5 9\n").unwrap();
        }
        let all = Throttles { bounds: Arc::default(), groups: root.path().into() };
        all.set("7:5", Speed { write: 3, read: 9 }).unwrap();
        assert_eq!(std::fs::read_to_string(below.join(WRITE)).unwrap(), "7:5 3\n");
        assert_eq!(std::fs::read_to_string(below.join(READ)).unwrap(), "7:5 9\n");
        assert_eq!(std::fs::read_to_string(root.path().join(WRITE)).unwrap(), "7:5 3\n");
    }
}
