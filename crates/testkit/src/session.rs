//! One life of a client: the service under its kube client, with the faults of this life. Ends when a fault kills it.

use crate::{
    faults::{Fault, Rule, Uncounted},
    kinds::Kind,
    read::Sight,
    rest::meta,
    serve::{refused, serve},
    server::{Answer, Incoming, Shared},
    status::Refusal,
    tamper::{self, Fate, Tamper},
};
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tower::{BoxError, Service};

/// A client with so many writes in one life is in a loop: from here on each takes a second.
const LOOPS: u64 = 3000;
/// How long a request that comes late was on its way: operators that die are back after three seconds.
const LATE: Duration = Duration::from_secs(12);
/// How long a pod's controller has to make another one.
const REPLACED: Duration = Duration::from_secs(5);

/// Events that are lost on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lose {
    /// The resource, as in `pods`.
    pub resource: String,
    /// Only of this name; empty: any.
    pub name: String,
    /// Only of this type: ADDED, MODIFIED, DELETED; empty: any.
    pub type_: String,
    /// How many more. Each watch that would have shown it counts.
    pub count: u64,
}

/// What happened to the watches of a resource.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cuts {
    /// How often they were ended.
    pub ends: u64,
    /// How often they were declared to be gone.
    pub expiries: u64,
    /// The revision of the last time: who goes on from an older one must list anew.
    pub expired: u64,
}

/// A rule, how many requests it counted, and when it ends.
#[derive(Debug)]
struct Standing {
    rule: Rule,
    seen: u64,
    until: Option<tokio::time::Instant>,
}

/// Asked at each counted write, with its number, what strikes it.
type Choose = Box<dyn FnMut(u64) -> Option<Fault> + Send>;

#[derive(Default)]
struct Chooser(Option<(u64, Choose)>);

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "chooser" } else { "none" })
    }
}

#[derive(Debug, Default)]
struct Condition {
    rules: Vec<Standing>,
    chooser: Chooser,
    uncounted: Uncounted,
    attempts: u64,
    writes: u64,
    struck: Vec<String>,
    frozen: BTreeMap<String, Sight>,
    lose: Vec<Lose>,
    lost: u64,
    cuts: BTreeMap<String, Cuts>,
    tampers: Vec<Tamper>,
    /// Requests that a tamper holds back.
    held: Vec<(String, Incoming)>,
    tampered: u64,
    requests: BTreeMap<String, u64>,
    /// Each counted write: `delete pods`, `patch databases.holdfast.dev/status`.
    attempted: Vec<String>,
    /// uid of each object that the client saw last, by resource, namespace and name. `None`: nobody keeps account.
    seen: Option<BTreeMap<(String, String, String), String>>,
}

/// What a session and its watches share.
#[derive(Debug)]
pub(crate) struct Life {
    who: String,
    condition: Mutex<Condition>,
    dead: tokio::sync::watch::Sender<bool>,
}

impl Life {
    pub fn who(&self) -> &str {
        &self.who
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    pub fn sight(&self, resource: &str) -> Sight {
        let condition = self.condition();
        condition.frozen.get(resource).or_else(|| condition.frozen.get("")).copied().unwrap_or_default()
    }

    pub fn cuts(&self, resource: &str) -> Cuts {
        let condition = self.condition();
        let of = |name: &str| condition.cuts.get(name).copied().unwrap_or_default();
        let (own, all) = (of(resource), of(""));
        Cuts {
            ends: own.ends + all.ends,
            expiries: own.expiries + all.expiries,
            expired: own.expired.max(all.expired),
        }
    }

    /// The client is told of an object.
    pub fn sees(&self, kind: &Kind, object: &Value) {
        let mut condition = self.condition();
        let Some(seen) = &mut condition.seen else { return };
        let place = (kind.qualified(), meta(object, "namespace").into(), meta(object, "name").into());
        seen.insert(place, meta(object, "uid").into());
    }

    /// The client is told that an object is gone.
    pub fn misses(&self, kind: &Kind, namespace: &str, name: &str) {
        let mut condition = self.condition();
        let Some(seen) = &mut condition.seen else { return };
        seen.remove(&(kind.qualified(), namespace.into(), name.into()));
    }

    /// Whether this event is lost.
    pub fn loses(&self, resource: &str, _namespace: &str, name: &str, type_: &str) -> bool {
        let mut condition = self.condition();
        let is = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
        let hit = condition
            .lose
            .iter_mut()
            .find(|l| l.count > 0 && l.resource == resource && is(&l.name, name) && is(&l.type_, type_));
        let Some(hit) = hit else { return false };
        hit.count -= 1;
        condition.lost += 1;
        true
    }
}

/// One life of one client: a new one is a new process. Cheap to clone: all clones are the same life.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, who: &str) -> Self {
        let life = Life {
            who: who.into(),
            condition: Mutex::new(Condition::default()),
            dead: tokio::sync::watch::Sender::new(false),
        };
        Self { shared, life: Arc::new(life) }
    }

    /// From now on account is kept of what this client was told, for [`crate::Server::misplaced`].
    pub fn account(&self) {
        self.life.condition().seen = Some(BTreeMap::new());
    }

    /// Every counted write that the client attempted, in order: `delete pods`, `patch databases.holdfast.dev/status`.
    pub fn attempted(&self) -> Vec<String> {
        self.life.condition().attempted.clone()
    }

    /// Adds a rule. Its count begins now.
    #[must_use]
    pub fn with(self, rule: Rule) -> Self {
        self.add(rule);
        self
    }

    /// Adds a rule while the client runs. Its count begins now.
    pub fn add(&self, rule: Rule) {
        self.life.condition().rules.push(Standing { rule, seen: 0, until: None });
    }

    /// Adds a rule that holds until some moment.
    pub fn add_until(&self, rule: Rule, until: tokio::time::Instant) {
        self.life.condition().rules.push(Standing { rule, seen: 0, until: Some(until) });
    }

    /// At each counted write from now on, `choose` is handed its number, from 1, and says what strikes it. A rule that strikes
    /// comes first. It may fork the process: nothing but this request is on its way, and all that there is gets copied.
    pub fn choose(&self, choose: impl FnMut(u64) -> Option<Fault> + Send + 'static) {
        self.life.condition().chooser.0 = Some((0, Box::new(choose)));
    }

    /// From now on this client has a fault in its source.
    pub fn tamper(&self, tamper: Tamper) {
        self.life.condition().tampers.push(tamper);
    }

    /// How many of its requests were changed, held back or only pretended because of that.
    pub fn tampered(&self) -> u64 {
        self.life.condition().tampered
    }

    /// Says which writes are not counted.
    #[must_use]
    pub fn not_counting(self, uncounted: Uncounted) -> Self {
        self.life.condition().uncounted = uncounted;
        self
    }

    /// A kube client that lives this life. Call it within a tokio runtime.
    pub fn client(&self, namespace: &str) -> kube::Client {
        kube::Client::new(self.clone(), namespace)
    }

    /// Counted writes that reached the server, those that it refused too.
    pub fn writes(&self) -> u64 {
        self.life.condition().writes
    }

    /// Counted writes that the client attempted.
    pub fn attempts(&self) -> u64 {
        self.life.condition().attempts
    }

    /// How many requests the client made, by verb and resource.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.life.condition().requests.clone()
    }

    /// The faults that struck, in order, each with the request that it struck.
    pub fn struck(&self) -> Vec<String> {
        self.life.condition().struck.clone()
    }

    /// Ends this life: nothing is answered any more, and watches go silent.
    pub fn kill(&self) {
        self.life.dead.send_replace(true);
        self.shared.wake_all();
    }

    /// Whether this life has ended.
    pub fn is_dead(&self) -> bool {
        self.life.is_dead()
    }

    /// Waits until this life has ended.
    pub async fn dead(&self) {
        // The sender lives as long as this.
        let _ = self.life.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// From now on, watches of a resource (`""`: of all) show nothing newer than `revision`, nor do lists that accept what
    /// a cache has (resourceVersion 0): an API server whose cache lags.
    pub fn freeze(&self, resource: &str, revision: u64) {
        let sight = Sight { cache: Some(revision), lies: false };
        self.life.condition().frozen.insert(resource.into(), sight);
    }

    /// As [`Self::freeze`], and lists that ask for the newest state get the old one too. No correct API server does that:
    /// it stands for a client that reads through a stale cache of its own.
    pub fn freeze_all_lists(&self, resource: &str, revision: u64) {
        let sight = Sight { cache: Some(revision), lies: true };
        self.life.condition().frozen.insert(resource.into(), sight);
    }

    /// Watches look again: how far they see has changed.
    pub fn look(&self) {
        self.shared.wake_all();
    }

    /// Ends a freeze: what was held back comes now.
    pub fn thaw(&self, resource: &str) {
        self.life.condition().frozen.remove(resource);
        self.shared.wake_all();
    }

    /// Ends all watches of a resource (`""`: of all), as a server does at the end of their time. They go on where they were.
    pub fn cut_watches(&self, resource: &str) {
        self.life.condition().cuts.entry(resource.into()).or_default().ends += 1;
        self.shared.wake_all();
    }

    /// Ends all watches of a resource (`""`: of all) with 410 Gone, and those that would go on from before now: the client must list
    /// anew. With a freeze before and a thaw after it, all changes between come as one.
    pub fn expire_watches(&self, resource: &str) {
        let revision = self.shared.state().store.revision;
        {
            let mut condition = self.life.condition();
            let cuts = condition.cuts.entry(resource.into()).or_default();
            cuts.expiries += 1;
            cuts.expired = revision;
        }
        self.shared.wake_all();
    }

    /// Loses watch events.
    pub fn lose(&self, lose: Lose) {
        self.life.condition().lose.push(lose);
    }

    /// From now on no event is lost.
    pub fn lose_no_more(&self) {
        self.life.condition().lose.clear();
    }

    /// How many watch events were lost.
    pub fn lost(&self) -> u64 {
        self.life.condition().lost
    }

    /// Counts a request, and finds the fault that strikes it.
    fn judge(&self, incoming: &Incoming, resource: &str) -> (bool, Option<Fault>) {
        let mut condition = self.life.condition();
        *condition.requests.entry(format!("{} {resource}", incoming.verb())).or_default() += 1;
        let counted = condition.uncounted.counts(incoming.write(), resource, &incoming.target.name);
        if counted {
            condition.attempts += 1;
            let (sub, verb) = (&incoming.target.subresource, incoming.verb());
            let slash = if sub.is_empty() { "" } else { "/" };
            condition.attempted.push(format!("{verb} {resource}{slash}{sub}"));
        }
        let mut strikes = None;
        let now = tokio::time::Instant::now();
        for standing in condition.rules.iter_mut().filter(|s| s.until.is_none_or(|until| now < until)) {
            if standing.rule.on.matches(incoming, resource, counted) {
                standing.seen += 1;
                if standing.rule.nth.is(standing.seen) && strikes.is_none() {
                    strikes = Some(standing.rule.fault);
                }
            }
        }
        if counted && let Some((number, choose)) = &mut condition.chooser.0 {
            *number += 1;
            strikes = strikes.or_else(|| choose(*number));
        }
        if let Some(fault) = strikes {
            let target = &incoming.target;
            let struck =
                format!("{fault:?} at {} {resource} {}/{}", incoming.verb(), target.namespace, target.name);
            condition.struck.push(struck);
        }
        (counted, strikes)
    }

    async fn handle(self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        if self.is_dead() {
            return std::future::pending().await;
        }
        let (path, incoming) = Incoming::read(request).await?;
        let Some(mut incoming) = incoming else { return Ok(serve(&self.shared, &self.life, &path, None)) };
        let target = &incoming.target;
        let resource = if target.group.is_empty() {
            target.plural.clone()
        } else {
            format!("{}.{}", target.plural, target.group)
        };
        // A loop without a pause would keep a paused clock, and whoever looks for endless writes, from going on.
        if incoming.write().is_some() && self.attempts() > LOOPS {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let place = (resource.clone(), target.namespace.clone(), target.name.clone());
        let known = self.life.condition().seen.as_ref().and_then(|seen| seen.get(&place).cloned());
        let (counted, fault) = self.judge(&incoming, &resource);
        incoming.known = known;
        let target = &incoming.target;
        let reset = || -> BoxError {
            io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer").into()
        };
        match fault {
            Some(Fault::DieBefore) => {
                self.kill();
                return std::future::pending().await;
            }
            Some(Fault::Reset) => return Err(reset()),
            Some(Fault::Hang) => return std::future::pending().await,
            Some(
                fault @ (Fault::Conflict
                | Fault::InternalError
                | Fault::Unavailable
                | Fault::GatewayTimeout
                | Fault::Forbidden),
            ) => return Ok(refused(&self.refusal(fault, &incoming))),
            Some(Fault::SecondWriter) => {
                let touched = self.shared.state().touch(target);
                if touched {
                    self.shared.wake();
                }
            }
            Some(Fault::Replaced) => {
                self.shared.state().put_twin(target);
                self.shared.wake();
                if resource == "pods" {
                    tokio::time::sleep(REPLACED).await;
                }
            }
            Some(Fault::Late) => {
                self.kill();
                let session = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LATE).await;
                    drop(session.carry_out(&path, incoming, &resource, counted));
                });
                return std::future::pending().await;
            }
            Some(Fault::DieAfter | Fault::LoseAnswer | Fault::HangAfter) | None => {}
        }
        if counted {
            self.life.condition().writes += 1;
        }
        let response = self.carry_out(&path, incoming, &resource, counted);
        match fault {
            Some(Fault::DieAfter) => {
                self.kill();
                std::future::pending().await
            }
            Some(Fault::LoseAnswer) => Err(reset()),
            Some(Fault::HangAfter) => std::future::pending().await,
            _ => Ok(response),
        }
    }

    /// What the server answers; a request may be changed, held back or pretended on its way.
    fn carry_out(&self, path: &str, incoming: Incoming, resource: &str, counted: bool) -> Response<Answer> {
        let tampers = self.life.condition().tampers.clone();
        let mut current = incoming;
        for tamper in &tampers {
            let before = current.body.clone();
            match tamper.on(current, resource, counted) {
                Fate::Done(changed) => {
                    if changed.body != before {
                        self.life.condition().tampered += 1;
                    }
                    current = changed;
                }
                Fate::Pretended(request) => {
                    self.life.condition().tampered += 1;
                    return serve(&self.shared, &self.life, path, Some(&tamper::dry(&request)));
                }
                Fate::Later(request) => {
                    let answer = serve(&self.shared, &self.life, path, Some(&tamper::dry(&request)));
                    let mut condition = self.life.condition();
                    condition.tampered += 1;
                    condition.held.push((path.into(), request));
                    return answer;
                }
            }
        }
        let answer = serve(&self.shared, &self.life, path, Some(&current));
        if tampers.iter().any(|tamper| tamper.releases(&current, resource, counted)) {
            let held = std::mem::take(&mut self.life.condition().held);
            for (path, request) in held {
                drop(serve(&self.shared, &self.life, &path, Some(&request)));
            }
        }
        answer
    }

    fn refusal(&self, fault: Fault, incoming: &Incoming) -> Refusal {
        let target = &incoming.target;
        let state = self.shared.state();
        let here = |k: &&Arc<crate::kinds::Kind>| k.group == target.group && k.plural == target.plural;
        let kind = state.kinds.iter().find(here);
        let plain = |code: u16, reason: &'static str, message: &str| Refusal {
            code,
            reason,
            message: message.into(),
            details: json!({}),
        };
        match (fault, kind) {
            (Fault::Conflict, Some(kind)) => Refusal::modified(kind, &target.name),
            (Fault::Forbidden, Some(kind)) => Refusal::unauthorized_to(
                self.life.who(),
                incoming.verb(),
                kind,
                &target.namespace,
                &target.name,
            ),
            (Fault::Conflict, None) => plain(409, "Conflict", "the object has been modified"),
            (Fault::Forbidden, None) => plain(403, "Forbidden", "forbidden"),
            (Fault::Unavailable, _) => {
                plain(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            }
            (Fault::GatewayTimeout, _) => plain(
                504,
                "Timeout",
                "the server was unable to return a response in the time allotted, but may still be processing the request",
            ),
            _ => plain(500, "InternalError", "Internal error occurred: etcdserver: request timed out"),
        }
    }
}

impl Service<Request<Body>> for Session {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().handle(request))
    }
}
