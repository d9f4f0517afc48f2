//! PUT, and the end of every patch.

use super::{Options, State, Written, finalizers, fits, meta, set_meta};
use crate::{
    builtin::{self, quantity, service},
    fields::managers::{self, Manager, Writer},
    kinds::{Body, Kind},
    schema::shape,
    status::{Fault, Refusal},
    store::Key,
};
use serde_json::{Value, json};
use std::sync::Arc;

impl State {
    /// PUT. Errors: the reasons for which Kubernetes would refuse it.
    pub fn replace(
        &mut self,
        index: usize,
        namespace: &str,
        name: &str,
        mut body: Value,
        options: &Options,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        super::is_object(&kind, &mut body)?;
        let body_read = self.read(&kind, body.clone(), options)?;
        super::same_namespace(&body, namespace)?;
        super::same_name(&body, name)?;
        let key = Key { kind: self.home(index), namespace: namespace.into(), name: name.into() };
        let uid = meta(&body, "uid").to_string();
        let Some(old) = self.store.get(&key).cloned() else {
            if !kind.create_on_update {
                return Err(Refusal::not_found(&kind, name));
            }
            if !uid.is_empty() {
                return Err(self.other_uid(&kind, &key, &uid, ""));
            }
            if !options.dry_run {
                set_meta(&mut body, "resourceVersion", Value::Null);
            }
            return self.make(index, namespace, body, options, None);
        };
        if !uid.is_empty() && uid != meta(&old, "uid") {
            return Err(self.other_uid(&kind, &key, &uid, meta(&old, "uid")));
        }
        let mut new = body_read;
        if !namespace.is_empty() {
            set_meta(&mut new, "namespace", namespace.into());
        }
        self.update(index, &key, &old, new, options, None)
    }

    fn other_uid(&self, kind: &Kind, key: &Key, wanted: &str, found: &str) -> Refusal {
        let place: Vec<&str> =
            [key.namespace.as_str(), key.name.as_str()].into_iter().filter(|p| !p.is_empty()).collect();
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}",
            if kind.is_custom() { format!("{}/", kind.group) } else { String::new() },
            kind.plural,
            place.join("/"),
        );
        Refusal::conflict(kind, &key.name, &why)
    }

    /// A body as its kind, with the managers that it gives.
    pub(super) fn read(&self, kind: &Kind, body: Value, options: &Options) -> Result<Value, Refusal> {
        let given = body["metadata"].get("managedFields").filter(|m| m.is_array()).cloned();
        // An empty list resets them, but an untyped object does not tell it from none.
        let given = given.filter(|m| !kind.is_custom() || m != &json!([]));
        let mut object = self.decoded(kind, body, options)?;
        set_meta(&mut object, "managedFields", given.unwrap_or_default());
        Ok(object)
    }

    /// Turns `old` into `new`, which was read as its kind and names the resourceVersion that it was made from. `applied`: who owns what, when it
    /// comes from a server-side apply.
    pub(super) fn update(
        &mut self,
        index: usize,
        key: &Key,
        old: &Arc<Value>,
        mut new: Value,
        options: &Options,
        applied: Option<Vec<Manager>>,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        let before = self.shown(index, old);
        let owners = applied.unwrap_or_else(|| {
            let time = self.clock.stamp();
            let api_version = kind.api_version();
            let writer = Writer {
                name: &options.manager,
                api_version: &api_version,
                subresource: &options.subresource,
                time: &time,
                reset: options.reset(&kind),
            };
            if !fits(&kind, &new) {
                return Vec::new();
            }
            managers::update(&before, &new, &self.topology(&kind), &writer)
        });
        let version = meta(&new, "resourceVersion");
        if !version.is_empty() && version.parse::<u64>().is_err() {
            return Err(Refusal::internal(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
        }
        if version.is_empty() {
            if !kind.unconditional_update {
                let fault = Fault {
                    reason: "FieldValueInvalid",
                    field: "metadata.resourceVersion".into(),
                    message: "Invalid value: 0: must be specified for an update".into(),
                };
                return Err(Refusal::invalid(&kind, &kind.plural, &key.name, &[fault]));
            }
            set_meta(&mut new, "resourceVersion", meta(&before, "resourceVersion").into());
        }
        if meta(&new, "resourceVersion") != meta(&before, "resourceVersion") {
            return Err(Refusal::modified(&kind, &key.name));
        }
        if kind.kind == "Service" && options.subresource.is_empty() {
            self.allot(&kind, Some(&before), &mut new, options.dry_run)?;
        }
        if kind.kind == "Pod" && options.subresource.is_empty() {
            super::admission::changed_pod(&mut new);
        }
        let empty_lists = builtin::given_lists(&kind.kind, &new);
        builtin::settle(&kind.kind, &mut new);
        self.carry_over(&kind, &before, &mut new, &options.subresource);

        let mut faults = super::meta::update_faults(&before, &new);
        faults.extend(super::meta::faults(&kind, &new));
        match &kind.body {
            Body::Custom(custom) => {
                let blocked = faults.iter().any(Fault::blocks_rules);
                let status = options.subresource == "status";
                faults.extend(custom.faults(&new, Some(&before), blocked, status));
            }
            Body::Typed(_) => {
                let status = options.subresource == "status";
                faults.extend(builtin::faults(&kind.kind, &new, Some(&before), status));
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::invalid(&kind, &kind.kind, &key.name, &faults));
        }
        self.admit_growth(&kind, &before, &new)?;

        managers::write(&mut new, owners);
        let mut unsettled = self.unsettled.contains(meta(&before, "uid"));
        // Labels that a Job is stored without are there again whenever it is read.
        // A dry run is answered before.
        let bare = kind.kind == "Job" && new["metadata"].get("labels").is_none();
        if bare && !options.dry_run {
            builtin::fill(&kind.kind, &mut new);
            unsettled = !unsettled;
        }
        managers::keep_times(&before, &mut new);
        if new == *before && !unsettled {
            return Ok(Written { object: Arc::clone(old), code: 200 });
        }
        let mut new = self.stored(index, new);
        if options.dry_run {
            return Ok(Written { object: Arc::new(new), code: 200 });
        }
        self.unsettled.remove(meta(&before, "uid"));
        if bare {
            self.unsettled.insert(meta(&before, "uid").to_string());
        }
        if freed(&before, &new) {
            // The last finalizer is off: the update is answered, but what happens is the deletion. So the answer was never stored.
            empty_lists.into_iter().for_each(|list| new[list] = json!([]));
            self.store.remove(key.clone());
            return Ok(Written { object: Arc::new(new), code: 200 });
        }
        Ok(Written { object: self.store.put(key.clone(), new), code: 200 })
    }

    /// What an update cannot change stays as it was; the generation counts.
    fn carry_over(&self, kind: &Kind, old: &Value, new: &mut Value, subresource: &str) {
        if subresource == "status" {
            let status = new.get("status").cloned();
            if kind.is_custom() {
                // Everything but the status stays, whatever the body says.
                *new = old.clone();
            } else if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) {
                let metadata = new.remove("metadata").unwrap_or_default();
                *new = old.clone();
                new.insert("metadata".into(), metadata);
            }
            set(new, "status", status);
            if let Body::Custom(custom) = &kind.body {
                shape::fill(&custom.schema, new);
            }
        } else if kind.status {
            set(new, "status", old.get("status").cloned());
        }
        if new["metadata"].get("uid").is_none() {
            set_meta(new, "uid", old["metadata"]["uid"].clone());
        }
        for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
            let before = old["metadata"].get(field).cloned();
            // That an object is deleted cannot be said by an update: that is refused, not ignored.
            if field != "deletionTimestamp" || before.is_some() {
                set_meta(new, field, before.unwrap_or_default());
            }
        }
        match kind.kind.as_str() {
            "Service" if subresource.is_empty() => service::drop_dependent(old, new),
            "Pod" if subresource == "status" => {
                set_meta(new, "ownerReferences", old["metadata"]["ownerReferences"].clone());
                set_meta(new, "deletionTimestamp", old["metadata"]["deletionTimestamp"].clone());
                let class = &old["status"]["qosClass"];
                if new["status"].get("qosClass").is_none() && !class.is_null() {
                    new["status"]["qosClass"] = class.clone();
                }
            }
            _ => {}
        }
        if kind.generation && counts(kind, old) != counts(kind, new) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or_default();
            set_meta(new, "generation", json!(generation + 1));
        }
    }

    /// A claim grows only where its class lets it.
    fn admit_growth(&self, kind: &Kind, old: &Value, new: &Value) -> Result<(), Refusal> {
        let size = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].clone();
        if kind.kind != "PersistentVolumeClaim"
            || quantity::billionths(&size(new)) <= quantity::billionths(&size(old))
        {
            return Ok(());
        }
        let class = self.find("storage.k8s.io/v1", "StorageClass").and_then(|index| {
            let name = old["spec"]["storageClassName"].as_str()?.to_string();
            self.store.get(&Key { kind: index, namespace: String::new(), name })
        });
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        let message = format!(
            "persistentvolumeclaims {:?} is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            meta(old, "name")
        );
        let details = json!({"name": meta(old, "name"), "kind": "persistentvolumeclaims"});
        Err(Refusal { code: 403, reason: "Forbidden", message, details })
    }
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(field.into(), value),
        None => fields.remove(field),
    };
}

/// The part of an object whose changes the generation counts.
fn counts(kind: &Kind, object: &Value) -> Value {
    if kind.is_custom() || kind.kind == "EndpointSlice" {
        let mut object = object.clone();
        let labels = object["metadata"]["labels"].take();
        set(&mut object, "metadata", (!kind.is_custom()).then_some(labels));
        if kind.status {
            set(&mut object, "status", None);
        }
        object
    } else {
        object["spec"].clone()
    }
}

/// Whether an update takes the last finalizer off an object that waits for just that.
fn freed(old: &Value, new: &Value) -> bool {
    let waits = old["metadata"].get("deletionTimestamp").is_some();
    let grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
    waits && grace == 0 && finalizers(new).is_empty()
}
