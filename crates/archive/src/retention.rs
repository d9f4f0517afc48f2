//! What may go. Pure.
//!
//! The rules of all schedules of a database count together: what any of them keeps is kept. Histories of earlier data sets of the same
//! database are in the same count, in the order of time, never of names or timelines.
//!
//! - *Window*: `days` is the point-in-time window. In each history that lived in it, the newest backup older than its begin is the
//!   *anchor*: it and all WAL after it stay. When the anchor lies in a parent, the parent's WAL from there on stays too.
//!   Without any `days` the window begins with the oldest backup that `last` keeps.
//! - `last`: so many newest backups stay. Those outside the window keep only the WAL that makes them consistent.
//! - Always kept: the newest backup with all WAL after it; backups that a Restore uses with all WAL after them; `.history` files,
//!   which are a few bytes and say how everything hangs together; what cannot be read.
//! - No rule, or one that sets no limit: nothing goes.
//! - Parts without a manifest go a day after the last of them came.

use crate::catalogue::History;
use holdfast_core::{crd::schedule::Retention, wire::HistoryPath};
use holdfast_postgresql::{Lsn, wal::WalFile};
use jiff::{Timestamp, ToSpan};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Parts without a manifest and without a new part for so many hours are garbage: no backup pauses for so long.
const GARBAGE_HOURS: i64 = 24;
/// WAL that came so many hours before the first part of an unfinished backup, or later, may be what it begins with.
const START_HOURS: i64 = 1;

/// What is to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Whole backups that stay.
    pub kept: usize,
    /// Whole backups to remove, the oldest first: the history and the backup's uid.
    pub backups: Vec<(HistoryPath, String)>,
    /// Parts without a manifest to remove, in the same way.
    pub garbage: Vec<(HistoryPath, String)>,
    /// Keys of WAL objects to remove, once the backups are gone.
    pub wal: Vec<String>,
    /// Stop of the oldest backup that stays.
    pub earliest: Option<Timestamp>,
}

/// What stays of one history's WAL.
#[derive(Clone, Debug, Default)]
struct Keep {
    /// Everything from here on; None: nothing but the ranges.
    from: Option<Lsn>,
    /// Timeline, first and last position, segment size.
    ranges: Vec<(u32, Lsn, Lsn, u64)>,
}

/// A backup in the order of time: index of its history, index in it.
type At = (usize, usize);

/// Decides what may go.
///
/// - `histories`: all of one database, with everything that the store holds of them.
/// - `rules`: of all schedules of this database.
/// - `pinned`: uids of backups that must stay.
pub fn decide(histories: &[History], rules: &[Retention], pinned: &[String], now: Timestamp) -> Removal {
    let all = in_order(histories);
    let backup = |(h, b): At| &histories[h].backups[b];
    let unlimited = rules.is_empty() || rules.iter().any(|r| r.days.is_none() && r.last.is_none());
    let garbage = garbage(histories, pinned, now);
    let everything = |garbage| Removal {
        kept: all.len(),
        garbage,
        earliest: all.first().map(|at| backup(*at).stop_time),
        ..Removal::default()
    };
    let Some(newest) = all.last().copied() else { return everything(garbage) };
    if unlimited {
        return everything(garbage);
    }

    let last = rules.iter().filter_map(|r| r.last).max().map_or(0, |n| usize::try_from(n).unwrap_or(0));
    let newest_few = &all[all.len() - last.clamp(1, all.len())..];
    let begin = rules
        .iter()
        .filter_map(|r| r.days)
        .max()
        .and_then(|days| now.checked_sub((i64::from(days) * 24).hours()).ok())
        .unwrap_or_else(|| newest_few.first().map_or(now, |at| backup(*at).stop_time));

    let mut stays: BTreeSet<At> = newest_few.iter().copied().collect();
    // Backups from which every later moment must stay within reach.
    let mut continuous: BTreeSet<At> = BTreeSet::from([newest]);
    continuous.extend(all.iter().filter(|at| backup(**at).stop_time > begin));
    continuous.extend(all.iter().filter(|at| pinned.contains(&backup(**at).backup_uid)));

    let mut keeps: Vec<Keep> = vec![Keep::default(); histories.len()];
    let parents = parents(histories);
    for (index, history) in histories.iter().enumerate() {
        if !lived(histories, history, begin) {
            continue;
        }
        let way = way_up(histories, &parents, index);
        let anchor = way.iter().find_map(|(h, fork)| {
            let suits = |b: &usize| {
                let b = &histories[*h].backups[*b];
                b.stop_time <= begin
                    && fork.is_none_or(|(timeline, lsn)| b.timeline <= timeline && b.stop_lsn <= lsn)
            };
            (0..histories[*h].backups.len()).rev().find(suits).map(|b| (*h, b))
        });
        continuous.extend(anchor);
        // Histories between the anchor and this one are passed through from their beginning; without an anchor everything counts, since
        // what cannot be placed must not be removed.
        for (h, _) in way.iter().take_while(|(h, _)| anchor.is_none_or(|(anchored, _)| anchored != *h)) {
            let own = histories[*h].backups.iter().map(|b| b.start_lsn).min();
            let from = if anchor.is_none() && histories[*h].origin.is_none() { own } else { Some(Lsn(0)) };
            keeps[*h].keep_from(from.unwrap_or(Lsn(0)));
        }
    }
    // A Restore from a pinned backup may follow any child of its history.
    for (h, _) in all.iter().filter(|at| pinned.contains(&backup(**at).backup_uid)) {
        for (child, keep) in keeps.iter_mut().enumerate() {
            if child != *h && way_up(histories, &parents, child).iter().any(|(above, _)| above == h) {
                keep.keep_from(Lsn(0));
            }
        }
    }
    for at in &continuous {
        keeps[at.0].keep_from(backup(*at).start_lsn);
    }
    stays.extend(&continuous);
    for at in &stays {
        let b = backup(*at);
        keeps[at.0].ranges.push((b.timeline, b.start_lsn, b.stop_lsn, b.wal_segment_size));
    }

    let wal =
        histories.iter().zip(&keeps).flat_map(|(history, keep)| expired_wal(history, keep, now)).collect();
    let gone = all.iter().filter(|at| !stays.contains(at));
    Removal {
        kept: stays.len(),
        backups: gone.map(|at| (histories[at.0].path.clone(), backup(*at).backup_uid.clone())).collect(),
        garbage,
        wal,
        earliest: stays.iter().map(|at| backup(*at).stop_time).min(),
    }
}

impl Keep {
    fn keep_from(&mut self, lsn: Lsn) {
        self.from = Some(self.from.map_or(lsn, |known| known.min(lsn)));
    }
}

fn in_order(histories: &[History]) -> Vec<At> {
    let mut all: Vec<At> = histories
        .iter()
        .enumerate()
        .flat_map(|(h, history)| (0..history.backups.len()).map(move |b| (h, b)))
        .collect();
    all.sort_by_key(|(h, b)| histories[*h].backups[*b].stop_time);
    all
}

fn garbage(histories: &[History], pinned: &[String], now: Timestamp) -> Vec<(HistoryPath, String)> {
    let old = |time: Timestamp| time.checked_add(GARBAGE_HOURS.hours()).is_ok_and(|end| end <= now);
    histories
        .iter()
        .flat_map(|history| history.unfinished.iter().map(move |unfinished| (history, unfinished)))
        .filter(|(_, u)| old(u.newest) && !pinned.contains(&u.uid))
        .map(|(history, u)| (history.path.clone(), u.uid.clone()))
        .collect()
}

/// Whether something came to the history in the window. The history that was written to last counts always: its end is the
/// latest state of the database, however long ago.
fn lived(histories: &[History], history: &History, begin: Timestamp) -> bool {
    let activity = history.last_activity();
    let latest = histories.iter().filter_map(History::last_activity).max();
    activity.is_some_and(|time| time >= begin) || (activity.is_some() && activity == latest)
}

/// Index of each history's parent, if it is among them.
fn parents(histories: &[History]) -> BTreeMap<usize, usize> {
    let find = |path: &HistoryPath| histories.iter().position(|h| h.path == *path);
    histories
        .iter()
        .enumerate()
        .filter_map(|(index, h)| Some((index, find(&h.origin.as_ref()?.parent)?)))
        .collect()
}

/// A history and its ancestors, each with the timeline and position up to which its backups count.
fn way_up(
    histories: &[History],
    parents: &BTreeMap<usize, usize>,
    from: usize,
) -> Vec<(usize, Option<(u32, Lsn)>)> {
    let mut way = vec![(from, None)];
    let mut seen = HashSet::from([from]);
    let (mut index, mut limit) = (from, None::<(u32, Lsn)>);
    while let (Some(parent), Some(origin)) = (parents.get(&index), histories[index].origin.as_ref()) {
        if !seen.insert(*parent) {
            break;
        }
        limit = Some(limit.map_or((origin.timeline, origin.lsn), |(timeline, lsn)| {
            (timeline.min(origin.timeline), lsn.min(origin.lsn))
        }));
        way.push((*parent, limit));
        index = *parent;
    }
    way
}

/// Keys of a history's WAL that nothing needs.
fn expired_wal(history: &History, keep: &Keep, now: Timestamp) -> Vec<String> {
    // A backup that runs, or whose manifest cannot be read, may need any of it.
    if !history.unreadable.is_empty() {
        return Vec::new();
    }
    let fresh = |time: Timestamp| time.checked_add(GARBAGE_HOURS.hours()).is_ok_and(|end| end > now);
    let running = history
        .unfinished
        .iter()
        .filter(|u| fresh(u.newest))
        .filter_map(|u| u.oldest.checked_sub(START_HOURS.hours()).ok())
        .min();
    let sizes = history.backups.iter().map(|b| b.wal_segment_size);
    let Some(size) = sizes.chain(history.origin.as_ref().map(|o| o.wal_segment_size)).max() else {
        // No backup, no parent: nothing says what this WAL belongs to, except that it is of no use once the history is dead.
        return Vec::new();
    };
    history
        .wal
        .objects
        .iter()
        .filter(|o| running.is_none_or(|begin| o.modified < begin))
        .filter(|o| match &o.file {
            WalFile::History(_) => false,
            WalFile::Segment(s) | WalFile::Partial(s) | WalFile::Backup(_, s) => {
                let begin = s.start(size);
                let end = Lsn(begin.0.saturating_add(size));
                let after = keep.from.is_some_and(|from| end > from);
                let inside = keep.ranges.iter().any(|(timeline, first, last, _)| {
                    s.timeline == *timeline && end > *first && begin < *last
                });
                !after && !inside
            }
        })
        .map(|o| o.key.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalogue::{Origin, Unfinished},
        manifest::{Manifest, tests::backup},
        wal::{WalListing, WalObject},
    };
    use holdfast_postgresql::wal::SegmentName;
    use proptest::prelude::*;

    const SIZE: u64 = 16 << 20;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn days_ago(days: i64) -> Timestamp {
        now() - (days * 24).hours()
    }

    /// One segment a day, the n-th came n days after the first; a backup taken in segment n.
    fn segment(timeline: u32, number: u64, days: i64) -> WalObject {
        let file = WalFile::Segment(SegmentName::from_number(timeline, number, SIZE));
        WalObject { key: file.to_string(), file, size: 1, modified: days_ago(days) }
    }

    fn taken(uid: &str, timeline: u32, number: u64, days: i64) -> Manifest {
        let at = |offset| Lsn(number * SIZE + offset).to_string();
        backup(uid, timeline, &at(0x28), &at(0x100), &days_ago(days).to_string())
    }

    fn history(name: &str, backups: Vec<Manifest>, objects: Vec<WalObject>) -> History {
        History {
            path: HistoryPath { history: name.into(), ..HistoryPath::default() },
            origin: None,
            backups,
            unfinished: Vec::new(),
            unreadable: Vec::new(),
            wal: WalListing { objects },
        }
    }

    /// A backup each day for 20 days, in segments 0 to 20; segment n came 20 - n days ago.
    fn daily() -> History {
        let backups = (0..=20).map(|n| taken(&format!("b{n}"), 1, n, 20 - n as i64)).collect();
        history("d1", backups, (0..=20).map(|n| segment(1, n, 20 - n as i64)).collect())
    }

    fn rule(days: Option<i32>, last: Option<i32>) -> Retention {
        Retention { days, last }
    }

    fn gone(removal: &Removal) -> Vec<&str> {
        removal.backups.iter().map(|(_, uid)| uid.as_str()).collect()
    }

    fn numbers(removal: &Removal) -> Vec<u64> {
        removal.wal.iter().map(|k| k.parse::<SegmentName>().unwrap().number(SIZE)).collect()
    }

    #[test]
    fn without_a_limit_nothing_goes() {
        for rules in [vec![], vec![rule(None, None)], vec![rule(Some(1), None), rule(None, None)]] {
            let removal = decide(&[daily()], &rules, &[], now());
            assert_eq!((removal.kept, removal.backups.len(), removal.wal.len()), (21, 0, 0));
        }
    }

    #[test]
    fn the_window_keeps_the_backup_before_its_begin_and_all_wal_after_that() {
        let removal = decide(&[daily()], &[rule(Some(7), None)], &[], now());
        // b13 stopped exactly when the window begins: it is the one before.
        assert_eq!(gone(&removal), (0..13).map(|n| format!("b{n}")).collect::<Vec<_>>());
        assert_eq!(numbers(&removal), (0..13).collect::<Vec<_>>());
        assert_eq!(removal.earliest, Some(days_ago(7)));
        // A moment inside the window needs the backup before it, also when that is much older.
        let mut sparse = daily();
        sparse.backups.retain(|b| ["b2", "b5", "b18"].contains(&b.backup_uid.as_str()));
        let removal = decide(&[sparse], &[rule(Some(7), None)], &[], now());
        assert_eq!(gone(&removal), ["b2"]);
        assert_eq!(numbers(&removal), (0..5).collect::<Vec<_>>());
    }

    #[test]
    fn backups_kept_outside_the_window_keep_only_what_makes_them_consistent() {
        let removal = decide(&[daily()], &[rule(Some(3), None), rule(None, Some(6))], &[], now());
        assert_eq!(gone(&removal).len(), 15);
        assert_eq!(removal.kept, 6);
        // b15 and b16 stay for their number: their own segment each; from b17 on all.
        assert_eq!(numbers(&removal), (0..15).collect::<Vec<_>>());
        let mut sparse = daily();
        sparse.backups.retain(|b| ["b2", "b5", "b15", "b18"].contains(&b.backup_uid.as_str()));
        let removal = decide(&[sparse], &[rule(Some(3), None), rule(None, Some(3))], &[], now());
        assert_eq!(gone(&removal), ["b2"]);
        assert_eq!(numbers(&removal), [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_number_alone_keeps_the_way_between_its_backups() {
        let removal = decide(&[daily()], &[rule(None, Some(2))], &[], now());
        assert_eq!((removal.kept, gone(&removal).len()), (2, 19));
        assert_eq!(numbers(&removal), (0..19).collect::<Vec<_>>());
    }

    #[test]
    fn the_newest_stays_however_old_and_pinned_ones_keep_their_way() {
        let mut old = daily();
        old.backups.truncate(3);
        let removal = decide(&[old], &[rule(Some(1), None)], &[], now());
        assert_eq!(gone(&removal), ["b0", "b1"]);
        assert_eq!(numbers(&removal), [0, 1]);
        let removal = decide(&[daily()], &[rule(Some(1), None)], &["b4".into()], now());
        assert!(!gone(&removal).contains(&"b4"));
        assert_eq!(numbers(&removal), [0, 1, 2, 3]);
    }

    #[test]
    fn a_child_without_a_backup_of_its_own_keeps_its_way_from_the_parent() {
        // A restore nine days ago went back to segment 8: the child began there. The parent's backups b9 and b10 lie after the fork.
        let mut parent = daily();
        parent.backups.truncate(11);
        parent.wal.objects.truncate(12);
        let mut child = history("d2", vec![], (8..=20).map(|n| segment(2, n, 20 - n as i64)).collect());
        child.origin = Some(Origin {
            parent: parent.path.clone(),
            timeline: 1,
            lsn: Lsn(8 * SIZE + 0x500),
            wal_segment_size: SIZE,
        });
        let removal = decide(&[parent.clone(), child.clone()], &[rule(Some(7), None)], &[], now());
        // b8 stopped before the fork and is the child's anchor. b10 is the newest of all. b9 is of no use to anyone in the window.
        assert_eq!(gone(&removal), ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b9"]);
        assert_eq!(numbers(&removal), (0..8).collect::<Vec<_>>());
        // Once the child has a backup before the window, the parent's go.
        child.backups.push(taken("c11", 2, 11, 9));
        let removal = decide(&[parent, child], &[rule(Some(7), None)], &[], now());
        assert_eq!(gone(&removal), (0..=10).map(|n| format!("b{n}")).collect::<Vec<_>>());
        let wal: BTreeSet<&String> = removal.wal.iter().collect();
        assert!(wal.iter().all(|k| k.parse::<SegmentName>().unwrap().number(SIZE) < 12));
        assert!(
            wal.contains(&"000000010000000000000008".to_string())
                && wal.contains(&"000000020000000000000009".to_string())
        );
        assert!(!wal.contains(&"00000002000000000000000B".to_string()));
    }

    #[test]
    fn an_unfinished_backup_is_garbage_after_a_day_and_protects_its_wal_before() {
        let mut all = daily();
        let unfinished = |hours: i64| Unfinished {
            uid: "half".into(),
            oldest: now() - (hours + 200).hours(),
            newest: now() - hours.hours(),
        };
        all.unfinished = vec![unfinished(2)];
        let removal = decide(&[all.clone()], &[rule(Some(1), None)], &[], now());
        assert!(removal.garbage.is_empty());
        // Its first part came 202 hours ago, between segments 11 and 12.
        assert_eq!(numbers(&removal), (0..=11).collect::<Vec<_>>());
        all.unfinished = vec![unfinished(24)];
        let removal = decide(&[all.clone()], &[rule(Some(1), None)], &[], now());
        assert_eq!(removal.garbage.len(), 1);
        assert_eq!(numbers(&removal), (0..19).collect::<Vec<_>>());
        all.unreadable = vec![("odd".into(), "newer".into())];
        assert!(decide(&[all], &[rule(Some(1), None)], &[], now()).wal.is_empty());
    }

    #[test]
    fn lineages_stay_and_small_files_go_with_their_segment() {
        let mut all = daily();
        for name in [
            "00000002.history",
            "000000010000000000000003.00000028.backup",
            "000000010000000000000003.partial",
        ] {
            let file: WalFile = name.parse().unwrap();
            all.wal.objects.push(WalObject { key: name.into(), file, size: 1, modified: days_ago(17) });
        }
        let removal = decide(&[all], &[rule(Some(7), None)], &[], now());
        assert!(!removal.wal.iter().any(|k| k.ends_with(".history")));
        assert!(
            removal.wal.iter().any(|k| k.ends_with(".backup"))
                && removal.wal.iter().any(|k| k.ends_with(".partial"))
        );
    }

    /// Histories as they may come to be: each with backups and WAL over some days, some forked from the one before.
    fn any_histories() -> impl Strategy<Value = Vec<History>> {
        let one = (0_u64..25, prop::collection::btree_set(0_u64..25, 0..8), any::<bool>(), 1_u64..12);
        prop::collection::vec(one, 1..4).prop_map(|all| {
            let mut histories: Vec<History> = Vec::new();
            for (index, (from, in_segments, forked, length)) in all.into_iter().enumerate() {
                let timeline = index as u32 + 1;
                let to = from + length;
                let backups = in_segments
                    .iter()
                    .filter(|n| (from..=to).contains(n))
                    .map(|n| taken(&format!("h{index}b{n}"), timeline, *n, 40 - *n as i64))
                    .collect();
                let mut wal: Vec<WalObject> =
                    (from..=to).map(|n| segment(timeline, n, 40 - n as i64)).collect();
                for object in &mut wal {
                    object.key = format!("h{index}/{}", object.key);
                }
                let mut history = history(&format!("d{index}"), backups, wal);
                if let (true, Some(parent)) = (forked, histories.last()) {
                    history.origin = Some(Origin {
                        parent: parent.path.clone(),
                        timeline: timeline - 1,
                        lsn: Lsn(from * SIZE + 0x800),
                        wal_segment_size: SIZE,
                    });
                }
                histories.push(history);
            }
            histories
        })
    }

    proptest! {
        #[test]
        fn what_stays_can_be_restored(
            histories in any_histories(),
            days in prop::option::of(1_i32..45),
            last in prop::option::of(1_i32..6),
            pin in any::<prop::sample::Index>(),
        ) {
            let order = in_order(&histories);
            let backup = |at: &At| &histories[at.0].backups[at.1];
            let pinned: Vec<String> =
                if order.is_empty() { vec![] } else { vec![backup(pin.get(&order)).backup_uid.clone()] };
            let removal = decide(&histories, &[rule(days, last)], &pinned, now());
            let removed: HashSet<&str> = removal.backups.iter().map(|(_, uid)| uid.as_str()).collect();
            let wal: HashSet<&String> = removal.wal.iter().collect();
            prop_assert_eq!(removal.kept + removal.backups.len(), order.len());
            if days.is_none() && last.is_none() {
                prop_assert!(removed.is_empty() && wal.is_empty());
            }
            // The newest stays, and everything that was pinned.
            if let Some(newest) = order.last() {
                prop_assert!(!removed.contains(backup(newest).backup_uid.as_str()));
            }
            prop_assert!(pinned.iter().all(|uid| !removed.contains(uid.as_str())));
            // `last` keeps its number.
            if let Some(last) = last {
                prop_assert!(removal.kept >= order.len().min(last as usize));
            }
            // What stays is consistent.
            for at in order.iter().filter(|at| !removed.contains(backup(at).backup_uid.as_str())) {
                for needed in backup(at).needed_segments() {
                    let key = format!("h{}/{needed}", at.0);
                    prop_assert!(!wal.contains(&key), "{}", key);
                }
            }
            // The window: every backup in it stays, and from the newest before it every history that lived in it goes on without a gap.
            if let Some(days) = days {
                let begin = days_ago(i64::from(days));
                for (index, history) in histories.iter().enumerate() {
                    for b in &history.backups {
                        prop_assert!(b.stop_time <= begin || !removed.contains(b.backup_uid.as_str()));
                    }
                    if !lived(&histories, history, begin) {
                        continue;
                    }
                    if let Some(anchor) = history.backups.iter().rev().find(|b| b.stop_time <= begin) {
                        prop_assert!(!removed.contains(anchor.backup_uid.as_str()));
                        for object in &history.wal.objects {
                            let WalFile::Segment(s) = object.file else { continue };
                            prop_assert!(s.start(SIZE).0 + SIZE <= anchor.start_lsn.0 || !wal.contains(&object.key));
                        }
                    } else if history.origin.is_some() {
                        prop_assert!(history.wal.objects.iter().all(|o| !wal.contains(&o.key)), "history {}", index);
                    }
                }
            }
        }
    }
}
