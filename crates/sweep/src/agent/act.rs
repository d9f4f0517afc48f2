//! What an instance does on its decision: lead, follow, or let things be.

use super::{instance::Instance, lease, member::Process, world::World};
use holdfast_core::names;
use holdfast_postgresql::failover::{
    Action, Change, Data, Record, Server, Synchronous, View, admitted, change, next_synchronous,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// How long initdb, a copy and a rewind take.
const LONG: Duration = Duration::from_secs(1);
/// How long a start and a promotion take.
const SHORT: Duration = Duration::from_millis(200);
/// How often the Service's slice is compared with what it should be.
const POINT_AGAIN: Duration = Duration::from_secs(30);
/// A standby that stops streaming for less than this stays in a Preferred set.
const PATIENCE: Duration = Duration::from_secs(3);
/// A standby that cannot stream for so long has parted from the primary.
const CUT_OFF: Duration = Duration::from_secs(30);

impl Instance {
    /// Acts; `true`: look again at once.
    pub(super) async fn act(&mut self, view: &View, action: Action) -> bool {
        if !matches!(action, Action::Lead) {
            self.led = None;
        }
        let why = if let Action::Refuse(why) = &action { Some(why.clone()) } else { None };
        self.agents.with(|world| {
            if let Some(member) = world.members.get_mut(&self.key) {
                member.refused = why;
            }
        });
        match action {
            Action::Wait(what) => self.tell(&what, ""),
            Action::Poll => self.tell("asking the other instances", ""),
            Action::Fence => {
                self.agents.with(|world| world.down(&self.key));
                return true;
            }
            Action::Refuse(why) => {
                self.agents.with(|world| world.down(&self.key));
                self.tell("", &why);
            }
            Action::Take(record) => {
                if self.write_lease(record).await {
                    return true;
                }
                self.tell("taking the Lease", "");
            }
            Action::Release => self.release().await,
            Action::Initialise => {
                self.adopt(view).await;
                self.announce("initialising").await;
                self.may_initialise().await;
                sleep(LONG).await;
                self.agents.with(|world| world.initialise(&self.key));
                return true;
            }
            Action::Lead => {
                self.adopt(view).await;
                return self.lead().await;
            }
            Action::Follow(holder) => return self.follow(view, &holder).await,
            Action::StandAlone => {
                self.start(false).await;
                return true;
            }
        }
        false
    }

    /// The Lease names this member, but it did not hear the answer to its own write.
    async fn adopt(&mut self, view: &View) {
        if self.held.is_none()
            && let Some(record) = view.lease.clone()
        {
            self.write_lease(record).await;
        }
    }

    /// No volume in use of this database may hold data when initdb runs.
    async fn may_initialise(&mut self) {
        let live = self.agents.live_claims(&self.client, &self.config).await;
        self.agents.with(|world| {
            let full: Vec<String> = live
                .iter()
                .filter(|(uid, _)| world.volumes.get(uid).is_some_and(|v| v.data.is_some()))
                .map(|(_, name)| name.clone())
                .collect();
            if !full.is_empty() {
                let (pod, full) = (&self.key.1, full.join(", "));
                world.problem(format!("initdb on {pod} while volumes in use hold data: {full}"));
            }
        });
    }

    /// Starts the server, as primary or as a standby that follows nobody yet.
    async fn start(&mut self, primary: bool) {
        self.agents.with(|world| world.starting(&self.key));
        sleep(SHORT).await;
        self.taken.start(&self.config, &self.config_hash);
        self.agents.with(|world| if primary { world.accept(&self.key) } else { world.standby(&self.key) });
    }

    /// One turn as the holder.
    async fn lead(&mut self) -> bool {
        let Some(record) = self.held.as_ref().map(|h| h.record.clone()) else { return false };
        let key = self.key.clone();
        let (process, standby) = self.agents.with(|world| {
            let process = world.members.get(&key).map(|m| m.process).unwrap_or_default();
            (process, world.data(&key).is_some_and(|d| d.standby))
        });
        match process {
            Process::Down => {
                self.in_force(&record);
                // A standby's data starts as a standby and is promoted, so that its timeline changes by the rules.
                self.start(!standby).await;
                return true;
            }
            Process::Starting => return false,
            Process::Standby => {
                // Its own synchronous set before it accepts the first commit.
                self.in_force(&record);
                sleep(SHORT).await;
                let now = self.host.clock.now();
                self.agents.with(|world| world.promote(&key, now));
                return true;
            }
            Process::Primary => {}
        }
        if self.led.is_none_or(|(term, _)| term != record.term) {
            return self.begin_to_lead(record).await;
        }
        self.taken.reload(&self.config, &self.config_hash);
        if self.pointed.is_none_or(|at| at.elapsed() >= POINT_AGAIN) && !self.point(&record).await {
            return false;
        }
        self.due_at(self.pointed.map(|at| at + POINT_AGAIN));
        if !self.keep_synchronous(record).await {
            self.tell("", "recording the synchronous set: the Lease was not to be written");
        }
        self.switch_in_time();
        false
    }

    fn due_at(&mut self, time: Option<Instant>) {
        self.due = self.due.into_iter().chain(time).min();
    }

    /// The server waits for the standbys that the record names.
    fn in_force(&mut self, record: &Record) {
        self.agents.with(|world| {
            if let Some(member) = world.members.get_mut(&self.key) {
                member.synchronous.clone_from(&record.synchronous);
                member.confirmations = record.confirmations;
            }
        });
    }

    /// Duties of a new primary, in this order: record what it is, and only then clients.
    async fn begin_to_lead(&mut self, record: Record) -> bool {
        let actual = self.agents.with(|world| {
            let data = world.data(&self.key)?;
            Some(Record {
                timeline: data.timeline(),
                system_identifier: data.system_identifier.clone(),
                ..record.clone()
            })
        });
        let Some(actual) = actual else { return false };
        if actual != record && !self.write_lease(actual.clone()).await {
            self.tell("", "recording timeline and system identifier: the Lease was not to be written");
            return false;
        }
        self.in_force(&actual);
        self.agents.with(|world| {
            if let Some(data) = world.data_mut(&self.key) {
                data.unled = false;
            }
            if let Some(member) = world.members.get_mut(&self.key) {
                // A new timeline's first segment goes to the archive in time, as any other change.
                member.unswitched.get_or_insert_with(Instant::now);
            }
        });
        if !self.point(&actual).await {
            return false;
        }
        self.led = Some((actual.term, Instant::now()));
        true
    }

    async fn point(&mut self, record: &Record) -> bool {
        let (pod, service) = (self.key.1.clone(), names::service_rw(&self.config.database));
        match lease::point(&self.client, &self.config, &self.address, &pod, record.term).await {
            Ok(None) => {
                self.pointed = Some(Instant::now());
                true
            }
            Ok(Some(term)) => {
                // The Lease was deleted and its terms began anew.
                self.write_lease(Record { term: term + 1, ..record.clone() }).await;
                self.tell("", &format!("Service {service} was pointed in term {term}; the term is raised"));
                false
            }
            Err(error) => {
                self.tell("", &format!("pointing Service {service} here: {error}"));
                false
            }
        }
    }

    /// Lets the synchronous set follow the standbys. `false`: the Lease could not be written.
    async fn keep_synchronous(&mut self, record: Record) -> bool {
        let now = Instant::now();
        let there = self.agents.with(|world| world.streaming(&self.key));
        for standby in &there {
            self.streamed.insert(standby.clone(), now);
        }
        let since = self.led.map_or(now, |(_, since)| since);
        let ttl = Duration::from_secs(u64::try_from(self.config.ttl_seconds).unwrap_or(6));
        let recent = self.streamed.iter().filter(|(_, at)| at.elapsed() < PATIENCE).map(|(name, _)| name);
        // After a takeover the others need a moment to come over; until then the recorded set stands.
        let early = since.elapsed() < ttl * 2;
        let kept = record.synchronous.iter().filter(|_| early);
        let streaming: BTreeSet<String> = recent.chain(kept).cloned().collect();
        if streaming.iter().any(|s| !there.contains(s)) {
            self.due_at(Some(if early { since + ttl * 2 } else { now + PATIENCE }));
        }
        let streaming: Vec<String> = streaming.into_iter().collect();
        let pods = (0..self.config.instances).map(|n| names::pod(&self.config.database, n));
        let wanted: Vec<String> = pods.filter(|p| *p != self.key.1).collect();
        let members = admitted(&self.key.1, &wanted, &record.synchronous);
        let record = &Record { members, ..record.clone() };
        if self.held.as_ref().is_some_and(|held| held.record != *record)
            && !self.write_lease(record.clone()).await
        {
            return false;
        }
        let durability = self.config.durability.clone();
        let next = next_synchronous(record, durability.mode, durability.standbys, &wanted, &streaming);
        let Some((set, confirmations)) = next else {
            self.in_force(record);
            return true;
        };
        // Its standbys obey and have everything at once.
        let goal = Synchronous { members: set, confirmations };
        let (mut record, mut obeyed) = (record.clone(), Synchronous::of(record));
        loop {
            match change(&Synchronous::of(&record), &obeyed, &goal, true) {
                Change::Record(Synchronous { members: synchronous, confirmations }) => {
                    record = Record { synchronous, confirmations, ..record };
                    if !self.write_lease(record.clone()).await {
                        return false;
                    }
                }
                Change::Obey => {
                    let synchronous = goal.members.clone();
                    self.in_force(&Record { synchronous, confirmations, ..record.clone() });
                    obeyed = goal.clone();
                    sleep(SHORT).await;
                }
                Change::Arrive | Change::Done => return true,
            }
        }
    }

    /// Ends a segment that has something in it before the archive is too far behind.
    fn switch_in_time(&mut self) {
        let limit = self.config.archive.as_ref().map(|a| a.max_lag_seconds).filter(|s| *s > 0);
        let Some(limit) = limit.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs) else { return };
        let since = self.agents.with(|world| world.members.get(&self.key).and_then(|m| m.unswitched));
        let Some(since) = since else { return };
        if since.elapsed() < limit {
            self.due_at(Some(since + limit));
            return;
        }
        let now = self.host.clock.now();
        self.agents.with(|world| world.switch(&self.key, now));
    }

    /// One turn as a follower.
    async fn follow(&mut self, view: &View, holder: &str) -> bool {
        let leader = (self.key.0.clone(), holder.to_string());
        let key = self.key.clone();
        let expected = view.lease.as_ref().is_some_and(|r| !r.system_identifier.is_empty());
        if view.data == Data::Empty {
            if !expected {
                self.tell(&format!("waiting for {holder} to initialise"), "");
                return false;
            }
            return self
                .long_step(&format!("cloning from {holder}"), holder, |w| w.copy(&key, &leader))
                .await;
        }
        match view.server {
            Server::Down => {
                let standby = self.agents.with(|world| world.data(&key).is_some_and(|d| d.standby));
                if !standby {
                    // What only this member has must reach the archive before it is rewound away.
                    let now = self.host.clock.now();
                    self.agents.with(|world| world.archive(&key, now));
                    let doing = format!("rewinding to {holder}");
                    return self.long_step(&doing, holder, |w| w.rewind(&key, &leader)).await;
                }
                self.start(false).await;
                true
            }
            Server::Standby { .. } => {
                self.taken.reload(&self.config, &self.config_hash);
                match self.agents.with(|world| world.stream(&key, holder)) {
                    Some(true) => self.cut_off = None,
                    Some(false) if self.parted() => {
                        self.agents.with(|world| world.down(&key));
                        let doing = format!("rewinding to {holder}");
                        return self.long_step(&doing, holder, |w| w.rewind(&key, &leader)).await;
                    }
                    _ => self.tell(&format!("connecting to {holder}"), ""),
                }
                false
            }
            Server::Starting | Server::Primary { .. } => false,
        }
    }

    /// The primary answers and does not let this standby stream: whether that has been so for long enough.
    fn parted(&mut self) -> bool {
        let parted = self.cut_off.get_or_insert_with(Instant::now).elapsed() > CUT_OFF;
        if parted {
            self.cut_off = None;
        }
        parted
    }

    /// A copy or a rewind. It needs the leader at its begin and at its end.
    async fn long_step(&mut self, doing: &str, holder: &str, work: impl FnOnce(&mut World) -> bool) -> bool {
        let leader = (self.key.0.clone(), holder.to_string());
        if self.agents.with(|world| world.answering(&leader).is_none()) {
            self.tell(doing, &format!("connecting to {holder}: it does not answer"));
            return false;
        }
        self.announce(doing).await;
        sleep(LONG).await;
        if self.agents.with(work) {
            return true;
        }
        self.tell("", &format!("{holder} no longer leads: the copy is given up"));
        false
    }
}
