//! From a request to its answer.

use crate::{
    kinds::Kind,
    log::Write,
    read::{self, is_true, metadata_only},
    rest::{DeleteOptions, Form, Options, State, Written, meta},
    server::{Answer, Incoming, Shared},
    session::Life,
    status::Refusal,
    watch::{Request as WatchRequest, Watch, too_old},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tower::BoxError;

/// How long a watch lives that names no time.
const WATCH: Duration = Duration::from_secs(1800);

/// A JSON answer.
fn answer(code: u16, body: &Value) -> Response<Answer> {
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
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
            let list =
                state.list(index, target, &incoming.query, life.sight(&kind.qualified()), incoming.metadata);
            if let Some(items) = list.as_ref().ok().and_then(|list| list["items"].as_array()) {
                items.iter().for_each(|item| life.sees(&kind, item));
            }
            list
        } else {
            let one = state.get(index, target);
            match &one {
                Ok(object) => life.sees(&kind, object),
                Err(_) => life.misses(&kind, &target.namespace, &target.name),
            }
            one.map(|object| if incoming.metadata { metadata_only(&object) } else { object })
        };
        return result.map_or_else(|r| refused(&r), |body| answer(200, &body));
    }

    let before = state.store.revision;
    let found = state.get(index, target).ok();
    let result = write(&mut state, life.who(), index, incoming);
    let changed = state.store.revision != before;
    if let (true, Some(known), Some(found)) = (changed, &incoming.known, &found)
        && known != meta(found, "uid")
    {
        let (verb, resource, found) = (incoming.verb(), kind.qualified(), meta(found, "uid"));
        let of = format!("{} {verb} {resource} {}/{}", life.who(), target.namespace, target.name);
        state
            .misplaced
            .push(format!("{of}: meant for the one with uid {known}, it landed on the one with uid {found}"));
    }
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
            let mut object = if is_object {
                state.shown(index, &written.object).into_owned()
            } else {
                Value::clone(&written.object)
            };
            if is_object {
                life.sees(&kind, &object);
            }
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
