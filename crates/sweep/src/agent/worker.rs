//! A worker: the program of a Job's pod. One order in, one result out.
// One result a worker: a Box would only be in the way.
#![allow(clippy::result_large_err)]

mod backup;
mod restore;

use super::{
    Agents,
    instance::Guard,
    lease,
    member::{
        Key,
        Process::{Primary, Standby},
    },
    store::{self, identity},
    world::World,
};
use backup::told;
use holdfast_archive::{HistoryFolder, plan::Choice, retention};
use holdfast_core::{
    Backup, BackupStoreSpec, Restore,
    conditions::{self, types},
    crd::schedule::Retention,
    wire::{self, Connection, HistoryPath, PlanSource, Target, WorkerJob, WorkerResult},
};
use holdfast_postgresql::wal::WalFile;
use holdfast_runtime::apply::bounded;
use holdfast_testkit::cluster::{Exit, Host};
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, ResourceExt, api::ListParams};
use restore::Filling;
use std::time::Duration;
use tokio::time::sleep;

/// How long the work of a worker takes.
const WORK: Duration = Duration::from_secs(2);
/// Bytes of every backup.
const SIZE: u64 = 24 << 20;
/// How long a plan waits for a switched segment.
const ARCHIVE_WAIT: Duration = Duration::from_secs(90);
/// Backups that one run of retention removes at most.
const AT_ONCE: usize = 60;

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Tries a store.
    Probe,
    /// Takes a backup.
    Backup,
    /// Removes what the rules no longer keep.
    Retention,
    /// Removes one backup.
    DeleteBackup,
    /// Finds out whether a restore is possible.
    Plan,
    /// Fills a volume.
    Restore,
}

impl Kind {
    fn of(job: &WorkerJob) -> Self {
        match job {
            WorkerJob::Probe { .. } => Self::Probe,
            WorkerJob::Backup { .. } => Self::Backup,
            WorkerJob::Retention { .. } => Self::Retention,
            WorkerJob::DeleteBackup { .. } => Self::DeleteBackup,
            WorkerJob::Plan { .. } => Self::Plan,
            WorkerJob::Restore { .. } => Self::Restore,
        }
    }
}

fn failed(reason: &str, message: impl Into<String>, permanent: bool) -> WorkerResult {
    WorkerResult::Failed { reason: reason.into(), message: message.into(), permanent }
}

/// The order of a worker's pod, if it is one.
pub fn order(host: &Host) -> Option<WorkerJob> {
    let containers = &host.pod.spec.as_ref()?.containers;
    let variables = containers.iter().flat_map(|c| c.env.iter().flatten());
    let text = variables.filter(|v| v.name == wire::JOB_VARIABLE).find_map(|v| v.value.as_deref())?;
    serde_json::from_str(text).ok()
}

/// Does the job and says what came of it.
pub async fn run(agents: Agents, host: Host, job: WorkerJob) -> Exit {
    let kind = Kind::of(&job);
    let program = agents.with(|world| world.number());
    let guard = Guard(agents.clone(), program);
    let work = async {
        let ordered = agents.with(|world| {
            if world.hanging.contains(&kind) {
                world.hung.insert(kind);
                return Err(());
            }
            Ok(world.failures.get_mut(&kind).and_then(std::collections::VecDeque::pop_front))
        });
        let result = match ordered {
            Err(()) => std::future::pending().await,
            Ok(Some(result)) => {
                sleep(WORK).await;
                result
            }
            Ok(None) => Worker { agents: &agents, host: &host, program }.run(&job).await,
        };
        let speechless = agents.with(|world| match world.speechless.get_mut(&kind) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        });
        (result, speechless)
    };
    let (result, speechless) = tokio::select! {
        biased;
        () = host.told_to_stop() => (failed("Terminated", "the worker was told to end before it was done", false), false),
        done = work => done,
    };
    drop(guard);
    if speechless {
        return Exit { code: 137, message: String::new() };
    }
    let code = i32::from(matches!(result, WorkerResult::Failed { .. }));
    Exit { code, message: serde_json::to_string(&result).unwrap_or_default() }
}

struct Worker<'a> {
    agents: &'a Agents,
    host: &'a Host,
    program: u64,
}

impl Worker<'_> {
    fn namespace(&self) -> String {
        self.host.pod.namespace().unwrap_or_default()
    }

    fn now(&self) -> Timestamp {
        self.host.clock.now()
    }

    fn place(&self, store: &BackupStoreSpec) -> String {
        identity(&self.namespace(), store)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.host.client.clone(), &self.namespace())
    }

    async fn run(&self, job: &WorkerJob) -> WorkerResult {
        match job {
            WorkerJob::Probe { .. } => {
                sleep(WORK).await;
                WorkerResult::Probed
            }
            WorkerJob::Backup {
                store, connection, history, backup_uid, progress_deadline_seconds, ..
            } => {
                let patience = Duration::from_secs(u64::try_from(*progress_deadline_seconds).unwrap_or(600));
                let place = self.place(store);
                let at = store::key(history);
                let finished = self.agents.with(|world| {
                    Some(world.stores.get(&place)?.places.get(&at)?.backups.get(backup_uid)?.0.clone())
                });
                match finished {
                    // An earlier attempt came to its end; its answer is repeated.
                    Some(manifest) => told(&manifest),
                    None => {
                        self.back_up(job, &place, connection, history, patience).await.unwrap_or_else(|e| e)
                    }
                }
            }
            WorkerJob::Retention { store, namespace, database, rules, pinned, now } => {
                self.retain(&self.place(store), namespace, database, rules, pinned, now).await
            }
            WorkerJob::DeleteBackup { store, history, backup_uid } => {
                let backups = bounded(self.api::<Backup>().list(&ListParams::default())).await;
                let backup = backups.into_iter().flatten().find(|b| b.uid().as_deref() == Some(backup_uid));
                self.in_use(backup_uid).await;
                sleep(WORK).await;
                let place = self.place(store);
                self.agents.with(|world| {
                    let removed = world.stores.entry(place).or_default().remove(history, backup_uid);
                    if let (Some(name), Some(backup)) = (removed, backup)
                        && backup.metadata.deletion_timestamp.is_none()
                    {
                        world.problem(format!(
                            "the data of Backup {name} was removed while nobody deletes it"
                        ));
                    }
                });
                WorkerResult::Deleted
            }
            WorkerJob::Plan { store, source, target, connection } => {
                self.plan(&self.place(store), source, target, connection.as_ref()).await
            }
            WorkerJob::Restore {
                store,
                history,
                follows,
                backup_uid,
                timeline,
                target,
                data_set,
                new_history,
                ..
            } => {
                let follows = follows.as_ref().unwrap_or(history);
                let timeline = *timeline;
                let filling =
                    Filling { store, history, follows, backup_uid, timeline, target, data_set, new_history };
                self.restore(&filling).await.unwrap_or_else(|e| e)
            }
        }
    }

    /// The instance behind a host name: a pod's, or the one that the primary's Service points to.
    async fn reach(&self, name: &str) -> Option<Key> {
        let mut labels = name.split('.');
        let first = labels.next()?.to_string();
        let pod = if labels.next()?.ends_with("-pods") {
            first
        } else {
            let slice = bounded(self.api::<EndpointSlice>().get_opt(&first)).await.ok()??;
            lease::target(&slice)?
        };
        let key = (self.namespace(), pod);
        let runs =
            |w: &mut World| w.members.get(&key).is_some_and(|m| matches!(m.process, Primary | Standby));
        self.agents.with(runs).then_some(key)
    }

    async fn primary(&self, name: &str) -> Result<Key, WorkerResult> {
        let found = self.reach(name).await;
        let primary = found.filter(|key| self.agents.with(|world| world.answering(key).is_some()));
        primary.ok_or_else(|| failed("DatabaseUnreachable", format!("{name} does not answer"), false))
    }

    async fn retain(
        &self,
        place: &str,
        namespace: &str,
        database: &str,
        rules: &[Retention],
        pinned: &[String],
        now: &str,
    ) -> WorkerResult {
        let Ok(now) = now.parse() else { return failed("InvalidJob", format!("{now:?} is no time"), true) };
        sleep(WORK).await;
        let removal = self.agents.with(|world| {
            let store = world.stores.entry(place.into()).or_default();
            let paths = store.histories(namespace, database);
            let histories: Vec<_> = paths.iter().map(|path| store.history(path)).collect();
            retention::decide(&histories, rules, pinned, now)
        });
        let more = removal.backups.len() > AT_ONCE;
        let gone: Vec<_> = removal.backups.iter().take(AT_ONCE).collect();
        for (_, uid) in &gone {
            self.in_use(uid).await;
        }
        let wal = if more { &[][..] } else { &removal.wal[..] };
        self.agents.with(|world| {
            let store = world.stores.entry(place.into()).or_default();
            for (path, uid) in &gone {
                store.remove(path, uid);
            }
            for path in store.histories(namespace, database) {
                let folder = HistoryFolder::new(&path);
                let Some(place) = store.places.get_mut(&store::key(&path)) else { continue };
                let file = WalFile::Segment;
                place.segments.retain(|name, _| !wal.contains(&folder.wal(&file(*name))));
            }
        });
        WorkerResult::Retained {
            kept: i64::try_from(removal.kept).unwrap_or(i64::MAX),
            expired: gone.iter().map(|(_, uid)| uid.clone()).collect(),
            wal_removed: i64::try_from(wal.len()).unwrap_or(i64::MAX),
            earliest: removal.earliest.map(|t| t.to_string()).unwrap_or_default(),
            more,
        }
    }

    /// A backup that a Restore was planned with must not be removed before that one is over.
    async fn in_use(&self, backup_uid: &str) {
        let restores = bounded(self.api::<Restore>().list(&ListParams::default())).await;
        for restore in restores.into_iter().flatten() {
            let status = restore.status.clone().unwrap_or_default();
            let planned = status.plan.is_some_and(|plan| plan.backup == backup_uid);
            let over = conditions::find(&status.conditions, types::SUCCEEDED)
                .is_some_and(|c| c.status == "True" || c.status == "False");
            if planned && !over && restore.metadata.deletion_timestamp.is_none() {
                let name = restore.name_any();
                self.agents.with(|world| {
                    world.problem(format!("a backup was removed that Restore {name} is about to read"));
                });
            }
        }
    }

    async fn plan(
        &self,
        place: &str,
        source: &PlanSource,
        target: &Target,
        connection: Option<&Connection>,
    ) -> WorkerResult {
        sleep(WORK).await;
        let (path, wanted) = match source {
            PlanSource::History { path } => (path.clone(), None),
            PlanSource::Backup { path, backup_uid } => (path.clone(), Some(backup_uid.as_str())),
            PlanSource::Database { namespace, database, system_identifier } => {
                let newest = self.agents.with(|world| {
                    let store = world.stores.entry(place.into()).or_default();
                    let paths = store.histories(namespace, database).into_iter();
                    let ours = paths
                        .filter(|p| system_identifier.as_ref().is_none_or(|s| *s == p.system_identifier));
                    ours.filter_map(|p| Some((store.history(&p).last_activity()?, p)))
                        .max_by_key(|(time, _)| *time)
                });
                let Some((_, path)) = newest else {
                    let of = system_identifier.as_ref().map(|s| format!(" with system identifier {s}"));
                    let of = of.unwrap_or_default();
                    let text = format!(
                        "the store holds nothing of database {database} of namespace {namespace}{of}"
                    );
                    return failed("UnknownDatabase", text, true);
                };
                (path, None)
            }
        };
        let complete = match connection {
            Some(connection) => self.bring_up_to_date(place, &path, connection).await,
            None => None,
        };
        let choice = self.agents.with(|world| {
            let store = world.stores.entry(place.into()).or_default();
            store.choose(&path, None, wanted, target, complete)
        });
        match choice {
            Ok(choice) => planned(&choice),
            Err((reason, message)) => failed(&reason, message, true),
        }
    }

    /// Has the database switch WAL; the time up to which every commit is in the store then.
    async fn bring_up_to_date(
        &self,
        place: &str,
        path: &HistoryPath,
        connection: &Connection,
    ) -> Option<Timestamp> {
        let primary = self.primary(&connection.primary_host).await.ok()?;
        let now = self.now();
        let archive = self.agents.with(|world| {
            world.switch(&primary, now);
            world.store_of(&primary)
        });
        if archive == Some((place.to_string(), path.clone())) {
            return Some(now);
        }
        sleep(ARCHIVE_WAIT).await;
        None
    }
}

fn planned(choice: &Choice) -> WorkerResult {
    WorkerResult::Planned {
        history: choice.history.clone(),
        follows: (choice.follows != choice.history).then(|| Box::new(choice.follows.clone())),
        backup_uid: choice.backup.backup_uid.clone(),
        bytes: i64::try_from(choice.backup.size).unwrap_or(i64::MAX),
        wal_segments: i64::try_from(choice.wal_segments).unwrap_or(i64::MAX),
        timeline: choice.timeline,
        version: choice.backup.major().to_string(),
        database_spec: without_empty(&choice.backup.database_spec),
    }
}

/// The spec without what means nothing.
fn without_empty(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), without_empty(v)));
            let full = |v: &Value| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty());
            Value::Object(kept.filter(|(_, v)| full(v)).collect())
        }
        other => other.clone(),
    }
}
