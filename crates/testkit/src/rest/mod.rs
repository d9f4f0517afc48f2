//! The rules by which objects are written. Works on the state in memory; every entry point is one request's whole effect.

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
    status::Refusal,
    store::{Key, Store},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Everything behind the server.
pub(crate) struct State {
    pub store: Store,
    pub kinds: Vec<Arc<Kind>>,
    pub ids: Ids,
    pub clock: Clock,
    pub log: Vec<Write>,
    /// Every uid ever given, and to what.
    pub uids: BTreeMap<String, Key>,
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
}

/// What a write did.
pub(crate) struct Written {
    pub object: Arc<Value>,
    /// HTTP status code.
    pub code: u16,
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
    pub fn shown(&self, kind: usize, object: &Value) -> Value {
        let mut object = object.clone();
        if self.kinds[kind].alias_of.is_some() {
            builtin::convert_event(&mut object, false);
        }
        object
    }

    /// The reverse of `shown`.
    fn stored(&self, kind: usize, mut object: Value) -> Value {
        if self.kinds[kind].alias_of.is_some() {
            builtin::convert_event(&mut object, true);
        }
        object
    }

    /// Reads a body as its kind: wrong types are refused, unknown fields dropped, defaults filled in.
    fn decoded(&self, kind: &Kind, mut object: Value, strict: bool) -> Result<Value, Refusal> {
        let Some(fields) = object.as_object_mut() else {
            return Err(Refusal::bad_request("couldn't get version/kind; json parse error: not an object"));
        };
        for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
            match fields.get(field).and_then(Value::as_str) {
                None | Some("") => {
                    fields.insert(field.into(), wanted.into());
                }
                Some(given) if given == wanted => {}
                Some(_) => {
                    let (group, name) = (&fields["apiVersion"], &fields["kind"]);
                    return Err(Refusal::bad_request(format!(
                        "the API version in the data ({}) or its kind ({}) does not match the expected ({}, {})",
                        group.as_str().unwrap_or_default(),
                        name.as_str().unwrap_or_default(),
                        kind.api_version(),
                        kind.kind,
                    )));
                }
            }
        }
        let cannot = |why: String| {
            let (version, kind) = (&kind.version, &kind.kind);
            Refusal::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
            ))
        };
        let mut meta = fields.remove("metadata").unwrap_or_else(|| json!({}));
        builtin::omit(&mut meta);
        let meta: ObjectMeta = serde_json::from_value(meta).map_err(|e| cannot(e.to_string()))?;
        let meta = serde_json::to_value(meta).map_err(|e| Refusal::internal(e.to_string()))?;
        fields.insert("metadata".into(), meta);
        match &kind.body {
            Body::Typed(through) => {
                builtin::tidy(&kind.kind, &mut object);
                object = through(object).map_err(cannot)?;
                if !object["metadata"].is_object() {
                    object["metadata"] = json!({});
                }
                builtin::fill(&kind.kind, &mut object);
            }
            Body::Custom(custom) => {
                shape::drop_nulls(&custom.schema, &mut object);
                let dropped = shape::prune(&custom.schema, &mut object);
                if strict && !dropped.is_empty() {
                    let all: Vec<String> =
                        dropped.iter().map(|path| format!("unknown field {path:?}")).collect();
                    return Err(cannot(format!("strict decoding error: {}", all.join(", "))));
                }
                shape::fill(&custom.schema, &mut object);
            }
        }
        Ok(object)
    }

    fn topology<'a>(&self, kind: &'a Kind) -> Topology<'a> {
        match &kind.body {
            Body::Typed(_) => Topology::built_in(&kind.kind),
            Body::Custom(custom) => Topology::custom(&custom.schema),
        }
    }
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
