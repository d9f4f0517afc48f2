//! The server: takes HTTP requests from kube clients, without a socket.

use crate::{
    builtin,
    clock::{Clock, Ids},
    kinds::{self, Kind},
    log::{Verb, Write},
    path::{self, Target},
    read::{self, Query, is_true, metadata_only},
    rest::{DeleteOptions, Form, Options, State, Written, meta},
    schema::Custom,
    session::{Life, Session},
    status::Refusal,
    store::{Key, Store},
    watch::{Request as WatchRequest, Watch, too_old},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tower::BoxError;

/// The body of an answer.
pub type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// How long a watch lives that names no time.
const WATCH: Duration = Duration::from_secs(1800);

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

    fn json(&self) -> Result<Value, Refusal> {
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

/// A JSON answer.
fn answer(code: u16, body: &Value) -> Response<Answer> {
    let bytes = Bytes::from(body.to_string());
    respond(code, "application/json", Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

fn respond(code: u16, content_type: &'static str, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub(crate) fn refused(refusal: &Refusal) -> Response<Answer> {
    answer(refusal.code, &refusal.status())
}

fn unknown_path() -> Response<Answer> {
    let text = Full::new(Bytes::from_static(b"404 page not found\n"));
    respond(404, "text/plain; charset=utf-8", text.map_err(|never| match never {}).boxed_unsync())
}

/// Everything but faults: one request, one answer.
pub(crate) fn serve(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    path: &str,
    incoming: Option<&Incoming>,
) -> Response<Answer> {
    let Some(incoming) = incoming else {
        return match path {
            "/version" => answer(
                200,
                &json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0-testkit",
                "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "",
                "compiler": "", "platform": ""}),
            ),
            "/readyz" | "/livez" | "/healthz" => {
                let ok = Full::new(Bytes::from_static(b"ok"));
                respond(200, "text/plain; charset=utf-8", ok.map_err(|never| match never {}).boxed_unsync())
            }
            _ => unknown_path(),
        };
    };
    let target = &incoming.target;
    let mut state = shared.state();
    if target.plural.is_empty() {
        return state.discovery(target).map_or_else(unknown_path, |document| answer(200, &document));
    }
    let here =
        |k: &Arc<Kind>| k.group == target.group && k.version == target.version && k.plural == target.plural;
    let Some(index) = state.kinds.iter().position(here) else { return unknown_path() };
    let kind = state.kind(index);
    let fits = match target.subresource.as_str() {
        "" => true,
        "status" => kind.status,
        _ => false,
    };
    if !fits && kind.is_custom() {
        return refused(&Refusal::not_found(&kind, &target.name));
    }
    if !fits {
        return refused(&Refusal {
            code: 404,
            reason: "NotFound",
            message: "the server could not find the requested resource".into(),
            details: json!({}),
        });
    }
    if incoming.method == Method::GET {
        if is_true(&incoming.query, "watch") {
            drop(state);
            return watch(shared, life, index, &kind, incoming).unwrap_or_else(|r| refused(&r));
        }
        let result = if target.name.is_empty() {
            state.list(index, target, &incoming.query, life.sight(&kind.qualified()), incoming.metadata)
        } else {
            let one = state.get(index, target);
            one.map(|object| if incoming.metadata { metadata_only(&object) } else { object })
        };
        return result.map_or_else(|r| refused(&r), |body| answer(200, &body));
    }

    let before = state.store.revision;
    let result = write(&mut state, life.who(), index, incoming);
    let changed = state.store.revision != before;
    if let Some(verb) = incoming.write() {
        let (code, name) = match &result {
            Ok(written) => (written.code, meta(&written.object, "name").to_string()),
            Err(refusal) => (refusal.code, target.name.clone()),
        };
        let revision = state.store.revision;
        state.log.push(Write {
            verb,
            resource: kind.qualified(),
            kind: kind.kind.clone(),
            namespace: target.namespace.clone(),
            name: if target.name.is_empty() { name } else { target.name.clone() },
            subresource: target.subresource.clone(),
            who: life.who().to_string(),
            code,
            changed,
            revision,
        });
    }
    let response = match result {
        Err(refusal) => refused(&refusal),
        Ok(written) => {
            let is_object = written.object["kind"] == state.kinds[state.home(index)].kind.as_str();
            let mut object =
                if is_object { state.shown(index, &written.object) } else { Value::clone(&written.object) };
            if incoming.metadata && is_object {
                object = metadata_only(&object);
            }
            answer(written.code, &object)
        }
    };
    drop(state);
    if changed {
        shared.wake();
    }
    response
}

fn write(state: &mut State, who: &str, index: usize, incoming: &Incoming) -> Result<Written, Refusal> {
    let target = &incoming.target;
    let text = |name: &str| incoming.query.get(name).cloned().unwrap_or_default();
    let mut options = Options {
        manager: text("fieldManager"),
        force: is_true(&incoming.query, "force"),
        dry_run: text("dryRun") == "All",
        strict: text("fieldValidation") == "Strict",
        subresource: target.subresource.clone(),
        applied: false,
    };
    let (namespace, name) = (target.namespace.as_str(), target.name.as_str());
    let form = match incoming.content_type.split(';').next().unwrap_or_default() {
        "application/merge-patch+json" => Some(Form::Merge),
        "application/json-patch+json" => Some(Form::Json),
        "application/apply-patch+yaml" => Some(Form::Apply),
        _ => None,
    };
    options.applied = incoming.method == Method::PATCH && form == Some(Form::Apply);
    if options.manager.is_empty() && !options.applied {
        options.manager = who.into();
    }
    match incoming.method {
        // Of a custom kind a name in the path is not looked at.
        Method::POST if name.is_empty() || state.kind(index).is_custom() => {
            state.create(index, namespace, incoming.json()?, &options, None)
        }
        Method::PUT if !name.is_empty() => state.replace(index, namespace, name, incoming.json()?, &options),
        Method::PATCH if !name.is_empty() => {
            let Some(form) = form else {
                let custom = state.kind(index).is_custom();
                let message = if custom {
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                } else {
                    "415: Unsupported Media Type"
                };
                return Err(Refusal {
                    code: 415,
                    reason: "UnsupportedMediaType",
                    message: message.into(),
                    details: if custom { Value::Null } else { json!({}) },
                });
            };
            state.patch(index, namespace, name, form, incoming.json()?, &options)
        }
        Method::DELETE if target.subresource.is_empty() => {
            let mut delete = if incoming.body.is_empty() {
                DeleteOptions::default()
            } else {
                serde_json::from_slice(&incoming.body)
                    .map_err(|e| Refusal::bad_request(format!("error decoding DeleteOptions: {e}")))?
            };
            if options.dry_run {
                delete.dry_run = vec!["All".into()];
            }
            if !name.is_empty() {
                return state.delete(index, namespace, name, &delete);
            }
            let selector = read::selector(&state.kind(index), &incoming.query)?;
            let objects = state.store.all(state.home(index));
            delete.valid()?;
            let mut items = state.matching(index, &objects, namespace, &selector);
            for item in &items {
                state.delete(index, meta(item, "namespace"), meta(item, "name"), &delete)?;
            }
            let kind = state.kind(index);
            items.iter_mut().for_each(|item| read::as_item(&kind, item));
            let mut list = json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                "metadata": {"resourceVersion": state.store.revision.to_string()}, "items": items});
            if kind.is_custom() {
                list["metadata"]["continue"] = "".into();
            }
            Ok(Written { object: Arc::new(list), code: 200 })
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn watch(
    shared: &Arc<Shared>,
    life: &Arc<Life>,
    index: usize,
    kind: &Kind,
    incoming: &Incoming,
) -> Result<Response<Answer>, Refusal> {
    let query = &incoming.query;
    let mut selector = read::selector(kind, query)?;
    if !incoming.target.name.is_empty() {
        let by_name = format!("metadata.name={}", incoming.target.name);
        selector = crate::selector::Selector::parse(kind, "", &by_name).map_err(Refusal::bad_request)?;
    }
    let text = |name: &str| query.get(name).map_or("", String::as_str);
    let asked = read::revision(text("resourceVersion"))?;
    let streaming = is_true(query, "sendInitialEvents");
    let matching = text("resourceVersionMatch");
    if streaming != (matching == "NotOlderThan") || (!streaming && !matching.is_empty()) {
        return Err(Refusal {
            code: 422,
            reason: "Invalid",
            message: "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
            details: json!({"group": "meta.k8s.io", "kind": "ListOptions"}),
        });
    }
    let timeout = text("timeoutSeconds").parse().map_or(WATCH, Duration::from_secs);
    let request = WatchRequest {
        kind: index,
        namespace: incoming.target.namespace.clone(),
        selector,
        metadata: incoming.metadata,
        bookmarks: is_true(query, "allowWatchBookmarks"),
        timeout,
    };
    let resource = kind.qualified();
    let sight = life.sight(&resource);
    let (newest, compacted) = {
        let state = shared.state();
        (state.store.revision, state.store.compacted)
    };
    let cache = sight.cache.unwrap_or(newest).min(newest).max(compacted);
    // Where it begins, and what is there at that moment if that is wanted.
    let (cursor, initial) = match asked {
        Some(revision) if revision > 0 && !streaming => (revision, false),
        Some(least) if least > newest => return Err(read::too_large(least, newest)),
        Some(least) => (cache.max(least), true),
        None if sight.lies => (cache, true),
        None => (newest, true),
    };
    let initial = initial.then(|| {
        let state = shared.state();
        let objects = state.store.all_at(state.home(index), cursor);
        let objects = state.matching(index, &objects, &request.namespace, &request.selector);
        (objects, streaming && request.bookmarks)
    });
    let expired = (cursor < compacted).then(|| too_old(cursor, compacted));
    let mut watch = Watch::new(Arc::clone(shared), Arc::clone(life), request, resource, cursor, initial);
    if let Some(refusal) = expired {
        watch = watch.gone(&refusal);
    }
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((line, watch))
    });
    let frames = lines.map(|line| Ok::<_, BoxError>(http_body::Frame::data(line)));
    Ok(respond(200, "application/json", StreamBody::new(frames).boxed_unsync()))
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
}
