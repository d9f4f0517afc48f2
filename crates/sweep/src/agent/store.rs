//! The stores: histories with their backups and WAL, as the archive's own pure code reads them. Pure.

use super::data::{Commit, Data};
use holdfast_archive::{
    HistoryFolder,
    catalogue::{History, Origin},
    manifest::Manifest,
    plan::{self, Ancestor, Choice, Refusal},
    wal::{ForkPoint, WalListing, WalObject},
};
use holdfast_core::{
    BackupStoreSpec,
    wire::{HistoryPath, Target},
};
use holdfast_postgresql::{
    Lsn,
    history::TimelineHistory,
    wal::{SegmentName, WalFile},
};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Longest chain of parents: a longer one is a circle.
const LONGEST: usize = 100;

/// Which place a store is: two BackupStores may mean the same.
pub fn identity(namespace: &str, store: &BackupStoreSpec) -> String {
    match (&store.volume, &store.s3) {
        (Some(volume), _) => format!("volume {namespace}/{}{}", volume.claim_name, volume.path),
        (None, Some(s3)) => {
            format!("s3 {}/{}/{}", s3.endpoint.as_deref().unwrap_or("aws"), s3.bucket, s3.prefix)
        }
        (None, None) => "nowhere".into(),
    }
}

/// A history.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The data set that may write here; empty: nobody did yet.
    pub owner: String,
    /// Where it left its parent.
    pub origin: Option<Origin>,
    /// Whole backups by uid, with the data that they hold.
    pub backups: BTreeMap<String, (Manifest, Data)>,
    /// WAL segments, with when they came.
    pub segments: BTreeMap<SegmentName, (Timestamp, Vec<Commit>)>,
    /// `.history` files, with when they came.
    pub timelines: BTreeMap<u32, (Timestamp, TimelineHistory)>,
}

/// A store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Histories by namespace, database, system identifier and id.
    pub places: BTreeMap<[String; 4], Place>,
}

/// A path as the key of a store.
pub fn key(path: &HistoryPath) -> [String; 4] {
    [&path.namespace, &path.database, &path.system_identifier, &path.history].map(Clone::clone)
}

fn path([namespace, database, system_identifier, history]: &[String; 4]) -> HistoryPath {
    let [namespace, database, system_identifier, history] =
        [namespace, database, system_identifier, history].map(Clone::clone);
    HistoryPath { namespace, database, system_identifier, history }
}

/// Why a segment was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The history belongs to this other data set.
    Owner(String),
    /// This segment is there with other content.
    Content(String),
}

impl Store {
    /// Takes in what `data` has and the store has not. Gives the newest segment, if one is new.
    pub fn archive(
        &mut self,
        at: &HistoryPath,
        data: &mut Data,
        segment: u64,
        now: Timestamp,
    ) -> Result<Option<SegmentName>, Refused> {
        let whole = data.whole_segments(segment);
        let place = self.places.get(&key(at));
        let told = data.timeline() == 1 || place.is_some_and(|p| p.timelines.contains_key(&data.timeline()));
        if whole.is_empty() && told {
            return Ok(None);
        }
        let place = self.places.entry(key(at)).or_default();
        if place.owner.is_empty() {
            place.owner.clone_from(&data.data_set);
        } else if place.owner != data.data_set {
            return Err(Refused::Owner(place.owner.clone()));
        }
        if data.timeline() > 1 {
            place.timelines.entry(data.timeline()).or_insert_with(|| (now, data.lineage.clone()));
        }
        let mut newest = None;
        for (name, commits) in whole {
            if place.segments.get(&name).is_some_and(|(_, there)| *there != commits) {
                return Err(Refused::Content(name.to_string()));
            }
            place.segments.entry(name).or_insert_with(|| {
                newest = Some(name);
                (now, commits)
            });
            data.unarchived = name.next(segment).start(segment);
        }
        Ok(newest)
    }

    /// As the archive's own code lists it.
    pub fn history(&self, at: &HistoryPath) -> History {
        let folder = HistoryFolder::new(at);
        let place = self.places.get(&key(at)).cloned().unwrap_or_default();
        let object = |file: WalFile, modified| WalObject { key: folder.wal(&file), file, size: 1, modified };
        let segments = place.segments.iter().map(|(name, (came, _))| object(WalFile::Segment(*name), *came));
        let timelines =
            place.timelines.iter().map(|(number, (came, _))| object(WalFile::History(*number), *came));
        let mut backups: Vec<Manifest> =
            place.backups.values().map(|(manifest, _)| manifest.clone()).collect();
        backups.sort_by_key(|b| b.stop_time);
        History {
            path: at.clone(),
            wal: WalListing { objects: segments.chain(timelines).collect() },
            origin: place.origin,
            backups,
            unfinished: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// All histories of a database.
    pub fn histories(&self, namespace: &str, database: &str) -> Vec<HistoryPath> {
        self.places.keys().filter(|k| k[0] == namespace && k[1] == database).map(path).collect()
    }

    /// A history and its ancestors, each up to the fork.
    pub fn ancestors(&self, at: &HistoryPath) -> Vec<Ancestor> {
        let mut all = vec![Ancestor { history: self.history(at), until: None }];
        while all.len() < LONGEST
            && let Some(Ancestor { history: History { origin: Some(origin), .. }, until }) = all.last()
        {
            let fork = origin.fork();
            let until = until.map_or(fork, |limit| ForkPoint {
                timeline: fork.timeline.min(limit.timeline),
                lsn: fork.lsn.min(limit.lsn),
                ..fork
            });
            let parent = self.history(&origin.parent);
            all.push(Ancestor { history: parent, until: Some(until) });
        }
        all
    }

    /// The lineage of a timeline; none: its file is missing.
    pub fn lineage(&self, ancestors: &[Ancestor], timeline: u32) -> Option<TimelineHistory> {
        if timeline <= 1 {
            return Some(TimelineHistory::root(timeline));
        }
        let allowed = ancestors.iter().filter(|a| a.until.is_none_or(|u| timeline <= u.timeline));
        allowed
            .filter_map(|a| self.places.get(&key(&a.history.path)))
            .find_map(|place| place.timelines.get(&timeline).map(|(_, lineage)| lineage.clone()))
    }

    /// The way to a moment, or why there is none: the archive's own answer.
    pub fn choose(
        &self,
        at: &HistoryPath,
        timeline: Option<u32>,
        wanted: Option<&str>,
        target: &Target,
        complete_until: Option<Timestamp>,
    ) -> Result<Choice, (String, String)> {
        let ancestors = self.ancestors(at);
        let timeline = timeline.unwrap_or_else(|| plan::timeline(&ancestors));
        let Some(lineage) = self.lineage(&ancestors, timeline) else {
            return Err(("Damaged".into(), format!("the lineage of timeline {timeline} is missing")));
        };
        let words = |refusal: Refusal| (refusal.reason().to_string(), refusal.to_string());
        plan::choose(&ancestors, &lineage, wanted, target, complete_until).map_err(words)
    }

    /// Commits behind `from` on the way that `choice` describes, up to where its WAL leads.
    pub fn commits(&self, choice: &Choice, from: Lsn) -> Vec<Commit> {
        let ancestors = self.ancestors(&choice.follows);
        let lineage = self.lineage(&ancestors, choice.timeline).unwrap_or_default();
        let mut found: BTreeMap<u64, Commit> = BTreeMap::new();
        for ancestor in &ancestors {
            let Some(place) = self.places.get(&key(&ancestor.history.path)) else { continue };
            let segments = place
                .segments
                .iter()
                .filter(|(name, _)| ancestor.until.is_none_or(|u| u.allows(&WalFile::Segment(**name))));
            let commits = segments.flat_map(|(_, (_, commits))| commits);
            let on_the_way = commits.filter(|c| {
                c.lsn > from && c.lsn <= choice.reaches && lineage.timeline_at(Lsn(c.lsn.0 - 1)) == c.timeline
            });
            found.extend(on_the_way.map(|c| (c.lsn.0, c.clone())));
        }
        found.into_values().collect()
    }

    /// The highest timeline that a history and its ancestors know: a promotion takes the next one.
    pub fn highest_timeline(&self, at: &HistoryPath) -> u32 {
        let ancestors = self.ancestors(at);
        let places = ancestors.iter().filter_map(|a| self.places.get(&key(&a.history.path)));
        places.filter_map(|p| p.timelines.keys().max()).max().copied().unwrap_or(1)
    }

    /// Removes a backup; its name, if it was there.
    pub fn remove(&mut self, at: &HistoryPath, uid: &str) -> Option<String> {
        let place = self.places.get_mut(&key(at))?;
        place.backups.remove(uid).map(|(manifest, _)| manifest.backup_name)
    }
}
