//! Names of the files in `pg_wal` and in an archive.
//!
//! PostgreSQL's rules: `XLogFileName` and friends in `src/include/access/xlog_internal.h`.

use crate::Lsn;
use std::{fmt, str::FromStr};

/// Default size of a segment, bytes.
pub const DEFAULT_SEGMENT_SIZE: u64 = 16 * 1024 * 1024;

/// A WAL segment: its timeline and its number counted from the beginning of the WAL.
///
/// The name depends on the segment size, so the number is kept as the two halves that the name shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Timeline.
    pub timeline: u32,
    /// High part: position divided by 4 GiB.
    pub log: u32,
    /// Low part: segment inside those 4 GiB.
    pub segment: u32,
}

/// The text is no name of a WAL file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not the name of a WAL file")]
pub struct InvalidName(pub String);

impl SegmentName {
    /// The segment that holds the byte at `lsn`.
    pub fn containing(timeline: u32, lsn: Lsn, segment_size: u64) -> Self {
        Self::from_number(timeline, lsn.0 / segment_size, segment_size)
    }

    /// The segment that holds the last byte before `lsn`: what must be archived so that replay can reach `lsn`.
    pub fn ending_at(timeline: u32, lsn: Lsn, segment_size: u64) -> Self {
        Self::containing(timeline, Lsn(lsn.0.saturating_sub(1)), segment_size)
    }

    /// From its number.
    pub fn from_number(timeline: u32, number: u64, segment_size: u64) -> Self {
        let per_log = 0x1_0000_0000 / segment_size;
        // Both halves fit: a 64-bit position over at least 1 MiB leaves 44 bits, split at 4 GiB.
        Self { timeline, log: (number / per_log) as u32, segment: (number % per_log) as u32 }
    }

    /// Its number, counted from the beginning of the WAL.
    pub fn number(&self, segment_size: u64) -> u64 {
        u64::from(self.log) * (0x1_0000_0000 / segment_size) + u64::from(self.segment)
    }

    /// The segment after it on the same timeline.
    pub fn next(&self, segment_size: u64) -> Self {
        Self::from_number(self.timeline, self.number(segment_size) + 1, segment_size)
    }

    /// Position of its first byte.
    pub fn start(&self, segment_size: u64) -> Lsn {
        Lsn(self.number(segment_size) * segment_size)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

fn hex(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for SegmentName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.to_string());
        if text.len() != 24 || !text.is_ascii() {
            return Err(invalid());
        }
        let part = |from: usize| hex(&text[from..from + 8]).ok_or_else(invalid);
        Ok(Self { timeline: part(0)?, log: part(8)?, segment: part(16)? })
    }
}

/// Any file that PostgreSQL hands to its archive command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalFile {
    /// A whole segment.
    Segment(SegmentName),
    /// The beginning of a segment, left by a promotion.
    Partial(SegmentName),
    /// A timeline's history.
    History(u32),
    /// A backup's history file: `<segment>.<offset>.backup`.
    Backup(String, SegmentName),
}

impl WalFile {
    /// Timeline in its name.
    pub fn timeline(&self) -> u32 {
        match self {
            Self::Segment(s) | Self::Partial(s) | Self::Backup(_, s) => s.timeline,
            Self::History(t) => *t,
        }
    }
}

impl FromStr for WalFile {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.to_string());
        if let Some(timeline) = text.strip_suffix(".history") {
            return hex(timeline).map(Self::History).ok_or_else(invalid);
        }
        if let Some(segment) = text.strip_suffix(".partial") {
            return segment.parse().map(Self::Partial);
        }
        if let Some(rest) = text.strip_suffix(".backup") {
            let (segment, offset) = rest.split_once('.').ok_or_else(invalid)?;
            hex(offset).ok_or_else(invalid)?;
            return Ok(Self::Backup(text.to_string(), segment.parse()?));
        }
        text.parse().map(Self::Segment)
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(s) => write!(f, "{s}"),
            Self::Partial(s) => write!(f, "{s}.partial"),
            Self::History(t) => write!(f, "{t:08X}.history"),
            Self::Backup(name, _) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_and_numbered_as_postgresql_does() {
        let size = DEFAULT_SEGMENT_SIZE;
        let name = SegmentName::containing(1, "0/5000060".parse().unwrap(), size);
        assert_eq!(name.to_string(), "000000010000000000000005");
        assert_eq!("000000010000000000000005".parse::<SegmentName>().unwrap(), name);
        let last = "0000000100000000000000FF".parse::<SegmentName>().unwrap();
        assert_eq!(last.next(size).to_string(), "000000010000000100000000");
        assert_eq!(last.next(size).start(size).to_string(), "1/0");
        // With 64 MiB segments there are 64 of them in 4 GiB.
        let big = 64 * 1024 * 1024;
        assert_eq!(
            "00000001000000000000003F".parse::<SegmentName>().unwrap().next(big).to_string(),
            "000000010000000100000000"
        );
        // A position on the boundary belongs to the next segment, yet replay up to it needs only the one before.
        let boundary = Lsn(6 * size);
        assert_eq!(SegmentName::containing(1, boundary, size).segment, 6);
        assert_eq!(SegmentName::ending_at(1, boundary, size).segment, 5);
    }

    #[test]
    fn tells_the_archive_commands_files_apart() {
        let segment = "00000002000000000000000A";
        assert!(matches!(segment.parse(), Ok(WalFile::Segment(_))));
        assert!(matches!(format!("{segment}.partial").parse(), Ok(WalFile::Partial(_))));
        assert_eq!("00000002.history".parse(), Ok(WalFile::History(2)));
        assert!(matches!(format!("{segment}.00000028.backup").parse(), Ok(WalFile::Backup(..))));
        for name in [
            "",
            "archive_status",
            "00000002000000000000000a",
            "../00000002.history",
            "00000002000000000000000A.backup",
            "x.history",
        ] {
            assert!(name.parse::<WalFile>().is_err(), "{name}");
        }
        for name in [segment, "00000002.history", "00000002000000000000000A.00000028.backup"] {
            assert_eq!(name.parse::<WalFile>().unwrap().to_string(), name);
        }
    }
}
