//! What every controller works with: the objects, writes as anybody's, events, and deadlines.

use crate::{
    builtin,
    log::{Verb, Write},
    rest::{DeleteOptions, Options, State, Written, meta},
    status::Refusal,
    store::Key,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Where the kinds are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub pods: usize,
    pub claims: usize,
    pub volumes: usize,
    pub classes: usize,
    pub sets: usize,
    pub revisions: usize,
    pub jobs: usize,
    pub services: usize,
    pub slices: usize,
    pub nodes: usize,
    pub secrets: usize,
    pub config_maps: usize,
    pub accounts: usize,
    pub events: usize,
}

impl Places {
    pub fn of(state: &State) -> Self {
        // All of them are built in. One that is not would be a mistake of this crate, and the first write of it would say so.
        let at = |version: &str, kind: &str| state.find(version, kind).unwrap_or(usize::MAX);
        Self {
            pods: at("v1", "Pod"),
            claims: at("v1", "PersistentVolumeClaim"),
            volumes: at("v1", "PersistentVolume"),
            classes: at("storage.k8s.io/v1", "StorageClass"),
            sets: at("apps/v1", "StatefulSet"),
            revisions: at("apps/v1", "ControllerRevision"),
            jobs: at("batch/v1", "Job"),
            services: at("v1", "Service"),
            slices: at("discovery.k8s.io/v1", "EndpointSlice"),
            nodes: at("v1", "Node"),
            secrets: at("v1", "Secret"),
            config_maps: at("v1", "ConfigMap"),
            accounts: at("v1", "ServiceAccount"),
            events: at("v1", "Event"),
        }
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who<'a> {
    pub user: &'a str,
    pub manager: &'static str,
    /// The reporter of events.
    pub component: &'static str,
}

const fn controller(user: &'static str, component: &'static str) -> Who<'static> {
    Who { user, manager: "kube-controller-manager", component }
}

pub(super) const SETS: Who<'static> =
    controller("system:serviceaccount:kube-system:statefulset-controller", "statefulset-controller");
pub(super) const JOBS: Who<'static> =
    controller("system:serviceaccount:kube-system:job-controller", "job-controller");
pub(super) const TTL: Who<'static> =
    controller("system:serviceaccount:kube-system:ttl-after-finished-controller", "ttl-after-finished");
pub(super) const VOLUMES: Who<'static> =
    controller("system:serviceaccount:kube-system:persistent-volume-binder", "persistentvolume-controller");
pub(super) const EXPANSION: Who<'static> =
    controller("system:serviceaccount:kube-system:expand-controller", "volume_expand");
pub(super) const SLICES: Who<'static> =
    controller("system:serviceaccount:kube-system:endpointslice-controller", "endpointslice-controller");
pub(super) const NODES: Who<'static> =
    controller("system:serviceaccount:kube-system:node-controller", "node-controller");
pub(super) const SCHEDULER: Who<'static> =
    Who { user: "system:kube-scheduler", manager: "kube-scheduler", component: "default-scheduler" };

/// The kubelet of a node, by its user name.
pub(super) fn kubelet(user: &str) -> Who<'_> {
    Who { user, manager: "kubelet", component: "kubelet" }
}

/// What outlives one pass.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Since when, pass after pass, something has been waited for; and whether this pass waited for it too.
    waits: BTreeMap<String, (Instant, bool)>,
    /// Events that were told.
    told: BTreeSet<String>,
    /// When something is to be done next.
    pub due: Option<Instant>,
    /// Whether that is work, not only a deadline that may pass without need.
    pub work: bool,
    /// Whether a pod waits for a Secret or a ConfigMap.
    pub mounts: bool,
}

impl Memory {
    pub fn begin(&mut self) {
        (self.due, self.work, self.mounts) = (None, false, false);
    }

    pub fn end(&mut self) {
        self.waits.retain(|_, (_, asked)| std::mem::take(asked));
    }
}

/// One pass of all controllers.
pub(super) struct Desk<'a> {
    pub state: &'a mut State,
    pub memory: &'a mut Memory,
    pub at: Places,
    pub now: Instant,
}

impl Desk<'_> {
    pub fn all(&self, kind: usize) -> Vec<Arc<Value>> {
        self.state.store.each(kind).cloned().collect()
    }

    pub fn within(&self, kind: usize, namespace: &str) -> Vec<Arc<Value>> {
        self.state.store.each(kind).filter(|o| meta(o, "namespace") == namespace).cloned().collect()
    }

    pub fn get(&self, kind: usize, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = Key { kind, namespace: namespace.into(), name: name.into() };
        self.state.store.get(&key).cloned()
    }

    /// The time as objects carry it.
    pub fn stamp(&self) -> String {
        self.state.clock.stamp()
    }

    /// Asks for a pass at a time, for work that is certain to be there.
    pub fn wake(&mut self, at: Instant) {
        self.memory.work = true;
        self.remind(at);
    }

    /// Asks for a pass at a time, for something that may not be needed by then.
    pub fn remind(&mut self, at: Instant) {
        self.memory.due = Some(self.memory.due.map_or(at, |due| due.min(at)));
    }

    /// Whether something has been waited for long enough, in every pass since the first that asked for it.
    pub fn waited(&mut self, what: String, pause: Duration) -> bool {
        let wait = self.memory.waits.entry(what).or_insert((self.now, true));
        wait.1 = true;
        let at = wait.0 + pause;
        if at > self.now {
            self.wake(at);
        }
        at <= self.now
    }

    /// Whether something has been waited for that long; the end of it is no work.
    pub fn lasts(&mut self, what: String, pause: Duration) -> bool {
        let wait = self.memory.waits.entry(what).or_insert((self.now, true));
        wait.1 = true;
        let at = wait.0 + pause;
        if at > self.now {
            self.remind(at);
        }
        at <= self.now
    }

    /// Errors: as anybody's create.
    pub fn create(
        &mut self,
        who: Who<'_>,
        kind: usize,
        namespace: &str,
        body: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let options = Options { manager: who.manager.into(), ..Options::default() };
        let name = meta(&body, "name").to_string();
        self.logged(who, Verb::Create, (kind, namespace, &name, ""), |state| {
            state.create(kind, namespace, body, &options, None)
        })
    }

    /// PUT of an object with the resourceVersion that it was read with.
    pub fn update(&mut self, who: Who<'_>, kind: usize, object: Value, subresource: &str) -> bool {
        let options =
            Options { manager: who.manager.into(), subresource: subresource.into(), ..Options::default() };
        let (namespace, name) = (meta(&object, "namespace").to_string(), meta(&object, "name").to_string());
        self.logged(who, Verb::Update, (kind, &namespace, &name, subresource), |state| {
            state.replace(kind, &namespace, &name, object, &options)
        })
        .is_ok()
    }

    /// Writes a status, if it is another one. Returns the object as it is then.
    pub fn set_status(
        &mut self,
        who: Who<'_>,
        kind: usize,
        object: &Arc<Value>,
        mut status: Value,
    ) -> (Arc<Value>, bool) {
        builtin::omit(&mut status);
        // The server stores some fields as null that mean nothing.
        let mut stored = object["status"].clone();
        builtin::omit(&mut stored);
        if stored == status {
            return (Arc::clone(object), false);
        }
        let mut new = Value::clone(object);
        new["status"] = status;
        self.update(who, kind, new, "status");
        let (namespace, name) = (meta(object, "namespace"), meta(object, "name"));
        (self.get(kind, namespace, name).unwrap_or_else(|| Arc::clone(object)), true)
    }

    /// DELETE of this very object.
    pub fn delete(&mut self, who: Who<'_>, kind: usize, object: &Value, grace: Option<i64>, policy: &str) {
        let mut options = DeleteOptions {
            grace_period_seconds: grace,
            propagation_policy: (!policy.is_empty()).then(|| policy.to_string()),
            ..DeleteOptions::default()
        };
        options.preconditions.uid = Some(meta(object, "uid").into());
        let (namespace, name) = (meta(object, "namespace"), meta(object, "name"));
        // That it is gone already is as good.
        let _ = self.logged(who, Verb::Delete, (kind, namespace, name, ""), |state| {
            state.delete(kind, namespace, name, &options)
        });
    }

    /// Puts an object as it is into the store: for the subresources that this server does not serve.
    pub fn put(&mut self, who: Who<'_>, kind: usize, object: Value, verb: Verb, subresource: &str) {
        let (namespace, name) = (meta(&object, "namespace").to_string(), meta(&object, "name").to_string());
        let key = Key { kind, namespace: namespace.clone(), name: name.clone() };
        let _ = self.logged(who, verb, (kind, &namespace, &name, subresource), |state| {
            Ok(Written { object: state.store.put(key, object), code: 201 })
        });
    }

    fn logged(
        &mut self,
        who: Who<'_>,
        verb: Verb,
        (kind, namespace, name, subresource): (usize, &str, &str, &str),
        write: impl FnOnce(&mut State) -> Result<Written, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let before = self.state.store.revision;
        let result = write(self.state);
        let code = result.as_ref().map_or_else(|refusal| refusal.code, |written| written.code);
        let made = result.as_ref().map_or("", |written| meta(&written.object, "name"));
        let of = &self.state.kinds[kind];
        self.state.log.push(Write {
            verb,
            resource: of.qualified(),
            kind: of.kind.clone(),
            namespace: namespace.into(),
            name: if name.is_empty() { made.into() } else { name.into() },
            subresource: subresource.into(),
            who: who.user.into(),
            code,
            changed: self.state.store.revision != before,
            revision: self.state.store.revision,
        });
        result.map(|written| written.object)
    }

    /// Records an event about an object, once.
    pub fn tell(&mut self, who: Who<'_>, about: &Value, kind: &str, reason: &str, message: &str) {
        let uid = meta(about, "uid");
        if !self.memory.told.insert(format!("{uid} {reason} {message}")) {
            return;
        }
        let (namespace, name) = (meta(about, "namespace"), meta(about, "name"));
        let suffix = self.state.ids.suffix();
        let time = self.stamp();
        let of = json!({"kind": about["kind"], "namespace": namespace, "name": name, "uid": uid,
            "apiVersion": about["apiVersion"], "resourceVersion": about["metadata"]["resourceVersion"]});
        let body = json!({"metadata": {"name": format!("{name}.{suffix}")}, "involvedObject": of, "type": kind,
            "reason": reason, "message": message, "source": {"component": who.component},
            "reportingComponent": who.component, "reportingInstance": "", "count": 1,
            "firstTimestamp": time, "lastTimestamp": time});
        // A namespace on its way out takes none; nothing depends on it.
        let _ = self.create(who, self.at.events, namespace, body);
    }

    /// Why the API server would not admit a pod: its ServiceAccount is not there.
    pub fn without_account(&self, namespace: &str, pod: &Value) -> Option<String> {
        let account = pod["spec"]["serviceAccountName"].as_str().filter(|name| *name != "default")?;
        self.get(self.at.accounts, namespace, account).is_none().then(|| {
            format!(
                "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
            )
        })
    }
}

/// The controller among the owners.
pub(super) fn controller_of(object: &Value) -> Option<&Value> {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().find(|owner| owner["controller"] == true)
}

/// Whether an object is on its way out.
pub(super) fn is_going(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some()
}

/// An owner reference as controllers write it.
pub(super) fn owned_by(owner: &Value) -> Value {
    json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true})
}

/// The status of a condition: True, False, Unknown, or empty when it is not there.
pub(super) fn condition<'a>(object: &'a Value, type_: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array();
    let found = all.into_iter().flatten().find(|c| c["type"] == type_);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// Whether a label selector of an object (matchLabels, matchExpressions) takes these labels.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let plain = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    plain.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|rule| {
            let label = rule["key"].as_str().and_then(|key| labels.get(key));
            let listed =
                || label.is_some_and(|l| rule["values"].as_array().into_iter().flatten().any(|v| v == l));
            match rule["operator"].as_str().unwrap_or_default() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}
