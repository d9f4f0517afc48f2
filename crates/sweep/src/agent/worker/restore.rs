//! A restore: fills a volume, on a timeline and in a history of its own.

use super::{WORK, Worker, failed};
use crate::agent::{
    data::{Commit, Finished},
    instance::data_claim,
    member::{Key, Member},
    store,
};
use holdfast_archive::catalogue::Origin;
use holdfast_core::{
    BackupStoreSpec, names,
    wire::{HistoryPath, Target, WorkerResult},
};
use holdfast_postgresql::Lsn;
use holdfast_runtime::apply::bounded;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use tokio::time::sleep;

/// What a restore is told.
pub struct Filling<'a> {
    /// The store.
    pub store: &'a BackupStoreSpec,
    /// Where the backup is.
    pub history: &'a HistoryPath,
    /// The history whose WAL is followed.
    pub follows: &'a HistoryPath,
    /// The backup.
    pub backup_uid: &'a str,
    /// Timeline to follow.
    pub timeline: u32,
    /// The moment.
    pub target: &'a Target,
    /// The data set that begins.
    pub data_set: &'a str,
    /// The history that begins.
    pub new_history: &'a HistoryPath,
}

impl Worker<'_> {
    /// Does the job.
    pub async fn restore(&self, job: &Filling<'_>) -> Result<WorkerResult, WorkerResult> {
        let claims = self.api::<PersistentVolumeClaim>();
        let name = data_claim(&self.host.pod).unwrap_or_default();
        let claim = bounded(claims.get_opt(&name)).await.ok().flatten();
        let Some(claim) = claim else { return Err(failed("VolumeFailed", "there is no volume", false)) };
        let (uid, pod) = (claim.uid().unwrap_or_default(), self.host.pod.name_any());
        self.agents.mount(&claims, &claim).await;
        let state = claim.labels().get(names::LABEL_DATA_SET_STATE).map(String::as_str).unwrap_or_default();
        let finished = self.agents.with(|world| {
            world.lock(&uid, self.program, &format!("worker {pod}"));
            world.name("data set", job.data_set);
            world.name("history", &job.new_history.history);
            if state != names::STATE_SEED {
                world.problem(format!("a restore fills volume {name}, whose state is {state}"));
            }
            let (database, namespace) = (&job.new_history.database, &job.new_history.namespace);
            let of = |((home, _), m): &(&Key, &Member)| home == namespace && m.config.database == *database;
            if let Some(((_, other), _)) = world.members.iter().find(of) {
                let text = format!("a restore fills volume {name} while {other} runs");
                world.problem(text);
            }
            let volume = world.volumes.get_mut(&uid)?;
            let data = volume.data.as_ref()?;
            if data.data_set != job.data_set {
                let found = data.data_set.clone();
                world.problem(format!("a restore was to fill volume {name}, which holds data set {found}"));
                let text = format!("the volume holds data set {found}, not {}", job.data_set);
                return Some(Err(failed("VolumeInUse", text, true)));
            }
            let finished = volume.finished.clone();
            if finished.is_none() {
                volume.data = None;
            }
            finished.map(Ok)
        });
        let finished = match finished.transpose()? {
            Some(finished) => finished,
            None => {
                self.there(job)?;
                sleep(WORK).await;
                self.fill(job, &uid)?
            }
        };
        // Last: an attempt that died before would have recorded another fork, and the record cannot be changed.
        let place = self.place(job.store);
        self.agents.with(|world| {
            let store = world.stores.entry(place).or_default();
            let new = store.places.entry(store::key(job.new_history)).or_default();
            match &new.origin {
                Some(origin) if *origin != finished.origin => {
                    Err(failed("AlreadyExists", "the new history has another origin already", true))
                }
                _ => {
                    new.origin = Some(finished.origin.clone());
                    Ok(finished.result)
                }
            }
        })
    }

    fn there(&self, job: &Filling<'_>) -> Result<(), WorkerResult> {
        let place = self.place(job.store);
        let found = self.agents.with(|world| {
            let store = world.stores.entry(place).or_default();
            let place = store.places.get(&store::key(job.history));
            place.is_some_and(|p| p.backups.contains_key(job.backup_uid))
        });
        let gone = || failed("BackupGone", format!("backup {} is not in the store", job.backup_uid), true);
        found.then_some(()).ok_or_else(gone)
    }

    /// The data of the backup, replayed to the target, on a timeline of its own.
    fn fill(&self, job: &Filling<'_>, uid: &str) -> Result<Finished, WorkerResult> {
        self.there(job)?;
        let place = self.place(job.store);
        self.agents.with(|world| {
            let store = world.stores.entry(place).or_default();
            let wanted = Some(job.backup_uid);
            let choose =
                |target: &Target| store.choose(job.follows, Some(job.timeline), wanted, target, None);
            // There may be no commit after a time: then replaying to the end of the archive is the same.
            let choice = match (choose(job.target), job.target) {
                (Err(_), Target::Time(_)) => choose(&Target::Latest),
                (other, _) => other,
            };
            let choice = choice.map_err(|(_, words)| failed("RecoveryFailed", words, true))?;
            let backup = store.places.get(&store::key(job.history));
            let Some((_, image)) = backup.and_then(|p| p.backups.get(job.backup_uid)).cloned() else {
                return Err(failed("BackupGone", job.backup_uid, true));
            };
            let timeline = store.highest_timeline(job.follows).max(job.timeline) + 1;
            let lineage = store.lineage(&store.ancestors(job.follows), job.timeline).unwrap_or_default();
            let mut commits = store.commits(&choice, image.end);
            let until = |commits: &[Commit], last: &dyn Fn(&Commit) -> bool| {
                commits.iter().position(last).map(|at| at + 1)
            };
            let keep = match job.target {
                Target::Latest => Some(commits.len()),
                Target::BackupEnd => Some(0),
                Target::Time(text) => {
                    let time: Timestamp =
                        text.parse().map_err(|_| failed("InvalidTarget", text.clone(), true))?;
                    Some(commits.iter().take_while(|c| c.time <= time).count())
                }
                Target::Lsn(text) => {
                    let lsn: Lsn = text.parse().map_err(|_| failed("InvalidTarget", text.clone(), true))?;
                    Some(commits.iter().take_while(|c| c.lsn <= lsn).count())
                }
                Target::Xid(text) => until(&commits, &|c| c.id.to_string() == *text),
                Target::Name(text) => until(&commits, &|c| c.row == *text),
            };
            let Some(keep) = keep else {
                return Err(failed("TargetNotReached", format!("{:?}", job.target), true));
            };
            commits.truncate(keep);
            let mut data = image;
            let last = commits.last().cloned();
            data.end = match (&last, job.target) {
                (_, Target::Latest) => choice.reaches.max(data.end),
                (Some(last), _) => last.lsn,
                (None, _) => data.end,
            };
            data.lineage = lineage;
            data.lineage.forks.retain(|fork| fork.until < data.end);
            data.lineage.timeline = data.lineage.forks.last().map_or(job.timeline, |_| job.timeline);
            data.log.extend(commits);
            data.data_set = job.data_set.into();
            (data.unled, data.standby, data.member) = (true, false, String::new());
            let end = data.end;
            let origin = Origin {
                parent: job.follows.clone(),
                timeline: data.timeline(),
                lsn: end,
                wal_segment_size: choice.backup.wal_segment_size,
            };
            data.promote(timeline);
            data.unarchived = Lsn(end.0 / origin.wal_segment_size * origin.wal_segment_size);
            let result = WorkerResult::Restored {
                time: last.map(|c| c.time.to_string()).unwrap_or_default(),
                lsn: end.to_string(),
                timeline,
                system_identifier: data.system_identifier.clone(),
            };
            let finished = Finished { result, origin };
            if let Some(volume) = world.volumes.get_mut(uid) {
                (volume.data, volume.finished) = (Some(data), Some(finished.clone()));
            }
            Ok(finished)
        })
    }
}
