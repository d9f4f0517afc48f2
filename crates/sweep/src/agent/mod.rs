//! A scripted agent: what runs in the pods of the in-memory cluster.
//!
//! Towards the API server it behaves as `holdfast-agent` does: instances agree on a primary by the Lease, with the agent's own
//! decision, point the Service, report on their pods and take up configuration; workers read their order and answer in their
//! termination message, with the archive's own plan and retention. There is no PostgreSQL: a volume is a list of commits,
//! a store a map of backups and WAL. What must never happen to these is noted by [`Agents::problems`].

mod act;
mod data;
mod events;
mod hold;
mod instance;
mod lease;
mod member;
mod report;
mod store;
mod worker;
mod world;

#[cfg(test)]
mod tests;

use futures::{FutureExt, future::BoxFuture};
use holdfast_core::{
    names,
    wire::{AgentConfig, WorkerResult},
};
use holdfast_runtime::apply::bounded;
use holdfast_testkit::cluster::{Exit, Host, Programs};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::{
    collections::BTreeSet,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
pub use worker::Kind;
use world::World;
pub use world::Written;

/// How often a Lease is renewed, if its time to live allows so.
const PACE: Duration = Duration::from_secs(5);

struct Shared {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    pace: Duration,
}

/// What runs in pods, with everything that outlives them. Clones are the same.
#[derive(Clone)]
pub struct Agents(Arc<Shared>);

impl Default for Agents {
    fn default() -> Self {
        Self::renewing(PACE)
    }
}

impl Programs for Agents {
    fn run(&self, host: Host) -> BoxFuture<'static, Exit> {
        let agents = self.clone();
        match worker::order(&host) {
            Some(job) => worker::run(agents, host, job).boxed(),
            None => instance::run(agents, host).boxed(),
        }
    }
}

impl Agents {
    /// With nothing on any volume and in any store.
    pub fn new() -> Self {
        Self::default()
    }

    /// With nothing on any volume and in any store; holders renew their Lease so often, and at least every two thirds of its time to
    /// live.
    pub fn renewing(pace: Duration) -> Self {
        Self(Arc::new(Shared { world: Mutex::default(), changed: watch::Sender::new(0), pace }))
    }

    fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.0.world.lock().unwrap_or_else(PoisonError::into_inner);
        let result = look(&mut world);
        let dirty = std::mem::take(&mut world.dirty);
        drop(world);
        if dirty {
            self.0.changed.send_modify(|n| *n += 1);
        }
        result
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn pace(&self) -> Duration {
        self.0.pace
    }

    /// The next so many workers of a kind do nothing and answer this.
    pub fn fail_next(&self, kind: Kind, count: usize, result: &WorkerResult) {
        self.with(|w| w.failures.entry(kind).or_default().extend(std::iter::repeat_n(result.clone(), count)));
    }

    /// The next so many workers of a kind do their work and die before they have said so.
    pub fn lose_answers(&self, kind: Kind, count: u32) {
        self.with(|w| *w.speechless.entry(kind).or_default() += count);
    }

    /// Workers of a kind that begin from now on come to no end until they are told to stop, or (`false`) do again.
    pub fn hang(&self, kind: Kind, hangs: bool) {
        self.with(|w| if hangs { w.hanging.insert(kind) } else { w.hanging.remove(&kind) });
    }

    /// Whether a worker of a kind began and hangs, or has hung: see [`Self::hang`].
    pub fn hung(&self, kind: Kind) -> bool {
        self.with(|w| w.hung.contains(&kind))
    }

    /// Instances keep their reports to themselves, or (`false`) catch up.
    pub fn hold_reports(&self, hold: bool) {
        self.with(|w| {
            w.hold_reports = hold;
            w.dirty = true;
        });
    }

    /// A client writes a row to the primary of a database.
    pub fn write(&self, namespace: &str, database: &str, row: &str, now: Timestamp) -> Written {
        self.with(|w| w.write(namespace, database, row, now))
    }

    /// The rows that the primary of a database has; none: nobody is primary.
    pub fn rows(&self, namespace: &str, database: &str) -> Option<Vec<String>> {
        self.with(|w| {
            let primary = w.primary(namespace, database)?;
            Some(w.data(&primary)?.rows())
        })
    }

    /// The pod that is primary of a database.
    pub fn primary(&self, namespace: &str, database: &str) -> Option<String> {
        self.with(|w| w.primary(namespace, database).map(|(_, pod)| pod))
    }

    /// Names of the Backups whose data is in any store.
    pub fn backups(&self) -> BTreeSet<String> {
        let places = |w: &mut World| -> Vec<store::Place> {
            w.stores.values().flat_map(|s| s.places.values().cloned()).collect()
        };
        let places = self.with(places);
        places.iter().flat_map(|p| p.backups.values().map(|(m, _)| m.backup_name.clone())).collect()
    }

    /// Forgets the volumes whose claims, by uid, are gone from the cluster. Gives the names of those that held data.
    pub fn keep_volumes(&self, live: &BTreeSet<String>) -> Vec<String> {
        self.with(|w| {
            let gone: Vec<String> = w.volumes.keys().filter(|uid| !live.contains(*uid)).cloned().collect();
            let removed = gone.iter().filter_map(|uid| w.volumes.remove(uid));
            removed.filter(|v| v.data.is_some()).map(|v| v.claim.1).collect()
        })
    }

    /// What must never happen and did, and what is not as it should be just now.
    pub fn problems(&self) -> Vec<String> {
        self.with(|w| {
            let refused = w.members.iter().filter_map(|((_, pod), m)| Some((pod, m.refused.as_ref()?)));
            let now: Vec<String> = refused.map(|(pod, why)| format!("{pod} refuses to run: {why}")).collect();
            let text: Vec<String> = w.problems.iter().cloned().chain(now).collect();
            text.iter().map(|line| masked(w, line)).collect()
        })
    }

    /// Volumes and stores as text that is equal for runs that ended alike: ids are numbered in the order in which they were born, and
    /// there are no uids, times or positions.
    pub fn dump(&self) -> String {
        self.with(|w| {
            let mut lines = Vec::new();
            for volume in w.volumes.values() {
                let (namespace, claim) = &volume.claim;
                let holds = match &volume.data {
                    None => "empty".to_string(),
                    Some(data) => format!(
                        "data set {}, system {}, {}{}rows {}",
                        data.data_set,
                        data.system_identifier,
                        if data.unled { "never led, " } else { "" },
                        if data.member.is_empty() { String::new() } else { format!("of {}, ", data.member) },
                        data.rows().join(" "),
                    ),
                };
                lines.push(masked(w, &format!("volume {namespace}/{claim}: {holds}")));
            }
            for (identity, store) in &w.stores {
                for (key, place) in &store.places {
                    let origin = place.origin.as_ref().map_or("nothing", |o| o.parent.history.as_str());
                    let mut text = format!(
                        "store {identity}: {}, owner {}, from {origin}",
                        key.join("/"),
                        if place.owner.is_empty() { "none" } else { &place.owner }
                    );
                    let mut backups: Vec<_> = place.backups.values().collect();
                    backups.sort_by_key(|(manifest, _)| manifest.stop_time);
                    for (manifest, data) in backups {
                        let _ = write!(
                            text,
                            "\n  backup {}: rows {}",
                            manifest.backup_name,
                            data.rows().join(" ")
                        );
                    }
                    let commits = place.segments.values().flat_map(|(_, commits)| commits);
                    let rows: BTreeSet<(u64, &str)> =
                        commits.filter(|c| !c.row.is_empty()).map(|c| (c.id, c.row.as_str())).collect();
                    let rows: Vec<&str> = rows.into_iter().map(|(_, row)| row).collect();
                    let _ = write!(text, "\n  WAL: rows {}", rows.join(" "));
                    lines.push(masked(w, &text));
                }
            }
            lines.sort();
            lines.iter().fold(String::new(), |text, line| text + line + "\n")
        })
    }

    /// A volume appears, empty or, as a clone, with what its source has.
    async fn mount(&self, claims: &Api<PersistentVolumeClaim>, claim: &PersistentVolumeClaim) {
        let name = (claim.namespace().unwrap_or_default(), claim.name_any());
        let (Some(uid), label) =
            (claim.uid(), |key: &str| claim.labels().get(key).cloned().unwrap_or_default())
        else {
            return;
        };
        let known = self.with(|w| {
            w.name("data set", &label(names::LABEL_DATA_SET));
            w.name("history", &label(names::LABEL_HISTORY));
            w.volumes.contains_key(&uid)
        });
        if known {
            return;
        }
        let source = claim.spec.as_ref().and_then(|s| s.data_source.as_ref()).map(|s| s.name.clone());
        let source = match source {
            Some(source) => bounded(claims.get_opt(&source)).await.ok().flatten().and_then(|c| c.uid()),
            None => None,
        };
        self.with(|w| {
            let data = source.and_then(|uid| w.volumes.get(&uid)?.data.clone());
            w.volume(&uid, &name).data = data;
        });
    }

    /// uids and names of the claims that hold a database's data by their labels.
    async fn live_claims(&self, client: &Client, config: &AgentConfig) -> Vec<(String, String)> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &config.namespace);
        let (key, state) = (names::LABEL_DATA_SET_STATE, names::STATE_CURRENT);
        let selector = format!("{}={},{key}={state}", names::LABEL_DATABASE, config.database);
        let found = bounded(claims.list(&ListParams::default().labels(&selector))).await;
        found.into_iter().flatten().map(|c| (c.uid().unwrap_or_default(), c.name_any())).collect()
    }
}

/// A text without ids.
fn masked(world: &World, text: &str) -> String {
    world.names.iter().fold(text.to_string(), |text, (id, name)| text.replace(id, name))
}
