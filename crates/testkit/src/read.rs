//! GET of objects, collections and discovery documents.

use crate::{
    kinds::Kind,
    path::Target,
    rest::{State, meta},
    selector::Selector,
    status::{Fault, Refusal},
    store::{Key, Objects},
};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap};

/// How far a client sees: an API server whose cache lags shows older states.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight {
    /// The newest revision that the cache has. `None`: all.
    pub cache: Option<u64>,
    /// Whether reads that ask for the newest state get the cache's too.
    pub lies: bool,
}

pub(crate) type Query = BTreeMap<String, String>;

fn param<'a>(query: &'a Query, name: &str) -> &'a str {
    query.get(name).map_or("", String::as_str)
}

pub(crate) fn is_true(query: &Query, name: &str) -> bool {
    matches!(param(query, name), "true" | "1")
}

/// The selectors of a request. Errors: they cannot be read, or the kind has no such field.
pub(crate) fn selector(kind: &Kind, query: &Query) -> Result<Selector, Refusal> {
    let (labels, fields) = (param(query, "labelSelector"), param(query, "fieldSelector"));
    Selector::parse(kind, labels, fields).map_err(Refusal::bad_request)
}

/// Reads a resourceVersion. Errors: it is no number.
pub(crate) fn revision(text: &str) -> Result<Option<u64>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Refusal::bad_request(format!(
            "invalid resource version {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// Only what PartialObjectMetadata has.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// Items of typed lists do not repeat what the list says.
pub(crate) fn as_item(kind: &Kind, item: &mut Value) {
    if let Some(fields) = item.as_object_mut().filter(|_| !kind.is_custom()) {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
}

pub(crate) fn too_large(wanted: u64, current: u64) -> Refusal {
    Refusal {
        code: 504,
        reason: "Timeout",
        message: format!("Timeout: Too large resource version: {wanted}, current: {current}"),
        details: json!({"retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}),
    }
}

impl State {
    /// One object.
    pub fn get(&self, index: usize, target: &Target) -> Result<Value, Refusal> {
        let key =
            Key { kind: self.home(index), namespace: target.namespace.clone(), name: target.name.clone() };
        match self.store.get(&key) {
            Some(object) => Ok(self.shown(index, object).into_owned()),
            None => Err(Refusal::not_found(&self.kinds[index], &target.name)),
        }
    }

    /// The objects of a namespace, or of all, as a kind shows them.
    pub fn matching(
        &self,
        index: usize,
        objects: &Objects,
        namespace: &str,
        selector: &Selector,
    ) -> Vec<Value> {
        let here = objects.iter().filter(|((there, _), _)| namespace.is_empty() || there == namespace);
        here.map(|(_, object)| self.shown(index, object))
            .filter(|o| selector.matches(o))
            .map(Cow::into_owned)
            .collect()
    }

    /// A list.
    pub fn list(
        &self,
        index: usize,
        target: &Target,
        query: &Query,
        sight: Sight,
        metadata: bool,
    ) -> Result<Value, Refusal> {
        let kind = &self.kinds[index];
        Selector::parse(kind, param(query, "labelSelector"), "").map_err(Refusal::bad_request)?;
        if param(query, "resourceVersion").is_empty() && !param(query, "resourceVersionMatch").is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            let fault = Fault::forbidden("resourceVersionMatch", why);
            return Err(Refusal::invalid_options("ListOptions", &fault));
        }
        let selector = selector(kind, query)?;
        let newest = self.store.revision;
        let cache = sight.cache.unwrap_or(newest).min(newest);
        let limit: usize = param(query, "limit").parse().unwrap_or(0);
        let asked = revision(param(query, "resourceVersion"))?;
        let token = param(query, "continue");
        let mut start = None;
        let mut limited = limit > 0;
        let at = if !token.is_empty() {
            let token: Value = serde_json::from_str(token)
                .map_err(|_| Refusal::bad_request("continue key is not valid: it cannot be read"))?;
            start = token["start"].as_str().map(String::from);
            let at = token["rv"].as_u64().unwrap_or(newest);
            if at < self.store.compacted {
                return Err(Refusal::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
                ));
            }
            at
        } else {
            match (asked, param(query, "resourceVersionMatch")) {
                (Some(0), "Exact") => {
                    let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                    let fault = Fault::forbidden("resourceVersionMatch", why);
                    return Err(Refusal::invalid_options("ListOptions", &fault));
                }
                (Some(exact), "Exact") if exact < self.store.compacted => {
                    return Err(Refusal::expired("The resourceVersion for the provided list is too old."));
                }
                (Some(wanted), _) if wanted > newest => return Err(too_large(wanted, newest)),
                (Some(exact), "Exact") => exact,
                (Some(0), _) => {
                    // The cache knows no pages.
                    limited = false;
                    cache
                }
                (Some(least), _) => cache.max(least),
                (None, _) if sight.lies => cache,
                (None, _) => newest,
            }
        };
        if at < self.store.compacted {
            return Err(Refusal::expired("The resourceVersion for the provided list is too old."));
        }
        let objects = self.store.all_at(self.home(index), at);
        let place = |object: &Value| format!("{}/{}", meta(object, "namespace"), meta(object, "name"));
        let here = |object: &&std::sync::Arc<Value>| {
            selector.name().is_none_or(|name| meta(object, "name") == name)
                && (target.namespace.is_empty() || meta(object, "namespace") == target.namespace)
                && start.as_ref().is_none_or(|start| place(object) >= *start)
        };
        let mut rest = objects.values().filter(here).peekable();
        let mut items = Vec::new();
        while let Some(object) = rest.next_if(|_| !limited || items.len() < limit) {
            let object = self.shown(index, object);
            if selector.matches(&object) {
                items.push(object.into_owned());
            }
        }
        let mut list_meta = json!({ "resourceVersion": at.to_string() });
        if kind.is_custom() {
            // Lists of these are not typed: what others omit is written.
            list_meta["continue"] = "".into();
        }
        // There is a next page when there is anything behind this one, whether it will be selected or not.
        if let Some(first) = rest.peek() {
            let next = json!({"v": "meta.k8s.io/v1", "rv": at, "start": place(first)});
            list_meta["continue"] = next.to_string().into();
            if selector.is_empty() {
                list_meta["remainingItemCount"] = rest.count().into();
            }
        }
        for item in &mut items {
            if metadata {
                *item = metadata_only(item);
            } else {
                as_item(kind, item);
            }
        }
        let (list_kind, api_version) = if metadata {
            ("PartialObjectMetadataList".to_string(), "meta.k8s.io/v1".to_string())
        } else {
            (format!("{}List", kind.kind), kind.api_version())
        };
        Ok(json!({"kind": list_kind, "apiVersion": api_version, "metadata": list_meta, "items": items}))
    }

    /// What is served in a group and version. `None`: nothing.
    pub fn discovery(&self, target: &Target) -> Option<Value> {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut resources = Vec::new();
        let here = |k: &&std::sync::Arc<Kind>| k.group == target.group && k.version == target.version;
        for kind in self.kinds.iter().filter(here) {
            let entry = |name: String, verbs: &[&str]| {
                json!({"name": name, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
                    "kind": kind.kind, "verbs": verbs})
            };
            resources.push(entry(kind.plural.clone(), &verbs));
            if kind.status {
                resources.push(entry(format!("{}/status", kind.plural), &["get", "patch", "update"]));
            }
        }
        let version = if target.group.is_empty() {
            target.version.clone()
        } else {
            format!("{}/{}", target.group, target.version)
        };
        (!resources.is_empty()).then(|| {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
        })
    }
}
