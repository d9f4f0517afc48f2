//! What the volume says of itself: `<volume>/agent/state.json`, beside the data directory.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// Whose data a volume holds. Written only when the data directory is complete.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The data set.
    pub data_set: String,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// The archive history that it writes to.
    pub history: String,
    /// A restore filled it, and no instance has led it yet.
    #[serde(default)]
    pub unled: bool,
    /// The pod whose volume this is; empty: a worker filled it, and no instance has begun on it. Another pod's name: the volume is
    /// a clone of that one's.
    #[serde(default)]
    pub member: String,
}

/// The data directory on a volume.
pub fn data_directory(volume: &Path) -> PathBuf {
    volume.join("pgdata")
}

fn file(volume: &Path) -> PathBuf {
    volume.join("agent").join("state.json")
}

impl State {
    /// Reads it; `None`: the volume holds no complete data.
    pub fn load(volume: &Path) -> anyhow::Result<Option<Self>> {
        let path = file(volume);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let state = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(data_directory(volume).join("PG_VERSION").exists().then_some(state))
    }

    /// Writes it durably: a crash leaves the old or the new, never a half.
    pub fn store(&self, volume: &Path) -> anyhow::Result<()> {
        let path = file(volume);
        let folder = path.parent().context("state file without a folder")?;
        fs::create_dir_all(folder)?;
        write_durably(&path, &serde_json::to_vec_pretty(self)?)
    }

    /// Begins on a volume as this pod. A clone of another's volume is what a power failure would have left of that one: from here
    /// on it is a standby's, also when it was the primary's. Taken for a former primary's it would be brought to a clean
    /// shutdown first, which writes WAL that the primary does not have. Slots stay behind, as with any other copy: nobody reads
    /// from these, and they would hold back WAL for ever.
    pub fn begin(volume: &Path, pod: &str) -> anyhow::Result<Option<Self>> {
        let Some(state) = Self::load(volume)? else { return Ok(None) };
        if state.member == pod {
            return Ok(Some(state));
        }
        if !state.member.is_empty() {
            tracing::info!(of = state.member, "this volume is a clone");
            // The promise is another member's.
            match fs::remove_file(volume.join("agent").join("promise.json")) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
            let data = data_directory(volume);
            write_durably(&data.join("standby.signal"), b"")?;
            sync_folder(&data)?;
            let slots = data.join("pg_replslot");
            for slot in fs::read_dir(&slots).with_context(|| format!("reading {}", slots.display()))? {
                fs::remove_dir_all(slot?.path()).context("removing a slot of the clone's source")?;
            }
        }
        let own = Self { member: pod.into(), ..state };
        own.store(volume)?;
        Ok(Some(own))
    }

    /// Removes it: from here on the volume counts as empty.
    pub fn remove(volume: &Path) -> anyhow::Result<()> {
        match fs::remove_file(file(volume)) {
            Ok(()) => sync_folder(&volume.join("agent")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Replaces a file so that a crash leaves either content, whole.
pub fn write_durably(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut out =
        fs::File::create(&temporary).with_context(|| format!("creating {}", temporary.display()))?;
    out.write_all(content)?;
    out.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Makes renames and deletions in a folder durable.
pub fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_becomes_a_standby_and_a_volume_of_ones_own_stays_what_it_is() {
        let volume = tempfile::tempdir().unwrap();
        let data = data_directory(volume.path());
        assert_eq!(State::begin(volume.path(), "papers-0").unwrap(), None);
        fs::create_dir_all(data.join("pg_replslot/reader")).unwrap();
        fs::write(data.join("pg_replslot/reader/state"), "x").unwrap();
        fs::write(data.join("PG_VERSION"), "17").unwrap();
        State { data_set: "d1".into(), unled: true, ..State::default() }.store(volume.path()).unwrap();
        for _ in 0..2 {
            let own = State::begin(volume.path(), "papers-0").unwrap().unwrap();
            assert_eq!((own.member.as_str(), own.unled), ("papers-0", true));
            assert!(!data.join("standby.signal").exists() && data.join("pg_replslot/reader/state").exists());
        }
        let clone = State::begin(volume.path(), "papers-1").unwrap().unwrap();
        assert_eq!((clone.member.as_str(), clone.data_set.as_str()), ("papers-1", "d1"));
        assert!(data.join("standby.signal").exists() && !data.join("pg_replslot/reader").exists());
        assert_eq!(State::load(volume.path()).unwrap(), Some(clone));
    }

    #[test]
    fn a_state_without_data_counts_as_empty() {
        let volume = tempfile::tempdir().unwrap();
        assert_eq!(State::load(volume.path()).unwrap(), None);
        let state = State { data_set: "d1".into(), ..State::default() };
        state.store(volume.path()).unwrap();
        assert_eq!(State::load(volume.path()).unwrap(), None);
        fs::create_dir_all(data_directory(volume.path())).unwrap();
        fs::write(data_directory(volume.path()).join("PG_VERSION"), "17").unwrap();
        assert_eq!(State::load(volume.path()).unwrap(), Some(state));
        State::remove(volume.path()).unwrap();
        assert_eq!(State::load(volume.path()).unwrap(), None);
    }
}
