//! Calls for promises: asking the others, answering them, and keeping what was promised.

use super::{
    clock,
    guard::lacks_room,
    member::Member,
    peers::{self, Asked},
    sql::Look,
};
use crate::state::write_durably;
use anyhow::Context;
use futures::{StreamExt, stream::FuturesUnordered};
use holdfast_core::{names, wire::AgentConfig};
use holdfast_postgresql::failover::{
    Call, Holder, Promise, Record, Server, Stay, Stays, View, Vote, agree, answer, vote,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

/// How long the server may take to let go of its upstream, and to see that its WAL ends inside a record. The candidate waits longer.
const DETACH_LIMIT: Duration = Duration::from_millis(2000);
/// Looks in a row that show no receiver.
const QUIET: u32 = 3;
/// How long the API server may take to say what the Lease is.
const READ_LIMIT: Duration = Duration::from_secs(1);
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long once only the lost primary is silent, which will hardly answer.
const LAST_PATIENCE: Duration = Duration::from_millis(150);

/// A promise, and the Lease object that it is about: about another one, made anew or in another cluster, nothing was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Promised {
    #[serde(flatten)]
    promise: Promise,
    lease_uid: String,
}

/// Whose staying this member agreed to, and when by its own clock. In memory: after a start it counts as given just now.
pub struct Agreed {
    holder: Holder,
    term: u64,
    at: Duration,
}

fn file(volume: &Path) -> PathBuf {
    volume.join("agent").join("promise.json")
}

impl Promised {
    /// Reads what was promised on this volume.
    pub fn load(volume: &Path) -> anyhow::Result<Self> {
        let path = file(volume);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn store(&self, volume: &Path) -> anyhow::Result<()> {
        let path = file(volume);
        std::fs::create_dir_all(volume.join("agent"))?;
        write_durably(&path, &serde_json::to_vec(self)?)
    }

    /// What it means for the Lease of this uid.
    fn about(&self, lease_uid: &str) -> Promise {
        let version = if self.lease_uid == lease_uid { self.promise.version } else { 0 };
        Promise { version, ..self.promise }
    }
}

/// Uid and version of the Lease, see `View::version`.
pub fn version_of(lease: Option<&Lease>) -> (&str, u64) {
    let Some(lease) = lease else { return ("", 0) };
    let version = lease.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    (lease.metadata.uid.as_deref().unwrap_or_default(), version)
}

impl Member {
    /// What was promised about this Lease. A volume without a promise may stand for one that promised something, lost or cloned from,
    /// unless this member was there before the Lease.
    pub(super) async fn promise_about(
        &mut self,
        record: Option<&Record>,
        lease_uid: &str,
        version: u64,
    ) -> anyhow::Result<Promise> {
        let first = !std::mem::replace(&mut self.memory.acquainted, true);
        // What it agreed to before it was started it does not know.
        if let Some((term, Some(holder))) = record.filter(|_| first).map(|r| (r.term, r.holder.clone())) {
            self.memory.agreed = Some(Agreed { holder, term, at: clock::now() });
        }
        if first
            && self.memory.promised == Promised::default()
            && let Some(record) = record
        {
            self.keep(Promise::unknown(record, version), lease_uid).await?;
        }
        Ok(self.memory.promised.about(lease_uid))
    }

    /// Keeps a promise for good.
    async fn keep(&mut self, promise: Promise, lease_uid: &str) -> anyhow::Result<()> {
        let promised = Promised { promise, lease_uid: lease_uid.into() };
        let stored = match promised.store(&self.volume) {
            // A full standby may be the one that has every commit.
            Err(error) if lacks_room(&error) => {
                self.disk.look(true).await;
                promised.store(&self.volume)
            }
            other => other,
        };
        stored.context("keeping a promise on the volume")?;
        self.memory.promised = promised;
        Ok(())
    }

    /// Stops receiving WAL, so that what is reported stays true; returns the position afterwards.
    async fn detach(&mut self, config: &AgentConfig) -> Option<Look> {
        self.configure(config, "", None).ok()?;
        let end = Instant::now() + DETACH_LIMIT;
        let mut quiet = 0;
        loop {
            let look = self.look().await?;
            if !look.recovering {
                return Some(look);
            }
            let receiving =
                self.session.as_ref()?.value("select count(*) from pg_stat_wal_receiver").await.ok()?;
            // A startup process that has not read its configuration yet may begin to receive once more.
            quiet = if receiving.as_deref() == Some("0") && look.replayed { quiet + 1 } else { 0 };
            if quiet == QUIET {
                return Some(look);
            }
            if Instant::now() > end {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether the Lease still is what this turn was decided on, by the API server itself.
    async fn still_so(&self, config: &AgentConfig) -> bool {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &config.namespace);
        let name = names::lease_primary(&config.database);
        match timeout(READ_LIMIT, api.get_opt(&name)).await {
            Ok(Ok(now)) => version_of(now.as_ref()) == version_of(self.memory.decided_on.as_ref()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease cannot be read: nobody is asked for a promise");
                false
            }
            Err(_) => {
                tracing::warn!("the API server does not answer: nobody is asked for a promise");
                false
            }
        }
    }

    /// Calls for promises and puts the answers into the view, this member's own position included. Without the API server's word
    /// that the Lease is as seen nobody is asked, and the view stays as it is.
    pub(super) async fn poll(&mut self, config: &AgentConfig, view: &mut View) -> anyhow::Result<()> {
        if !self.still_so(config).await {
            return Ok(());
        }
        let lease_uid = version_of(self.memory.decided_on.as_ref()).0.to_string();
        let call = Call {
            term: view.next_term(),
            version: view.version,
            lease_uid: lease_uid.clone(),
            candidate: self.identity.holder.pod.clone(),
            data_set: config.data_set.clone(),
        };
        self.keep(view.promise.and(&call), &lease_uid).await?;
        if matches!(view.server, Server::Standby { .. }) {
            match self.detach(config).await {
                Some(look) => view.server = look.server(),
                None => return Ok(()),
            }
        }
        let mut peers: Vec<String> = view.members.clone();
        if let Some(record) = &view.lease {
            // Members that the spec no longer wants may still hold the newest commits.
            peers.extend(record.synchronous.iter().cloned());
            peers.push(record.last_holder.clone());
        }
        peers.sort();
        peers.dedup();
        peers.retain(|p| !p.is_empty() && *p != self.identity.holder.pod);
        let last_holder = view.lease.as_ref().map(|r| r.last_holder.clone()).unwrap_or_default();
        let mut asks: FuturesUnordered<_> = peers
            .iter()
            .map(|pod| {
                let call = &call;
                async move { (pod.clone(), peers::ask(&config.database, &config.namespace, pod, call).await) }
            })
            .collect();
        let mut silent: BTreeSet<String> = peers.iter().cloned().collect();
        // Others may be asking this member at the same time: they are answered, or both would wait for each other.
        while !silent.is_empty() {
            let only_the_lost = silent.iter().all(|p| *p == last_holder);
            let patience = if only_the_lost { LAST_PATIENCE } else { PATIENCE };
            tokio::select! {
                reply = asks.next() => match reply {
                    Some((pod, reply)) => {
                        silent.remove(&pod);
                        match reply {
                            Ok(vote) => view.votes.push(vote),
                            Err(error) => tracing::info!(%pod, error = format!("{error:#}"), "no promise"),
                        }
                    }
                    None => break,
                },
                asked = self.asked.recv() => match asked {
                    Some(Asked::Stay(_, reply)) => drop(reply.send(self.stays(Err("it asks for promises itself".into())))),
                    Some(Asked::Call(call, reply)) => {
                    // It receives nothing already.
                    let now = View { promise: self.memory.promised.about(&lease_uid), ..view.clone() };
                    let promised = match answer(&now, &call) {
                        Ok(promise) => self.keep(promise, &call.lease_uid).await.is_ok(),
                        Err(_) => false,
                    };
                    let _ = reply.send(vote(&now, &call, promised));
                    }
                    None => {}
                },
                () = tokio::time::sleep(patience) => break,
            }
        }
        view.polled = true;
        self.memory.calls = match self.memory.calls {
            (version, calls) if version == call.version => (version, calls.saturating_add(1)),
            _ => (call.version, 1),
        };
        // Who has promised a higher term says so: the next call is above that.
        if let Some(term) = view.votes.iter().map(|v| v.term).max().filter(|term| *term > call.term) {
            let promise = self.memory.promised.about(&lease_uid);
            self.keep(Promise { term, ..promise }, &lease_uid).await?;
        }
        tracing::info!(term = call.term, version = call.version, votes = ?view.votes, "polled");
        Ok(())
    }

    /// Answers a peer.
    pub(super) async fn answer_peer(&mut self, asked: Asked) {
        match asked {
            Asked::Call(call, reply) => self.promise(call, reply).await,
            Asked::Stay(stay, reply) => {
                let agreed = self.consider(&stay).await;
                let _ = reply.send(self.stays(agreed));
            }
        }
    }

    fn stays(&self, agreed: Result<(), String>) -> Stays {
        if let Err(why) = &agreed {
            tracing::info!(why, "the holder's wish to stay without the API server is refused");
        }
        Stays { pod: self.identity.holder.pod.clone(), refused: agreed.err().unwrap_or_default() }
    }

    /// Agrees that the holder stays, if nothing is against it: from now on it is as alive for this member as after a renewal.
    async fn consider(&mut self, stay: &Stay) -> Result<(), String> {
        let config = self.config.borrow().clone();
        let look = self.look().await;
        // The API server may be away for this member as well: the holder waits two seconds at most, so only what is known counts.
        self.memory.looked_at_holder = Some(Instant::now());
        let view = self.view(&config, look.as_ref()).await.map_err(|error| format!("{error:#}"))?;
        agree(&view.ok_or("the Lease is not known yet")?, stay)?;
        // The clock is read before the answer leaves: the holder counts from when it asked, which is earlier still.
        self.memory.agreed = Some(Agreed { holder: stay.holder.clone(), term: stay.term, at: clock::now() });
        Ok(())
    }

    /// How long ago this member agreed that the holder of this record stays.
    pub(super) fn consent(&self, record: Option<&Record>) -> Option<Duration> {
        let (record, agreed) = (record?, self.memory.agreed.as_ref()?);
        let same = record.holder.as_ref() == Some(&agreed.holder) && record.term == agreed.term;
        same.then(|| clock::now().saturating_sub(agreed.at))
    }

    /// Answers a peer's call: promises, keeps that, stops receiving, and only then says what it has.
    async fn promise(&mut self, call: Call, reply: oneshot::Sender<Vote>) {
        match self.answer(&call).await {
            Ok(vote) => {
                let _ = reply.send(vote);
            }
            // The caller hears nothing, which is no promise.
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no promise"),
        }
    }

    async fn answer(&mut self, call: &Call) -> anyhow::Result<Vote> {
        let config = self.config.borrow().clone();
        let look = self.look().await;
        let mut view = self.view(&config, look.as_ref()).await?.context("the Lease is not known yet")?;
        // An agent of an older version does not say which Lease it wants to replace: then it is the one that is seen here.
        let mut call = call.clone();
        if call.version == 0 && call.lease_uid.is_empty() {
            call.version = view.version;
            call.lease_uid = version_of(self.memory.decided_on.as_ref()).0.to_string();
        }
        let call = &call;
        let promise = match answer(&view, call) {
            Ok(promise) => promise,
            Err(why) => {
                tracing::info!(candidate = call.candidate, term = call.term, why, "no promise");
                return Ok(vote(&view, call, false));
            }
        };
        self.keep(promise, &call.lease_uid).await?;
        let mut promised = true;
        if matches!(view.server, Server::Standby { .. }) {
            match self.detach(&config).await {
                Some(look) => view.server = look.server(),
                None => promised = false,
            }
        }
        Ok(vote(&view, call, promised))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_outlives_the_process_and_binds_for_its_own_lease_only() {
        let volume = tempfile::tempdir().unwrap();
        assert_eq!(Promised::load(volume.path()).unwrap(), Promised::default());
        let promised = Promised { promise: Promise { term: 7, version: 1200 }, lease_uid: "l1".into() };
        promised.store(volume.path()).unwrap();
        let again = Promised::load(volume.path()).unwrap();
        assert_eq!(again, promised);
        assert_eq!(again.about("l1"), Promise { term: 7, version: 1200 });
        // The term still counts: a candidate must exceed it.
        assert_eq!(again.about("l2"), Promise { term: 7, version: 0 });
        std::fs::write(file(volume.path()), "{").unwrap();
        assert!(Promised::load(volume.path()).is_err(), "an unreadable promise is not none");
    }
}
