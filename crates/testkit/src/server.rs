//! The server: takes HTTP requests from kube clients, without a socket.

use crate::{
    builtin,
    clock::{Clock, Ids},
    kinds::{self, Kind},
    log::{Verb, Write},
    path::{self, Target},
    read::{Query, is_true},
    rest::{DeleteOptions, Options, State, meta},
    schema::Custom,
    session::Session,
    status::Refusal,
    store::{Key, Store},
};
use bytes::Bytes;
use http::Method;
use http_body_util::combinators::UnsyncBoxBody;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tower::BoxError;

/// The body of an answer.
pub type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// What server and sessions share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Moves whenever a watch may have something new to see.
    pub changed: tokio::sync::watch::Sender<u64>,
    /// The same for each kind that was ever watched: a write wakes few.
    by_kind: Mutex<BTreeMap<usize, tokio::sync::watch::Sender<u64>>>,
    /// The revision up to which watches were woken.
    announced: Mutex<u64>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves no half-written object behind: every write is one insertion.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something was written: watches of what was written wake up, and whoever looks at all.
    pub fn wake(&self) {
        let news = {
            let state = self.state();
            let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
            let last = std::mem::replace(&mut *announced, state.store.revision);
            let kinds = || state.store.since(last).iter().map(|c| c.key.kind).collect::<BTreeSet<_>>();
            (last >= state.store.compacted).then(kinds)
        };
        match news {
            Some(kinds) => {
                let by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
                for sender in kinds.iter().filter_map(|kind| by_kind.get(kind)) {
                    sender.send_modify(|n| *n += 1);
                }
                drop(by_kind);
                self.changed.send_modify(|n| *n += 1);
            }
            None => self.wake_all(),
        }
    }

    /// Wakes every watch: what it may see has changed, though nothing was written.
    pub fn wake_all(&self) {
        let by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        by_kind.values().for_each(|sender| sender.send_modify(|n| *n += 1));
        drop(by_kind);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Moves whenever a watch of this kind may have something new to see.
    pub fn of_kind(&self, kind: usize) -> tokio::sync::watch::Receiver<u64> {
        let mut by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        by_kind.entry(kind).or_insert_with(|| tokio::sync::watch::Sender::new(0)).subscribe()
    }
}

/// An in-memory API server. Cheap to clone: all clones are the same server.
#[derive(Clone)]
pub struct Server {
    pub(crate) shared: Arc<Shared>,
}

/// A request, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub method: Method,
    pub target: Target,
    pub query: Query,
    pub metadata: bool,
    pub content_type: String,
    pub body: Bytes,
    /// uid of the object of this name that the client saw last, when it sent this. `None`: it never saw one, or saw it go.
    pub known: Option<String>,
}

impl Incoming {
    pub async fn read(
        request: http::Request<kube::client::Body>,
    ) -> Result<(String, Option<Self>), BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let header = |name: http::header::HeaderName| {
            parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
        };
        let path = parts.uri.path().to_string();
        let incoming = path::target(&path).map(|target| Self {
            method: parts.method.clone(),
            target,
            query: path::query(parts.uri.query().unwrap_or_default()),
            metadata: header(http::header::ACCEPT).contains("as=PartialObjectMetadata"),
            content_type: header(http::header::CONTENT_TYPE),
            body,
            known: None,
        });
        Ok((path, incoming))
    }

    /// The verb as an authorizer names it.
    pub fn verb(&self) -> &'static str {
        let one = !self.target.name.is_empty();
        match self.method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if one => "delete",
            Method::DELETE => "deletecollection",
            _ if is_true(&self.query, "watch") => "watch",
            _ if one => "get",
            _ => "list",
        }
    }

    /// What is to be changed, if anything is.
    pub fn write(&self) -> Option<Verb> {
        let in_body = || {
            let options: Option<DeleteOptions> = serde_json::from_slice(&self.body).ok();
            self.method == Method::DELETE && options.is_some_and(|o| !o.dry_run.is_empty())
        };
        let dry = self.query.get("dryRun").is_some_and(|d| d == "All") || in_body();
        let verb = match self.method {
            Method::POST => Verb::Create,
            Method::PUT => Verb::Update,
            Method::PATCH if self.content_type.starts_with("application/apply-patch") => Verb::Apply,
            Method::PATCH => Verb::Patch,
            Method::DELETE if self.target.name.is_empty() => Verb::DeleteCollection,
            Method::DELETE => Verb::Delete,
            _ => return None,
        };
        (!dry).then_some(verb)
    }

    pub fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Refusal::bad_request(format!("error decoding the body as JSON: {e}")))
    }
}

impl Server {
    /// Objects that a second writer changed ([`crate::Fault::SecondWriter`]) and whose mark of it somebody has taken away: a write
    /// that overwrote what it did not know.
    pub fn overwritten(&self) -> Vec<String> {
        let state = self.shared.state();
        let mut lost = Vec::new();
        for key in state.store.keys() {
            let Some(object) = state.store.get(&key) else { continue };
            let marked = !object["metadata"]["annotations"][crate::TOUCHED].is_null();
            if state.touched.contains(meta(object, "uid")) && !marked {
                lost.push(format!("{} {}/{}", state.kinds[key.kind].kind, key.namespace, key.name));
            }
        }
        lost
    }

    /// Changes and deletions that landed on another object of the same name than the one that the client had seen when it asked: a
    /// write without a precondition that was in need of one.
    pub fn misplaced(&self) -> Vec<String> {
        self.shared.state().misplaced.clone()
    }

    /// When an object was replaced by another of its name ([`crate::Fault::Replaced`]).
    pub fn replaced(&self) -> Option<tokio::time::Instant> {
        self.shared.state().replaced
    }

    /// A server whose clock reads `now` at this moment and follows tokio's from here. Its uids come from `seed`.
    /// The namespaces `default` and `kube-system` are there.
    pub fn new(now: Timestamp, seed: u64) -> Self {
        let state = State {
            store: Store::new(),
            kinds: kinds::builtin().into_iter().map(Arc::new).collect(),
            ids: Ids::seeded(seed),
            clock: Clock::starting(now),
            log: Vec::new(),
            uids: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            touched: BTreeSet::new(),
            misplaced: Vec::new(),
            replaced: None,
            addresses: 0,
        };
        let changed = tokio::sync::watch::Sender::new(0);
        let server = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed,
                by_kind: Mutex::default(),
                announced: Mutex::default(),
            }),
        };
        server.namespace("default");
        server.namespace("kube-system");
        server
    }

    /// The server's clock.
    pub fn clock(&self) -> Clock {
        self.shared.state().clock
    }

    /// Makes a Namespace, unless it is there.
    pub fn namespace(&self, name: &str) {
        let body = json!({"metadata": {"name": name}});
        let options = Options { manager: "testkit".into(), ..Options::default() };
        // The only way to fail is that it is there.
        let _ = self.shared.state().create(0, "", body, &options, None);
        self.shared.wake();
    }

    /// Serves the kind that a CustomResourceDefinition (as JSON) defines.
    ///
    /// Errors: it is none, or a pattern or a CEL rule of it does not compile.
    pub fn register(&self, crd: &Value) -> Result<(), String> {
        let kind = Kind::custom(Custom::new(crd)?);
        let mut state = self.shared.state();
        if state.find(&kind.api_version(), &kind.kind).is_some() {
            return Err(format!("{} is registered already", kind.qualified()));
        }
        state.kinds.push(Arc::new(kind));
        Ok(())
    }

    /// Serves this project's kinds, from the CRDs that are deployed.
    ///
    /// Errors: as of [`Self::register`].
    pub fn register_holdfast(&self) -> Result<(), String> {
        for text in [
            include_str!("../../../deploy/crds/databases.holdfast.dev.yaml"),
            include_str!("../../../deploy/crds/backupstores.holdfast.dev.yaml"),
            include_str!("../../../deploy/crds/backups.holdfast.dev.yaml"),
            include_str!("../../../deploy/crds/backupschedules.holdfast.dev.yaml"),
            include_str!("../../../deploy/crds/restores.holdfast.dev.yaml"),
        ] {
            let crd: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
            self.register(&crd)?;
        }
        Ok(())
    }

    /// A client without faults. `who` appears in the log of writes and, when a write names no manager, in managedFields.
    pub fn client(&self, who: &str, namespace: &str) -> kube::Client {
        self.session(who).client(namespace)
    }

    /// One life of a client, into which faults can be put.
    pub fn session(&self, who: &str) -> Session {
        Session::new(Arc::clone(&self.shared), who)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.shared.state().store.revision
    }

    /// Forgets history: who lists or watches from an older revision gets 410 Gone.
    pub fn compact(&self) {
        self.shared.state().store.compact();
        self.shared.wake();
    }

    /// All writes so far, those that were refused too.
    pub fn writes(&self) -> Vec<Write> {
        self.shared.state().log.clone()
    }
}

impl State {
    /// Changes an object that a second writer, of whom the client knows nothing, also writes: only its
    /// resourceVersion and an annotation are different afterwards.
    pub(crate) fn touch(&mut self, target: &Target) -> bool {
        let here = |k: &Arc<Kind>| k.group == target.group && k.plural == target.plural;
        let Some(index) = self.kinds.iter().position(here) else { return false };
        let key =
            Key { kind: self.home(index), namespace: target.namespace.clone(), name: target.name.clone() };
        let Some(old) = self.store.get(&key).cloned() else { return false };
        let mut new = Value::clone(&old);
        let count =
            new["metadata"]["annotations"][crate::TOUCHED].as_str().and_then(|n| n.parse::<u64>().ok());
        new["metadata"]["annotations"][crate::TOUCHED] = (count.unwrap_or(0) + 1).to_string().into();
        builtin::omit(&mut new["metadata"]);
        self.touched.insert(meta(&new, "uid").to_string());
        self.store.put(key, new);
        true
    }

    /// Takes an object away without asking anybody, and puts a twin in its place: the same but for its uid, and for what guards or
    /// ends the first. Of a pod there is none: its controller makes another.
    pub(crate) fn put_twin(&mut self, target: &Target) {
        let here = |k: &Arc<Kind>| k.group == target.group && k.plural == target.plural;
        let Some(index) = self.kinds.iter().position(here) else { return };
        let key =
            Key { kind: self.home(index), namespace: target.namespace.clone(), name: target.name.clone() };
        self.replaced = Some(tokio::time::Instant::now());
        let Some(old) = self.store.get(&key).cloned() else { return };
        self.store.remove(key.clone());
        if self.kinds[index].kind == "Pod" {
            return;
        }
        let mut twin = Value::clone(&old);
        if let Some(meta) = twin["metadata"].as_object_mut() {
            for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "finalizers"] {
                meta.remove(field);
            }
            let uid = self.ids.uid();
            self.uids.insert(uid.clone(), key.clone());
            meta.insert("uid".into(), uid.into());
            meta.insert("creationTimestamp".into(), self.clock.stamp().into());
        }
        self.store.put(key, twin);
    }
}
