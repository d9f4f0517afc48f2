//! What all pods share: volumes, who runs on them, who follows whom, the stores; and what must never happen. No I/O.

use super::{
    data::{Data, Volume},
    member::{Key, Member, Process},
    store::{Refused, Store, identity},
    worker::Kind,
};
use holdfast_core::wire::{HistoryPath, WorkerResult};
use holdfast_postgresql::failover::{Call, Server, Vote};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::time::Instant;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is where it must be.
    Acknowledged,
    /// The primary has it; the standbys that it waits for do not.
    Waits,
    /// Nobody accepts writes.
    NoPrimary,
}

/// Everything.
#[derive(Default)]
pub struct World {
    /// Volumes by uid of their claim.
    pub volumes: BTreeMap<String, Volume>,
    /// Running instances.
    pub members: BTreeMap<Key, Member>,
    /// Stores by identity.
    pub stores: BTreeMap<String, Store>,
    /// What must never happen and did.
    pub problems: Vec<String>,
    /// What stands for ids in a dump, in the order of their birth.
    pub names: Vec<(String, String)>,
    /// Results that the next workers of a kind answer without doing anything.
    pub failures: BTreeMap<Kind, VecDeque<WorkerResult>>,
    /// Kinds of workers that do not come to an end.
    pub hanging: BTreeSet<Kind>,
    /// Kinds of which a worker hung.
    pub hung: BTreeSet<Kind>,
    /// How many workers of a kind do their work and die before they can say so.
    pub speechless: BTreeMap<Kind, u32>,
    /// Instances keep their reports to themselves.
    pub hold_reports: bool,
    /// Databases, by uid, that were initialised, with the data set.
    pub initialised: BTreeMap<String, String>,
    /// Commits by data set that a client was told are safe on more than one instance.
    acknowledged: BTreeMap<String, Vec<(u64, String)>>,
    counter: u64,
    /// Something changed that others may wait for.
    pub dirty: bool,
}

impl World {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Notes what must never happen, once.
    pub fn problem(&mut self, what: String) {
        if !self.problems.contains(&what) {
            self.problems.push(what);
        }
    }

    /// Gives an id a name for dumps.
    pub fn name(&mut self, kind: &str, id: &str) {
        if id.is_empty() || self.names.iter().any(|(known, _)| known == id) {
            return;
        }
        let number = self.names.iter().filter(|(_, name)| name.starts_with(&format!("<{kind} "))).count() + 1;
        self.names.push((id.into(), format!("<{kind} {number}>")));
    }

    /// The volume of a claim.
    pub fn volume(&mut self, uid: &str, claim: &(String, String)) -> &mut Volume {
        let volume = self.volumes.entry(uid.into()).or_default();
        volume.claim.clone_from(claim);
        volume
    }

    /// Takes a volume for a program; `false`: another one has it, which must not be.
    pub fn lock(&mut self, uid: &str, program: u64, who: &str) -> bool {
        let Some(volume) = self.volumes.get_mut(uid) else { return false };
        match &volume.user {
            Some((other, name)) if *other != program => {
                let text = format!("{who} began on volume {} while {name} still used it", volume.claim.1);
                self.problem(text);
                false
            }
            _ => {
                volume.user = Some((program, who.into()));
                true
            }
        }
    }

    /// A program is over, however it ended.
    pub fn gone(&mut self, program: u64) {
        self.dirty = true;
        for volume in self.volumes.values_mut() {
            volume.user.take_if(|(user, _)| *user == program);
        }
        let key = self.members.iter().find(|(_, m)| m.program == program).map(|(key, _)| key.clone());
        if let Some(key) = key {
            self.down(&key);
            self.members.remove(&key);
        }
    }

    /// The data of an instance.
    pub fn data(&self, key: &Key) -> Option<&Data> {
        self.volumes.get(&self.members.get(key)?.volume)?.data.as_ref()
    }

    /// The same, to be changed.
    pub fn data_mut(&mut self, key: &Key) -> Option<&mut Data> {
        self.volumes.get_mut(&self.members.get(key)?.volume)?.data.as_mut()
    }

    /// Standbys that stream from an instance.
    pub fn streaming(&self, key: &Key) -> Vec<String> {
        let own =
            |((namespace, _), m): &(&Key, &Member)| *namespace == key.0 && m.streaming && m.follows == key.1;
        self.members.iter().filter(own).map(|((_, pod), _)| pod.clone()).collect()
    }

    fn followers(&self, key: &Key) -> Vec<Key> {
        self.streaming(key).into_iter().map(|pod| (key.0.clone(), pod)).collect()
    }

    /// The server ends. Whoever streamed from it no longer does.
    pub fn down(&mut self, key: &Key) {
        for follower in self.followers(key) {
            if let Some(member) = self.members.get_mut(&follower) {
                member.streaming = false;
            }
        }
        if let Some(member) = self.members.get_mut(key)
            && member.process != Process::Down
        {
            (member.process, member.streaming) = (Process::Down, false);
            member.follows.clear();
            self.dirty = true;
        }
    }

    /// The server is on its way.
    pub fn starting(&mut self, key: &Key) {
        if let Some(member) = self.members.get_mut(key) {
            member.process = Process::Starting;
        }
    }

    /// The server runs as a standby.
    pub fn standby(&mut self, key: &Key) {
        if let Some(data) = self.data_mut(key) {
            data.standby = true;
        }
        if let Some(member) = self.members.get_mut(key) {
            member.process = Process::Standby;
            self.dirty = true;
        }
    }

    /// The server accepts writes from now on.
    pub fn accept(&mut self, key: &Key) {
        let Some(data) = self.data(key).cloned() else { return };
        let others: Vec<String> = self
            .members
            .iter()
            .filter(|(other, m)| *other != key && m.process == Process::Primary)
            .filter(|(other, _)| self.data(other).is_some_and(|d| d.data_set == data.data_set))
            .map(|((_, pod), _)| pod.clone())
            .collect();
        for other in others {
            self.problem(format!("{} and {other} were primary of one data set at the same time", key.1));
        }
        let safe = self.acknowledged.get(&data.data_set).cloned().unwrap_or_default();
        for (_, row) in safe.iter().filter(|(id, _)| data.log.iter().all(|c| c.id != *id)) {
            self.problem(format!("{} became primary without the acknowledged commit {row}", key.1));
        }
        if let Some(data) = self.data_mut(key) {
            data.standby = false;
        }
        if let Some(member) = self.members.get_mut(key) {
            (member.process, member.streaming) = (Process::Primary, false);
            member.follows.clear();
            self.dirty = true;
        }
    }

    /// A standby becomes primary, on a timeline that nobody has used.
    pub fn promote(&mut self, key: &Key, now: Timestamp) {
        let known = self.store_of(key).and_then(|(id, at)| Some(self.stores.get(&id)?.highest_timeline(&at)));
        let number = self.number();
        let Some(data) = self.data_mut(key) else { return };
        data.promote(known.unwrap_or(1).max(data.timeline()) + 1);
        data.commit(number, "", now);
        self.accept(key);
        self.archive(key, now);
    }

    /// initdb is done.
    pub fn initialise(&mut self, key: &Key) {
        let Some(member) = self.members.get(key).cloned() else { return };
        let system_identifier = (7_500_000_000_000_000_000 + self.number()).to_string();
        let (config, segment) = (&member.config, member.segment());
        self.name("system", &system_identifier);
        let before = self.initialised.insert(config.database_uid.clone(), config.data_set.clone());
        if let Some(before) = before {
            self.problem(format!(
                "{} was initialised a second time: before it was data set {before}, now {}",
                config.database, config.data_set
            ));
        }
        let data = Data::initialised(&config.data_set, &system_identifier, &key.1, segment);
        if let Some(volume) = self.volumes.get_mut(&member.volume) {
            let full = volume.data.replace(data).is_some();
            let text = format!("initdb on volume {}, which held data", volume.claim.1);
            if full {
                self.problem(text);
            }
        }
    }

    /// An empty volume gets what the leader has. `false`: the leader does not answer.
    pub fn copy(&mut self, key: &Key, leader: &Key) -> bool {
        let Some(mut data) = self.answering(leader) else { return false };
        (data.standby, data.member) = (true, key.1.clone());
        let Some(uid) = self.members.get(key).map(|m| m.volume.clone()) else { return false };
        let Some(volume) = self.volumes.get_mut(&uid) else { return false };
        volume.data = Some(data);
        volume.finished = None;
        true
    }

    /// What parted is taken back. `false`: the leader does not answer.
    pub fn rewind(&mut self, key: &Key, leader: &Key) -> bool {
        let Some(source) = self.answering(leader) else { return false };
        let Some(data) = self.data_mut(key) else { return false };
        data.follow(&source);
        data.standby = true;
        true
    }

    /// The data of an instance that serves as primary.
    pub fn answering(&self, key: &Key) -> Option<Data> {
        let primary = self.members.get(key).is_some_and(|m| m.process == Process::Primary);
        self.data(key).filter(|_| primary).cloned()
    }

    /// A standby that follows begins to stream, if it can; `None`: the leader does not answer.
    pub fn stream(&mut self, key: &Key, leader: &str) -> Option<bool> {
        let above = (key.0.clone(), leader.to_string());
        if let Some(member) = self.members.get_mut(key) {
            if member.follows == leader && member.streaming {
                return Some(true);
            }
            member.follows = leader.into();
        }
        let source = self.answering(&above)?;
        let data = self.data_mut(key)?;
        if !data.can_follow(&source) {
            return Some(false);
        }
        data.follow(&source);
        if let Some(member) = self.members.get_mut(key) {
            member.streaming = true;
            self.dirty = true;
        }
        Some(true)
    }

    /// A standby stops receiving.
    pub fn detach(&mut self, key: &Key) {
        if let Some(member) = self.members.get_mut(key) {
            self.dirty |= member.streaming;
            member.streaming = false;
            member.follows.clear();
        }
    }

    fn replicate(&mut self, key: &Key) {
        let Some(source) = self.data(key).cloned() else { return };
        for follower in self.followers(key) {
            if let Some(data) = self.data_mut(&follower) {
                data.follow(&source);
            }
        }
    }

    /// A client writes to the primary of a database.
    pub fn write(&mut self, namespace: &str, database: &str, row: &str, now: Timestamp) -> Written {
        let primary = self.primary(namespace, database);
        let Some(key) = primary else { return Written::NoPrimary };
        let number = self.number();
        let Some(data) = self.data_mut(&key) else { return Written::NoPrimary };
        data.commit(number, row, now);
        let data_set = data.data_set.clone();
        self.replicate(&key);
        let streaming = self.streaming(&key);
        let Some(member) = self.members.get_mut(&key) else { return Written::NoPrimary };
        member.unswitched.get_or_insert_with(Instant::now);
        self.dirty = true;
        let confirmed = member.synchronous.iter().filter(|s| streaming.contains(s)).count();
        if i32::try_from(confirmed).unwrap_or(i32::MAX) < member.confirmations {
            return Written::Waits;
        }
        if member.confirmations > 0 {
            self.acknowledged.entry(data_set).or_default().push((number, row.into()));
        }
        Written::Acknowledged
    }

    /// The instance of a database that accepts writes.
    pub fn primary(&self, namespace: &str, database: &str) -> Option<Key> {
        let of = |((home, _), m): &(&Key, &Member)| {
            home == namespace && m.config.database == database && m.process == Process::Primary
        };
        self.members.iter().find(of).map(|(key, _)| key.clone())
    }

    /// Where an instance archives to: the store and the history.
    pub fn store_of(&self, key: &Key) -> Option<(String, HistoryPath)> {
        let config = &self.members.get(key)?.config;
        let archive = config.archive.as_ref()?;
        let path = HistoryPath {
            namespace: config.namespace.clone(),
            database: config.database.clone(),
            system_identifier: self.data(key)?.system_identifier.clone(),
            history: config.history.clone(),
        };
        Some((identity(&config.namespace, &archive.store), path))
    }

    /// Ends the WAL segment of a primary and archives it.
    pub fn switch(&mut self, key: &Key, now: Timestamp) {
        let Some(segment) = self.members.get_mut(key).map(|m| {
            m.unswitched = None;
            m.segment()
        }) else {
            return;
        };
        if let Some(data) = self.data_mut(key) {
            data.switch(segment);
        }
        self.archive(key, now);
        self.replicate(key);
    }

    /// Archives whole segments.
    pub fn archive(&mut self, key: &Key, now: Timestamp) {
        let Some((store, path)) = self.store_of(key) else { return };
        let Some(segment) = self.members.get(key).map(Member::segment) else { return };
        let Some(mut data) = self.data(key).cloned() else { return };
        let result = self.stores.entry(store).or_default().archive(&path, &mut data, segment, now);
        if let Some(own) = self.data_mut(key) {
            own.unarchived = data.unarchived;
        }
        let Some(member) = self.members.get_mut(key) else { return };
        match result {
            Ok(newest) => {
                member.archive_error.clear();
                if let Some(name) = newest {
                    member.archived = Some((name.to_string(), now));
                }
            }
            Err(refused) => {
                member.archive_error = match &refused {
                    Refused::Owner(owner) => {
                        format!("the history belongs to data set {owner}, not {}", data.data_set)
                    }
                    Refused::Content(name) => format!("the store holds other content than {name}"),
                };
                let text = format!("{} cannot archive: {}", key.1, member.archive_error);
                self.problem(text);
            }
        }
    }

    /// The server stops in order: what it wrote goes to its standbys and into the store.
    pub fn stop(&mut self, key: &Key, now: Timestamp) {
        if self.members.get(key).is_some_and(|m| m.process == Process::Primary) {
            self.switch(key, now);
        } else {
            self.archive(key, now);
        }
        self.down(key);
    }

    /// What an instance's server does, for the decision.
    pub fn server(&self, key: &Key) -> Server {
        let (Some(member), Some(data)) = (self.members.get(key), self.data(key)) else { return Server::Down };
        match member.process {
            Process::Down => Server::Down,
            Process::Starting => Server::Starting,
            Process::Primary => Server::Primary { timeline: data.timeline() },
            Process::Standby => {
                Server::Standby { timeline: data.timeline(), flushed: data.end, streaming: member.streaming }
            }
        }
    }

    /// A candidate calls for a promise. `None`: there is nobody to answer.
    pub fn ask(&mut self, key: &Key, call: &Call) -> Option<Vote> {
        let member = self.members.get(key)?.clone();
        let streaming = member.streaming && member.process == Process::Standby;
        let alive = member.seen.record.as_ref().is_some_and(|r| {
            r.data_set == member.config.data_set
                && r.holder.is_some()
                && member.seen.changed.elapsed() < member.ttl()
                && !member.seen.holder_terminated()
        });
        // One that still hears from a living holder promises nothing.
        let bound = alive && streaming;
        let promises = !member.leads
            && !bound
            && call.term >= member.promise.term
            && call.version >= member.seen.version;
        if promises {
            self.detach(key);
            if let Some(member) = self.members.get_mut(key) {
                member.promise = member.promise.and(call);
            }
        }
        let server = if promises { self.server(key) } else { Server::Starting };
        Some(self.vote(key, server, call.term, call.data_set == member.config.data_set))
    }

    /// The promise that follows from what a server does.
    fn vote(&self, key: &Key, server: Server, term: u64, same: bool) -> Vote {
        let data = self.data(key);
        let (timeline, flushed) = match server {
            Server::Standby { timeline, flushed, .. } => (timeline, flushed),
            _ => Default::default(),
        };
        Vote {
            pod: key.1.clone(),
            term,
            data_set: data.map(|d| d.data_set.clone()).unwrap_or_default(),
            system_identifier: data.map(|d| d.system_identifier.clone()).unwrap_or_default(),
            timeline: if same { timeline } else { 0 },
            flushed,
            leads: self.members.get(key).is_some_and(|m| m.leads),
            promised: server != Server::Starting,
        }
    }
}
