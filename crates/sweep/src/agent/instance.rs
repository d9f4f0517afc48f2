//! An instance: the program of a database pod.

use super::{
    Agents,
    events::{Event, told, watch},
    lease::{self, Held},
    member::{Key, Member, Process},
    report::{self, RIDE_ALONG, Taken},
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use holdfast_core::{
    names,
    report::InstanceReport,
    wire::{self, AgentConfig},
};
use holdfast_postgresql::failover::{Action, Call, Data, Holder, Record, Server, View, decide};
use holdfast_runtime::apply::bounded;
use holdfast_testkit::cluster::{Exit, Host};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The first pause of one that waits for something; each is twice the one before.
const TICK: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_TICK: Duration = Duration::from_secs(5);
/// How often the others are asked for their promises at most.
const POLL_AGAIN: Duration = Duration::from_millis(200);
/// Of instances that find no Lease the first one comes first: a calm run always has the same primary.
const AFTER_YOU: Duration = Duration::from_millis(50);
/// How long a server takes to stop.
const STOP: Duration = Duration::from_millis(500);
/// Capacity of a volume of which nobody knows it.
const CAPACITY: i64 = 1 << 30;

/// An instance.
pub struct Instance {
    pub(super) agents: Agents,
    pub(super) client: Client,
    pub(super) host: Arc<Host>,
    pub(super) key: Key,
    pub(super) me: Holder,
    pub(super) address: String,
    pub(super) config: Arc<AgentConfig>,
    pub(super) config_hash: String,
    /// The Lease as the last view saw it: the only version that may be replaced on that view's word.
    pub(super) lease: Option<Lease>,
    unreadable: Option<String>,
    pub(super) held: Option<Held>,
    pub(super) taken: Taken,
    served: bool,
    capacity: i64,
    turn_to_poll: Instant,
    pub(super) polled: Option<Instant>,
    looked_at_holder: Option<Instant>,
    /// Leading duties are done for this term, since.
    pub(super) led: Option<(u64, Instant)>,
    pub(super) pointed: Option<Instant>,
    pub(super) streamed: BTreeMap<String, Instant>,
    pub(super) cut_off: Option<Instant>,
    /// Something is to be done at this time.
    pub(super) due: Option<Instant>,
    tick: Duration,
    pub(super) doing: String,
    pub(super) error: String,
    reported: Option<(InstanceReport, Instant)>,
}

/// The claim that is mounted as data volume.
pub fn data_claim(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let mounts = spec.containers.first()?.volume_mounts.as_ref()?;
    let name = &mounts.iter().find(|m| m.mount_path == wire::VOLUME_FOLDER)?.name;
    let volume = spec.volumes.as_ref()?.iter().find(|v| v.name == *name)?;
    Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone())
}

/// Releases what a program has, however it ends.
pub struct Guard(pub Agents, pub u64);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.with(|world| world.gone(self.1));
    }
}

/// Runs an instance until it is told to stop.
pub async fn run(agents: Agents, host: Host) -> Exit {
    let host = Arc::new(host);
    let program = agents.with(|world| world.number());
    let guard = Guard(agents.clone(), program);
    let uid = host.pod.uid().unwrap_or_default();
    let nonce = format!("{uid}/{}", host.restarts);
    // First of all, for whoever asks whether this incarnation is really over.
    host.message(&nonce);
    let over = Exit { code: 0, message: String::new() };
    let begin = Instance::begin(agents, Arc::clone(&host), program, nonce);
    let begun = tokio::select! {
        biased;
        () = host.told_to_stop() => return over,
        begun = begin => begun,
    };
    let Some((mut instance, mut events)) = begun else {
        return Exit { code: 1, ..over };
    };
    tokio::select! {
        biased;
        () = host.told_to_stop() => {}
        () = instance.live(&mut events) => {}
    }
    instance.end().await;
    drop(guard);
    over
}

impl Instance {
    /// Reads what is mounted, and takes the volume. `None`: the pod is none of a database.
    async fn begin(
        agents: Agents,
        host: Arc<Host>,
        program: u64,
        nonce: String,
    ) -> Option<(Self, BoxStream<'static, Event>)> {
        let (pod, client) = (&host.pod, host.client.clone());
        let (namespace, name) = (pod.namespace()?, pod.name_any());
        let database = pod.labels().get(names::LABEL_DATABASE)?.clone();
        let claim = data_claim(pod)?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        let (claim, config) = loop {
            let claim = bounded(claims.get_opt(&claim)).await.ok().flatten();
            let map = bounded(maps.get_opt(&names::config_map(&database))).await.ok().flatten();
            match (claim, map.as_ref().and_then(told).map(Arc::new)) {
                (Some(claim), Some(config)) => break (claim, config),
                // A kubelet would not have started the container yet.
                _ => sleep(Duration::from_secs(1)).await,
            }
        };
        let me = Holder { pod: name.clone(), uid: pod.uid().unwrap_or_default(), nonce };
        let (volume, key) = (claim.uid()?, (namespace, name.clone()));
        agents.mount(&claims, &claim).await;
        let mut changed = agents.changes();
        while !agents.with(|world| world.lock(&volume, program, &format!("pod {name}"))) {
            // The other one's end is a change.
            let _ = changed.changed().await;
        }
        agents.with(|world| {
            if let Some(data) = world.volumes.get_mut(&volume).and_then(|v| v.data.as_mut()) {
                // A clone is what its source was at that moment: from here on it is a standby's.
                data.standby |= !data.member.is_empty() && data.member != name;
                data.member.clone_from(&name);
            }
            let member = Member::new(program, &volume, Arc::clone(&config));
            world.members.insert(key.clone(), member);
            world.dirty = true;
        });
        let capacity = claim.status.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage").cloned());
        let capacity = capacity.and_then(|q| holdfast_database_operator::quantity::units(&q.0));
        let address = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_else(|| "10.0.0.1".into());
        let events = watch(&client, &config);
        let instance = Self {
            agents,
            client,
            host: Arc::clone(&host),
            key,
            me,
            address,
            config_hash: config.hash(),
            config,
            lease: None,
            unreadable: None,
            held: None,
            taken: Taken::default(),
            served: false,
            capacity: capacity.unwrap_or(CAPACITY),
            turn_to_poll: Instant::now() + AFTER_YOU * names::ordinal(&database, &name)?.unsigned_abs(),
            polled: None,
            looked_at_holder: None,
            led: None,
            pointed: None,
            streamed: BTreeMap::new(),
            cut_off: None,
            due: None,
            tick: TICK,
            doing: String::new(),
            error: String::new(),
            reported: None,
        };
        Some((instance, events))
    }

    async fn live(&mut self, events: &mut BoxStream<'static, Event>) {
        let mut changed = self.agents.changes();
        loop {
            while let Some(Some(event)) = events.next().now_or_never() {
                self.hear(event).await;
            }
            changed.mark_unchanged();
            self.due = None;
            let again = self.turn().await;
            self.publish().await;
            if again {
                continue;
            }
            let settled = self.doing.is_empty() && self.error.is_empty();
            let wake = self.wake(settled);
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(event) => { self.tick = TICK; self.hear(event).await }
                    None => return,
                },
                _ = changed.changed() => self.tick = TICK,
                () = tokio::time::sleep_until(wake) => {
                    if !settled { self.tick = (self.tick * 2).min(LONGEST_TICK); }
                }
            }
        }
    }

    /// When there is something to do next, if nothing happens before.
    fn wake(&self, settled: bool) -> Instant {
        let now = Instant::now();
        let mut times = vec![now + Duration::from_secs(3600)];
        let seen = self.agents.with(|world| world.members.get(&self.key).map(|m| (m.seen.clone(), m.ttl())));
        match &self.held {
            Some(held) => times.extend([held.renew, self.fence_at(held)]),
            None => times.extend(seen.map(|(seen, ttl)| seen.changed + ttl).filter(|t| *t > now)),
        }
        if !settled {
            times.push(now + self.tick);
        }
        times.extend(self.reported.iter().map(|(_, at)| *at + RIDE_ALONG));
        times.extend(self.due);
        times.extend(self.taken.due());
        let wake = times.into_iter().min().unwrap_or(now);
        // Whatever is due already was tried in this turn: time must pass before it is tried again.
        wake.max(now + Duration::from_millis(10))
    }

    async fn hear(&mut self, event: Event) {
        match event {
            // As a watcher's backoff would.
            Event::Failed => sleep(Duration::from_secs(1)).await,
            Event::Config(config) => {
                let config = Arc::new(config);
                self.config = Arc::clone(&config);
                self.config_hash = config.hash();
                self.agents.with(|world| {
                    if let Some(member) = world.members.get_mut(&self.key) {
                        member.config = config;
                    }
                });
            }
            Event::Lease(lease) => {
                let version = |l: &Option<Lease>| l.as_ref().map(|l| (l.uid(), l.resource_version()));
                let read = lease.as_ref().map(lease::to_record).transpose();
                let same = version(&lease) == version(&self.lease);
                self.unreadable = read.as_ref().err().cloned();
                self.lease = lease;
                let number =
                    self.lease.as_ref().and_then(|l| l.resource_version()?.parse().ok()).unwrap_or(0);
                self.agents.with(|world| {
                    let Some(member) = world.members.get_mut(&self.key) else { return };
                    // The same version seen again is no sign of life.
                    if !member.seen.known || !same {
                        member.seen.changed = Instant::now();
                    }
                    member.seen.known = true;
                    member.seen.record = read.ok().flatten();
                    member.seen.version = number;
                });
            }
        }
    }

    /// One turn; `true`: another one at once.
    async fn turn(&mut self) -> bool {
        self.keep().await;
        self.tell("", "");
        // The holder writes it anew with its next renewal.
        if let Some(why) = self.unreadable.clone()
            && self.held.is_none()
        {
            let lease = names::lease_primary(&self.config.database);
            self.tell("", &format!("the Lease {lease} cannot be read: {why}"));
            return false;
        }
        let Some(mut view) = self.view().await else {
            self.tell("waiting for the first word about the Lease", "");
            return false;
        };
        let mut action = decide(&view);
        if action == Action::Poll {
            let again = self.polled.map(|at| at + POLL_AGAIN);
            let own = view.lease.is_none().then_some(self.turn_to_poll);
            if let Some(at) = again.max(own).filter(|at| *at > Instant::now()) {
                self.due = Some(at);
                self.tell("asking the other instances", "");
                return false;
            }
            self.polled = Some(Instant::now());
            self.poll(&mut view);
            action = decide(&view);
        }
        self.act(&view, action).await
    }

    /// What goes into the report.
    pub(super) fn tell(&mut self, doing: &str, error: &str) {
        (self.doing, self.error) = (doing.into(), error.into());
    }

    async fn view(&mut self) -> Option<View> {
        let member = self.agents.with(|world| world.members.get(&self.key).cloned())?;
        if !member.seen.known {
            return None;
        }
        let record = self.held.as_ref().map(|h| h.record.clone()).or(member.seen.record.clone());
        let holder_terminated = self.holder_terminated(record.as_ref(), &member).await;
        let config = &self.config;
        self.agents.with(|world| {
            Some(View {
                me: self.me.clone(),
                data_set: config.data_set.clone(),
                system_identifier: config.system_identifier.clone(),
                durability: config.durability.mode,
                standbys: config.durability.standbys,
                members: (0..config.instances).map(|n| names::pod(&config.database, n)).collect(),
                data: match world.data(&self.key) {
                    None => Data::Empty,
                    Some(data) => Data::Present {
                        data_set: data.data_set.clone(),
                        system_identifier: data.system_identifier.clone(),
                        unled: data.unled,
                    },
                },
                server: world.server(&self.key),
                lease: record,
                version: member.seen.version,
                unchanged: member.seen.changed.elapsed(),
                consent: None,
                ttl: member.ttl(),
                holder_terminated,
                votes: Vec::new(),
                promise: member.promise,
                polled: false,
            })
        })
    }

    /// Whether the holder's very container is known to be over. Asked once a second at most, and only when nothing streams from it.
    async fn holder_terminated(&mut self, record: Option<&Record>, member: &Member) -> bool {
        let Some(holder) = record.and_then(|r| r.holder.as_ref()) else { return false };
        if *holder == self.me || member.streaming {
            return false;
        }
        if member.seen.terminated == holder.nonce {
            return true;
        }
        if self.looked_at_holder.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return false;
        }
        self.looked_at_holder = Some(Instant::now());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.key.0);
        let Ok(Some(pod)) = bounded(pods.get_opt(&holder.pod)).await else { return false };
        let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        let over = statuses
            .iter()
            .flat_map(|s| [s.state.as_ref(), s.last_state.as_ref()])
            .flatten()
            .filter_map(|state| state.terminated.as_ref()?.message.as_deref())
            .any(|message| message.trim() == holder.nonce);
        if over {
            self.agents.with(|world| {
                if let Some(member) = world.members.get_mut(&self.key) {
                    member.seen.terminated.clone_from(&holder.nonce);
                }
            });
        }
        over
    }

    /// Calls for promises and puts them into the view.
    fn poll(&mut self, view: &mut View) {
        let call = Call {
            term: view.next_term(),
            version: view.version,
            lease_uid: String::new(),
            candidate: self.key.1.clone(),
            data_set: self.config.data_set.clone(),
        };
        let mut peers = view.members.clone();
        if let Some(record) = &view.lease {
            // Members that the spec no longer wants may still hold the newest commits.
            peers.extend(record.synchronous.iter().cloned());
            peers.push(record.last_holder.clone());
        }
        peers.sort();
        peers.dedup();
        self.agents.with(|world| {
            if matches!(view.server, Server::Standby { .. }) {
                world.detach(&self.key);
                view.server = world.server(&self.key);
            }
            if let Some(member) = world.members.get_mut(&self.key) {
                member.promise = member.promise.and(&call);
            }
            for peer in peers.iter().filter(|p| !p.is_empty() && **p != self.key.1) {
                let vote = world.ask(&(self.key.0.clone(), peer.clone()), &call);
                view.votes.extend(vote);
            }
        });
        view.polled = true;
    }

    fn report(&self) -> InstanceReport {
        self.agents.with(|world| {
            let (taken, served) = (&self.taken, self.served);
            report::report(world, &self.key, taken, served, self.capacity, &self.doing, &self.error)
        })
    }

    /// Patches the pod when the report says something new.
    pub(super) async fn publish(&mut self) {
        let running = |p: Process| matches!(p, Process::Standby | Process::Primary);
        self.served |=
            self.agents.with(|world| world.members.get(&self.key).is_some_and(|m| running(m.process)));
        let report = self.report();
        self.host.ready(report.ready);
        let due = match &self.reported {
            None => report != InstanceReport::default(),
            Some((sent, at)) => {
                report::essence(sent) != report::essence(&report)
                    || (*sent != report && at.elapsed() >= RIDE_ALONG)
            }
        };
        let stands = self.reported.as_ref().is_some_and(|(_, at)| at.elapsed() >= RIDE_ALONG);
        if (!due && !stands) || self.agents.with(|world| world.hold_reports) {
            return;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.key.0);
        if !due {
            match bounded(pods.get_metadata(&self.key.1)).await {
                Ok(pod) if report.stands_on(&pod.metadata) => {
                    self.reported = Some((report, Instant::now()));
                    return;
                }
                Ok(_) => {}
                Err(_) => {
                    self.due = Some(Instant::now() + Duration::from_secs(1));
                    return;
                }
            }
        }
        let change = Patch::Merge(report.patch(&self.me.uid));
        match bounded(pods.patch(&self.key.1, &PatchParams::default(), &change)).await {
            Ok(_) => self.reported = Some((report, Instant::now())),
            Err(_) => self.due = Some(Instant::now() + Duration::from_secs(1)),
        }
    }

    /// Says what it does, at once: the step that follows takes its time.
    pub(super) async fn announce(&mut self, doing: &str) {
        self.tell(doing, "");
        self.publish().await;
    }

    /// The end of the container: withdraw, stop, archive the tail, give the Lease back, in this order.
    async fn end(&mut self) {
        let led = self.held.is_some();
        self.announce("stopping").await;
        self.host.ready(false);
        if led {
            // Best effort: the next primary overwrites it in any case.
            let _ = lease::withdraw(&self.client, &self.config, &self.address).await;
        }
        sleep(STOP).await;
        let now = self.host.clock.now();
        self.agents.with(|world| world.stop(&self.key, now));
        self.release().await;
    }
}
