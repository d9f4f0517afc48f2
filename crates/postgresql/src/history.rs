//! Timeline history files: where each timeline left its parent.
//!
//! Format: `src/backend/access/transam/timeline.c`: lines of parent timeline, tab, LSN of the fork, tab, reason; oldest first.

use crate::Lsn;

/// One fork: up to `until` the WAL is on `timeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The parent.
    pub timeline: u32,
    /// Where it was left.
    pub until: Lsn,
}

/// The lineage of a timeline, oldest ancestor first. Timeline 1 has no file and an empty lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself.
    pub timeline: u32,
    /// Its ancestors.
    pub forks: Vec<Fork>,
}

/// A line is not what PostgreSQL writes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the history of timeline {timeline} cannot be read: {text:?}")]
pub struct InvalidHistory {
    /// The timeline.
    pub timeline: u32,
    /// Line number from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl TimelineHistory {
    /// Timeline 1, or one whose ancestors do not matter.
    pub fn root(timeline: u32) -> Self {
        Self { timeline, forks: Vec::new() }
    }

    /// Reads a `.history` file.
    pub fn parse(timeline: u32, text: &str) -> Result<Self, InvalidHistory> {
        let mut forks: Vec<Fork> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let invalid = || InvalidHistory { timeline, line: index + 1, text: line.to_string() };
            let mut words = content.split_whitespace();
            let parent = words.next().and_then(|w| w.parse().ok()).ok_or_else(invalid)?;
            let until = words.next().and_then(|w| w.parse().ok()).ok_or_else(invalid)?;
            if parent >= timeline || forks.last().is_some_and(|f| f.timeline >= parent) {
                return Err(invalid());
            }
            forks.push(Fork { timeline: parent, until });
        }
        Ok(Self { timeline, forks })
    }

    /// The timeline that holds the byte at `lsn` on the way to this timeline.
    pub fn timeline_at(&self, lsn: Lsn) -> u32 {
        self.forks.iter().find(|f| lsn < f.until).map_or(self.timeline, |f| f.timeline)
    }

    /// Whether a backup or a standby that is on `timeline` at `lsn` can be replayed along this lineage.
    pub fn contains(&self, timeline: u32, lsn: Lsn) -> bool {
        if timeline == self.timeline {
            return true;
        }
        self.forks.iter().any(|f| f.timeline == timeline && lsn <= f.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIRD: &str =
        "1\t0/4000110\tno recovery target specified\n\n2\t0/6000000\tbefore 2026-11-21 09:13:00+00\n";

    #[test]
    fn reads_lineages() {
        let history = TimelineHistory::parse(3, THIRD).unwrap();
        assert_eq!(history.forks.len(), 2);
        assert_eq!(history.timeline_at(Lsn(0x400_0000)), 1);
        assert_eq!(history.timeline_at(Lsn(0x400_0110)), 2);
        assert_eq!(history.timeline_at(Lsn(0x700_0000)), 3);
        assert!(history.contains(1, Lsn(0x400_0110)) && !history.contains(1, Lsn(0x400_0111)));
        assert!(history.contains(3, Lsn(u64::MAX)) && !history.contains(4, Lsn(0)));
    }

    #[test]
    fn refuses_what_postgresql_does_not_write() {
        for bad in ["x\t0/1\n", "1\n", "3\t0/1\n", "2\t0/1\n1\t0/2\n"] {
            assert!(TimelineHistory::parse(3, bad).is_err(), "{bad:?}");
        }
    }
}
