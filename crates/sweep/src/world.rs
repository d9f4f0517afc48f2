//! A small cluster with the operators in it: one server, the rest of Kubernetes, agents in the pods, and a user.
//!
//! Everything runs on one thread and on a paused clock: hours pass in milliseconds, and a run repeats itself.

use crate::{
    agent::Agents,
    operators::{Operator, Running},
};
use holdfast_core::{Backup, BackupStore, Database, Restore};
use holdfast_testkit::{Lose, Mask, Rule, Server, Session, Tamper, Verb, Write, cluster::Cluster};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy},
    core::NamespaceResourceScope,
};
use regex::Regex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The namespace of everything that users make.
pub const NAMESPACE: &str = "lab";
/// When every run begins.
const BEGINNING: &str = "2026-03-02T10:00:00Z";
/// How often the harness looks.
const TICK: Duration = Duration::from_millis(500);
/// How long an operator that died is away.
const RESTART: Duration = Duration::from_secs(3);
/// At rest: no operator wrote for so long. Longer than every pause between two steps and every backoff in these
/// workloads; what comes still later is caught as a write at rest.
const QUIET: Duration = Duration::from_secs(90);
/// A goal must be reached within this time; what fails for a while does so for ten minutes, and backoff grows to five.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Writes of the operators after which nobody waits for an end any more: thirty times what the longest workload needs.
const ENDLESS: u64 = 3000;

/// How much later than everything else an operator sees the kind whose watch lags: see [`World::lag`].
const LAG: Duration = Duration::from_secs(10);
/// A run in which an object was replaced by a twin is over so long after it: what lands on the twin has landed.
const LANDED: Duration = Duration::from_secs(20);
/// What such a run says then: it came to no end, and need not.
pub const LANDED_ALL: &str = "a twin took an object's place: what came of it is not compared";

/// What the next life of an operator, after a death, begins with.
#[derive(Clone, Debug, Default)]
pub struct NextLife {
    /// Its faults.
    pub rules: Vec<Rule>,
    /// It sees old caches, for the first minute.
    pub stale: Option<Stale>,
}

/// How old the caches are that a life begins with.
#[derive(Clone, Copy, Debug)]
pub struct Stale {
    /// As they were so many of the operator's writes ago.
    pub back: u64,
    /// Never older than this revision.
    pub not_before: u64,
}

/// An operator and what became of it.
struct Post {
    running: Option<Running>,
    /// Virtual time at which it starts again.
    back: Option<tokio::time::Instant>,
    next: NextLife,
    /// Thaws the caches of a life that began with stale ones.
    thaw: Option<tokio::time::Instant>,
    deaths: u32,
    /// Of lives that are over.
    attempts: u64,
    struck: Vec<String>,
    tampered: u64,
    /// Of every life that begins.
    tampers: Vec<Tamper>,
}

/// The cluster.
pub struct World {
    /// The API server.
    pub server: Server,
    /// The rest of Kubernetes.
    pub cluster: Cluster,
    /// What runs in the pods.
    pub agents: Arc<Agents>,
    posts: BTreeMap<Operator, Post>,
    doubles: BTreeMap<Operator, Running>,
    user: Client,
    /// Faults of the harness's own: an operator that ended by itself, say.
    problems: Vec<String>,
    /// Whether events are lost, watches cut: see [`Self::disturb`].
    disturbance: Option<Disturbance>,
    ticks: u64,
    /// Kinds that an operator sees late, and what was newest at the last ticks.
    lagging: Vec<(Operator, String)>,
    past: VecDeque<(tokio::time::Instant, u64)>,
    /// Writes that were traced.
    traced: usize,
    /// What lives begin with that come next; taken up when an operator died. Shared with who decides that at a write.
    coming: Coming,
}

/// See [`World::coming`].
pub type Coming = Arc<Mutex<Vec<(Operator, NextLife)>>>;

/// What goes wrong with watches, all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Every third tick all watches end, and go on where they were.
    Cut,
    /// Every fifth tick they end with 410 Gone: the operators list anew.
    Expire,
    /// Nothing is seen for eight of ten ticks, then all that happened at once, by a new list.
    Coalesce,
    /// As [`Self::Coalesce`], and the events themselves are lost: only the list after it tells.
    Lose,
}

impl World {
    /// A cluster whose operators run and rest. Call it on a paused current-thread runtime. `seed` varies uids.
    pub async fn new(seed: u64) -> Result<Self, String> {
        let now: Timestamp = BEGINNING.parse().map_err(|e| format!("{BEGINNING}: {e}"))?;
        let server = Server::new(now, seed);
        server.register_holdfast()?;
        server.namespace(NAMESPACE);
        server.namespace("holdfast-system");
        let agents = Arc::new(Agents::default());
        let cluster = Cluster::start(&server, Arc::clone(&agents) as _);
        let user = server.client("user", NAMESPACE);
        let mut world = Self {
            server,
            cluster,
            agents,
            posts: BTreeMap::new(),
            doubles: BTreeMap::new(),
            user,
            problems: Vec::new(),
            disturbance: None,
            ticks: 0,
            lagging: Vec::new(),
            past: VecDeque::new(),
            traced: 0,
            coming: Coming::default(),
        };
        for which in Operator::ALL {
            world.posts.insert(
                which,
                Post {
                    running: None,
                    back: None,
                    next: NextLife::default(),
                    thaw: None,
                    deaths: 0,
                    attempts: 0,
                    struck: Vec::new(),
                    tampered: 0,
                    tampers: Vec::new(),
                },
            );
            world.begin(which);
        }
        world.pass(Duration::from_secs(2)).await;
        Ok(world)
    }

    /// A client of the user's, whose requests nothing disturbs.
    pub fn user(&self) -> Client {
        self.user.clone()
    }

    /// The session of an operator that runs.
    pub fn session(&self, which: Operator) -> Option<&Session> {
        self.posts.get(&which)?.running.as_ref().map(|running| &running.session)
    }

    /// Adds a fault to an operator's present life; its count begins now.
    pub fn fault(&mut self, which: Operator, rule: Rule) {
        if let Some(session) = self.session(which) {
            session.add(rule);
        }
    }

    /// Adds a fault that ends after a while.
    pub fn fault_for(&mut self, which: Operator, rule: Rule, time: Duration) {
        if let Some(session) = self.session(which) {
            session.add_until(rule, tokio::time::Instant::now() + time);
        }
    }

    /// Starts a second process of an operator beside the first.
    pub fn double(&mut self, which: Operator) {
        match Running::start(which, &self.server, self.server.session(which.name())) {
            Ok(running) => drop(self.doubles.insert(which, running)),
            Err(error) => self.problems.push(format!("{which} does not start: {error}")),
        }
    }

    /// Ends the second process.
    pub fn single(&mut self, which: Operator) {
        self.doubles.remove(&which);
    }

    /// Seeds a fault into an operator: now and in all its lives, or only in those that follow.
    pub fn seed(&mut self, which: Operator, tamper: Tamper, later_lives: bool) {
        if !later_lives && let Some(session) = self.session(which) {
            session.tamper(tamper.clone());
        }
        if let Some(post) = self.posts.get_mut(&which) {
            post.tampers.push(tamper);
        }
    }

    /// Requests that seeded faults changed.
    pub fn tampered(&self) -> u64 {
        let present = |post: &Post| post.running.as_ref().map_or(0, |running| running.session.tampered());
        self.posts.values().map(|post| post.tampered + present(post)).sum()
    }

    /// What lives begin with after the next deaths.
    pub fn coming(&self) -> Coming {
        Arc::clone(&self.coming)
    }

    /// Says what the life after an operator's next death begins with.
    pub fn next_life(&mut self, which: Operator, next: NextLife) {
        if let Some(post) = self.posts.get_mut(&which) {
            post.next = next;
        }
    }

    /// Kills an operator now. It comes back by itself.
    pub fn kill(&mut self, which: Operator) {
        if let Some(running) = self.posts.get(&which).and_then(|p| p.running.as_ref()) {
            running.session.kill();
        }
        self.supervise();
    }

    /// Starts what goes wrong with watches, or ends it.
    pub fn disturb(&mut self, disturbance: Option<Disturbance>) {
        self.disturbance = disturbance;
        self.each_session(|session| session.thaw(""));
        if disturbance.is_some() {
            return;
        }
        self.each_session(|session| {
            session.lose_no_more();
            session.expire_watches("");
        });
    }

    /// From now on an operator's watch of one kind is late, while all others are not: nothing orders watches of different kinds.
    pub fn lag(&mut self, which: Operator, resource: &str) {
        self.lagging.push((which, resource.into()));
    }

    /// All watches are as fast as ever.
    pub fn lag_no_more(&mut self) {
        for (which, resource) in std::mem::take(&mut self.lagging) {
            if let Some(session) = self.session(which) {
                session.thaw(&resource);
            }
        }
        self.past.clear();
    }

    fn lag_tick(&mut self) {
        if self.lagging.is_empty() {
            return;
        }
        let now = tokio::time::Instant::now();
        self.past.push_back((now, self.server.revision()));
        while self.past.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= LAG) {
            self.past.pop_front();
        }
        let Some((_, then)) = self.past.front() else { return };
        for (which, resource) in &self.lagging {
            if let Some(session) = self.session(*which) {
                session.freeze(resource, *then);
                session.look();
            }
        }
    }

    /// Deaths of operators so far.
    pub fn deaths(&self) -> u32 {
        self.posts.values().map(|post| post.deaths).sum()
    }

    /// Faults that struck so far, each with the request that it struck.
    pub fn struck(&self) -> Vec<String> {
        let mut all = Vec::new();
        for post in self.posts.values() {
            all.extend(post.struck.iter().cloned());
            all.extend(post.running.iter().flat_map(|running| running.session.struck()));
        }
        all
    }

    /// Writes that operators attempted so far, in this and former lives.
    pub fn attempts(&self, which: Operator) -> u64 {
        let Some(post) = self.posts.get(&which) else { return 0 };
        post.attempts + post.running.as_ref().map_or(0, |running| running.session.attempts())
    }

    fn all_attempts(&self) -> u64 {
        Operator::ALL.into_iter().map(|which| self.attempts(which)).sum()
    }

    fn each_session(&self, mut act: impl FnMut(&Session)) {
        self.posts.values().filter_map(|p| p.running.as_ref()).for_each(|running| act(&running.session));
    }

    fn begin(&mut self, which: Operator) {
        let session = self.server.session(which.name());
        let Some(post) = self.posts.get_mut(&which) else { return };
        let next = std::mem::take(&mut post.next);
        for rule in next.rules {
            session.add(rule);
        }
        for tamper in &post.tampers {
            session.tamper(tamper.clone());
        }
        if let Some(stale) = next.stale {
            let writes = self.server.writes();
            let own = writes.iter().rev().filter(|write| write.who == which.name());
            let then = own.map(|write| write.revision).nth(usize::try_from(stale.back).unwrap_or(usize::MAX));
            session.freeze("", then.unwrap_or_default().max(stale.not_before));
            post.thaw = Some(tokio::time::Instant::now() + Duration::from_secs(60));
        }
        post.back = None;
        match Running::start(which, &self.server, session) {
            Ok(running) => post.running = Some(running),
            Err(error) => self.problems.push(format!("{which} does not start: {error}")),
        }
    }

    /// Buries operators that died, and starts those whose time has come.
    fn supervise(&mut self) {
        let now = tokio::time::Instant::now();
        let coming = std::mem::take(&mut *self.coming.lock().unwrap_or_else(PoisonError::into_inner));
        for (which, next) in coming {
            self.next_life(which, next);
        }
        for which in Operator::ALL {
            let Some(post) = self.posts.get_mut(&which) else { continue };
            if post.running.as_ref().is_some_and(Running::is_over)
                && let Some(over) = post.running.take()
            {
                if over.ended_by_itself() {
                    self.problems.push(format!("operator {which} ended by itself"));
                }
                post.deaths += 1;
                post.attempts += over.session.attempts();
                post.struck.extend(over.session.struck());
                post.tampered += over.session.tampered();
                post.back = Some(now + RESTART);
            }
            if post.thaw.is_some_and(|at| at <= now) {
                post.thaw = None;
                if let Some(running) = &post.running {
                    running.session.thaw("");
                    running.session.cut_watches("");
                }
            }
            if post.back.is_some_and(|at| at <= now) {
                self.begin(which);
            }
        }
        self.disturb_tick();
        self.lag_tick();
    }

    fn disturb_tick(&mut self) {
        self.ticks += 1;
        let Some(disturbance) = self.disturbance else { return };
        let (phase, revision) = (self.ticks % 10, self.server.revision());
        self.each_session(|session| match disturbance {
            Disturbance::Cut if self.ticks.is_multiple_of(3) => session.cut_watches(""),
            Disturbance::Expire if self.ticks.is_multiple_of(5) => session.expire_watches(""),
            Disturbance::Coalesce if phase == 0 => session.freeze("", revision),
            Disturbance::Coalesce if phase == 8 => {
                session.expire_watches("");
                session.thaw("");
            }
            Disturbance::Lose if phase == 0 => {
                for resource in ["pods", "persistentvolumeclaims", "databases.holdfast.dev", "jobs.batch"] {
                    let (name, type_) = (String::new(), String::new());
                    session.lose(Lose { resource: resource.into(), name, type_, count: 2 });
                }
            }
            Disturbance::Lose if phase == 8 => session.expire_watches(""),
            _ => {}
        });
    }

    /// Lets time pass; what died in it comes back.
    pub async fn pass(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            tokio::time::sleep(TICK.min(left)).await;
            self.trace();
            self.supervise();
        }
    }

    /// What was written since the last time, for who looks on.
    fn trace(&mut self) {
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let (writes, now) = (self.server.writes(), self.server.clock().now());
        for write in writes.iter().skip(self.traced) {
            tracing::info!(%now, "{write}");
        }
        self.traced = writes.len();
    }

    /// Waits until something holds. Errors: it does not within three hours; `what` is named.
    pub async fn until<F, Fut>(&mut self, what: &str, holds: F) -> Result<(), String>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = bool>,
    {
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut pause = TICK;
        loop {
            self.landed()?;
            if holds(self.user()).await {
                return Ok(());
            }
            if self.all_attempts() > ENDLESS {
                return Err(self.endless());
            }
            if tokio::time::Instant::now() >= end {
                let words = self.words().await;
                return Err(format!("not within {} min: {what}; {words}", PATIENCE.as_secs() / 60));
            }
            self.pass(pause).await;
            // What takes long is looked at less often.
            pause = (pause * 11 / 10).min(Duration::from_secs(30));
        }
    }

    /// What the objects themselves say.
    async fn words(&self) -> String {
        async fn of<K>(client: Client, said: &mut Vec<String>)
        where
            K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
                + Clone
                + Debug
                + DeserializeOwned
                + Serialize,
        {
            let all = Api::<K>::namespaced(client, NAMESPACE).list(&ListParams::default()).await;
            for object in all.map(|list| list.items).unwrap_or_default() {
                let name = object.meta().name.clone().unwrap_or_default();
                let value = serde_json::to_value(&object).unwrap_or_default();
                for condition in value["status"]["conditions"].as_array().into_iter().flatten() {
                    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_string();
                    let (type_, status) = (text("type"), text("status"));
                    let (reason, message) = (text("reason"), text("message"));
                    said.push(format!("{} {name} {type_}={status} {reason}: {message}", K::kind(&())));
                }
            }
        }
        let mut said = Vec::new();
        of::<Database>(self.user(), &mut said).await;
        of::<Backup>(self.user(), &mut said).await;
        of::<Restore>(self.user(), &mut said).await;
        of::<BackupStore>(self.user(), &mut said).await;
        said.join("\n      ")
    }

    /// Waits until no operator has written for so long that none will. Errors: they go on and on.
    pub async fn settle(&mut self) -> Result<(), String> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let (mut seen, mut since) = (self.all_attempts(), tokio::time::Instant::now());
        loop {
            self.landed()?;
            self.pass(Duration::from_secs(5)).await;
            let now = tokio::time::Instant::now();
            let attempts = self.all_attempts();
            let away = self.posts.values().any(|post| post.running.is_none());
            if attempts != seen || away || self.cluster.busy() {
                (seen, since) = (attempts, now);
            } else if now.saturating_duration_since(since) >= QUIET {
                return Ok(());
            }
            if now >= end || attempts > ENDLESS {
                return Err(self.endless());
            }
        }
    }

    /// Errors: a twin took an object's place a while ago, which ends a run.
    fn landed(&self) -> Result<(), String> {
        match self.server.replaced() {
            Some(at) if at.elapsed() >= LANDED => Err(LANDED_ALL.into()),
            _ => Ok(()),
        }
    }

    fn endless(&self) -> String {
        let last = self.operator_writes().into_iter().rev().take(8).collect::<Vec<_>>();
        format!("no end after {} writes; the newest: {}", self.all_attempts(), last.join("; "))
    }

    /// The writes that three forced resyncs cause, which must be none: everything is listed anew, and the periodical looks
    /// come round.
    pub async fn resync_writes(&mut self) -> Vec<String> {
        let before = self.operator_writes().len();
        // The last one is long enough for every look that comes by the clock.
        for seconds in [20, 20, 310] {
            self.each_session(|session| session.expire_watches(""));
            self.pass(Duration::from_secs(seconds)).await;
        }
        // An apply that says again what is there counts, too: it is a request at rest.
        self.operator_writes().split_off(before)
    }

    /// Every write of an operator that reached the server, in order.
    pub fn operator_writes(&self) -> Vec<String> {
        let ours = |write: &Write| Operator::ALL.iter().any(|which| which.name() == write.who);
        self.server.writes().iter().filter(|write| ours(write)).map(ToString::to_string).collect()
    }

    /// Every write that reached the server, by client, verb and resource.
    pub fn tally(&self) -> BTreeMap<String, u64> {
        let mut tally = BTreeMap::new();
        for write in self.server.writes() {
            let (who, verb, resource, sub) = (write.who, write.verb, write.resource, write.subresource);
            *tally.entry(format!("{who} {verb:?} {resource} {sub}")).or_default() += 1;
        }
        self.each_session(|session| {
            for (what, count) in session.requests() {
                *tally.entry(format!("request {what} of an operator")).or_default() += count;
            }
        });
        tally
    }

    /// How many objects of the kinds that hold data or do work were made and deleted, by anyone: `+Job 3`. And pods that operators
    /// deleted: each time is a restart of a server.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        const KINDS: [&str; 6] =
            ["StatefulSet", "PersistentVolumeClaim", "Job", "Backup", "Restore", "Database"];
        let mut counts = BTreeMap::new();
        for write in self.server.writes() {
            let sign = match write.verb {
                Verb::Create | Verb::Apply if write.code == 201 => '+',
                Verb::Delete | Verb::DeleteCollection if write.changed => '-',
                _ => continue,
            };
            let restart = write.kind == "Pod" && Operator::ALL.iter().any(|which| which.name() == write.who);
            if KINDS.contains(&write.kind.as_str()) || restart {
                *counts.entry(format!("{sign}{}", write.kind)).or_default() += 1;
            }
        }
        counts
    }

    /// What is wrong whatever the workload: an operator that ended by itself, two primaries, lost data.
    pub fn problems(&self) -> Vec<String> {
        let mut all = self.problems.clone();
        // What becomes of data whose volume's claim was replaced by a twin is no operator's fault.
        if self.server.replaced().is_none() {
            all.extend(self.agents.problems());
        }
        all.extend(self.server.misplaced());
        all
    }

    /// The end state as text: all objects but events, what the volumes and stores hold; uids, times, versions, random secrets
    /// and names that come from uids are masked.
    pub fn dump(&self) -> String {
        let pattern =
            |text: &str, stands: &str| Regex::new(text).ok().map(|regex| (regex, stands.to_string()));
        let mask = Mask {
            // What people read, what is renewed by the clock, and what Kubernetes remembers of former templates.
            without: [
                "events",
                "events.events.k8s.io",
                "leases.coordination.k8s.io",
                "controllerrevisions.apps",
            ]
            .map(Into::into)
            .into(),
            patterns: [
                pattern(r"\bd[0-9a-f]{7}\b", "<id>"),
                // A sum over settings that name the data set.
                pattern(r#"configHash\\*":\\*"[0-9a-f]+"#, r#"configHash":"<sum>"#),
                pattern(r"containerd://[0-9a-f]+", "<container>"),
                // A volume's name is made from its claim's uid, and stands in the volume's own name here.
                pattern(r"pvc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "pvc-*"),
                pattern(r"\b10\.(20\d|96)\.\d+\.\d+\b", "<address>"),
                pattern(r"\bnode-\d\b", "<node>"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            without_managers: true,
        };
        let text = self.server.dump(&mask);
        format!("{}\n{}", normal(&text), self.agents.dump())
    }

    /// Applies an object as a user does.
    pub async fn apply<K>(&self, name: &str, body: Value) -> Result<K, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let mut body = body;
        body["apiVersion"] = K::api_version(&()).into();
        body["kind"] = K::kind(&()).into();
        body["metadata"]["name"] = name.into();
        let api: Api<K> = Api::namespaced(self.user(), NAMESPACE);
        let done = api.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(&body)).await;
        done.map_err(|error| format!("{} {name}: {error}", K::kind(&())))
    }

    /// Changes an object as `kubectl patch --type=merge` does.
    pub async fn patch<K>(&self, name: &str, change: Value) -> Result<K, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.user(), NAMESPACE);
        let done = api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await;
        done.map_err(|error| format!("{} {name}: {error}", K::kind(&())))
    }

    /// Deletes an object, in the background or in the foreground.
    pub async fn delete<K>(&self, name: &str, propagation: PropagationPolicy) -> Result<(), String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.user(), NAMESPACE);
        let params = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
        match api.delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{} {name}: {error}", K::kind(&()))),
        }
    }

    /// An object, if it is there.
    pub async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        get(self.user(), name).await
    }
}

/// An object, if it is there.
pub async fn get<K>(client: Client, name: &str) -> Option<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    Api::<K>::namespaced(client, NAMESPACE).get_opt(name).await.ok().flatten()
}

/// Objects one after the other, each without what may differ between runs that ended alike, in order of their text.
fn normal(dump: &str) -> String {
    let read = |text: &str| -> Vec<Value> {
        serde_json::Deserializer::from_str(text).into_iter::<Value>().flatten().collect()
    };
    // The end of a generated name is drawn; it stands in references, too.
    let mut text = dump.to_string();
    for object in read(dump) {
        let meta = &object["metadata"];
        if let (Some(prefix), Some(name)) = (meta["generateName"].as_str(), meta["name"].as_str()) {
            text = text.replace(name, &format!("{prefix}*"));
        }
    }
    // A volume's name has its claim's uid in it, which may be masked twice or not.
    if let Ok(volume) = Regex::new(r#"uid of PersistentVolume /pvc-[^"]*"#) {
        text = volume.replace_all(&text, "uid of PersistentVolume>").into_owned();
    }
    let objects: Vec<Value> = read(&text).into_iter().map(masked).collect();
    let mut texts: Vec<String> = objects.iter().map(|object| format!("{object:#}")).collect();
    texts.sort();
    texts.join("\n")
}

/// Why each of these may differ is said beside it.
fn masked(mut object: Value) -> Value {
    let kind = object["kind"].as_str().unwrap_or_default().to_string();
    if let Some(meta) = object["metadata"].as_object_mut() {
        // A second writer's mark, and a write more or less, change these alone.
        meta.remove("generation");
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(holdfast_testkit::TOUCHED);
            // Sums over what stands in the object itself, the uid that names its volumes among it.
            for sum in ["holdfast.dev/applied", "holdfast.dev/template"] {
                annotations.entry(sum).and_modify(|value| *value = json!("<sum>"));
            }
            // How many calls an election took is a matter of who asked first.
            annotations.entry("holdfast.dev/term").and_modify(|term| *term = json!("<term>"));
            if annotations.is_empty() {
                meta.remove("annotations");
            }
        }
    }
    if kind == "Secret"
        && let Some(data) = object.get_mut("data").and_then(Value::as_object_mut)
    {
        // Passwords and certificates are drawn at random.
        data.values_mut().for_each(|value| *value = json!("<secret>"));
    }
    // Of the claim at the moment of binding.
    if let Some(claim) = object.pointer_mut("/spec/claimRef") {
        drop_key(claim, "resourceVersion");
    }
    drop_key(&mut object, "observedGeneration");
    // Sums over a template that names its volumes by a uid.
    for sum in ["currentRevision", "updateRevision", "controller-revision-hash"] {
        drop_key(&mut object, sum);
    }
    // How long it took.
    drop_key(&mut object, "recoverySeconds");
    object
}

fn drop_key(value: &mut Value, key: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(key);
            fields.values_mut().for_each(|field| drop_key(field, key));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_key(item, key)),
        _ => {}
    }
}
