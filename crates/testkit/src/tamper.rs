//! Programming faults that a client did not make, made for it: its requests are changed on their way, as though its source had
//! the fault. A sweep that does not notice them is blind. Pure, but for the requests that it holds back.

use crate::{faults::On, server::Incoming};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

/// A fault in the client's source, as its requests show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// Deletes without preconditions, writes without resourceVersion and uid: whoever wrote first is overwritten, and whoever
    /// bears the name now is deleted.
    WithoutPreconditions(On),
    /// Objects are made without owner references: nobody collects them.
    WithoutOwner(On),
    /// Objects are made without finalizers: nobody is asked before they go.
    WithoutFinalizers(On),
    /// Objects are created under another name each time, though a name is derived: a second attempt is a second object.
    OwnNames(On),
    /// `first` is done only when `second` has been: two writes in the wrong order.
    Swapped {
        /// What should come first.
        first: On,
        /// What comes first now.
        second: On,
    },
    /// Never done at all, though the client goes on as if: a branch that only the moment of a change takes, missed by a life
    /// that began after it.
    Skipped(On),
}

/// What becomes of a request.
pub(crate) enum Fate {
    /// It is done, perhaps changed.
    Done(Incoming),
    /// It is answered as if it had been done.
    Pretended(Incoming),
    /// It is answered as if it had been done, and done later.
    Later(Incoming),
}

impl Tamper {
    /// What becomes of a request that changes something; `counted` as rules see it.
    pub(crate) fn on(&self, mut incoming: Incoming, resource: &str, counted: bool) -> Fate {
        let hit = |on: &On| counted && on.matches(&incoming, resource, counted);
        match self {
            Self::WithoutPreconditions(on) if hit(on) => {
                change(&mut incoming, |body| {
                    if let Some(fields) = body.as_object_mut() {
                        fields.remove("preconditions");
                    }
                    if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
                        meta.remove("resourceVersion");
                        meta.remove("uid");
                    }
                    if let Some(steps) = body.as_array_mut() {
                        steps.retain(|step| step["op"] != "test");
                    }
                });
                Fate::Done(incoming)
            }
            Self::WithoutOwner(on) if hit(on) => {
                drop_meta(&mut incoming, "ownerReferences");
                Fate::Done(incoming)
            }
            Self::WithoutFinalizers(on) if hit(on) => {
                drop_meta(&mut incoming, "finalizers");
                Fate::Done(incoming)
            }
            Self::OwnNames(on) if hit(on) && incoming.method == Method::POST => {
                change(&mut incoming, |body| {
                    if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut)
                        && let Some(name) = meta.remove("name")
                    {
                        let prefix = format!("{}-", name.as_str().unwrap_or_default());
                        meta.insert("generateName".into(), prefix.into());
                    }
                });
                Fate::Done(incoming)
            }
            Self::Swapped { first, .. } if hit(first) => Fate::Later(incoming),
            Self::Skipped(on) if hit(on) => Fate::Pretended(incoming),
            _ => Fate::Done(incoming),
        }
    }

    /// Whether requests that were held back are due after this one.
    pub(crate) fn releases(&self, incoming: &Incoming, resource: &str, counted: bool) -> bool {
        matches!(self, Self::Swapped { second, .. } if counted && second.matches(incoming, resource, counted))
    }
}

fn drop_meta(incoming: &mut Incoming, field: &str) {
    change(incoming, |body| {
        if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove(field);
        }
    });
}

fn change(incoming: &mut Incoming, act: impl FnOnce(&mut Value)) {
    let Ok(mut body) = serde_json::from_slice::<Value>(&incoming.body) else { return };
    act(&mut body);
    incoming.body = Bytes::from(body.to_string());
}

/// The same request, of which nothing comes.
pub(crate) fn dry(incoming: &Incoming) -> Incoming {
    let mut dry = incoming.clone();
    dry.query.insert("dryRun".into(), "All".into());
    dry
}
