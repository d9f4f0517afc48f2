//! PATCH: merge patch, JSON patch, server-side apply.

use super::{Options, State, Written, meta, set_meta};
use crate::{
    fields::managers::{self, Writer},
    status::{Fault, Refusal},
    store::Key,
};
use serde_json::{Value, json};

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
        if form == Form::Apply {
            return self.apply(index, &key, patch, options);
        }
        let Some(old) = self.store.get(&key).cloned() else { return Err(Refusal::not_found(&kind, name)) };
        let mut new = self.shown(index, &old);
        if form == Form::Merge {
            json_patch::merge(&mut new, &patch);
        } else {
            let operations: json_patch::Patch = serde_json::from_value(patch)
                .map_err(|e| Refusal::bad_request(format!("error decoding patch: {e}")))?;
            json_patch::patch(&mut new, &operations).map_err(|e| Refusal {
                code: 422,
                reason: "Invalid",
                message: "the server rejected our request due to an error in our request".into(),
                details: json!({"causes": [{"reason": "UnexpectedServerResponse", "message": e.to_string()}]}),
            })?;
        }
        if !new["metadata"].is_object() {
            new["metadata"] = json!({});
        }
        if meta(&new, "resourceVersion").is_empty() {
            set_meta(&mut new, "resourceVersion", meta(&old, "resourceVersion").into());
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
            return Err(Refusal {
                message: format!(
                    "PatchOptions.meta.k8s.io \"\" is invalid: {}: {}",
                    fault.field, fault.message
                ),
                ..Refusal::invalid(&kind, "PatchOptions", "", &[fault])
            });
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
        if config["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        match meta(&config, "name") {
            "" => set_meta(&mut config, "name", key.name.clone().into()),
            given if given != key.name => {
                return Err(Refusal::bad_request(format!(
                    "the name of the object ({given}) does not match the name on the URL ({})",
                    key.name
                )));
            }
            _ => {}
        }
        if !key.namespace.is_empty() {
            set_meta(&mut config, "namespace", key.namespace.clone().into());
        }
        without_nulls(&mut config);
        if let crate::kinds::Body::Custom(custom) = &kind.body {
            let mut known = config.clone();
            if let Some(unknown) = crate::schema::shape::prune(&custom.schema, &mut known).first() {
                let place: Vec<&str> = [key.namespace.as_str(), key.name.as_str()].to_vec();
                return Err(Refusal::internal(format!(
                    "failed to create typed patch object ({}; {}, Kind={}): .{unknown}: field not declared in schema",
                    place.join("/"),
                    kind.api_version(),
                    kind.kind
                )));
            }
        }
        // What this door does not write is not owned through it either.
        if let Some(fields) = config.as_object_mut() {
            if options.subresource == "status" {
                fields.remove("spec");
                if kind.is_custom()
                    && let Some(meta) = fields.get_mut("metadata").and_then(Value::as_object_mut)
                {
                    meta.retain(|f, _| ["name", "namespace", "uid", "resourceVersion"].contains(&f.as_str()));
                }
            } else if kind.status {
                fields.remove("status");
            }
        }

        let old = self.store.get(key).cloned();
        if old.is_none() && !options.subresource.is_empty() {
            return Err(Refusal::not_found(&kind, &key.name));
        }
        if old.is_none() && !meta(&config, "uid").is_empty() {
            let uid = meta(&config, "uid");
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Refusal::conflict(&kind, &key.name, &why));
        }
        let live = match &old {
            Some(old) => self.shown(index, old),
            None => json!({"metadata": {}}),
        };
        let time = self.clock.stamp();
        let writer = Writer {
            name: &options.manager,
            api_version: &api_version,
            subresource: &options.subresource,
            time: &time,
        };
        // Built-in types are read first: what they fold or omit is not to be owned under another name.
        let config = match &kind.body {
            crate::kinds::Body::Typed(_) => {
                crate::builtin::tidy(&kind.kind, &mut config);
                config
            }
            crate::kinds::Body::Custom(_) => config,
        };
        let (object, owners) =
            managers::apply(&live, &config, &self.topology(&kind), &writer, options.force)?;
        match old {
            Some(old) => self.update(index, key, &old, object, options, Some(owners)),
            None => self.create(index, &key.namespace, object, options, Some(owners)),
        }
    }
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}
