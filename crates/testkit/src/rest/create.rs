//! POST, and the writes that create because nothing is there yet.

use super::{Options, State, Written, fits, meta, set_meta};
use crate::{
    builtin,
    fields::managers::{self, Manager, Writer},
    kinds::{Body, Kind},
    schema::shape,
    status::{Fault, Refusal},
    store::Key,
};
use serde_json::{Value, json};
use std::sync::Arc;

impl State {
    /// POST. `applied`: who owns what, when it comes from a server-side apply.
    ///
    /// Errors: the reasons for which Kubernetes would refuse it.
    pub fn create(
        &mut self,
        index: usize,
        namespace: &str,
        mut body: Value,
        options: &Options,
        applied: Option<Vec<Manager>>,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        super::is_object(&kind, &mut body)?;
        if applied.is_none() {
            for field in
                ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "uid", "selfLink"]
            {
                set_meta(&mut body, field, Value::Null);
            }
        }
        self.make(index, namespace, body, options, applied)
    }

    /// As [`Self::create`], also for a write that is no POST: such a one may make an object that is already being deleted.
    pub(super) fn make(
        &mut self,
        index: usize,
        namespace: &str,
        body: Value,
        options: &Options,
        applied: Option<Vec<Manager>>,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        let posted = applied.is_none();
        let shares = shares_labels(&kind, &body);
        let mut object = self.read(&kind, body, options)?;
        for field in ["creationTimestamp", "uid"] {
            set_meta(&mut object, field, Value::Null);
        }
        self.place(&kind, namespace, &mut object)?;
        // What the server fills in from here on nobody owns.
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
            if !fits(&kind, &object) {
                return Vec::new();
            }
            managers::update(&Self::bare(&kind), &object, &self.topology(&kind), &writer)
        });
        managers::write(&mut object, owners);
        if kind.namespaced {
            self.admit_into(&kind, meta(&object, "name"), namespace)?;
        }

        // Who makes one through its status gets no address.
        if kind.kind == "Service" && options.subresource.is_empty() {
            self.allot(&kind, None, &mut object, options.dry_run)?;
        }
        if object["metadata"].get("name").is_none() {
            let prefix = meta(&object, "generateName");
            if prefix.is_empty() {
                let mut faults = vec![Fault::required("metadata.name", "name or generateName is required")];
                if kind.is_custom() {
                    faults.push(Fault::unchecked());
                }
                return Err(Refusal::invalid(&kind, &kind.kind, "", &faults));
            }
            let name = format!("{}{}", &prefix[..prefix.len().min(58)], self.ids.suffix());
            set_meta(&mut object, "name", name.into());
        }
        let name = meta(&object, "name").to_string();
        let key = Key { kind: self.home(index), namespace: namespace.into(), name: name.clone() };
        let uid = self.ids.uid();
        set_meta(&mut object, "uid", uid.clone().into());
        set_meta(&mut object, "creationTimestamp", self.clock.stamp().into());
        if kind.generation {
            set_meta(&mut object, "generation", json!(1));
        }
        if kind.status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        // What is filled in from here on is shown, but stored with the next write only.
        let unsettled = match kind.kind.as_str() {
            "PersistentVolumeClaim" => true,
            "Job" => object["metadata"].get("labels").is_none(),
            _ => false,
        };
        self.prepare(&kind, &mut object, &uid)?;
        if shares {
            object["metadata"]["labels"] = object["spec"]["template"]["metadata"]["labels"].clone();
        }
        let mut unsettled = unsettled;
        // Labels that come with the defaults below are there when the object is read back, and not looked at.
        let of_meta = super::meta::faults(&kind, &object);
        match &kind.body {
            // A default of the status is there as soon as the object is read back.
            Body::Custom(custom) => {
                shape::fill(&custom.schema, &mut object);
                unsettled = kind.status && object.get("status").is_some();
            }
            Body::Typed(_) => builtin::fill(&kind.kind, &mut object),
        }

        let mut faults = Vec::new();
        match &kind.body {
            Body::Custom(custom) => {
                faults = of_meta.clone();
                let blocked = faults.iter().any(Fault::blocks_rules);
                faults.extend(custom.faults(&object, None, blocked, false));
            }
            Body::Typed(_) => faults.extend(builtin::faults(&kind.kind, &object, None, false)),
        }
        // These two leave their metadata to those who look after them.
        let has_meta = kind.is_custom();
        if !has_meta && (faults.is_empty() || !["PodDisruptionBudget", "Event"].contains(&kind.kind.as_str()))
        {
            faults.splice(0..0, of_meta);
        }
        if !faults.is_empty() {
            return Err(Refusal::invalid(&kind, &kind.kind, &name, &faults));
        }
        // One that is no number counts as none; a dry run does not get as far as where it is looked at.
        if posted
            && !options.dry_run
            && meta(&object, "resourceVersion").parse::<u64>().is_ok_and(|version| version > 0)
        {
            return Err(Refusal::internal("resourceVersion should not be set on objects to be created"));
        }

        if let Some(there) = self.store.get(&key) {
            let mut refusal = Refusal::already_exists(&kind, &name);
            if !meta(&object, "generateName").is_empty() {
                refusal.message += ", the server was not able to generate a unique name for the object";
                refusal.details["retryAfterSeconds"] = json!(1);
            }
            if there["metadata"].get("deletionTimestamp").is_some() {
                refusal.message = format!("object is being deleted: {}", refusal.message);
            }
            return Err(refusal);
        }
        // An answer to a dry run repeats one that is none.
        if !options.dry_run || meta(&object, "resourceVersion").is_empty() {
            set_meta(&mut object, "resourceVersion", Value::Null);
        }
        builtin::settle(&kind.kind, &mut object);
        let mut object = self.stored(index, object);
        if options.dry_run {
            return Ok(Written { object: Arc::new(object), code: 201 });
        }
        if kind.kind == "Namespace" {
            object["status"]["phase"] = "Active".into();
        }
        if unsettled {
            self.unsettled.insert(uid.clone());
        }
        self.uids.insert(uid, key.clone());
        Ok(Written { object: self.store.put(key, object), code: 201 })
    }

    /// Sets the namespace of the path.
    fn place(&self, kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Refusal> {
        let given = meta(object, "namespace");
        if !kind.namespaced {
            set_meta(object, "namespace", Value::Null);
            return Ok(());
        }
        if namespace.is_empty() {
            return Err(Refusal::method_not_allowed());
        }
        if !given.is_empty() && given != namespace {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        set_meta(object, "namespace", namespace.into());
        Ok(())
    }

    /// Nothing is made in a namespace that is not there, or on its way out.
    fn admit_into(&self, kind: &Kind, name: &str, namespace: &str) -> Result<(), Refusal> {
        let key = Key { kind: 0, namespace: String::new(), name: namespace.into() };
        let Some(there) = self.store.get(&key) else {
            return Err(Refusal::not_found(&self.kinds[0], namespace));
        };
        if there["metadata"].get("deletionTimestamp").is_some() {
            return Err(Refusal::terminating(kind, name, namespace));
        }
        Ok(())
    }

    /// What only the server can fill in.
    fn prepare(&mut self, kind: &Kind, object: &mut Value, uid: &str) -> Result<(), Refusal> {
        let name = meta(object, "name").to_string();
        match kind.kind.as_str() {
            _ if kind.is_custom() => {}
            "Namespace" => {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
                object["spec"]["finalizers"] = json!(["kubernetes"]);
            }
            "Pod" => super::admission::pod(object),
            "PodDisruptionBudget" => object["status"] = json!({}),
            "StatefulSet" => object["status"] = json!({"replicas": 0, "availableReplicas": 0}),
            "Job" => {
                object["status"] = json!({});
                let labels = &mut object["spec"]["template"]["metadata"]["labels"];
                for (key, value) in [
                    ("batch.kubernetes.io/controller-uid", uid),
                    ("controller-uid", uid),
                    ("batch.kubernetes.io/job-name", &name),
                    ("job-name", &name),
                ] {
                    labels[key] = value.into();
                }
                object["spec"]["selector"] =
                    json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
            }
            "PersistentVolumeClaim" => {
                let mut all = super::finalizers(object);
                if !all.iter().any(|f| f == super::PROTECTION) {
                    all.push(super::PROTECTION.into());
                }
                set_meta(object, "finalizers", json!(all));
                if object["spec"].get("storageClassName").is_none()
                    && let Some(class) = self.default_class()
                {
                    object["spec"]["storageClassName"] = class.into();
                }
            }
            "Service" => object["status"] = json!({"loadBalancer": {}}),
            _ => {}
        }
        Ok(())
    }

    fn default_class(&self) -> Option<String> {
        let index = self.find("storage.k8s.io/v1", "StorageClass")?;
        let all = self.store.all(index);
        let marked = |class: &&Arc<Value>| {
            class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
        };
        all.values().find(marked).map(|class| meta(class, "name").to_string())
    }
}

/// Whether a Job's labels are, by default, the very map of its template's: what the server adds to one is in both. Where it
/// makes up the name, it works on copies.
fn shares_labels(kind: &Kind, body: &Value) -> bool {
    if meta(body, "name").is_empty() {
        return false;
    }
    let own = body["metadata"]["labels"].as_object().is_some_and(|labels| !labels.is_empty());
    kind.kind == "Job" && !own && body["spec"]["template"]["metadata"]["labels"].is_object()
}
