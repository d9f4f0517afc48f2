//! What a volume holds in place of a data directory: whose data it is, where its WAL ends, and every commit in it. Pure.

use holdfast_archive::catalogue::Origin;
use holdfast_core::wire::WorkerResult;
use holdfast_postgresql::{
    Lsn,
    history::{Fork, TimelineHistory},
    wal::SegmentName,
};
use jiff::Timestamp;

/// Bytes of WAL that a commit takes.
const COMMIT: u64 = 0x100;
/// Where initdb leaves the WAL.
const BEGIN: u64 = 0x150_0000;

/// A commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Counts through all databases: no two commits have the same.
    pub id: u64,
    /// Timeline that it was written on.
    pub timeline: u32,
    /// End of its record.
    pub lsn: Lsn,
    /// When.
    pub time: Timestamp,
    /// What a client wrote; empty: the server's own.
    pub row: String,
}

/// A data directory with its state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The data set.
    pub data_set: String,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// A restore filled it and nobody has led it yet.
    pub unled: bool,
    /// The pod that began on it last; empty: none yet.
    pub member: String,
    /// It starts as a standby.
    pub standby: bool,
    /// The timeline and where each before it was left.
    pub lineage: TimelineHistory,
    /// End of the WAL.
    pub end: Lsn,
    /// Begin of the first segment that is not known to be in the store.
    pub unarchived: Lsn,
    /// Every commit.
    pub log: Vec<Commit>,
}

impl Data {
    /// What initdb makes.
    pub fn initialised(data_set: &str, system_identifier: &str, pod: &str, segment: u64) -> Self {
        Self {
            data_set: data_set.into(),
            system_identifier: system_identifier.into(),
            unled: false,
            member: pod.into(),
            standby: false,
            lineage: TimelineHistory::root(1),
            end: Lsn(BEGIN),
            unarchived: Lsn(BEGIN / segment * segment),
            log: Vec::new(),
        }
    }

    /// Timeline.
    pub fn timeline(&self) -> u32 {
        self.lineage.timeline
    }

    /// Writes a commit.
    pub fn commit(&mut self, id: u64, row: &str, time: Timestamp) {
        self.end.0 += COMMIT;
        self.log.push(Commit { id, timeline: self.timeline(), lsn: self.end, time, row: row.into() });
    }

    /// Ends the segment; one that has just begun stays.
    pub fn switch(&mut self, segment: u64) {
        self.end.0 = self.end.0.div_ceil(segment) * segment;
    }

    /// Leaves the timeline for a higher one.
    pub fn promote(&mut self, timeline: u32) {
        self.lineage.forks.push(Fork { timeline: self.lineage.timeline, until: self.end });
        self.lineage.timeline = timeline;
        self.standby = false;
    }

    /// Becomes what another has: by streaming from it, copying it, or rewinding to it.
    pub fn follow(&mut self, leader: &Data) {
        self.lineage.clone_from(&leader.lineage);
        self.end = leader.end;
        self.unarchived = leader.unarchived;
        self.log.clone_from(&leader.log);
    }

    /// Whether it can stream from `leader`: its WAL is part of that one's.
    pub fn can_follow(&self, leader: &Data) -> bool {
        self.system_identifier == leader.system_identifier
            && self.end <= leader.end
            && leader.lineage.contains(self.timeline(), self.end)
    }

    /// Whole segments that are not known to be in the store, with what is in them.
    pub fn whole_segments(&self, segment: u64) -> Vec<(SegmentName, Vec<Commit>)> {
        (self.unarchived.0 / segment..self.end.0 / segment)
            .map(|number| {
                let (begin, end) = (number * segment, (number + 1) * segment);
                let timeline = self.lineage.timeline_at(Lsn(end - 1));
                let inside = self.log.iter().filter(|c| c.lsn.0 > begin && c.lsn.0 <= end);
                (SegmentName::from_number(timeline, number, segment), inside.cloned().collect())
            })
            .collect()
    }

    /// Rows in the order of their commits.
    pub fn rows(&self) -> Vec<String> {
        self.log.iter().filter(|c| !c.row.is_empty()).map(|c| c.row.clone()).collect()
    }
}

/// What a restore that came to its end leaves on the volume beside the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Its answer.
    pub result: WorkerResult,
    /// Where the new history left its parent.
    pub origin: Origin,
}

/// A volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Namespace and name of its claim.
    pub claim: (String, String),
    /// The data; none: empty, or begun and not complete.
    pub data: Option<Data>,
    /// A restore's answer.
    pub finished: Option<Finished>,
    /// The program that has it, and who that is.
    pub user: Option<(u64, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn time() -> Timestamp {
        "2026-03-01T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_promoted_standby_shares_the_segment_of_the_fork_and_the_parted_primary_cannot_follow() {
        let mut old = Data::initialised("d1", "75", "a-0", SEGMENT);
        old.commit(1, "kept", time());
        let mut new = old.clone();
        new.promote(2);
        new.commit(2, "later", time());
        assert!(old.can_follow(&new));
        old.commit(3, "lost", time());
        assert!(!old.can_follow(&new));
        new.switch(SEGMENT);
        let [(name, commits)] = &new.whole_segments(SEGMENT)[..] else { panic!("one segment") };
        assert_eq!(name.to_string(), "000000020000000000000001");
        assert_eq!(commits.iter().map(|c| c.row.as_str()).collect::<Vec<_>>(), ["kept", "later"]);
        old.follow(&new);
        assert_eq!((old.rows(), old.timeline()), (vec!["kept".to_string(), "later".into()], 2));
    }

    #[test]
    fn a_segment_that_has_just_begun_is_not_ended() {
        let mut data = Data::initialised("d1", "75", "a-0", SEGMENT);
        data.switch(SEGMENT);
        let end = data.end;
        data.switch(SEGMENT);
        assert_eq!((data.end, end.0 % SEGMENT), (end, 0));
    }
}
