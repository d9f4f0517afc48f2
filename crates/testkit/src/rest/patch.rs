//! PATCH: merge patch, JSON patch, server-side apply.

use super::{Options, State, Written, meta, set_meta};
use crate::{
    builtin,
    fields::{
        managers::{self, Writer},
        merge,
        topology::Topology,
    },
    kinds::{Body, Kind},
    schema::shape,
    status::{Fault, Refusal},
    store::Key,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

/// The kinds of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Merge,
    Json,
    Apply,
}

impl State {
    /// PATCH. Errors: the reasons for which Kubernetes would refuse it.
    pub fn patch(
        &mut self,
        index: usize,
        namespace: &str,
        name: &str,
        form: Form,
        patch: Value,
        options: &Options,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        let key = Key { kind: self.home(index), namespace: namespace.into(), name: name.into() };
        let unreadable = || Refusal::bad_request("error decoding patch: it is no object");
        if form == Form::Apply {
            return if patch.is_object() {
                self.apply(index, &key, patch, options)
            } else {
                Err(unreadable())
            };
        }
        let Some(old) = self.store.get(&key).cloned() else { return Err(Refusal::not_found(&kind, name)) };
        if form == Form::Merge && !patch.is_object() {
            return Err(unreadable());
        }
        let mut new = self.shown(index, &old).into_owned();
        if form == Form::Merge {
            json_patch::merge(&mut new, &patch);
        } else {
            let operations: json_patch::Patch = serde_json::from_value(patch)
                .map_err(|e| Refusal::bad_request(format!("error decoding patch: {e}")))?;
            for operation in operations.0 {
                step(&mut new, operation).map_err(|_| Refusal {
                    code: 422,
                    reason: "Invalid",
                    message: "the server rejected our request due to an error in our request".into(),
                    details: json!({}),
                })?;
            }
        }
        if new["metadata"].is_null() {
            new["metadata"] = json!({});
        }
        if let Some(given) =
            new["apiVersion"].as_str().filter(|v| kind.is_custom() && *v != kind.api_version())
        {
            let why = format!("must be {}", kind.api_version());
            let fault = Fault::invalid("apiVersion", &given.into(), &why);
            return Err(Refusal::invalid_as("", &kind.kind, name, &[fault]));
        }
        let mut new = self.read(&kind, new, options).map_err(patched)?;
        super::same_namespace(&new, namespace)?;
        super::same_name(&new, name)?;
        if !namespace.is_empty() {
            set_meta(&mut new, "namespace", namespace.into());
        }
        self.update(index, &key, &old, new, options, None)
    }

    fn apply(
        &mut self,
        index: usize,
        key: &Key,
        mut config: Value,
        options: &Options,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        if options.manager.is_empty() {
            let fault = Fault::required("fieldManager", "is required for apply patch");
            return Err(Refusal::invalid_options("PatchOptions", &fault));
        }
        let said = |field: &str| config[field].as_str().unwrap_or_default().to_string();
        let (api_version, kind_name) = (said("apiVersion"), said("kind"));
        if api_version != kind.api_version() {
            return Err(Refusal::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {api_version}, expected: {}",
                kind.api_version()
            )));
        }
        if kind_name != kind.kind {
            return Err(Refusal::bad_request(format!(
                "Incorrect kind specified in apply patch: {kind_name}, expected: {}",
                kind.kind
            )));
        }
        if !config["metadata"].is_object() {
            config["metadata"] = json!({});
        }
        let old = self.store.get(key).cloned();
        if old.is_none() && !options.subresource.is_empty() && !kind.create_on_update {
            return Err(Refusal::not_found(&kind, &key.name));
        }
        let live = match &old {
            Some(old) => self.shown(index, old).into_owned(),
            None => json!({"metadata": {}}),
        };
        if old.is_some() && managers::read(&live).is_empty() {
            // Who owns what is found out from the object, if this can be read by the schema.
            fitting(&kind, &live)?;
        }
        if config["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        if let Some(why) = untyped(&kind, &config) {
            return Err(Refusal::internal(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): {why}",
                meta(&config, "namespace"),
                meta(&config, "name"),
                kind.gvk_version(),
                kind.kind
            )));
        }
        let time = self.clock.stamp();
        let writer = Writer {
            name: &options.manager,
            api_version: &api_version,
            subresource: &options.subresource,
            time: &time,
            reset: options.reset(&kind),
        };
        let (object, owners) = managers::apply(
            &live,
            &config,
            &Self::bare(&kind),
            &self.topology(&kind),
            &writer,
            options.force,
        )?;
        let unreadable = |refusal: Refusal| match refusal.code {
            400 => Refusal::internal(format!("failed to convert new object: {}", refusal.message)),
            _ => refusal,
        };
        let mut new = self.decoded(&kind, object.clone(), options).map_err(unreadable)?;
        if old.is_none() && !meta(&config, "uid").is_empty() {
            let uid = meta(&config, "uid");
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Refusal::conflict(&kind, &key.name, &why));
        }
        super::same_namespace(&object, &key.namespace)?;
        super::same_name(&object, &key.name)?;
        // What is empty of an untyped object's metadata is stored as such, and not shown: this is a write, and so is the next,
        // which takes it away, even if it says nothing new. Through the status the metadata stay.
        let empty = |value: &Value| {
            value.is_null()
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
        };
        let hollow = kind.is_custom()
            && options.subresource.is_empty()
            && !options.dry_run
            && ["labels", "annotations", "finalizers", "ownerReferences"]
                .iter()
                .any(|field| object["metadata"].get(field).is_some_and(empty));
        let written = match old {
            Some(old) => {
                set_meta(&mut new, "namespace", key.namespace.clone().into());
                let uid = meta(&old, "uid").to_string();
                let news = hollow && self.unsettled.insert(uid.clone());
                let written = self.update(index, key, &old, new, options, Some(owners));
                if news && written.is_err() {
                    self.unsettled.remove(&uid);
                }
                written?
            }
            None => self.create(index, &key.namespace, object, options, Some(owners)).map_err(unreadable)?,
        };
        if hollow {
            self.unsettled.insert(meta(&written.object, "uid").to_string());
        }
        Ok(written)
    }
}

/// One operation, with the habits of the API server's library: what is not there can be replaced in an object, and is equal to
/// null. Errors: it cannot be carried out.
fn step(object: &mut Value, operation: json_patch::PatchOperation) -> Result<(), ()> {
    use json_patch::{AddOperation, PatchOperation as Operation};
    let there = |path: &str| object.pointer(path).is_some();
    let in_object = |path: &str| {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        object.pointer(parent).is_some_and(Value::is_object)
    };
    let operation = match operation {
        Operation::Replace(o) if !there(o.path.as_str()) && in_object(o.path.as_str()) => {
            Operation::Add(AddOperation { path: o.path, value: o.value })
        }
        Operation::Test(o) if o.value.is_null() && !there(o.path.as_str()) && in_object(o.path.as_str()) => {
            return Ok(());
        }
        other => other,
    };
    json_patch::patch(object, &[operation]).map_err(drop)
}

/// Why a body that is to be applied does not fit the schema of its kind. `None`: it does.
fn untyped(kind: &Kind, config: &Value) -> Option<String> {
    match &kind.body {
        Body::Custom(custom) => {
            let mut all = Vec::new();
            shape::untyped(&custom.schema, config, "", &mut all);
            let meta = config.get("metadata").cloned().unwrap_or_default();
            match serde_json::from_value::<Option<ObjectMeta>>(meta.clone()) {
                Ok(typed) => {
                    let mut unknown = Vec::new();
                    let typed = serde_json::to_value(typed).unwrap_or_default();
                    builtin::unknown(&meta, &typed, "metadata", &mut unknown);
                    all.extend(unknown.iter().map(|path| format!(".{path}: field not declared in schema")));
                }
                Err(why) => all.push(format!(".metadata: {why}")),
            }
            match all.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                many => Some(format!("errors:\n  {}", many.join("\n  "))),
            }
        }
        Body::Typed(through) => {
            let mut read = config.clone();
            // An amount, a time, or bytes that are none are found later: to the schema they are texts.
            for (of, field) in [("Secret", "data"), ("ConfigMap", "binaryData")] {
                let entries = read.get_mut(field).filter(|_| kind.kind == of).and_then(Value::as_object_mut);
                entries
                    .into_iter()
                    .flat_map(Map::values_mut)
                    .filter(|v| v.is_string())
                    .for_each(|v| *v = "".into());
            }
            let _ = builtin::read(&kind.kind, &mut read);
            builtin::readable(&mut read);
            match through(read) {
                Ok(typed) => {
                    let mut all = Vec::new();
                    builtin::unknown(config, &typed, "", &mut all);
                    let mut all: Vec<String> = all
                        .into_iter()
                        .map(|path| format!(".{path}: field not declared in schema"))
                        .collect();
                    merge::twice(config, &Topology::built_in(&kind.kind), "", &mut all);
                    match all.as_slice() {
                        [] => None,
                        [one] => Some(one.clone()),
                        many => Some(format!("errors:\n  {}", many.join("\n  "))),
                    }
                }
                Err(why) => Some(why).filter(|why| why.contains("invalid type")),
            }
        }
    }
}

/// Errors: what is stored does not fit the schema of its kind. The validation by which it came there is more lenient.
fn fitting(kind: &Kind, live: &Value) -> Result<(), Refusal> {
    let Body::Custom(custom) = &kind.body else { return Ok(()) };
    let mut wrong = Vec::new();
    shape::untyped(&custom.schema, live, "", &mut wrong);
    wrong.retain(|why| !why.contains(shape::TWICE));
    let Some(first) = wrong.first() else { return Ok(()) };
    Err(Refusal::internal(format!(
        "failed to create manager for existing fields: failed to convert new object ({}/{}; {}, Kind={}) to smd typed: {first}",
        meta(live, "namespace"),
        meta(live, "name"),
        kind.gvk_version(),
        kind.kind
    )))
}

/// What cannot be read after a patch is the patch's fault.
fn patched(refusal: Refusal) -> Refusal {
    if refusal.code != 400 {
        return refusal;
    }
    let why = format!("Invalid value: the patched object: {}", refusal.message);
    Refusal {
        code: 422,
        reason: "Invalid",
        message: format!(" \"\" is invalid: patch: {why}"),
        details: json!({"causes": [{"reason": "FieldValueInvalid", "message": why, "field": "patch"}]}),
    }
}
