//! What a restore starts from, and whether the archive leads from there to the target. Pure, except for [`load`], which reads the store.
//!
//! A plan is made before anything is stopped. It never promises what the archive does not hold: a missing segment would end the replay
//! silently, and PostgreSQL would promote with less than was asked for.
//!
//! The way: [`load`] the history and its ancestors, [`timeline`] to follow, [`crate::wal::lineage`] of it, [`choose`].

use crate::{
    HistoryFolder, Store,
    catalogue::{self, CatalogueError, History},
    manifest::{Manifest, segments},
    wal::{ForkPoint, Link},
};
use holdfast_core::wire::{HistoryPath, Target};
use holdfast_postgresql::{Lsn, history::TimelineHistory, wal::SegmentName};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// A history and how far it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Ancestor {
    /// What the store holds of it.
    pub history: History,
    /// Only up to here; None: all of it.
    pub until: Option<ForkPoint>,
}

/// Why there is no way to the target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to start from.
    #[error("{0} holds no whole backup that leads to timeline {1}")]
    NoBackup(String, u32),
    /// The backup that was asked for is not there.
    #[error("backup {0} is not in the store")]
    BackupNotFound(String),
    /// The backup that was asked for is not on the way.
    #[error("backup {uid} was taken on timeline {taken}, which does not lead to timeline {followed}")]
    BackupElsewhere {
        /// The backup.
        uid: String,
        /// Its timeline.
        taken: u32,
        /// The timeline to follow.
        followed: u32,
    },
    /// The target lies before the end of every backup.
    #[error("{target} lies before the earliest moment that can be restored: {earliest}")]
    TargetBeforeEarliest {
        /// What was asked for.
        target: String,
        /// What there is.
        earliest: String,
    },
    /// A segment is missing before the target.
    #[error("WAL segment {segment} is missing; the archive leads from the backup only to {reaches}")]
    WalGap {
        /// The first missing one.
        segment: String,
        /// The position that can be reached.
        reaches: Lsn,
    },
    /// The archive ends before the target.
    #[error("{target} lies beyond the archive, which reaches to {reaches}")]
    TargetBeyondArchive {
        /// What was asked for.
        target: String,
        /// What there is.
        reaches: String,
    },
    /// The target cannot be read.
    #[error("spec.pointInTime: {0}")]
    InvalidTarget(String),
}

impl Refusal {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoBackup(..) => "NoBackup",
            Self::BackupNotFound(_) => "BackupNotFound",
            Self::BackupElsewhere { .. } => "BackupOnOtherTimeline",
            Self::TargetBeforeEarliest { .. } => "TargetBeforeEarliest",
            Self::WalGap { .. } => "WalGap",
            Self::TargetBeyondArchive { .. } => "TargetBeyondArchive",
            Self::InvalidTarget(_) => "InvalidTarget",
        }
    }
}

/// What to restore from, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The history that holds the backup: `backup.history` need not be it when a store was copied.
    pub history: HistoryPath,
    /// The history whose WAL is followed: the first one given.
    pub follows: HistoryPath,
    /// The backup.
    pub backup: Manifest,
    /// Timeline to follow.
    pub timeline: u32,
    /// Segments there to replay, those that make the backup consistent included.
    pub wal_segments: u64,
    /// How far the WAL leads without a gap.
    pub reaches: Lsn,
}

/// Reads a history and its ancestors, the youngest first.
///
/// # Errors
/// What the store says.
pub async fn load(store: &Store, path: &HistoryPath) -> Result<Vec<Ancestor>, CatalogueError> {
    let mut ancestors = Vec::new();
    for link in catalogue::chain(store, path).await? {
        let history = catalogue::history(store, link.folder.path()).await?;
        ancestors.push(Ancestor { history, until: link.until });
    }
    Ok(ancestors)
}

/// The same histories as links of a chain, for [`crate::wal::lineage`].
pub fn links(ancestors: &[Ancestor]) -> Vec<Link> {
    let link = |a: &Ancestor| Link { folder: HistoryFolder::new(&a.history.path), until: a.until };
    ancestors.iter().map(link).collect()
}

/// The timeline to follow: the newest that the first history has WAL or a backup of, else where it left its parent.
///
/// Inside one history each promotion begins a higher timeline, and what an old primary wrote after it is on a lower one.
pub fn timeline(ancestors: &[Ancestor]) -> u32 {
    let newest = |a: &Ancestor| {
        let allowed = |file: &holdfast_postgresql::wal::WalFile| a.until.is_none_or(|u| u.allows(file));
        let wal = a.history.wal.objects.iter().filter(|o| allowed(&o.file)).map(|o| o.file.timeline()).max();
        let backup = a.history.backups.iter().filter(|b| before_fork(b, a.until)).map(|b| b.timeline).max();
        wal.max(backup)
    };
    ancestors.iter().find_map(newest).unwrap_or(1)
}

fn before_fork(backup: &Manifest, until: Option<ForkPoint>) -> bool {
    until.is_none_or(|fork| backup.timeline <= fork.timeline && backup.stop_lsn <= fork.lsn)
}

/// Chooses the backup and checks that the WAL leads from it to the target.
///
/// - `ancestors`: the history and its ancestors, the youngest first, as [`load`] gives them.
/// - `lineage`: of the timeline to follow.
/// - `wanted`: uid of the backup to start from; None: the newest that suits. For a transaction or a named point, whose place is not
///   known beforehand, the oldest that suits: it surely lies before.
/// - `complete_until`: everything that was committed before this is known to be in the store, because WAL was just switched and
///   waited for.
///
/// A time counts as reached when WAL without a gap came to the store after it, or it lies before `complete_until`. A time after the
/// last commit is then no error: replaying everything is what was asked for.
///
/// # Errors
/// Why there is no way.
pub fn choose(
    ancestors: &[Ancestor],
    lineage: &TimelineHistory,
    wanted: Option<&str>,
    target: &Target,
    complete_until: Option<Timestamp>,
) -> Result<Choice, Refusal> {
    let Some(first) = ancestors.first() else {
        return Err(Refusal::NoBackup("the store".into(), lineage.timeline));
    };
    let point = Point::read(target)?;
    let candidates = candidates(ancestors, lineage, wanted)?;
    let earliest = candidates.first().map(|(_, b)| (b.stop_time, b.stop_lsn));
    let (earliest_time, earliest_lsn) = earliest.ok_or_else(|| {
        Refusal::NoBackup(HistoryFolder::new(&first.history.path).to_string(), lineage.timeline)
    })?;
    let too_early = |target: String, earliest: String| Refusal::TargetBeforeEarliest { target, earliest };
    let (history, backup) = match point {
        Point::Time(time) => candidates
            .iter()
            .rev()
            .find(|(_, b)| b.stop_time <= time)
            .ok_or_else(|| too_early(time.to_string(), earliest_time.to_string()))?,
        Point::Lsn(lsn) => candidates
            .iter()
            .filter(|(_, b)| b.stop_lsn <= lsn)
            .max_by_key(|(_, b)| b.stop_lsn)
            .ok_or_else(|| too_early(lsn.to_string(), earliest_lsn.to_string()))?,
        Point::End | Point::BackupEnd => candidates.last().unwrap_or(&candidates[0]),
        Point::Unknown => &candidates[0],
    };
    let wal = Wal::new(ancestors);
    let walk = wal.walk(lineage, backup);
    let missing =
        |segment: SegmentName| Refusal::WalGap { segment: segment.to_string(), reaches: walk.reaches };
    // Without these the backup is worth nothing, whatever the target.
    if walk.reaches < backup.stop_lsn {
        return Err(missing(walk.missing));
    }
    match point {
        Point::BackupEnd => {}
        Point::Lsn(lsn) if lsn <= walk.reaches => {}
        Point::Lsn(_) if walk.gap => return Err(missing(walk.missing)),
        Point::Lsn(lsn) => {
            return Err(Refusal::TargetBeyondArchive {
                target: lsn.to_string(),
                reaches: walk.reaches.to_string(),
            });
        }
        Point::Time(time) => {
            let came = walk.newest.max(Some(backup.stop_time));
            let known = if walk.gap { came } else { came.max(complete_until) };
            if known.is_none_or(|known| time > known) {
                if walk.gap {
                    return Err(missing(walk.missing));
                }
                let reaches = known.map(|k| k.to_string()).unwrap_or_default();
                return Err(Refusal::TargetBeyondArchive { target: time.to_string(), reaches });
            }
        }
        Point::End | Point::Unknown if walk.gap => return Err(missing(walk.missing)),
        Point::End | Point::Unknown => {}
    }
    let timeline = if point == Point::BackupEnd { backup.timeline } else { lineage.timeline };
    let wal_segments = match point {
        Point::BackupEnd => backup.needed_segments().count() as u64,
        Point::Lsn(lsn) => {
            segments(1, backup.start_lsn, lsn.max(backup.stop_lsn), backup.wal_segment_size).count() as u64
        }
        _ => walk.segments,
    };
    Ok(Choice {
        history: (*history).clone(),
        follows: first.history.path.clone(),
        backup: (*backup).clone(),
        timeline,
        wal_segments,
        reaches: walk.reaches,
    })
}

/// A target as far as it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    End,
    Time(Timestamp),
    Lsn(Lsn),
    /// Only replay finds it.
    Unknown,
    BackupEnd,
}

impl Point {
    fn read(target: &Target) -> Result<Self, Refusal> {
        Ok(match target {
            Target::Latest => Self::End,
            Target::BackupEnd => Self::BackupEnd,
            Target::Time(time) => Self::Time(
                time.parse()
                    .map_err(|e: jiff::Error| Refusal::InvalidTarget(format!("time {time:?}: {e}")))?,
            ),
            Target::Lsn(lsn) => {
                Self::Lsn(lsn.parse().map_err(|e| Refusal::InvalidTarget(format!("lsn: {e}")))?)
            }
            Target::Xid(xid) => match xid.parse::<u64>() {
                Ok(_) => Self::Unknown,
                Err(error) => return Err(Refusal::InvalidTarget(format!("xid {xid:?}: {error}"))),
            },
            Target::Name(name) if name.is_empty() => {
                return Err(Refusal::InvalidTarget("name is empty".into()));
            }
            Target::Name(_) => Self::Unknown,
        })
    }
}

/// Backups on the way, ordered by stop time; never empty unless there is none at all.
fn candidates<'a>(
    ancestors: &'a [Ancestor],
    lineage: &TimelineHistory,
    wanted: Option<&str>,
) -> Result<Vec<(&'a HistoryPath, &'a Manifest)>, Refusal> {
    let mut all: Vec<_> = ancestors
        .iter()
        .flat_map(|a| a.history.backups.iter().map(move |b| (a, b)))
        .filter(|(_, b)| wanted.is_none_or(|uid| uid == b.backup_uid))
        .collect();
    if let Some(uid) = wanted {
        let Some((_, backup)) = all.first() else { return Err(Refusal::BackupNotFound(uid.into())) };
        let taken = backup.timeline;
        all.retain(|(a, b)| before_fork(b, a.until) && lineage.contains(b.timeline, b.stop_lsn));
        if all.is_empty() {
            return Err(Refusal::BackupElsewhere { uid: uid.into(), taken, followed: lineage.timeline });
        }
    }
    all.retain(|(a, b)| before_fork(b, a.until) && lineage.contains(b.timeline, b.stop_lsn));
    all.sort_by_key(|(_, b)| b.stop_time);
    Ok(all.into_iter().map(|(a, b)| (&a.history.path, b)).collect())
}

/// The segments of all histories, as far as they count.
struct Wal {
    segments: BTreeMap<SegmentName, Timestamp>,
}

/// How far one gets.
struct Walk {
    /// Position reached without a gap.
    reaches: Lsn,
    /// The segment that ended it.
    missing: SegmentName,
    /// There is WAL of this lineage behind the missing segment.
    gap: bool,
    /// Segments on the way.
    segments: u64,
    /// When the newest of them came.
    newest: Option<Timestamp>,
}

impl Wal {
    fn new(ancestors: &[Ancestor]) -> Self {
        let mut all = BTreeMap::new();
        for ancestor in ancestors {
            for (name, modified) in ancestor.history.wal.segments() {
                let file = holdfast_postgresql::wal::WalFile::Segment(name);
                if ancestor.until.is_none_or(|u| u.allows(&file)) {
                    all.entry(name).or_insert(modified);
                }
            }
        }
        Self { segments: all }
    }

    /// Follows the lineage from a backup's start, segment by segment.
    ///
    /// A segment in which a timeline was left exists on both; the younger one goes on after the fork, so it is the one that is needed. The
    /// older leads at least up to the fork.
    fn walk(&self, lineage: &TimelineHistory, backup: &Manifest) -> Walk {
        let size = backup.wal_segment_size;
        let first = backup.start_lsn.0 / size;
        let mut walk = Walk {
            reaches: backup.start_lsn,
            missing: SegmentName::from_number(lineage.timeline_at(backup.start_lsn), first, size),
            gap: false,
            segments: 0,
            newest: None,
        };
        for number in first.. {
            let (begin, end) = (Lsn(number * size), Lsn((number + 1) * size));
            let last = lineage.timeline_at(Lsn(end.0 - 1));
            let name = SegmentName::from_number(last, number, size);
            if let Some(modified) = self.segments.get(&name) {
                walk.reaches = end;
                walk.segments += 1;
                walk.newest = walk.newest.max(Some(*modified));
                continue;
            }
            walk.missing = name;
            // Up to the fork an older timeline's copy serves.
            for fork in lineage.forks.iter().filter(|f| begin < f.until && f.until < end) {
                let older = SegmentName::from_number(fork.timeline, number, size);
                if let Some(modified) = self.segments.get(&older) {
                    walk.reaches = walk.reaches.max(fork.until);
                    walk.segments += 1;
                    walk.newest = walk.newest.max(Some(*modified));
                }
            }
            walk.gap = self.segments.keys().any(|known| {
                let at = known.number(size);
                at > number && known.timeline == lineage.timeline_at(Lsn((at + 1) * size - 1))
            });
            break;
        }
        walk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manifest::tests::backup,
        wal::{WalListing, WalObject},
    };

    const SIZE: u64 = 16 << 20;

    fn path(history: &str) -> HistoryPath {
        HistoryPath { history: history.into(), ..HistoryPath::default() }
    }

    /// Segments by name with the minute after ten o'clock at which they came.
    fn history(name: &str, backups: Vec<Manifest>, segments: &[(&str, u32)]) -> Ancestor {
        let object = |(name, minute): &(&str, u32)| WalObject {
            key: (*name).into(),
            file: name.parse().unwrap(),
            size: 1,
            modified: time(*minute),
        };
        let wal = WalListing { objects: segments.iter().map(object).collect() };
        let history = History {
            path: path(name),
            origin: None,
            backups,
            unfinished: Vec::new(),
            unreadable: Vec::new(),
            wal,
        };
        Ancestor { history, until: None }
    }

    fn time(minute: u32) -> Timestamp {
        format!("2026-11-20T10:{minute:02}:00Z").parse().unwrap()
    }

    fn at(minute: u32) -> Target {
        Target::Time(time(minute).to_string())
    }

    /// Backups at 10:10 (segment 2) and 10:30 (segment 4), WAL of timeline 1 up to segment 6, which came at 10:50.
    fn one() -> Vec<Ancestor> {
        let backups = vec![
            backup("b1", 1, "0/2000028", "0/2000100", "2026-11-20T10:10:00Z"),
            backup("b2", 1, "0/4000028", "0/4000100", "2026-11-20T10:30:00Z"),
        ];
        let wal = [
            ("000000010000000000000001", 5),
            ("000000010000000000000002", 11),
            ("000000010000000000000003", 20),
            ("000000010000000000000004", 31),
            ("000000010000000000000005", 40),
            ("000000010000000000000006", 50),
        ];
        vec![history("d1", backups, &wal)]
    }

    fn root() -> TimelineHistory {
        TimelineHistory::root(1)
    }

    fn without(mut all: Vec<Ancestor>, name: &str) -> Vec<Ancestor> {
        all[0].history.wal.objects.retain(|o| o.key != name);
        all
    }

    #[test]
    fn the_newest_backup_that_ends_before_the_target_is_taken() {
        let all = one();
        let uid = |target: &Target| choose(&all, &root(), None, target, None).unwrap().backup.backup_uid;
        assert_eq!(uid(&Target::Latest), "b2");
        assert_eq!(uid(&at(45)), "b2");
        assert_eq!(uid(&at(29)), "b1");
        assert_eq!(uid(&Target::Lsn("0/4000050".into())), "b1");
        assert_eq!(uid(&Target::Lsn("0/4000100".into())), "b2");
        assert_eq!(uid(&Target::BackupEnd), "b2");
        assert_eq!(uid(&Target::Xid("771".into())), "b1");
        let latest = choose(&all, &root(), None, &Target::Latest, None).unwrap();
        assert_eq!((latest.wal_segments, latest.reaches, latest.timeline), (3, Lsn(7 * SIZE), 1));
        assert_eq!(timeline(&all), 1);
    }

    #[test]
    fn what_the_archive_does_not_hold_is_refused() {
        let all = one();
        let reason = |target: &Target, until| {
            choose(&all, &root(), None, target, until).map(|_| ()).map_err(|e| e.reason())
        };
        assert_eq!(reason(&at(9), None), Err("TargetBeforeEarliest"));
        assert_eq!(reason(&Target::Lsn("0/2000050".into()), None), Err("TargetBeforeEarliest"));
        assert_eq!(reason(&at(51), None), Err("TargetBeyondArchive"));
        assert_eq!(reason(&Target::Lsn("0/7000001".into()), None), Err("TargetBeyondArchive"));
        assert_eq!(reason(&Target::Lsn("0/7000000".into()), None), Ok(()));
        assert_eq!(reason(&Target::Time("yesterday".into()), None), Err("InvalidTarget"));
        assert_eq!(reason(&Target::Xid("x".into()), None), Err("InvalidTarget"));
        // The database runs and has just sent everything: a moment after the last commit is reached by replaying all.
        assert_eq!(reason(&at(55), Some(time(55))), Ok(()));
        assert_eq!(reason(&at(56), Some(time(55))), Err("TargetBeyondArchive"));
        let none = choose(&[history("d1", vec![], &[])], &root(), None, &Target::Latest, None);
        assert_eq!(none.unwrap_err().reason(), "NoBackup");
    }

    #[test]
    fn a_gap_is_refused_only_when_it_lies_before_the_target() {
        let all = without(one(), "000000010000000000000005");
        let reason = |target: &Target, until| {
            choose(&all, &root(), None, target, until).map(|_| ()).map_err(|e| e.reason())
        };
        assert_eq!(reason(&Target::Latest, None), Err("WalGap"));
        assert_eq!(reason(&at(45), None), Err("WalGap"));
        assert_eq!(reason(&at(45), Some(time(55))), Err("WalGap"));
        assert_eq!(reason(&at(30), None), Ok(()));
        assert_eq!(reason(&Target::Lsn("0/5000000".into()), None), Ok(()));
        assert_eq!(reason(&Target::Lsn("0/5000001".into()), None), Err("WalGap"));
        assert_eq!(reason(&Target::BackupEnd, None), Ok(()));
        // A backup without its own WAL is none.
        let all = without(one(), "000000010000000000000004");
        let error = choose(&all, &root(), None, &Target::BackupEnd, None).unwrap_err();
        assert!(error.to_string().contains("000000010000000000000004"), "{error}");
    }

    #[test]
    fn a_backup_that_is_asked_for_must_be_there_and_suit() {
        let all = one();
        let choose = |uid, target: &Target| choose(&all, &root(), Some(uid), target, None);
        assert_eq!(choose("b1", &Target::Latest).unwrap().wal_segments, 5);
        assert_eq!(choose("b9", &Target::Latest).unwrap_err().reason(), "BackupNotFound");
        assert_eq!(choose("b2", &at(15)).unwrap_err().reason(), "TargetBeforeEarliest");
    }

    /// Timeline 2 left timeline 1 inside segment 5; the old primary wrote segment 6 on timeline 1 nevertheless.
    fn promoted() -> (Vec<Ancestor>, TimelineHistory) {
        let mut all = one();
        let more = history(
            "d1",
            vec![],
            &[("00000002.history", 41), ("000000020000000000000005", 45), ("000000020000000000000006", 55)],
        );
        all[0].history.wal.objects.extend(more.history.wal.objects);
        (all, TimelineHistory::parse(2, "1\t0/5000800\tx\n").unwrap())
    }

    #[test]
    fn follows_promotions_and_not_what_the_old_primary_wrote_after() {
        let (mut all, lineage) = promoted();
        assert_eq!(timeline(&all), 2);
        let latest = choose(&all, &lineage, None, &Target::Latest, None).unwrap();
        assert_eq!((latest.timeline, latest.wal_segments, latest.reaches), (2, 3, Lsn(7 * SIZE)));
        // A backup of the abandoned end of timeline 1 leads nowhere.
        all[0].history.backups.push(backup("lost", 1, "0/6000028", "0/6000100", "2026-11-20T10:48:00Z"));
        assert_eq!(choose(&all, &lineage, None, &Target::Latest, None).unwrap().backup.backup_uid, "b2");
        let error = choose(&all, &lineage, Some("lost"), &Target::Latest, None).unwrap_err();
        assert_eq!(error.reason(), "BackupOnOtherTimeline");
        // Without the younger copy of the segment with the fork one gets exactly to the fork; what follows is a gap.
        let all = without(all, "000000020000000000000005");
        let error = choose(&all, &lineage, None, &Target::Latest, None).unwrap_err();
        assert_eq!(
            error,
            Refusal::WalGap { segment: "000000020000000000000005".into(), reaches: Lsn(0x0500_0800) }
        );
        assert!(choose(&all, &lineage, None, &Target::Lsn("0/5000800".into()), None).is_ok());
        let all = without(all, "000000020000000000000006");
        assert_eq!(choose(&all, &lineage, None, &Target::Latest, None).unwrap().reaches, Lsn(0x0500_0800));
    }

    #[test]
    fn starts_in_a_parent_and_goes_on_in_the_child() {
        // The child left the parent inside segment 5, by a restore; the parent went on to segment 6.
        let mut parent = one().remove(0);
        parent.history.backups.push(backup("after", 1, "0/6000028", "0/6000100", "2026-11-20T10:48:00Z"));
        parent.until = Some(ForkPoint { timeline: 1, lsn: "0/5000800".parse().unwrap(), segment_size: SIZE });
        let wal =
            [("00000002.history", 50), ("000000020000000000000005", 52), ("000000020000000000000006", 55)];
        let all = [history("d2", vec![], &wal), parent];
        let lineage = TimelineHistory::parse(2, "1\t0/5000800\tx\n").unwrap();
        let choice = choose(&all, &lineage, None, &Target::Latest, None).unwrap();
        assert_eq!((choice.history.history.as_str(), choice.follows.history.as_str()), ("d1", "d2"));
        assert_eq!(
            (choice.backup.backup_uid.as_str(), choice.timeline, choice.reaches),
            ("b2", 2, Lsn(7 * SIZE))
        );
        // A child that has nothing yet: the parent's timeline, up to the fork.
        let bare = [history("d2", vec![], &[]), all[1].clone()];
        assert_eq!(timeline(&bare), 1);
    }
}
