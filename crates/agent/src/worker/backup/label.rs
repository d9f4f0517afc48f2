//! What PostgreSQL's `backup_label` and `backup_manifest` say of a backup. Pure.

use holdfast_postgresql::Lsn;
use serde::Deserialize;

/// A file does not say what it should.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// A line is missing or unreadable.
    #[error("backup_label has no usable line {0:?}")]
    Line(&'static str),
    /// The end of the manifest has no WAL ranges.
    #[error("backup_manifest has no usable WAL-Ranges: {0}")]
    Ranges(String),
}

/// The lines of `backup_label` that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// On which timeline.
    pub timeline: u32,
}

impl Label {
    /// Reads `backup_label`.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let word = |line: &'static str| {
            let rest = text.lines().find_map(|l| l.strip_prefix(line));
            rest.and_then(|r| r.trim_start_matches(':').split_whitespace().next())
                .ok_or(LabelError::Line(line))
        };
        const START: &str = "START WAL LOCATION";
        const TIMELINE: &str = "START TIMELINE";
        Ok(Self {
            start_lsn: word(START)?.parse().map_err(|_| LabelError::Line(START))?,
            timeline: word(TIMELINE)?.parse().map_err(|_| LabelError::Line(TIMELINE))?,
        })
    }
}

/// The WAL that makes a backup consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// Timeline at the end.
    pub timeline: u32,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    timeline: u32,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl WalRange {
    /// Reads the end of `backup_manifest`. When the timeline changed during the backup there are several ranges, and the newest counts.
    pub fn parse(end: &str) -> Result<Self, LabelError> {
        let missing = || LabelError::Ranges("there are none".into());
        // A path could hold the word too, so the last one is it: nothing but the manifest's checksum comes after.
        let (_, after) = end.rsplit_once("\"WAL-Ranges\":").ok_or_else(missing)?;
        let list = &after[..=after.find(']').ok_or_else(missing)?];
        let ranges: Vec<Range> =
            serde_json::from_str(list.trim()).map_err(|e| LabelError::Ranges(e.to_string()))?;
        let newest = ranges.iter().max_by_key(|r| r.timeline).ok_or_else(missing)?;
        Ok(Self { timeline: newest.timeline, stop_lsn: newest.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2026-11-21 02:00:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_the_label() {
        assert_eq!(Label::parse(LABEL), Ok(Label { start_lsn: Lsn(0x200_0028), timeline: 1 }));
        assert_eq!(Label::parse("LABEL: x\n"), Err(LabelError::Line("START WAL LOCATION")));
        let without = LABEL.replace("START TIMELINE: 1", "START TIMELINE: one");
        assert_eq!(Label::parse(&without), Err(LabelError::Line("START TIMELINE")));
    }

    #[test]
    fn reads_the_end_of_the_manifest() {
        let end = "98fe\" }\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n\
            \"Manifest-Checksum\": \"12\"}\n";
        assert_eq!(WalRange::parse(end), Ok(WalRange { timeline: 1, stop_lsn: Lsn(0x200_0100) }));
        let two = end.replace(
            "0/2000100\" }",
            "0/2000100\" },\n{ \"Timeline\": 2, \"Start-LSN\": \"0/2000100\", \"End-LSN\": \"0/2000200\" }",
        );
        assert_eq!(WalRange::parse(&two).map(|r| r.timeline), Ok(2));
        assert!(WalRange::parse("\"WAL-Ranges\": [],").is_err());
        assert!(WalRange::parse("nothing").is_err());
    }
}
