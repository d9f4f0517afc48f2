//! Segments of which a standby does not know that they are to be archived.
//!
//! With `archive_mode=always` the WAL receiver marks a segment when it has completed it. The last one of a copy came with the copy, and
//! if the primary had ended it meanwhile the receiver begins behind it: then it bears no mark until a restartpoint looks at it, and a
//! backup from this standby waits for minutes. It is marked here, as PostgreSQL would.

use super::{member::Member, sql::Look};
use crate::state::data_directory;
use holdfast_core::wire::AgentConfig;
use holdfast_postgresql::{
    Lsn,
    wal::{SegmentName, WalFile},
};
use std::{fs::File, io, path::Path, time::Duration};
use tokio::time::Instant;

/// How often the folder is looked through.
const EVERY: Duration = Duration::from_secs(5);

/// Marks those that are complete, which is what lies before the one that is received now. Gives their names.
fn mark(wal: &Path, receives: &SegmentName) -> io::Result<Vec<String>> {
    let mut marked = Vec::new();
    for entry in std::fs::read_dir(wal)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let Ok(WalFile::Segment(segment)) = name.parse::<WalFile>() else { continue };
        if segment.timeline != receives.timeline || name >= receives.to_string() {
            continue;
        }
        let status = |mark: &str| wal.join("archive_status").join(format!("{name}.{mark}"));
        // In this order: the first becomes the second by being renamed.
        if status("ready").exists() || status("done").exists() {
            continue;
        }
        match File::create_new(status("ready")) {
            Ok(_) => marked.push(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(marked)
}

impl Member {
    /// Marks what the running, streaming standby has not noticed. Failures do no harm: the next restartpoint does the same.
    pub(super) fn mark_unnoticed(&mut self, config: &AgentConfig, look: &Look) {
        let due = self.memory.marked.is_none_or(|at| at.elapsed() > EVERY);
        if config.archive.is_none() || !look.streaming || look.ends.1 == Lsn(0) || !due {
            return;
        }
        self.memory.marked = Some(Instant::now());
        let size = u64::try_from(config.wal_segment_size_mb).unwrap_or(16) << 20;
        let receives = SegmentName::containing(look.timeline, look.ends.1, size);
        match mark(&data_directory(&self.volume).join("pg_wal"), &receives) {
            Ok(marked) if marked.is_empty() => {}
            Ok(marked) => tracing::info!(?marked, "segments that came with the copy are to be archived"),
            Err(error) => tracing::warn!(%error, "looking for segments that bear no mark"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_segments_of_this_timeline_without_a_mark_get_one() {
        let wal = tempfile::tempdir().unwrap();
        let status = wal.path().join("archive_status");
        std::fs::create_dir(&status).unwrap();
        let segment = |timeline: u32, number: u32| format!("{timeline:08X}{:08X}{number:08X}", 0);
        for name in [
            segment(3, 8),
            segment(3, 9),
            segment(3, 10),
            segment(3, 11),
            segment(3, 12),
            segment(2, 9),
            "00000003.history".into(),
            "xlogtemp.7".into(),
        ] {
            std::fs::write(wal.path().join(name), "").unwrap();
        }
        std::fs::write(status.join(format!("{}.done", segment(3, 8))), "").unwrap();
        std::fs::write(status.join(format!("{}.ready", segment(3, 9))), "").unwrap();
        let receives = SegmentName::containing(3, Lsn(11 << 24), 16 << 20);
        assert_eq!(mark(wal.path(), &receives).unwrap(), [segment(3, 10)]);
        assert!(status.join(format!("{}.ready", segment(3, 10))).exists());
        assert!(mark(wal.path(), &receives).unwrap().is_empty());
    }
}
