//! The garbage collector, the namespace controller and the protection of claims in use, one explicit step at a time.

use crate::{
    log::{Verb, Write},
    rest::{DeleteOptions, FOREGROUND, Form, ORPHAN, Options, PROTECTION, State, Written, finalizers, meta},
    server::Server,
    status::Refusal,
    store::Key,
};
use serde_json::{Value, json};
use std::sync::Arc;

const WHO: &str = "system:serviceaccount:kube-system:generic-garbage-collector";
const CLAIMS: &str = "system:serviceaccount:kube-system:pvc-protection-controller";
const NAMESPACES: &str = "system:serviceaccount:kube-system:namespace-controller";

/// What the collector makes of an owner reference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It is there.
    Solid,
    /// It is not, or another one bears its name.
    Gone,
    /// It waits for its dependents to go.
    Waiting,
}

impl Server {
    /// One look at each object, as the garbage collector, the namespace controller and the protection of claims in use
    /// take it; returns how many writes that made. Zero: there is nothing to collect.
    pub fn collect(&self) -> usize {
        let written = {
            let mut state = self.shared.state();
            let keys = state.store.keys();
            keys.into_iter().map(|key| state.look(&key)).sum::<usize>()
                + state.release_claims()
                + state.end_namespaces()
        };
        if written > 0 {
            self.shared.wake();
        }
        written
    }

    /// Collects until there is nothing to collect; returns how many writes that made.
    pub fn collect_all(&self) -> usize {
        let mut all = 0;
        loop {
            let written = self.collect();
            if written == 0 {
                return all;
            }
            all += written;
        }
    }
}

impl State {
    fn look(&mut self, key: &Key) -> usize {
        // Gone by an earlier look of this step.
        let Some(object) = self.store.get(key).cloned() else { return 0 };
        // Events have owners in name only: the collector does not look at them.
        if !self.kinds[key.kind].collected {
            return 0;
        }
        let going = object["metadata"].get("deletionTimestamp").is_some();
        let has = |which: &str| finalizers(&object).iter().any(|f| f == which);
        if going && has(ORPHAN) {
            return self.orphan(key, &object);
        }
        if going && has(FOREGROUND) {
            return self.end_foreground(key, &object);
        }
        if going {
            return 0;
        }
        self.judge(key, &object)
    }

    /// Takes the owner off its dependents, then lets it go.
    fn orphan(&mut self, key: &Key, owner: &Arc<Value>) -> usize {
        let uid = meta(owner, "uid").to_string();
        let mut written = 0;
        for (dependent, object) in self.dependents(&uid) {
            written += self.disown(&dependent, &object, &[&uid]);
        }
        written + self.unfinalize(key, owner, ORPHAN)
    }

    /// Lets an owner go when nothing blocks it any more. What blocks it is judged in its own right.
    fn end_foreground(&mut self, key: &Key, owner: &Arc<Value>) -> usize {
        let uid = meta(owner, "uid").to_string();
        let blocks = |(_, dependent): &(Key, Arc<Value>)| {
            references(dependent).any(|r| r["uid"] == uid.as_str() && r["blockOwnerDeletion"] == true)
        };
        if self.dependents(&uid).iter().any(blocks) { 0 } else { self.unfinalize(key, owner, FOREGROUND) }
    }

    /// Deletes an object whose owners are gone; takes owners that are gone off an object that has others.
    fn judge(&mut self, key: &Key, object: &Arc<Value>) -> usize {
        let owners: Vec<(String, Owner)> = references(object)
            .map(|r| (r["uid"].as_str().unwrap_or_default().to_string(), self.owner(key, r)))
            .collect();
        if owners.is_empty() {
            return 0;
        }
        let of = |which: Owner| owners.iter().filter(move |(_, o)| *o == which);
        if of(Owner::Solid).count() > 0 {
            let not: Vec<&str> =
                owners.iter().filter(|(_, o)| *o != Owner::Solid).map(|(uid, _)| uid.as_str()).collect();
            return if not.is_empty() { 0 } else { self.disown(key, object, &not) };
        }
        let own = !self.dependents(meta(object, "uid")).is_empty();
        let has = |which: &str| finalizers(object).iter().any(|f| f == which);
        let policy = if (of(Owner::Waiting).count() > 0 && own) || has(FOREGROUND) {
            "Foreground"
        } else if has(ORPHAN) {
            "Orphan"
        } else {
            "Background"
        };
        let mut options =
            DeleteOptions { propagation_policy: Some(policy.into()), ..DeleteOptions::default() };
        options.preconditions.uid = Some(meta(object, "uid").into());
        options.preconditions.resource_version = Some(meta(object, "resourceVersion").into());
        self.logged(WHO, Verb::Delete, key, |state| {
            state.delete(key.kind, &key.namespace, &key.name, &options)
        })
    }

    fn owner(&self, key: &Key, reference: &Value) -> Owner {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        // A kind that is not served cannot be looked up: the collector keeps its hands off.
        let Some(index) = self.find(text("apiVersion"), text("kind")) else { return Owner::Solid };
        let namespaced = self.kinds[index].namespaced;
        if namespaced && key.namespace.is_empty() {
            return Owner::Solid;
        }
        let namespace = if namespaced { key.namespace.clone() } else { String::new() };
        let place = Key { kind: self.home(index), namespace, name: text("name").into() };
        match self.store.get(&place) {
            Some(owner) if meta(owner, "uid") == text("uid") => {
                let going = owner["metadata"].get("deletionTimestamp").is_some();
                if going && finalizers(owner).iter().any(|f| f == FOREGROUND) {
                    Owner::Waiting
                } else {
                    Owner::Solid
                }
            }
            _ => Owner::Gone,
        }
    }

    fn dependents(&self, uid: &str) -> Vec<(Key, Arc<Value>)> {
        let keys = self.store.keys().into_iter();
        keys.filter(|key| self.kinds[key.kind].collected)
            .filter_map(|key| {
                let object = self.store.get(&key)?;
                references(object).any(|r| r["uid"] == uid).then(|| (key.clone(), Arc::clone(object)))
            })
            .collect()
    }

    fn disown(&mut self, key: &Key, object: &Arc<Value>, uids: &[&str]) -> usize {
        let others: Vec<Value> = references(object)
            .filter(|r| !uids.contains(&r["uid"].as_str().unwrap_or_default()))
            .cloned()
            .collect();
        self.merge(WHO, key, object, json!({ "ownerReferences": others }))
    }

    fn unfinalize(&mut self, key: &Key, object: &Arc<Value>, which: &str) -> usize {
        let others: Vec<String> = finalizers(object).into_iter().filter(|f| f != which).collect();
        self.merge(WHO, key, object, json!({ "finalizers": others }))
    }

    fn merge(&mut self, who: &str, key: &Key, object: &Value, mut metadata: Value) -> usize {
        metadata["uid"] = meta(object, "uid").into();
        metadata["resourceVersion"] = meta(object, "resourceVersion").into();
        let patch = json!({ "metadata": metadata });
        let options = Options { manager: "kube-controller-manager".into(), ..Options::default() };
        self.logged(who, Verb::Patch, key, |state| {
            state.patch(key.kind, &key.namespace, &key.name, Form::Merge, patch, &options)
        })
    }

    /// Lets claims go that are deleted and that no scheduled pod names. A pod that has ended still names its claims.
    fn release_claims(&mut self) -> usize {
        let (Some(claims), Some(pods)) = (self.find("v1", "PersistentVolumeClaim"), self.find("v1", "Pod"))
        else {
            return 0;
        };
        let pods = self.store.all(pods);
        let mut written = 0;
        for ((namespace, name), claim) in self.store.all(claims) {
            let held = finalizers(&claim).iter().any(|f| f == PROTECTION);
            let used = pods.iter().any(|((there, _), pod)| {
                *there == namespace && pod["spec"].get("nodeName").is_some() && names(pod, &name)
            });
            let going = claim["metadata"].get("deletionTimestamp").is_some();
            if !going && !held {
                // Somebody took it off.
                let mut all = finalizers(&claim);
                all.push(PROTECTION.into());
                let key = Key { kind: claims, namespace, name };
                written += self.merge(CLAIMS, &key, &claim, json!({ "finalizers": all }));
                continue;
            }
            if going && held && !used {
                let others: Vec<String> =
                    finalizers(&claim).into_iter().filter(|f| f != PROTECTION).collect();
                let key = Key { kind: claims, namespace, name };
                written += self.merge(CLAIMS, &key, &claim, json!({ "finalizers": others }));
            }
        }
        written
    }

    /// Empties namespaces that are being deleted, and removes those that are empty.
    fn end_namespaces(&mut self) -> usize {
        let mut written = 0;
        for ((_, namespace), object) in self.store.all(0) {
            if object["metadata"].get("deletionTimestamp").is_none() {
                continue;
            }
            let inside: Vec<Key> =
                self.store.keys().into_iter().filter(|k| k.namespace == namespace).collect();
            if inside.is_empty() {
                let key = Key { kind: 0, namespace: String::new(), name: namespace.clone() };
                written += self.logged(NAMESPACES, Verb::Update, &key, |state| {
                    state.store.remove(key.clone());
                    Ok(Written { object, code: 200 })
                });
                continue;
            }
            for key in inside {
                let there = self.store.get(&key).cloned();
                if there.is_none_or(|o| o["metadata"].get("deletionTimestamp").is_some()) {
                    continue;
                }
                let options = DeleteOptions {
                    propagation_policy: Some("Background".into()),
                    ..DeleteOptions::default()
                };
                written += self.logged(NAMESPACES, Verb::Delete, &key, |state| {
                    state.delete(key.kind, &key.namespace, &key.name, &options)
                });
            }
        }
        written
    }

    /// Carries out a write of a controller and logs it. Returns how many writes that was: one.
    fn logged(
        &mut self,
        who: &str,
        verb: Verb,
        key: &Key,
        write: impl FnOnce(&mut Self) -> Result<Written, Refusal>,
    ) -> usize {
        let before = self.store.revision;
        let code = match write(self) {
            Ok(written) => written.code,
            Err(refusal) => refusal.code,
        };
        let kind = &self.kinds[key.kind];
        self.log.push(Write {
            verb,
            resource: kind.qualified(),
            kind: kind.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            subresource: String::new(),
            who: who.into(),
            code,
            changed: self.store.revision != before,
            revision: self.store.revision,
        });
        1
    }
}

fn references(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

/// Whether a pod mounts a claim.
fn names(pod: &Value, claim: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array();
    volumes.into_iter().flatten().any(|v| v["persistentVolumeClaim"]["claimName"] == claim)
}
