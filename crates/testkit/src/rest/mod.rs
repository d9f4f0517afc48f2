//! The rules by which objects are written. Works on the state in memory; every entry point is one request's whole effect.

mod addresses;
mod admission;
mod create;
mod delete;
mod meta;
mod patch;
mod update;

pub(crate) use delete::{DeleteOptions, FOREGROUND, ORPHAN, PROTECTION};
pub(crate) use patch::Form;

use crate::{
    builtin,
    clock::{Clock, Ids},
    fields::topology::Topology,
    kinds::{Body, Kind},
    log::Write,
    schema::shape,
    status::{Fault, Refusal},
    store::{Key, Store},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Everything behind the server.
pub(crate) struct State {
    pub store: Store,
    pub kinds: Vec<Arc<Kind>>,
    pub ids: Ids,
    pub clock: Clock,
    pub log: Vec<Write>,
    /// Every uid ever given, and to what.
    pub uids: BTreeMap<String, Key>,
    /// Uids of objects whose stored form still lacks defaults that are shown: the next write is one even if it changes nothing.
    pub unsettled: BTreeSet<String>,
    /// Uids of objects that a second writer changed.
    pub touched: BTreeSet<String>,
    /// See [`crate::Server::misplaced`].
    pub misplaced: Vec<String>,
    /// See [`crate::Server::replaced`].
    pub replaced: Option<tokio::time::Instant>,
    /// Cluster addresses given to Services.
    pub addresses: u32,
}

/// What a write's query says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub manager: String,
    pub force: bool,
    pub dry_run: bool,
    /// Unknown fields are refused, not dropped.
    pub strict: bool,
    /// Empty, or `status`.
    pub subresource: String,
    /// Comes from server-side apply: a null is a value, until it is defaulted or refused.
    pub applied: bool,
}

/// What a write did.
pub(crate) struct Written {
    pub object: Arc<Value>,
    /// HTTP status code.
    pub code: u16,
}

impl Options {
    /// What this door of a kind does not write.
    fn reset(&self, kind: &Kind) -> &'static [&'static [&'static str]] {
        // A custom kind without the subresource has its status in the object itself.
        let custom = kind.is_custom();
        if custom && !kind.status {
            &[]
        } else {
            builtin::reset(&kind.kind, custom, self.subresource == "status")
        }
    }
}

impl State {
    pub fn kind(&self, index: usize) -> Arc<Kind> {
        Arc::clone(&self.kinds[index])
    }

    /// The place where objects of a kind are stored: its own, or that of the kind whose other version it is.
    pub fn home(&self, index: usize) -> usize {
        self.kinds[index].alias_of.unwrap_or(index)
    }

    /// The kind of that group and name, in any version.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<usize> {
        self.kinds.iter().position(|k| k.kind == kind && k.api_version() == api_version)
    }

    /// An object as a kind shows it.
    pub fn shown<'a>(&self, kind: usize, object: &'a Value) -> Cow<'a, Value> {
        if self.kinds[kind].alias_of.is_none() {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        builtin::convert_event(&mut object, false);
        Cow::Owned(object)
    }

    /// The reverse of `shown`.
    fn stored(&self, kind: usize, mut object: Value) -> Value {
        if self.kinds[kind].alias_of.is_some() {
            builtin::convert_event(&mut object, true);
        }
        object
    }

    /// Reads a body as its kind: wrong types are refused, unknown fields dropped, defaults filled in.
    fn decoded(&self, kind: &Kind, mut object: Value, options: &Options) -> Result<Value, Refusal> {
        let Some(fields) = object.as_object_mut() else {
            return Err(Refusal::bad_request("couldn't get version/kind; json parse error: not an object"));
        };
        for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
            match fields.get(field).and_then(Value::as_str) {
                // Built-in types are known by the path.
                None | Some("") if kind.is_custom() => {
                    let what = if field == "kind" { "Kind" } else { field };
                    return Err(Refusal::bad_request(format!(
                        "the object provided is unrecognized (must be of type {}): Object '{what}' is missing in the body",
                        kind.kind
                    )));
                }
                None | Some("") => {
                    fields.insert(field.into(), wanted.into());
                }
                Some(given) if given == wanted => {}
                Some(given) if field == "kind" && kind.is_custom() => {
                    let name = fields["metadata"]["name"].as_str().unwrap_or_default();
                    let why = format!("must be {}", kind.kind);
                    let fault = Fault::invalid("kind", &given.into(), &why);
                    return Err(Refusal::invalid(kind, given, name, &[fault]));
                }
                Some(given) if field == "kind" => {
                    let version = &kind.version;
                    return Err(Refusal::bad_request(format!(
                        "{given} in version {version:?} cannot be handled as a {}: no kind {given:?} is registered",
                        kind.kind
                    )));
                }
                Some(given) => {
                    return Err(Refusal::bad_request(format!(
                        "the API version in the data ({given}) does not match the expected API version ({wanted})"
                    )));
                }
            }
        }
        let cannot = |why: String| unreadable(kind, &why);
        let mut meta = fields.remove("metadata").unwrap_or_else(|| json!({}));
        builtin::read("", &mut meta).map_err(cannot)?;
        let meta: ObjectMeta = serde_json::from_value(meta).map_err(|e| cannot(e.to_string()))?;
        let mut meta = serde_json::to_value(meta).map_err(|e| Refusal::internal(e.to_string()))?;
        builtin::omit(&mut meta);
        fields.insert("metadata".into(), meta);
        match &kind.body {
            Body::Typed(through) => {
                builtin::read(&kind.kind, &mut object).map_err(cannot)?;
                let lists = builtin::given_lists(&kind.kind, &object);
                let selects = object.pointer("/spec/selector").is_some_and(|s| !s.is_null());
                let given = options.strict.then(|| object.clone());
                object = through(object).map_err(cannot)?;
                if let Some(given) = given {
                    let mut dropped = Vec::new();
                    builtin::unknown(&given, &object, "", &mut dropped);
                    if !dropped.is_empty() {
                        return Err(cannot(strict_faults(&dropped)));
                    }
                }
                if kind.kind == "StatefulSet"
                    && !selects
                    && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
                {
                    // The type here cannot do without.
                    spec.remove("selector");
                }
                builtin::tidy(&kind.kind, &mut object, lists);
                if !object["metadata"].is_object() {
                    object["metadata"] = json!({});
                }
                builtin::fill(&kind.kind, &mut object);
            }
            Body::Custom(custom) => {
                if !options.applied {
                    shape::drop_nulls(&custom.schema, &mut object);
                }
                let dropped = shape::prune(&custom.schema, &mut object);
                if options.strict && !dropped.is_empty() {
                    return Err(cannot(strict_faults(&dropped)));
                }
                shape::fill(&custom.schema, &mut object);
            }
        }
        Ok(object)
    }

    /// An object of a kind without content.
    fn bare(kind: &Kind) -> Value {
        if kind.is_custom() { json!({}) } else { builtin::bare(&kind.kind) }
    }

    fn topology<'a>(&self, kind: &'a Kind) -> Topology<'a> {
        match &kind.body {
            Body::Typed(_) => Topology::built_in(&kind.kind),
            Body::Custom(custom) => Topology::custom(&custom.schema),
        }
    }
}

fn strict_faults(dropped: &[String]) -> String {
    let all: Vec<String> = dropped.iter().map(|path| format!("unknown field {path:?}")).collect();
    format!("strict decoding error: {}", all.join(", "))
}

/// Makes sure that a body is an object and has metadata.
fn is_object(kind: &Kind, body: &mut Value) -> Result<(), Refusal> {
    if !body.is_object() {
        return Err(Refusal::bad_request("couldn't get version/kind; json parse error: not an object"));
    }
    match &body["metadata"] {
        Value::Object(_) => {}
        Value::Null => body["metadata"] = json!({}),
        _ => return Err(unreadable(kind, "the metadata are no object")),
    }
    Ok(())
}

/// Errors: a body names another namespace than the path.
fn same_namespace(body: &Value, namespace: &str) -> Result<(), Refusal> {
    let given = meta(body, "namespace");
    if !given.is_empty() && given != namespace {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The name of a patched object must be that of the path. Errors: it is another, or none.
fn same_name(object: &Value, name: &str) -> Result<(), Refusal> {
    match meta(object, "name") {
        "" => Err(Refusal::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given if given != name => Err(Refusal::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(()),
    }
}

/// A body that cannot be read as its kind.
fn unreadable(kind: &Kind, why: &str) -> Refusal {
    let (version, name) = (&kind.version, &kind.kind);
    Refusal::bad_request(format!("{name} in version {version:?} cannot be handled as a {name}: {why}"))
}

/// Whether every value of an object has its type: who writes one that does not, if only where it will be dropped, ends the
/// account of who owns what.
fn fits(kind: &Kind, object: &Value) -> bool {
    let Body::Custom(custom) = &kind.body else { return true };
    let mut wrong = Vec::new();
    shape::untyped(&custom.schema, object, "", &mut wrong);
    // Items that are there twice are borne here; whoever validates them will not.
    wrong.iter().all(|why| why.contains(shape::TWICE))
}

/// The text of a metadata field; empty when it is not there.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let all = object["metadata"]["finalizers"].as_array();
    all.into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// Sets a metadata field, or takes it away when the value is null.
pub(crate) fn set_meta(object: &mut Value, field: &str, value: Value) {
    let Some(fields) = object["metadata"].as_object_mut() else { return };
    if value.is_null() {
        fields.remove(field);
    } else {
        fields.insert(field.into(), value);
    }
}
