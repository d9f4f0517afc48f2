//! DELETE: preconditions, grace, finalizers of propagation.

use super::{State, Written, finalizers, meta, set_meta};
use crate::{
    clock,
    kinds::Kind,
    status::{self, Fault, Refusal},
    store::Key,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

pub(crate) const ORPHAN: &str = "orphan";
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// Held by every claim while a pod names it.
pub(crate) const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// The body of a DELETE.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Preconditions,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Vec<String>,
}

impl DeleteOptions {
    /// Errors: a policy that there is not.
    pub fn valid(&self) -> Result<(), Refusal> {
        let Some(policy) = self.propagation_policy.as_deref() else { return Ok(()) };
        if ["Orphan", "Background", "Foreground"].contains(&policy) {
            return Ok(());
        }
        let supported: Vec<Value> = ["Foreground", "Background", "Orphan", "nil"].map(Value::from).to_vec();
        let fault = Fault::not_supported("propagationPolicy", &policy.into(), &supported);
        Err(Refusal::invalid_options("DeleteOptions", &fault))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What becomes of an object that is to go by itself, not at once.
enum Grace {
    /// It has no grace: finalizers alone decide.
    None,
    /// It is going already, and this request changes nothing.
    Pending,
    /// It goes, or goes sooner, after so many seconds.
    In(i64, String),
}

impl State {
    /// DELETE. Answers with the object that stays for now, the object that was, or a Status.
    ///
    /// Errors: it is not there, or a precondition does not hold.
    pub fn delete(
        &mut self,
        index: usize,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Written, Refusal> {
        let kind = self.kind(index);
        let key = Key { kind: self.home(index), namespace: namespace.into(), name: name.into() };
        options.valid()?;
        let Some(old) = self.store.get(&key).cloned() else { return Err(Refusal::not_found(&kind, name)) };
        check(&kind, &old, &options.preconditions)?;
        let dry = options.dry_run.iter().any(|d| d == "All");
        if dry && kind.kind == "Namespace" {
            return Ok(Written { object: old, code: 200 });
        }
        if kind.kind == "Namespace" {
            return Ok(self.end_namespace(key, &old));
        }

        let grace = self.grace(&kind, &old, options.grace_period_seconds);
        if matches!(grace, Grace::Pending) {
            return Ok(Written { object: old, code: 200 });
        }
        let mut new = Value::clone(&old);
        let all = propagation(&kind, &old, options);
        let pending = !all.is_empty();
        set_meta(&mut new, "finalizers", if pending { json!(all) } else { Value::Null });
        match &grace {
            Grace::In(seconds, at) => {
                if old["metadata"].get("deletionTimestamp").is_none() {
                    count(&mut new);
                }
                set_meta(&mut new, "deletionTimestamp", at.clone().into());
                set_meta(&mut new, "deletionGracePeriodSeconds", json!(seconds));
                let stored = self.marked(&key, old, new, dry);
                if pending || *seconds > 0 {
                    return Ok(Written { object: stored, code: 200 });
                }
                return Ok(self.remove(&kind, key, &stored, dry));
            }
            Grace::None if pending => {
                if old["metadata"].get("deletionTimestamp").is_none() {
                    count(&mut new);
                    set_meta(&mut new, "deletionTimestamp", self.clock.stamp().into());
                }
                set_meta(&mut new, "deletionGracePeriodSeconds", json!(0));
                let stored = self.marked(&key, old, new, dry);
                return Ok(Written { object: stored, code: 200 });
            }
            _ => {}
        }
        Ok(self.remove(&kind, key, &old, dry))
    }

    /// The object with its marks of deletion, stored unless nothing changed or nothing is to change.
    fn marked(&mut self, key: &Key, old: Arc<Value>, new: Value, dry: bool) -> Arc<Value> {
        if new == *old {
            old
        } else if dry {
            Arc::new(new)
        } else {
            self.unsettled.remove(meta(&new, "uid"));
            self.store.put(key.clone(), new)
        }
    }

    fn remove(&mut self, kind: &Kind, key: Key, object: &Arc<Value>, dry: bool) -> Written {
        let name = key.name.clone();
        if !dry {
            self.store.remove(key);
        }
        let object = if kind.returns_deleted {
            // As it was, under the revision in which it went.
            let mut gone = Value::clone(object);
            if !dry {
                set_meta(&mut gone, "resourceVersion", self.store.revision.to_string().into());
            }
            Arc::new(gone)
        } else {
            Arc::new(status::deleted(kind, &name, &object["metadata"]["uid"]))
        };
        Written { object, code: 200 }
    }

    /// A namespace goes when everything in it is gone: see the collector.
    fn end_namespace(&mut self, key: Key, old: &Arc<Value>) -> Written {
        if old["metadata"].get("deletionTimestamp").is_some() {
            return Written { object: Arc::clone(old), code: 200 };
        }
        let mut new = Value::clone(old);
        set_meta(&mut new, "deletionTimestamp", self.clock.stamp().into());
        new["status"]["phase"] = "Terminating".into();
        Written { object: self.store.put(key, new), code: 200 }
    }

    /// Pods alone go gracefully: their node ends them.
    fn grace(&self, kind: &Kind, pod: &Value, asked: Option<i64>) -> Grace {
        if kind.kind != "Pod" {
            return Grace::None;
        }
        if let Some(since) = pod["metadata"]["deletionTimestamp"].as_str() {
            let now = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
            if now == 0 {
                return Grace::None;
            }
            // Only a shorter time may be asked for.
            return match asked {
                Some(shorter) if shorter < now => Grace::In(shorter, moved(since, shorter - now)),
                _ => Grace::Pending,
            };
        }
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let runs = pod["spec"].get("nodeName").is_some() && !["Failed", "Succeeded"].contains(&phase);
        let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
        let seconds = if runs { asked.or(own).unwrap_or(0) } else { 0 };
        let seconds = if seconds < 0 { 1 } else { seconds };
        let pause = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Grace::In(seconds, self.clock.stamp_after(pause))
    }
}

fn moved(stamp: &str, seconds: i64) -> String {
    let time = stamp.parse::<Timestamp>().ok();
    let time = time.and_then(|t| t.checked_add(SignedDuration::from_secs(seconds)).ok());
    time.map_or_else(|| stamp.to_string(), clock::stamp)
}

fn count(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        set_meta(object, "generation", json!(generation + 1));
    }
}

fn check(kind: &Kind, object: &Value, preconditions: &Preconditions) -> Result<(), Refusal> {
    let name = meta(object, "name");
    if let Some(uid) = &preconditions.uid
        && uid != meta(object, "uid")
    {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            meta(object, "uid")
        );
        return Err(Refusal::precondition(kind, name, &why));
    }
    if let Some(version) = &preconditions.resource_version
        && version != meta(object, "resourceVersion")
    {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            meta(object, "resourceVersion")
        );
        return Err(Refusal::precondition(kind, name, &why));
    }
    Ok(())
}

/// The finalizers that the object shall have, given how its dependents are to be treated.
fn propagation(kind: &Kind, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let mut all = finalizers(object);
    if !kind.collected {
        // Nothing waits for the dependents of these.
        all.retain(|f| f != ORPHAN && f != FOREGROUND);
        return all;
    }
    let has = |which: &str| all.iter().any(|f| f == which);
    let policy = options.propagation_policy.as_deref();
    let (orphan, foreground) = match (options.orphan_dependents, policy) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(policy)) => (policy == "Orphan", policy == "Foreground"),
        (None, None) if has(ORPHAN) => (true, false),
        (None, None) if has(FOREGROUND) => (false, true),
        (None, None) => (kind.orphans_by_default, false),
    };
    all.retain(|f| f != ORPHAN && f != FOREGROUND);
    if orphan {
        all.push(ORPHAN.into());
    }
    if foreground {
        all.push(FOREGROUND.into());
    }
    // The order counts for a change only when there is one.
    let before = finalizers(object);
    let same = all.len() == before.len() && before.iter().all(|f| all.contains(f));
    if same { before } else { all }
}
